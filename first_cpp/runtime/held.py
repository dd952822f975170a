"""Holds a fidelity: after every measured answer a dial moves, by adaptive conformal inference (Gibbs & Candes 2021,
arXiv 2106.00170). What the dial stands for, a share of layers or a tolerance, is the caller's.
"""

from __future__ import annotations

import json
import math
import os
import random
import warnings

from ..errors import SettingError
from ..gguf.new_file import check_regular, new_file

GAIN = 0.25
"""How far the dial moves by a fidelity that is off by 1. Over T answers the mean is within (1 + gain) / (gain T) of the target:
0.017 at 300 answers for the worst order of prompts, and a quarter of it where the dial begins near its place."""

MOST_SHARE = 0.5
"""The skip share that a dial of 1 stands for: routers are trained for shares up to it."""

_VERSION = 1


class HeldFidelity:
    """A dial from 0 (dense) to 1 that keeps the mean fidelity of answers at `target`.

    gain: see GAIN. dial: where it begins. path: a file that keeps it; read when it is there, written after every answer.

    A dial at 0 is dense, with a fidelity of 1: so the dial falls no further than one step below 0, and a target of 1 stays
    there. It stops at 1, where the fidelity may then be above the target.
    Raises SettingError for an invalid target, and for a file that is no such state.

    >>> held = HeldFidelity(0.9, dial=0.5)
    >>> held.observe(0.5)
    >>> round(held.dial, 3)
    0.4
    >>> held.line()
    'fidelity 0.9 is held: mean 0.500 of 1 answer, dial 0.40'
    """

    def __init__(self, target: float, gain: float = GAIN, dial: float = 0.5, path: str | None = None, seed: int = 0) -> None:
        if isinstance(target, bool) or not isinstance(target, (int, float)) or not 0 < target <= 1:
            raise SettingError(f"fidelity={target!r} is not a share of positions above 0, 1 at most; 0.95 is a good one")
        self.target, self.gain, self._path = float(target), gain, path
        self._position = min(1.0, max(0.0, dial))
        self._random = random.Random(seed)
        self.answers, self._sum = 0, 0.0
        if path is not None and os.path.exists(check_regular(path)):
            self._load(path)

    @property
    def dial(self) -> float:
        """From 0, dense, to 1."""
        return max(0.0, self._position)

    @property
    def mean(self) -> float | None:
        """Mean fidelity of the answers so far, each counted once; None before the first."""
        return self._sum / self.answers if self.answers else None

    @property
    def dense(self) -> bool:
        """Whether the dial is at its lower end: nothing is skipped until the mean is back at the target."""
        return self._position <= 0

    def observe(self, fidelity: float) -> None:
        """Move the dial by the fidelity of an answer; a dense answer's is 1."""
        self._position = min(1.0, max(-self.gain, self._position + self.gain * (fidelity - self.target)))
        self.answers += 1
        self._sum += fidelity
        if self._path is not None:
            self._save(self._path)

    def level(self, n_levels: int) -> int:
        """One of the levels 0 to n_levels, drawn so that the mean over answers is the dial's."""
        whole, part = divmod(self.dial * n_levels, 1)
        return int(whole) + (self._random.random() < part)

    def line(self) -> str:
        """The state for people."""
        mean = "no answer was measured" if self.mean is None else f"mean {self.mean:.3f} of {self.answers} answer"
        several = "s" if self.answers > 1 else ""
        dense = ": dense until the mean is back at the target" if self.dense else ""
        return f"fidelity {self.target:g} is held: {mean}{several}, dial {self.dial:.2f}{dense}"

    def _load(self, path: str) -> None:
        with open(path, encoding="utf-8") as file:
            try:
                kept = json.load(file)
                version, dial, answers, total = (kept[name] for name in ("version", "dial", "answers", "sum"))
                fits = version == _VERSION and math.isfinite(dial) and math.isfinite(total) and answers >= 0
            except (ValueError, KeyError, TypeError) as error:
                raise SettingError(f"{path} is not a fidelity state: {error!r}; remove it to begin anew") from None
        if not fits:
            raise SettingError(f"{path} is not a fidelity state of version {_VERSION}; remove it to begin anew")
        self._position = min(1.0, max(-self.gain, float(dial)))
        if kept.get("target") == self.target:
            self.answers, self._sum = int(answers), float(total)

    def _save(self, path: str) -> None:
        state = {
            "version": _VERSION,
            "target": self.target,
            "dial": self._position,
            "answers": self.answers,
            "sum": self._sum,
        }
        try:
            with new_file(path) as file:
                file.write((json.dumps(state) + "\n").encode())
        except OSError as error:
            warnings.warn(f"the fidelity state is not kept: {error}", RuntimeWarning, stacklevel=2)
            self._path = None
