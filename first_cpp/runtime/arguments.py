"""The arguments of `Llama`, checked before anything is loaded: llama.cpp ends the process for some of them."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import math
import numbers
import operator
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import llama_cpp

from ..errors import OffloadError, SettingError
from ..gguf.model_file import normal_path
from ..gguf.routers import Routers
from ..skip import Skip, parse_skip
from .machine import physical_cores, usable_cpus

MOST_THREADS = 512  # llama.cpp's own bound; it ends the process beyond
_SIZES = {  # the least and the most that llama.cpp survives; n_ctx=0 is the model's, n_ubatch=0 is n_batch
    "n_ctx": (0, 2**31 - 1),
    "n_batch": (1, 2**31 - 1),
    "n_ubatch": (0, 2**31 - 1),
    "n_threads": (0, MOST_THREADS),
    "n_threads_batch": (0, MOST_THREADS),
}
_CACHE_TYPES = {0: "f32", 1: "f16", 2: "q4_0", 3: "q4_1", 6: "q5_0", 7: "q5_1", 8: "q8_0", 20: "iq4_nl", 30: "bf16"}
"""ggml.h's numbers of the types that llama.cpp's --cache-type-k has; others end the process."""
_UNQUANTISED = (0, 1, 30)
_BLOCK = 32
"""Numbers that are quantised together, in all of the others."""
_CHOICES = {"pooling_type": (-1, 4), "attention_type": (-1, 1), "rope_scaling_type": (-1, 3)}
"""llama.h's enumerations, the first and the last of each; -1 is the model's own."""
_BASE_INIT = inspect.signature(llama_cpp.Llama.__init__)


@dataclass(frozen=True)
class Arguments:
    """What `Llama` takes beyond the base class's arguments. Raises SettingError or SkipError for values that are not allowed.

    >>> Arguments(skip=0.25, kv="keep").skip
    0.25
    >>> Arguments(kv="keep", release_kv=True)
    Traceback (most recent call last):
    first_cpp.errors.SettingError: release_kv=True gives back the KV that kv="keep" goes on writing; choose one
    """

    skip: Any = "auto"
    routers: Any = None
    release_kv: bool = False
    prefill: str = "full"
    route_tokens: int | None = None
    kv: str = "drop"
    strict: bool = False
    measure: str | None = "choice"
    fidelity: float | None = None
    fidelity_state: str | os.PathLike[str] | None = None
    cache_bytes: int = 0
    tolerance: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "tolerance", check_tolerance(self.tolerance))
        check_prefill(self.prefill, self.route_tokens)
        check_kv(self.kv, self.release_kv)
        if self.measure not in (None, "choice", "kl"):
            raise SettingError(f'measure={self.measure!r} is not "choice", "kl" or None')
        if isinstance(self.cache_bytes, bool) or not isinstance(self.cache_bytes, int) or self.cache_bytes < 0:
            raise SettingError(f"cache_bytes={self.cache_bytes!r} is not a number of bytes; 0 keeps no other conversation")
        check_fidelity(self.fidelity, self.fidelity_state, self.skip, self.measure)
        if self.fidelity is not None and self.tolerance is not None:
            raise SettingError(
                f"fidelity={self.fidelity!r} moves the tolerance; tolerance={self.tolerance:g} holds it: give one"
            )
        object.__setattr__(self, "skip", parse_skip(self.skip))
        if self.routers is not None and not isinstance(self.routers, Routers):
            object.__setattr__(self, "routers", normal_path(self.routers))

    @property
    def routers_path(self) -> str | None:
        """The file that routers are to be taken from, if one was named."""
        return self.routers if isinstance(self.routers, str) else None

    def state(self, skip: Skip, tolerance: float | None) -> dict[str, Any]:
        """These arguments again, with the settings of now, for pickling."""
        return {**self.__dict__, "skip": list(skip) if isinstance(skip, tuple) else skip, "tolerance": tolerance}


def check_base_arguments(given: Mapping[str, Any]) -> None:
    """Raise TypeError for a keyword that the base class does not know and would ignore, and as `check_sizes` does."""
    known = [name for name, p in _BASE_INIT.parameters.items() if p.kind is p.KEYWORD_ONLY]
    known += ["model_path", *Arguments.__dataclass_fields__]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"Llama() got an unexpected keyword argument {name!r}{hint}")
    check_sizes(given)
    check_cache_types(given)


def check_cache_types(given: Mapping[str, Any]) -> None:
    """Raise SettingError for types of the KV cache that llama.cpp does not survive, or has no attention for.

    >>> check_cache_types({"type_v": 8})
    Traceback (most recent call last):
    first_cpp.errors.SettingError: type_v=8 (q8_0) needs flash_attn=True
    """
    for name in ("type_k", "type_v"):
        value = given.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not hasattr(value, "__index__") or operator.index(value) not in _CACHE_TYPES:
            types = ", ".join(f"{number} ({called})" for number, called in _CACHE_TYPES.items())
            raise SettingError(f"{name}={value!r:.100} is no type of a KV cache: {types}")
        if name == "type_v" and operator.index(value) not in _UNQUANTISED and not given.get("flash_attn"):
            raise SettingError(f"type_v={value} ({_CACHE_TYPES[operator.index(value)]}) needs flash_attn=True")


def check_cache_heads(given: Mapping[str, Any], head_sizes: tuple[int, int]) -> None:
    """Raise SettingError for types of the KV cache whose blocks do not fit into heads of keys and values of these sizes.

    >>> check_cache_heads({"type_k": 8}, (80, 80))
    Traceback (most recent call last):
    first_cpp.errors.SettingError: type_k=8 (q8_0) needs heads of a multiple of 32; this model has 80: f32, f16 or bf16
    """
    for name, size in zip(("type_k", "type_v"), head_sizes, strict=True):
        value = given.get(name)
        if value is not None and value not in _UNQUANTISED and size % _BLOCK:
            needs = f"{name}={value} ({_CACHE_TYPES[value]}) needs heads of a multiple of {_BLOCK}"
            raise SettingError(f"{needs}; this model has {size}: f32, f16 or bf16")


def check_sizes(given: Mapping[str, Any]) -> None:
    """Raise SettingError for sizes, thread counts and choices that are no whole numbers, or that llama.cpp does not survive."""
    for name, (least, most) in {**_SIZES, **_CHOICES}.items():
        value = given.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not hasattr(value, "__index__") or not least <= operator.index(value) <= most:
            raise SettingError(f"{name}={value!r} is not a whole number from {least} to {most}")


def with_default_threads(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with thread counts where none are given: what this process may use, where stock takes what the machine has.

    Decoding takes physical cores: two threads of one core share its memory. A batch takes all processors.
    """
    defaults = {"n_threads": physical_cores, "n_threads_batch": usable_cpus}
    return {**given, **{name: given.get(name) or count() for name, count in defaults.items()}}


def check_messages(messages: object) -> None:
    """Raise SettingError for messages of another shape than a list of objects with a role.

    >>> check_messages("Hello")
    Traceback (most recent call last):
    first_cpp.errors.SettingError: messages='Hello' is not a list; one message is [{"role": "user", "content": "..."}]
    """
    shape = 'one message is [{"role": "user", "content": "..."}]'
    if not isinstance(messages, Sequence) or isinstance(messages, (str, bytes)):
        raise SettingError(f"messages={_short(messages)} is not a list; {shape}")
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise SettingError(f"message {number} is {_short(message)}, not an object; {shape}")
        if not isinstance(message.get("role"), str):
            raise SettingError(f"message {number} has the role {_short(message.get('role'))}, which is not a text; {shape}")
        if "content" not in message and message["role"] != "assistant":
            raise SettingError(f"message {number} ({_short(message['role'])}) has no content; {shape}")
        content = message.get("content")
        if not isinstance(content, (str, list, type(None))):
            raise SettingError(f"message {number} has content of type {type(content).__name__}; {shape}")
        for part in content if isinstance(content, list) else ():
            if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
                raise SettingError(f"message {number} has the content part {_short(part)}, which is no object with a type")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:100] + "..."


def check_prefill(prefill: object, route_tokens: object) -> None:
    """Raise SettingError for an invalid ``prefill`` or ``route_tokens``."""
    if prefill not in ("full", "routed"):
        raise SettingError(f'prefill={prefill!r} is not "full" or "routed"')
    if route_tokens is None:
        return
    if isinstance(route_tokens, bool) or not isinstance(route_tokens, int) or route_tokens < 1:
        raise SettingError(f"route_tokens={route_tokens!r}: a number of prompt tokens, 1 or more")
    if prefill != "routed":
        raise SettingError(f'route_tokens={route_tokens} needs prefill="routed"; with "full" the whole prompt decides')


def check_kv(kv: object, release_kv: bool) -> None:
    """Raise SettingError for an invalid ``kv``, or one that contradicts ``release_kv``."""
    if kv not in ("drop", "keep"):
        raise SettingError(f'kv={kv!r} is not "drop" or "keep"')
    if kv == "keep" and release_kv:
        raise SettingError('release_kv=True gives back the KV that kv="keep" goes on writing; choose one')


def check_fidelity(fidelity: object, state: object, skip: object, measure: str | None) -> None:
    """Raise SettingError for a fidelity to hold that other arguments contradict."""
    if fidelity is None:
        if state is not None:
            raise SettingError(f"fidelity_state={state!r} keeps the dial of a fidelity that is held; give fidelity= too")
        return
    if not isinstance(skip, str) or skip != "auto":
        raise SettingError(f'fidelity={fidelity!r} chooses how much is skipped; with it skip="auto", not {skip!r}')
    if measure is None:
        raise SettingError(f"fidelity={fidelity!r} is held by measuring; measure=None turns that off")


_CALLED = {"temp": "temperature"}


def check_sampling(given: Mapping[str, Any]) -> None:
    """Raise SettingError for sampling settings that leave no token a logit: a NaN, or a penalty of 0 to divide by.

    >>> check_sampling({"repeat_penalty": 0})
    Traceback (most recent call last):
    first_cpp.errors.SettingError: repeat_penalty=0 is divided by; above 0 is allowed, 1 changes nothing
    """
    for name, value in given.items():
        if name not in ("grammar", "logits_processor") and not isinstance(value, (bool, numbers.Real)):
            raise SettingError(f"{_CALLED.get(name, name)}={_short(value)} is not a number")
        if isinstance(value, float) and math.isnan(value):
            raise SettingError(f"{_CALLED.get(name, name)}=nan is not a number to sample with")
    if given.get("repeat_penalty", 1.0) == 0:
        raise SettingError("repeat_penalty=0 is divided by; above 0 is allowed, 1 changes nothing")


def check_tolerance(value: object) -> float | None:
    """A tolerance: a finite number of at least 0, or None. Raises SettingError.

    >>> check_tolerance(0.05)
    0.05
    """
    if value is None:
        return None
    number = math.nan
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            number = float(value)
    if not 0 <= number < math.inf:
        raise SettingError(f"tolerance={value!r} is not a predicted cost in nats per token: a finite number of at least 0")
    return number


def wants_gpu(own: Arguments, routers: Routers | None, given: Mapping[str, Any]) -> bool:
    """Whether layers go to a GPU. Raises OffloadError where layers are to be skipped, too."""
    n_gpu_layers = given.get("n_gpu_layers", 0)
    offload = n_gpu_layers != 0 and bool(llama_cpp.llama_supports_gpu_offload())
    if offload and own.skip is not None and not (own.skip == "auto" and routers is None):
        raise OffloadError(
            f"n_gpu_layers={n_gpu_layers} with skip={own.skip!r}: layers can be skipped on the CPU only; "
            "use n_gpu_layers=0, or skip=None"
        )
    return offload


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
