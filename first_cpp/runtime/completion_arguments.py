"""The arguments of a completion, checked before anything is computed: llama_cpp stumbles over wrong ones."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from ..errors import SettingError

MOST_BIAS = 1e30
"""A logit plus more than this may be infinite, and two such tokens cannot be told apart."""


def check_completion(given: Mapping[str, Any], n_vocab: int) -> None:
    """Raise SettingError for an argument of `create_completion` of another type than it has, with its name and value.

    >>> check_completion({"stop": 5}, n_vocab=320)
    Traceback (most recent call last):
    first_cpp.errors.SettingError: stop=5 is not a text, or a list of texts
    """
    for name, (fine, allowed) in _ALLOWED.items():
        value = given.get(name)
        if value is not None and not fine(value):
            shown = repr(value)
            shown = shown if len(shown) <= 100 else shown[:100] + "..."
            raise SettingError(f"{name}={shown} is not {allowed}")
    if given.get("prompt", "") is None:
        raise SettingError("prompt=None is not a text, or a list of tokens")
    if given.get("echo") and not given.get("stream") and not isinstance(given["prompt"], str):
        raise SettingError("echo=True needs the prompt as a text, not as tokens; Llama.detokenize() gives the text of tokens")
    for token, bias in (given.get("logit_bias") or {}).items():
        if not _is_number(token) or not 0 <= int(token) < n_vocab:
            raise SettingError(f"logit_bias: {token!r:.100} is not a token of this model: 0 to {n_vocab - 1}")
        if not isinstance(bias, numbers.Real):
            raise SettingError(f"logit_bias: {bias!r:.100} is not a number")
        if not bias < MOST_BIAS:  # -inf forbids a token
            raise SettingError(f"logit_bias: {bias!r:.100} for token {token}: a number below {MOST_BIAS:g} is needed")


def put_plainly(given: dict[str, Any]) -> None:
    """Change arguments that were checked into the types that llama_cpp goes by.

    It takes nothing but a list for a list of stops or tokens, and with `logit_bias` forgets it and the processors alike.
    """
    if not isinstance(given["prompt"], str):
        given["prompt"] = [int(token) for token in given["prompt"]]
    given["stop"] = as_stops(given["stop"])
    if given["logit_bias"] and given["logits_processor"] is not None:
        processors = [*given["logits_processor"], _biased(given["logit_bias"])]
        given["logits_processor"], given["logit_bias"] = llama_cpp.LogitsProcessorList(processors), None


def as_stops(stop: Any) -> list[str]:
    """The stops as a list.

    >>> as_stops(("a", "b")), as_stops("a"), as_stops(None)
    (['a', 'b'], ['a'], [])
    """
    return [stop] if isinstance(stop, str) else [] if stop is None else list(stop)


def _biased(biases: Mapping[Any, Any]) -> Callable[..., Any]:
    """A logits processor that adds a bias to the logits of some tokens."""
    tokens = [int(token) for token in biases]
    added = np.array([float(bias) for bias in biases.values()], np.single)

    def process(_: object, logits: npt.NDArray[np.single]) -> npt.NDArray[np.single]:
        found = np.copy(logits)
        found[tokens] += added
        return found

    return process


def _is_number(value: object) -> bool:
    """A whole number, or one in digits as JSON's keys are."""
    return isinstance(value, numbers.Integral) or (isinstance(value, str) and value.isascii() and value.isdigit())


def _is_text_or_tokens(value: object) -> bool:
    return isinstance(value, str) or _all_are(value, numbers.Integral)


def _is_text_or_texts(value: object) -> bool:
    return isinstance(value, str) or _all_are(value, str)


def _all_are(value: Any, kind: type[Any]) -> bool:
    """Whether it is a list, an array or the like of such elements: a look at each type, not at each of thousands."""
    return _is_list(value) and all(issubclass(one, kind) for one in set(map(type, value)))


def _is_list(value: object) -> bool:
    return hasattr(value, "__len__") and hasattr(value, "__iter__") and not isinstance(value, (str, bytes, Mapping))


def _are_callable(value: object) -> bool:
    return isinstance(value, Sequence) and all(callable(one) for one in value)


_ALLOWED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "prompt": (_is_text_or_tokens, "a text, or a list of tokens"),
    "suffix": (lambda value: isinstance(value, str), "a text"),
    "max_tokens": (lambda value: isinstance(value, numbers.Real), "a number of tokens"),
    "seed": (lambda value: isinstance(value, numbers.Integral), "a number"),
    "stop": (_is_text_or_texts, "a text, or a list of texts"),
    "logit_bias": (lambda value: isinstance(value, Mapping), "a bias by token"),
    "grammar": (
        lambda value: isinstance(value, llama_cpp.LlamaGrammar),
        "a LlamaGrammar; LlamaGrammar.from_string(text) makes one",
    ),
    "logits_processor": (_are_callable, "a list of functions; LogitsProcessorList([function]) is one"),
    "stopping_criteria": (callable, "a function; StoppingCriteriaList([function]) is one"),
    "logprobs": (lambda value: isinstance(value, numbers.Integral), "a number of tokens"),
}


def check_tools(tools: object) -> None:
    """Raise SettingError for tools of another shape than a list of objects."""
    if tools is None:
        return
    if not isinstance(tools, Sequence) or isinstance(tools, (str, bytes)) or not all(isinstance(one, Mapping) for one in tools):
        raise SettingError(
            f"tools={tools!r:.100} is not a list of objects; one tool is " + '{"type": "function", "function": {...}}'
        )
