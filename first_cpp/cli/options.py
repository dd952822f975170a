"""What command lines share: argparse types for numbers and text, shares of layers as typed, checks."""

from __future__ import annotations

import argparse
import difflib
import ipaddress
import math
import os
import re
from collections.abc import Callable

from ..errors import OptionError


def shares_from_text(text: str) -> list[float]:
    """Shares of layers as typed, ascending and each once. Raises OptionError.

    >>> shares_from_text("0.25,0,0.1,0.1")
    [0.0, 0.1, 0.25]
    """
    shares = set()
    for part in text.split(","):
        try:
            share = float(part)
        except ValueError:
            share = math.nan
        if not 0 <= share < 1:
            raise OptionError(f"--skip: {part!r} is not a share of layers: a number of at least 0 and below 1, like 0.25")
        shares.add(share)
    return sorted(shares)


def whole_number(at_least: int, at_most: int = 2**31 - 1) -> Callable[[str], int]:
    """An argparse type: a whole number in a range.

    >>> whole_number(1)("12")
    12
    """

    def parse(text: str) -> int:
        if not re.fullmatch(r"-?\d+", text) or int(text) < at_least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {at_least}")
        if int(text) > at_most:
            raise argparse.ArgumentTypeError(f"{text} is above {at_most}")
        return int(text)

    return parse


def number(at_least: float, at_most: float = math.inf) -> Callable[[str], float]:
    """An argparse type: a finite number in a range.

    >>> number(0, 1)("0.5")
    0.5
    """

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and at_least <= value <= at_most):
            upper = f" to {at_most:g}" if math.isfinite(at_most) else " or more"
            raise argparse.ArgumentTypeError(f"{text!r} is not a number of {at_least:g}{upper}")
        return value

    return parse


def prose(text: str) -> str:
    """An argparse type: text that a model can read, as UTF-8 where the locale's encoding could not decode it."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        raw = os.fsencode(text)
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise argparse.ArgumentTypeError(f"it is not text: {error}") from None


def not_empty(text: str) -> str:
    """An argparse type: text of at least one character."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty")
    return prose(text)


def is_local(host: str) -> bool:
    """Whether an address can be reached from this machine only.

    >>> is_local("127.0.0.1"), is_local("0.0.0.0")
    (True, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_chat_format(name: str) -> None:
    """Raise OptionError for a chat format that llama-cpp-python does not have."""
    from llama_cpp.llama_chat_format import LlamaChatCompletionHandlerRegistry

    known = sorted(LlamaChatCompletionHandlerRegistry()._chat_handlers)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
        raise OptionError(f"--chat-format {name} does not exist; {hint}")
