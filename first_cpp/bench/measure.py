"""Runs the tests of one configuration over all of its rows, in turns."""

from __future__ import annotations

import ctypes
import functools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import llama_cpp
import numpy as np

from ..gguf.byte_limit import Reads, byte_limit, weight_reads
from ..llama import Llama
from ..runtime.greedy import TimedAnswer, answer_timed
from ..runtime.interleaved import Times, call_times, decode_times, ratio
from .depth import filled_state
from .engines import OURS, PRUNED, STOCK, Row
from .workload import Test


@dataclass(frozen=True)
class ModelFacts:
    """What llama.cpp says of a model: its type in words, bytes, parameters."""

    kind: str
    size: int
    n_params: int

    @classmethod
    def of(cls, llm: llama_cpp.Llama) -> ModelFacts:
        kind = ctypes.create_string_buffer(128)
        llama_cpp.llama_model_desc(llm.model, kind, len(kind))
        size, n_params = (f(llm.model) for f in (llama_cpp.llama_model_size, llama_cpp.llama_model_n_params))
        return cls(kind.value.decode(), int(size), int(n_params))


@dataclass
class Measured:
    """One row of one test. Each list holds one number a repetition, but `steps`: seconds of every decoding step.

    seconds: of a whole repetition. ttft: seconds to the first token, where a prompt is read. speed_ups: stock's time over this
    row's. over_pruned: this row's time over the pruned file's. kv_bytes: in all, in use, given back. skipped: the layers.
    """

    row: Row
    test: Test
    seconds: list[float] = field(default_factory=list)
    ttft: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    speed_ups: list[float] = field(default_factory=list)
    over_pruned: list[float] = field(default_factory=list)
    byte_limit: float | None = None
    kv_bytes: tuple[int, int, int] | None = None
    model: ModelFacts | None = None
    skipped: tuple[int, ...] = ()

    def rates(self) -> list[float]:
        """Tokens per second of each repetition."""
        return [self.test.n_tokens / seconds for seconds in self.seconds]

    def look_at(self, llm: llama_cpp.Llama, reads: Reads | None) -> None:
        """Note what a row that has run shows: its model, the KV cache, and the limit that its bytes set."""
        self.model, self.skipped = ModelFacts.of(llm), self.row.skipped
        if not isinstance(llm, Llama) or llm.routing is None:
            return
        routing = llm.routing
        if self.row.skip == "auto":  # how many layers is the prompt's to say, and each test has its own
            self.skipped = routing.skipped
        self.kv_bytes = (routing.kv_bytes, routing.kv_bytes_used, routing.kv_bytes_released)
        if reads is not None and not self.test.n_prompt and not self.row.draft:
            middle = self.test.n_depth + self.test.n_gen // 2
            self.byte_limit = byte_limit(reads, llm.kv_cache, llm.n_ctx(), middle, self.row.skipped)


@dataclass(frozen=True)
class Plan:
    """tests, in order. repetitions of each, per load. loads: memory falls differently at each. warm_up: one run before those
    measured. delay: seconds before each test. prompt: tokens of a text, or none. seed: of random prompts."""

    tests: Sequence[Test]
    repetitions: int = 5
    loads: int = 1
    warm_up: bool = True
    delay: float = 0.0
    prompt: Sequence[int] = ()
    seed: int = 0


def measure(
    rows: Sequence[Row], plan: Plan, settings: dict[str, Any], own: dict[str, Any], progress: Callable[[str], object]
) -> Iterator[list[Measured]]:
    """Measure every row in every test; yields the rows of each test when they are complete.

    All rows share a load and take turns within it. settings: keywords of llama_cpp.Llama; own: those of first_cpp.Llama alone.
    """
    found = {test: {row.key: Measured(row, test) for row in rows} for test in plan.tests}
    reads = {row.file: weight_reads(row.file) for row in rows if row.engine == OURS}
    states = _Depths(rows, plan, settings, bool(own.get("release_kv")))
    for load in range(plan.loads):
        turn = load % len(rows)
        models = {row.key: row.load(settings, own) for row in [*rows[turn:], *rows[:turn]]}
        try:
            for test in plan.tests:
                progress(f"{test.name}, load {load + 1} of {plan.loads}" if plan.loads > 1 else test.name)
                time.sleep(plan.delay)
                for repetition in range(plan.repetitions):
                    _Repetition(models, rows, test, plan, states, repetition).run(found[test])
                if load == plan.loads - 1:
                    for key, measured in found[test].items():
                        measured.look_at(models[key], reads.get(measured.row.file))
                    yield [found[test][row.key] for row in rows]
        finally:
            for llm in models.values():
                llm.close()


class _Depths:
    """States of filled contexts, one for each file and depth, made before the engines take their memory."""

    def __init__(self, rows: Sequence[Row], plan: Plan, settings: dict[str, Any], released: bool) -> None:
        self._seed, self._released = plan.seed, released
        self._states: dict[tuple[str, int], llama_cpp.LlamaState] = {}
        for n_depth in sorted({test.n_depth for test in plan.tests} - {0}):
            for file in {row.file: row for row in rows}:
                self._states[file, n_depth] = filled_state(file, functools.partial(self.tokens, n_depth), settings)

    def tokens(self, n: int, n_vocab: int) -> list[int]:
        """The first `n` tokens of context."""
        return np.random.default_rng(self._seed).integers(n_vocab // 8, n_vocab // 2, n).tolist()  # type: ignore[no-any-return]

    def fill(self, llm: llama_cpp.Llama, row: Row, n_depth: int) -> None:
        """Bring `llm` to `n_depth` tokens of context."""
        if n_depth == 0:
            llm.reset()
        elif (
            not self._released
            and llm.n_tokens >= n_depth
            and llm.input_ids[:n_depth].tolist() == self.tokens(n_depth, llm.n_vocab())
        ):
            llm.n_tokens = n_depth  # still there from the repetition before
        else:
            llm.load_state(self._states[row.file, n_depth])


class _Repetition:
    """One repetition of one test by all rows; what came before it counts for nothing."""

    def __init__(
        self,
        models: dict[str, llama_cpp.Llama],
        rows: Sequence[Row],
        test: Test,
        plan: Plan,
        states: _Depths,
        repetition: int,
    ) -> None:
        self._models, self._rows, self._test, self._states = models, {row.key: row for row in rows}, test, states
        self._warm_up, self._first = plan.warm_up, repetition == 0
        n_vocab = next(iter(models.values())).n_vocab()
        one_prompt = any(row.skip == "auto" for row in rows)  # which then skips the same layers in all repetitions
        rng = np.random.default_rng([plan.seed, 0 if one_prompt else repetition, 1])
        n_new = test.n_prompt or 1
        new = list(plan.prompt[:n_new]) or rng.integers(n_vocab // 8, n_vocab // 2, n_new).tolist()
        self._prompt = states.tokens(test.n_depth, n_vocab) + new

    def run(self, found: dict[str, Measured]) -> None:
        """Measure, and add what was measured to `found`, by row."""
        step_by_step = self._test.n_prompt == 0 and not any(row.draft for row in self._rows.values())
        times = self._steps(found) if step_by_step else self._answers(found)
        for key, row in self._rows.items():
            measured = found[key]
            measured.seconds.append(sum(times[key]))
            if STOCK in times:
                measured.speed_ups.append(1 / ratio(times, key, STOCK))
            pruned = Row(PRUNED, "", row.skip).key
            if row.engine == OURS and pruned in times and not self._test.n_prompt and not row.draft:
                measured.over_pruned.append(ratio(times, key, pruned))

    def _steps(self, found: dict[str, Measured]) -> Times:
        """Decoding alone, the rows in turns step by step."""
        for key in self._models:
            self._prepare(key)
        times = decode_times(self._models, self._prompt, self._test.n_gen, warm_up=2 if self._warm_up else 1)
        for key, steps in times.items():
            found[key].steps += steps
        return times

    def _answers(self, found: dict[str, Measured]) -> Times:
        """Whole answers, the rows in turns: a prompt is read, then decoded."""
        names = {id(llm): key for key, llm in self._models.items()}
        answers: dict[str, TimedAnswer] = {}

        def answer(llm: llama_cpp.Llama) -> None:
            answers[names[id(llm)]] = answer_timed(llm, self._prompt, 1 + self._test.n_gen, ignore_end=True)

        if self._warm_up and self._first:
            for key, llm in self._models.items():
                self._prepare(key)
                answer_timed(llm, self._prompt, 1 + min(self._test.n_gen, 2), ignore_end=True)
        times = call_times(self._models, answer, 1, before=lambda llm: self._prepare(names[id(llm)]))
        for key, one in answers.items():
            found[key].ttft += [one.ttft] if self._test.n_prompt else []
            found[key].steps += one.steps
            if not self._test.n_prompt:  # the first token is not among those that are counted
                times[key] = [sum(one.steps)]
        return times

    def _prepare(self, key: str) -> None:
        llm, row, test = self._models[key], self._rows[key], self._test
        self._states.fill(llm, row, test.n_depth)
        if isinstance(llm, Llama):
            # a decoding test takes the layers as given; a prompt at depth 0 is scored and chooses them
            llm.skip = row.skip if row.chooses and test.n_prompt and not test.n_depth else list(row.skipped)


def spread(values: Sequence[float]) -> float:
    """Standard deviation, 0 for fewer than two values.

    >>> round(spread([1.0, 3.0]), 3), spread([1.0])
    (1.414, 0.0)
    """
    return statistics.stdev(values) if len(values) > 1 else 0.0
