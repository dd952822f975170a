"""One progress bar over all phases of a run, in the seconds that its plan gives them, with the time that remains."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from ..gguf.printable import printable

if TYPE_CHECKING:
    from rich.progress import Progress

PROMPTS, ANSWERS, PREDICTIONS = "prompts", "dense answers", "predicted costs"
ORDERS, FITTING, STEPS, VALIDATION = "order of the layers", "fitting the routers", "steps", "validation"
"""The phases that there are."""
PLANNED = 0.1
"""Part of a phase after which its own pace counts as much as the planned one."""

Step = Callable[[int, int], object]
"""Called with what is done of a phase, of how much."""


@dataclass(frozen=True)
class Phase:
    """A part of a run, and about how many seconds it takes."""

    name: str
    seconds: float


class Counter:
    """Turns "so many more" into steps of a phase.

    >>> more = Counter(lambda done, total: print(done, "of", total), 3)
    >>> more(), more(2)
    1 of 3
    3 of 3
    (None, None)
    """

    def __init__(self, step: Step, total: int) -> None:
        self._step, self._done, self._total = step, 0, total

    def __call__(self, n: int = 1) -> None:
        self._done += n
        self._step(self._done, self._total)


class RunProgress:
    """Which phase a run is in and what remains; a bar on standard error, unless `quiet`, while it is entered.

    phases: as planned, in their order. clock: in seconds. shown: False where another process shows it: nothing is said either.

    >>> now = [0.0]
    >>> progress = RunProgress([Phase("answers", 10.0), Phase("steps", 30.0)], clock=lambda: now[0])
    >>> step = progress.begin("answers")
    >>> progress.remaining()
    40.0
    >>> now[0] = 10.0
    >>> step(1, 2)  # twice as slow as planned
    >>> 30.0 < progress.remaining() < 40.0
    True
    """

    def __init__(
        self,
        phases: Sequence[Phase] = (),
        quiet: bool = True,
        clock: Callable[[], float] = time.monotonic,
        shown: bool = True,
    ) -> None:
        self._phases, self._quiet, self._clock, self._shown = list(phases), quiet, clock, shown
        self._at, self._part, self._began, self._words = -1, 0.0, clock(), ""
        self._taken = 0.0  # seconds of this phase at the last step
        self._stack = ExitStack()
        self._bar: Progress | None = None

    def begin(self, name: str) -> Step:
        """The next phase; those before it are over, also where they were planned and never came.

        Returns what to call as it goes on.
        """
        names = [phase.name for phase in self._phases]
        if name in names[self._at + 1 :]:
            self._at = names.index(name, self._at + 1)
        else:  # not planned
            self._at += 1
            self._phases.insert(self._at, Phase(name, 0.0))
        self._part, self._began, self._taken = 0.0, self._clock(), 0.0
        self.word(name)
        return self._step

    def _step(self, done: int, total: int) -> None:
        self._part = done / total if total else 1.0
        self._taken = self._clock() - self._began
        self._draw()

    def word(self, words: str) -> None:
        """What stands beside the bar."""
        self._words = printable(words)
        self._draw()

    def say(self, line: str) -> None:
        """A line that stays, above the bar."""
        if self._shown:
            from rich.console import Console

            (self._bar.console if self._bar is not None else Console(stderr=True)).print(printable(line), markup=False)

    @property
    def total(self) -> float:
        """Seconds of all phases, as planned."""
        return sum(phase.seconds for phase in self._phases)

    @property
    def done(self) -> float:
        """Planned seconds of what is done."""
        before = sum(phase.seconds for phase in self._phases[: max(0, self._at)])
        return before + (self._part * self._phases[self._at].seconds if self._at >= 0 else 0.0)

    def remaining(self) -> float:
        """Seconds that remain: of this phase by its plan and, the more of it is done, by its own pace; of others as planned."""
        later = sum(phase.seconds for phase in self._phases[self._at + 1 :])
        if self._at < 0:
            return later
        whole = (PLANNED * self._phases[self._at].seconds + self._taken) / (PLANNED + self._part)
        since = self._clock() - self._began - self._taken
        return later + max(0.0, (1 - self._part) * whole - since)

    def _draw(self) -> None:
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description=self._words, completed=self.done, total=self.total)

    def __enter__(self) -> RunProgress:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
        from rich.text import Text

        from ..cli.duration import in_words

        class Remaining(ProgressColumn):
            """By the phases, not by the bar's own speed."""

            def render(column, task: Task) -> Text:
                return Text("" if task.finished else f"{in_words(self.remaining())} left")

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            Remaining(),
        )
        console = Console(stderr=True, quiet=not self._shown)
        self._bar = self._stack.enter_context(Progress(*columns, console=console, disable=self._quiet))
        self._bar.add_task("", total=self.total)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._bar is not None and kind is None:
            self._bar.update(self._bar.task_ids[0], completed=self.total, total=self.total)
        self._stack.close()
        self._bar = None
