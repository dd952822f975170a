"""first_cpp: `llama_cpp.Llama` whose prompts choose the layers that their answers can do without."""

# llama_cpp first: it loads libllama and libggml, and the extension then uses those, not a second copy.
import llama_cpp  # noqa: F401

from ._version import __version__, check_versions

check_versions()

from .aio import AsyncLlama  # noqa: E402
from .errors import (  # noqa: E402
    AnswerCancelled,
    BusyError,
    ClosedError,
    ContextFull,
    FirstCppError,
    ForkedError,
    GrammarError,
    LogitsError,
    MissingFileError,
    ModelFileError,
    OffloadError,
    OptionError,
    RouterError,
    RoutingError,
    SettingError,
    SkipError,
    StateError,
)
from .gguf.router_format import load_routers  # noqa: E402
from .gguf.routers import Routers  # noqa: E402
from .llama import Llama  # noqa: E402
from .runtime.answer import Timing  # noqa: E402
from .runtime.fidelity import ComparedToken, Fidelity  # noqa: E402
from .runtime.routing import Routing  # noqa: E402
from .runtime.state import LlamaState  # noqa: E402
from .runtime.structured import remember_schemas  # noqa: E402

remember_schemas()

__all__ = [
    "AnswerCancelled",
    "AsyncLlama",
    "BusyError",
    "ClosedError",
    "ComparedToken",
    "ContextFull",
    "Fidelity",
    "FirstCppError",
    "ForkedError",
    "GrammarError",
    "Llama",
    "LlamaState",
    "LogitsError",
    "MissingFileError",
    "ModelFileError",
    "OffloadError",
    "OptionError",
    "RouterError",
    "Routers",
    "Routing",
    "RoutingError",
    "SettingError",
    "SkipError",
    "StateError",
    "Timing",
    "__version__",
    "load_routers",
]
