"""`first-cpp calibrate --processes N`: processes that each hold the model and measure prompts of their own.

A prompt's costs are computed by the same calls in the same order as by one process, so they are the same numbers.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..runtime.llama_log import ggml_levels
from ..streams import ROOM
from ..streams.cost import Floats
from ..streams.engine import Engine
from .answer_costs import NOTHING
from .cost_store import CalibrationError, CostStore, Key, Measure, Wanted
from .first_pass import Answered

Added = list[tuple[Key, int, Floats]]


@dataclass(frozen=True)
class Task:
    """A method of `Measure`, by name, and its arguments. prompts: whose answers it reads. home: its worker, None: any."""

    name: str
    arguments: tuple[Any, ...]
    prompts: Sequence[int] = ()
    home: int | None = None


class Workers:
    """`n` processes with an `Engine` each, of `n_threads` threads. answered: of whom to ask for answers."""

    def __init__(self, n: int, path: str, n_tokens: int, n_threads: int, streams: int, store: CostStore) -> None:
        self.n, self.streams, self._store = n, streams, store
        context = multiprocessing.get_context("spawn")
        self._pipes, self._processes = [], []
        for _ in range(n):
            pipe, theirs = context.Pipe()
            process = context.Process(
                target=_work, args=(theirs, path, n_tokens, n_threads, streams, store.n_prompts), daemon=True
            )
            process.start()
            theirs.close()
            self._pipes.append(pipe)
            self._processes.append(process)
        self._known: list[set[int]] = [set() for _ in range(n)]
        self._ticket = 0
        self._receive_ready()

    def close(self) -> None:
        """End them; what they were at is lost."""
        for process in self._processes:
            process.terminate()
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            process.join(10)
            if process.exitcode is None:
                process.kill()
            pipe.close()

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Any]]:
        """Each task with what came of it, as they are done; costs found are in the store by then.

        Raises CalibrationError where a worker ended, or could not do a task.
        """
        waiting, busy = iter(tasks), dict[int, Task]()
        self._ticket += 1
        while True:
            free = [worker for worker in range(self.n) if worker not in busy]
            while free and (task := next(waiting, None)) is not None:
                worker = free[0] if task.home is None else task.home
                free.remove(worker)
                busy[worker] = task
                self._send(worker, task)
            if not busy:
                return
            worker, ticket, result = self._receive()
            if ticket == self._ticket:  # others are of a run that was interrupted
                yield busy.pop(worker), result

    def _send(self, worker: int, task: Task) -> None:
        new = [i for i in task.prompts if i not in self._known[worker]]
        self._known[worker].update(new)
        answered = {i: (self._store.answered[i].prompt, self._store.answered[i].answer) for i in new}
        try:
            self._pipes[worker].send((self._ticket, task.name, task.arguments, answered))
        except OSError:
            raise self._ended(worker) from None

    def _receive_ready(self) -> None:
        try:
            for worker, pipe in enumerate(self._pipes):
                self._read(worker, pipe)
        except BaseException:
            self.close()
            raise

    def _receive(self) -> tuple[int, int, Any]:
        pipe = multiprocessing.connection.wait(self._pipes)[0]
        worker = self._pipes.index(pipe)  # type: ignore[arg-type]
        ticket, result, added = self._read(worker, self._pipes[worker])
        for key, prompt, cost in added:
            self._store.add(key, prompt, cost)
        return worker, ticket, result

    def _read(self, worker: int, pipe: Any) -> tuple[int, Any, Added]:
        try:
            ticket, result, added, error = pipe.recv()
        except (EOFError, OSError):
            raise self._ended(worker) from None
        if error is not None:
            raise CalibrationError(f"process {worker + 1} of {self.n}: {error}")
        return ticket, result, added

    def _ended(self, worker: int) -> CalibrationError:
        self._processes[worker].join(10)
        code = self._processes[worker].exitcode
        return CalibrationError(
            f"process {worker + 1} of {self.n} ended with code {code}; what was measured is in {self._store.path}, "
            "and the same command goes on from there; fewer --processes need less memory"
        )


class Spread(Measure):
    """A `Measure` whose prompts are measured by workers."""

    def __init__(self, engine: Engine, store: CostStore, workers: Workers) -> None:
        super().__init__(engine, store)
        self._workers, self._homes = workers, dict[int, int]()

    @property
    def streams(self) -> int:
        """Answers that are decoded together, by each worker."""
        return self._workers.streams

    def costs(
        self, skipped: frozenset[int], prompts: Sequence[int], n_tokens: int, base: frozenset[int] = NOTHING
    ) -> list[Floats]:
        """As `Measure.costs`."""
        self._scatter("costs", (n_tokens, skipped), prompts, lambda of: (skipped, of, n_tokens, base))
        return [self._known((n_tokens, skipped), i) for i in prompts]

    def base_costs(self, base: frozenset[int], prompts: Sequence[int], n_tokens: int) -> list[Floats]:
        """As `Measure.base_costs`."""
        self._scatter("base_costs", (n_tokens, base), prompts, lambda of: (base, of, n_tokens))
        return [self._known((n_tokens, base), i) for i in prompts]

    def influences(self, prompts: Sequence[int], n_tokens: int) -> list[npt.NDArray[np.float64]]:
        """As `Measure.influences`."""
        found: dict[int, list[Any]] = {}
        for task, result in self._workers.run(self._at_home("influences", prompts, lambda of: (of, n_tokens))):
            found[task.home or 0] = result
        if any(len(result) == 0 for result in found.values()):
            return []
        return [found[self._home(i)].pop(0) for i in prompts]

    def each(self, wanted: Iterable[Wanted], n_tokens: int) -> Iterator[int]:
        """As `Measure.each`; prompts come as they are done."""

        def tasks() -> Iterator[Task]:
            for prompt, sets in wanted:
                missing = [layers for layers in sets if self.store.cost((n_tokens, layers), prompt) is None]
                yield Task("whole", (prompt, missing, n_tokens), [prompt])

        for task, _ in self._workers.run(tasks()):
            yield task.prompts[0]

    def answers(
        self, chunks: Iterable[Sequence[int]], tokens: Sequence[list[int]], max_tokens: int, norm_eps: float
    ) -> Iterator[tuple[int, Answered]]:
        """As `Measure.answers`: each chunk by one worker."""
        tasks = (Task("answer_chunk", (chunk, [tokens[i] for i in chunk], max_tokens, norm_eps)) for chunk in chunks)
        for _, found in self._workers.run(tasks):
            yield from found

    def pace(self, prompt: int, n_tokens: int, layers: Sequence[int]) -> float:
        """As `Measure.pace`, all workers at once: each has that time for its own prompts."""
        tasks = [Task("pace", (prompt, n_tokens, layers), [prompt], worker) for worker in range(self._workers.n)]
        seconds: list[float] = [found for _, found in self._workers.run(tasks)]
        return max(seconds) / self._workers.n

    def forget(self) -> None:
        """Give the sessions' memory back."""
        list(self._workers.run([Task("forget", (), (), worker) for worker in range(self._workers.n)]))

    def _home(self, prompt: int) -> int:
        return self._homes.setdefault(prompt, len(self._homes) % self._workers.n)

    def _known(self, key: Key, prompt: int) -> Floats:
        found = self.store.cost(key, prompt)
        assert found is not None
        return found

    def _at_home(self, name: str, prompts: Sequence[int], arguments: Callable[[list[int]], tuple[Any, ...]]) -> list[Task]:
        """A task for each worker that is the home of some of the prompts."""
        by_home: dict[int, list[int]] = {}
        for i in prompts:
            by_home.setdefault(self._home(i), []).append(i)
        return [Task(name, arguments(of), of, home) for home, of in by_home.items()]

    def _scatter(self, name: str, key: Key, prompts: Sequence[int], arguments: Callable[[list[int]], tuple[Any, ...]]) -> None:
        missing = [i for i in prompts if self.store.cost(key, i) is None]
        for _ in self._workers.run(self._at_home(name, missing, arguments)):
            pass


@contextlib.contextmanager
def measuring(
    path: str, n_tokens: int, n_threads: int, streams: int, n: int, store: CostStore
) -> Iterator[tuple[Engine, Workers | None]]:
    """The engine of a calibration by `n` processes, which share the threads; of more than one it only knows the layers."""
    if n == 1:
        with contextlib.closing(Engine(path, n_tokens, n_threads, streams)) as engine:
            yield engine, None
        return
    with (
        contextlib.closing(Workers(n, path, n_tokens, max(1, n_threads // n), streams, store)) as workers,
        contextlib.closing(Engine(path, ROOM, 1, 1)) as engine,
    ):
        yield engine, workers


class _Recorded(CostStore):
    """What a worker found since it was last asked."""

    def __init__(self, n_prompts: int) -> None:
        super().__init__("", {}, n_prompts)
        self._added: Added = []

    def add(self, key: Key, prompt: int, cost: Floats) -> None:
        """Keep a cost, to be told."""
        self.put(key, prompt, cost)
        self._added.append((key, prompt, cost))

    def taken(self) -> Added:
        """What was added since this was last called."""
        added, self._added = self._added, []
        return added


def _work(pipe: Any, path: str, n_tokens: int, n_threads: int, streams: int, n_prompts: int) -> None:
    """A worker: does what it is asked until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: it is for who asks
    with (
        contextlib.suppress(EOFError, OSError),
        ggml_levels(),
        contextlib.closing(Engine(path, n_tokens, n_threads, streams)) as engine,
    ):
        store = _Recorded(n_prompts)
        measure = Measure(engine, store)
        pipe.send((0, None, [], None))
        while True:
            ticket, name, arguments, answered = pipe.recv()
            store.answered |= {i: Answered(prompt, np.empty(0, np.float32), answer) for i, (prompt, answer) in answered.items()}
            result, error = None, None
            try:
                result = getattr(measure, name)(*arguments)
            except (RuntimeError, ValueError, MemoryError) as caught:
                error = f"{type(caught).__name__}: {caught}"
            pipe.send((ticket, result, store.taken(), error))
