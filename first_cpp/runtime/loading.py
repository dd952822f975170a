"""Loading a model: signals are heard while llama.cpp reads, and a chat template that cannot be compiled is no obstacle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jinja2
import llama_cpp
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from ..gguf.deferred_signals import DeferredSignals

TEMPLATE = "tokenizer.chat_template"


class Loading(DeferredSignals):
    """While it is entered, SIGINT and SIGTERM stop llama.cpp's loading; their handlers run when it has stopped.

    on_progress: is called with the share that is loaded, 0 to 1.
    """

    def __init__(self, on_progress: Callable[[float], None] | None = None) -> None:
        super().__init__()
        self._on_progress = on_progress
        self.callback = llama_cpp.llama_progress_callback(self._progress)  # llama.cpp holds on to it

    def _progress(self, share: float, _: Any) -> bool:
        if self._on_progress is not None:
            self._on_progress(share)
        return not self.arrived


def without_broken_templates(metadata: dict[str, str]) -> dict[str, str]:
    """The metadata of a model, with chat templates that cannot be compiled replaced by ones that say so when they are used.

    >>> found = without_broken_templates({"tokenizer.chat_template": "{% if %}"})
    >>> "cannot be compiled" in found["tokenizer.chat_template"]
    True
    """
    return {key: _usable(text) if key.startswith(TEMPLATE) else text for key, text in metadata.items()}


def _usable(template: str) -> str:
    try:
        Jinja2ChatFormatter(template=template, eos_token="", bos_token="")
    except (jinja2.TemplateError, RecursionError, SyntaxError) as error:
        why = f"the chat template of this model cannot be compiled ({error}); choose a chat format, or continue plain text"
        return f"{{{{ raise_exception({why!r}) }}}}"
    return template
