"""Runs the tests of one benchmark configuration over all of its rows in turns, and makes records of the times."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import llama_cpp
import numpy as np

from ..gguf.byte_limit import byte_limit, weight_reads
from ..llama import Llama
from .depth import filled_state
from .engines import OURS, PRUNED, STOCK, Row
from .interleaved import Times, call_times, decode_times, ratio


@dataclass(frozen=True)
class Test:
    """Read `n_prompt` tokens (pp), decode `n_gen` (tg), or both one after the other (pg), with `n_depth` already there."""

    n_prompt: int
    n_gen: int
    n_depth: int = 0

    __test__ = False  # not pytest's

    @property
    def name(self) -> str:
        parts = [f"pp{self.n_prompt}"] * (self.n_prompt > 0) + [f"tg{self.n_gen}"] * (self.n_gen > 0)
        return "+".join(parts) + (f" @ d{self.n_depth}" if self.n_depth else "")

    @property
    def n_tokens(self) -> int:
        return self.n_prompt + self.n_gen


@dataclass(frozen=True)
class ModelFacts:
    """What llama.cpp says of a model: its type in words, bytes, parameters, layers."""

    kind: str
    size: int
    n_params: int
    n_layer: int

    @classmethod
    def of(cls, llm: llama_cpp.Llama) -> ModelFacts:
        size, n_params = (f(llm.model) for f in (llama_cpp.llama_model_size, llama_cpp.llama_model_n_params))
        return cls(llm._model.desc(), int(size), int(n_params), int(llama_cpp.llama_model_n_layer(llm.model)))


@dataclass
class Measured:
    """One row of one test. Each list holds one number a repetition, but `steps`: seconds of every decoding step."""

    row: Row
    test: Test
    seconds: list[float] = field(default_factory=list)
    ttft: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    speed_ups: list[float] = field(default_factory=list)
    over_pruned: list[float] = field(default_factory=list)
    byte_limit: float | None = None
    kv_bytes: tuple[int, int, int] | None = None
    """In all, in use, given back."""
    model: ModelFacts | None = None

    def rates(self) -> list[float]:
        """Tokens per second of each repetition."""
        return [self.test.n_tokens / seconds for seconds in self.seconds]


@dataclass(frozen=True)
class Plan:
    """tests, in order. repetitions of each, per load. loads: memory falls differently at each. prompt: text tokens, or none."""

    tests: Sequence[Test]
    repetitions: int = 5
    loads: int = 1
    warm_up: bool = True
    delay: float = 0.0
    prompt: Sequence[int] = ()
    seed: int = 0


def run(
    rows: Sequence[Row],
    plan: Plan,
    settings: dict[str, Any],
    own: dict[str, Any],
    progress: Callable[[str], None],
) -> list[Measured]:
    """Measure every row in every test. All rows share a load and take turns within it."""
    found = {(test, row.key): Measured(row, test) for test in plan.tests for row in rows}
    reads = {row.file: weight_reads(row.file) for row in rows if row.engine == OURS}
    states = _Depths(rows, plan, settings, bool(own.get("release_kv")))
    for load in range(plan.loads):
        turn = load % len(rows)
        models = {row.key: row.load(settings, own) for row in [*rows[turn:], *rows[:turn]]}
        try:
            for test in plan.tests:
                progress(f"{test.name}, load {load + 1} of {plan.loads}")
                time.sleep(plan.delay)
                for repetition in range(plan.repetitions):
                    _repeat(models, rows, test, plan, states, repetition, found)
                for row in rows:
                    measured = found[test, row.key]
                    measured.model = ModelFacts.of(models[row.key])
                    if row.engine == OURS:
                        _look_at(measured, models[row.key], reads[row.file])
        finally:
            for llm in models.values():
                llm.close()
    return list(found.values())


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


def _repeat(
    models: dict[str, llama_cpp.Llama],
    rows: Sequence[Row],
    test: Test,
    plan: Plan,
    states: _Depths,
    repetition: int,
    found: dict[tuple[Test, str], Measured],
) -> None:
    """One repetition of one test by all rows; what came before it counts for nothing."""
    by_key = {row.key: row for row in rows}
    n_vocab = next(iter(models.values())).n_vocab()
    rng = np.random.default_rng([plan.seed, repetition, 1])
    n_new = test.n_prompt or 1
    new = list(plan.prompt[:n_new]) or rng.integers(n_vocab // 8, n_vocab // 2, n_new).tolist()
    prompt = states.tokens(test.n_depth, n_vocab) + new
    drafts = any(row.draft for row in rows)

    def prepare(key: str) -> None:
        llm, row = models[key], by_key[key]
        states.fill(llm, row, test.n_depth)
        if row.engine == OURS:
            # a decoding test takes the layers as given; a prompt at depth 0 is scored and chooses them
            llm.skip = row.skip if row.routed and test.n_prompt and not test.n_depth else list(row.left_out)

    if test.n_prompt == 0 and not drafts:
        for key in models:
            prepare(key)
        times = decode_times(models, prompt, test.n_gen, warm_up=2 if plan.warm_up else 1)
        seconds: Times = {key: [sum(steps)] for key, steps in times.items()}
        for key, steps in times.items():
            found[test, key].steps += steps
    else:
        answers: dict[str, _Answer] = {}

        def answer(llm: llama_cpp.Llama) -> None:
            answers[names[id(llm)]] = _Answer(llm, prompt, test.n_gen)

        names = {id(llm): key for key, llm in models.items()}
        if plan.warm_up and repetition == 0:
            for key, llm in models.items():
                prepare(key)
                _Answer(llm, prompt, min(test.n_gen, 2))
        times = seconds = call_times(models, answer, 1, before=lambda llm: prepare(names[id(llm)]))
        for key, one in answers.items():
            found[test, key].ttft.append(one.ttft)
            found[test, key].steps += one.steps
    for key, row in by_key.items():
        measured = found[test, key]
        measured.seconds += seconds[key]
        if STOCK in times:
            measured.speed_ups.append(1 / ratio(times, key, STOCK))
        pruned = Row(PRUNED, "", row.skip, row.left_out).key
        if row.engine == OURS and pruned in times and not test.n_prompt and not row.draft:
            measured.over_pruned.append(ratio(times, key, pruned))


class _Answer:
    """A greedy answer to a prompt, timed: seconds to the first token, and of each step after it."""

    def __init__(self, llm: llama_cpp.Llama, prompt: list[int], n_tokens: int) -> None:
        start = time.perf_counter()
        tokens = llm.generate(prompt, temp=0.0, repeat_penalty=1.0)
        next(tokens)
        last = time.perf_counter()
        self.ttft = last - start
        self.steps = []
        for _ in range(n_tokens):
            next(tokens)
            now = time.perf_counter()
            self.steps.append(now - last)
            last = now
        tokens.close()


def _look_at(measured: Measured, llm: Llama, reads: Any) -> None:
    """What a row that has run tells of itself: the KV cache, and the limit that its bytes set."""
    routing = llm.routing
    if routing is None:
        return
    measured.kv_bytes = (routing.kv_bytes, routing.kv_bytes_used, routing.kv_bytes_released)
    test = measured.test
    if not test.n_prompt and not measured.row.draft:
        middle = test.n_depth + test.n_gen // 2
        measured.byte_limit = byte_limit(reads, llm.kv_cache, llm.n_ctx(), middle, measured.row.left_out)


def spread(values: Sequence[float]) -> float:
    """Standard deviation, 0 for fewer than two values."""
    return statistics.stdev(values) if len(values) > 1 else 0.0
