"""The arguments of `Llama`, checked before anything is loaded: llama.cpp ends the process for some of them."""

from __future__ import annotations

import difflib
import inspect
import operator
from typing import Any

import llama_cpp

from ..errors import OptionError

MOST_THREADS = 512  # llama.cpp's own bound; it ends the process beyond
_SIZES = {  # the least and the most that llama.cpp survives; n_ctx=0 is the model's, n_ubatch=0 is n_batch
    "n_ctx": (0, 2**31 - 1),
    "n_batch": (1, 2**31 - 1),
    "n_ubatch": (0, 2**31 - 1),
    "n_threads": (0, MOST_THREADS),
    "n_threads_batch": (0, MOST_THREADS),
}
_BASE_INIT = inspect.signature(llama_cpp.Llama.__init__)


def check_keywords(given: dict[str, Any]) -> None:
    """Raise TypeError for a keyword that neither class knows; the base class would swallow it."""
    known = [name for name, p in _BASE_INIT.parameters.items() if p.kind is p.KEYWORD_ONLY]
    known += ["model_path", "skip", "routers", "release_kv", "prefill", "route_tokens", "kv", "strict"]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"Llama() got an unexpected keyword argument {name!r}{hint}")


def check_sizes(given: dict[str, Any]) -> None:
    """Raise OptionError for sizes and thread counts that are no whole numbers, or that llama.cpp does not survive."""
    for name, (least, most) in _SIZES.items():
        value = given.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not hasattr(value, "__index__") or not least <= operator.index(value) <= most:
            raise OptionError(f"{name}={value!r} is not a whole number from {least} to {most}")


def why_no_context(model: Any, asked: Any) -> str:
    """What to say where llama.cpp could not create a context: most often its KV cache does not fit into memory."""
    heads = llama_cpp.llama_model_n_embd(model) // max(1, llama_cpp.llama_model_n_head(model))
    values = 2 * llama_cpp.llama_model_n_layer(model) * llama_cpp.llama_model_n_head_kv(model) * heads
    n_ctx = asked.n_ctx or llama_cpp.llama_model_n_ctx_train(model)
    return (
        f"llama.cpp could not create a context of n_ctx={n_ctx}, n_batch={asked.n_batch}, n_ubatch={asked.n_ubatch}: its KV "
        f"cache takes about {values * n_ctx * 2 / 2**30:.3g} GiB in float16; try a smaller n_ctx, or verbose=True for "
        "llama.cpp's own words"
    )
