"""llama-bench's lists and ranges of numbers, and lists of skip settings."""

from __future__ import annotations

import re
from typing import Literal, TypeAlias

from ..errors import OptionError, SkipError
from ..skip import parse_skip

_RANGE = re.compile(r"(\d+)(?:-(\d+)(?:([+*])(\d+))?)?")


def numbers(text: str, what: str, least: int = 0, most: int = 2**31 - 1) -> list[int]:
    """The numbers of a list with ranges. Raises OptionError, naming the option `what`.

    >>> numbers("1,2,4-16*2,3-5,10-30+10", "-p")
    [1, 2, 4, 8, 16, 3, 4, 5, 10, 20, 30]
    """
    found: list[int] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            raise OptionError(f"{what}: {part!r} is not a number or a range like 1-8, 512-2048+512 or 1-16*2")
        first, last, sign, step = int(match[1]), int(match[2] or match[1]), match[3] or "+", int(match[4] or 1)
        if last < first or step < (2 if sign == "*" else 1) or (sign == "*" and first == 0):
            raise OptionError(f"{what}: the range {part!r} does not end")
        if last > most:
            raise OptionError(f"{what}: {last} is above {most}")
        value = first
        while value <= last:
            found.append(value)
            value = value + step if sign == "+" else value * step
    for value in found:
        if value < least:
            raise OptionError(f"{what}: {value} is below {least}")
    return found


SkipSetting: TypeAlias = float | tuple[int, ...] | Literal["auto"]
"""What a row skips: a share, layers, or as many as the prompt can spare."""


def skips(text: str) -> list[SkipSetting]:
    """Skip settings as typed: shares, auto, and sets of layers in brackets. Layers alone are one set, as elsewhere.

    Shares come first, ascending, each once, then auto. Raises OptionError.

    >>> skips("0.25,0,[7,11]")
    [0.0, 0.25, (7, 11)]
    >>> skips("7,11")
    [(7, 11)]
    >>> skips("auto,0.25")
    [0.25, 'auto']
    """
    if re.fullmatch(r"\d+(,\d+)*,?", text) and re.search(r"[1-9]", text) and text != "0,":
        text = f"[{text.rstrip(',')}]"
    shares: set[float] = set()
    auto: list[Literal["auto"]] = []
    sets: list[tuple[int, ...]] = []
    for part in re.split(r",(?![^\[]*\])", text):
        try:
            if part == "auto":
                auto = ["auto"]
            elif part.startswith("[") and part.endswith("]"):
                layers = parse_skip([int(layer) for layer in part[1:-1].split(",")])
                assert isinstance(layers, tuple)
                sets += [layers] if layers not in sets else []
            else:
                share = parse_skip(float(part))
                assert isinstance(share, float)
                shares.add(share)
        except SkipError as error:
            raise OptionError(f"--skip: {error}") from None
        except ValueError:
            raise OptionError(
                f"--skip: {part!r} is not auto, a share of layers like 0.25 or a set of layers like [7,11]"
            ) from None
    return [*sorted(shares), *auto, *sets]
