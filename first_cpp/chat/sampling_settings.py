"""`/set`: the sampling settings of a chat, by the names and within the bounds of the command line."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable
from typing import Any

from ..cli.options import not_empty, number, whole_number
from ..errors import OptionError

SETTINGS: dict[str, tuple[Callable[[str], Any], str]] = {
    "temperature": (number(0), "0 is greedy"),
    "top_k": (whole_number(0), "the most likely tokens that are drawn from, 0 for all"),
    "top_p": (number(0, 1), "their share of the probability"),
    "min_p": (number(0, 1), "the least probability, as a share of the likeliest token's"),
    "repeat_penalty": (number(0.01, 100), "1 changes nothing"),
    "max_tokens": (whole_number(1), "longest answer; none: the context"),
    "seed": (whole_number(0), "for the same answer again; none: another one each time"),
    "stop": (not_empty, "end an answer before this text; none: nowhere"),
}
"""Name: how its value is read, and what it means."""
SHORT = {"temp": "temperature", "n": "max_tokens"}
_MAY_BE_NONE = ("max_tokens", "seed", "stop")


def set_sampling(sampling: dict[str, Any], text: str) -> str:
    """Change `sampling` by `NAME VALUE`, or leave it where no value is given. Returns the line that shows what holds now.

    Raises OptionError for an unknown name, and for a value that is not allowed.

    >>> sampling = {"temperature": 0.8, "stop": []}
    >>> set_sampling(sampling, "temperature 0.2")
    'temperature 0.2'
    >>> set_sampling(sampling, "temprature 0.3")
    Traceback (most recent call last):
    first_cpp.errors.OptionError: /set temprature: there is no such setting; did you mean temperature?
    """
    word, _, value = text.partition(" ")
    name = _name(word)
    if value := value.strip():
        sampling[name] = _parsed(name, value)
    return sampling_line(sampling, name)


def sampling_line(sampling: dict[str, Any], name: str) -> str:
    """A setting and its value as a person types them.

    >>> sampling_line({"seed": None}, "seed"), sampling_line({"stop": ["a", "b"]}, "stop")
    ('seed none', 'stop a, b')
    """
    value = sampling[name]
    if name == "stop":
        return f"stop {', '.join(value) or 'none'}"
    return f"{name} {'none' if value is None else f'{value:g}' if isinstance(value, float) else value}"


def _name(word: str) -> str:
    name = word.lower().replace("-", "_")
    name = SHORT.get(name, name)
    if name not in SETTINGS:
        near = difflib.get_close_matches(name, SETTINGS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(SETTINGS)}"
        raise OptionError(f"/set {word}: there is no such setting; {hint}")
    return name


def _parsed(name: str, text: str) -> Any:
    if text.lower() == "none" and name in _MAY_BE_NONE:
        return [] if name == "stop" else None
    try:
        value = SETTINGS[name][0](text)
    except argparse.ArgumentTypeError as error:
        raise OptionError(f"/set {name}: {error}".replace("'", "")) from None
    return [value] if name == "stop" else value
