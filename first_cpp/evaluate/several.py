"""Rows answer many questions, several decoded together: a model file reads each prompt once, and its weights once for all."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ContextFull
from ..gguf.model_file import ModelFile, open_gguf
from ..runtime.chat_prompt import chat_prompt
from ..runtime.teacher_forcing import fidelity
from ..streams import ROOM
from ..streams.cost import KL, Floats, Targets
from ..streams.engine import Engine, streams_for
from ..streams.together import answers_together
from .answer_file import Answer, AnswerFile
from .asking import FAILURES, differs, failed, found_answer, is_compared
from .questions import Question
from .rows import Row

AT_ONCE = 256
"""Questions at most that go through all model files before the next ones do."""

MOST_KEPT = 1 << 30
"""Bytes of dense distributions that are kept for the next model files, and as many of prompts that were read."""

Model = tuple[str, str | None]
"""A model file, and a side file."""


@dataclass(frozen=True)
class Compared:
    """The dense model's answer to a question, and its next-token distributions on the way: after the prompt and each token."""

    prompt: list[int]
    answer: list[int]
    targets: Targets


@dataclass(frozen=True)
class ReadPrompt:
    """A question's prompt as a model file has read it: what its stream held, the logits after it, and what routers read."""

    number: int
    prompt: list[int]
    state: bytes
    logits: Floats
    scores: npt.NDArray[np.float32] | None

    @property
    def n_bytes(self) -> int:
        """What it takes of memory, about."""
        return len(self.state) + self.logits.nbytes + (0 if self.scores is None else self.scores.nbytes)


@dataclass
class Several:
    """Answers what is missing of all rows.

    settings: n_ctx and n_threads, as `Llama` takes them. dense: the row, one of them, that others are compared with, on the
    questions `measured`. streams: answers decoded together at most, fewer where prompts are long. step: called after each.
    """

    rows: Sequence[Row]
    questions: Sequence[Question]
    answers: AnswerFile
    settings: dict[str, Any]
    max_tokens: int
    dense: Row
    measured: frozenset[int]
    streams: int
    step: Callable[[Row], object]
    _room: int = field(default=ROOM, init=False)
    _compared: dict[int, Compared] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.rows = sorted(self.rows, key=lambda row: row != self.dense)  # the others are followed along its answers
        self._n_ctx = self.settings["n_ctx"]
        if any(_reads_otherwise(file, self._n_ctx) for file in {row.file for row in self.rows}):
            self._room = self._n_ctx

    def answer_all(self) -> None:
        """Questions in blocks, for each of which every model file is loaded once."""
        missing = self.answers.missing(self.rows, len(self.questions))
        unanswered = [(number, here) for number, here in enumerate(missing) if here]
        unanswered.sort(key=lambda one: len(self.questions[one[0]].prompt))  # a long one gives its whole block more room
        for block in self._blocks(unanswered):
            self._compared.clear()
            for model in dict.fromkeys(map(_model, self.rows)):
                self._answer_block(model, block)

    def _blocks(self, unanswered: Sequence[tuple[int, list[Row]]]) -> Iterator[dict[int, list[Row]]]:
        """Questions with what is missing of each: so many that memory holds the dense distributions of those measured."""
        n_bytes = Targets.n_bytes(self.max_tokens + 1, open_gguf(self.dense.file).count("tokenizer.ggml.tokens"))
        block, held = dict[int, list[Row]](), 0
        for number, rows in unanswered:
            needed = n_bytes if number in self.measured else 0
            if len(block) == AT_ONCE or (held and held + needed > MOST_KEPT):
                yield block
                block, held = {}, 0
            block[number] = rows
            held += needed
        if block:
            yield block

    def _answer_block(self, model: Model, block: dict[int, list[Row]]) -> None:
        """What is missing of a model file's rows, by question."""
        here = {number: [row for row in rows if _model(row) == model] for number, rows in block.items()}
        followed = set[int]()
        if model == _model(self.dense):
            compared = {number for number, rows in block.items() if any(is_compared(row, self.dense) for row in rows)}
            followed = compared & self.measured
        numbers = [number for number, rows in here.items() if rows or number in followed]
        if not numbers:
            return
        with self._opened(model, numbers) as engine:
            for ones in self._read(engine, numbers, here):
                for row in self.rows:
                    self._answer_row(engine, row, [one for one in ones if row in here[one.number]])
                    if row == self.dense:
                        self._follow_dense(engine, [one for one in ones if one.number in followed])

    @contextlib.contextmanager
    def _opened(self, model: Model, numbers: Sequence[int]) -> Iterator[Engine]:
        """A model file with room for each of these prompts with its answer."""
        while True:
            n_streams = streams_for(self._room, self.streams)
            with contextlib.closing(Engine(model[0], self._room, self.settings["n_threads"], n_streams, model[1])) as engine:
                lengths = [self._room]
                for number in numbers:
                    with contextlib.suppress(*FAILURES):
                        lengths.append(len(self._prompt(engine, number)) + self.max_tokens + 1)
                self._room = min(self._n_ctx, max(lengths))
                if self._room <= engine.room:
                    yield engine
                    return

    # -- prompts --------------------------------------------------------------------------------------------------------

    def _read(self, engine: Engine, numbers: Sequence[int], here: dict[int, list[Row]]) -> Iterator[list[ReadPrompt]]:
        """Prompts, as many together as memory may hold; of those that cannot be read, the rows get the error."""
        ones: list[ReadPrompt] = []
        for number in numbers:
            try:
                ones.append(self._read_prompt(engine, number))
            except FAILURES as error:
                for row in here[number]:
                    self._fail(row, number, error)
            if sum(one.n_bytes for one in ones) >= MOST_KEPT:
                yield ones
                ones.clear()  # before the next ones are read
        yield ones

    def _prompt(self, engine: Engine, number: int) -> list[int]:
        prompt = chat_prompt(engine, self.questions[number].prompt)
        if self._n_ctx - len(prompt) < 2:
            raise ContextFull(f"the prompt has {len(prompt)} tokens, the context {self._n_ctx}")
        return prompt

    def _read_prompt(self, engine: Engine, number: int, prompt: list[int] | None = None) -> ReadPrompt:
        """prompt: None for the question's own in the model's template."""
        prompt = prompt or self._prompt(engine, number)
        scores = engine.read_scored(prompt)
        return ReadPrompt(number, prompt, engine.saved(), engine.row(-1).copy(), scores)

    # -- answers --------------------------------------------------------------------------------------------------------

    def _answer_row(self, engine: Engine, row: Row, ones: Sequence[ReadPrompt]) -> None:
        """A row's answers to prompts that were read; those that skip the same layers are decoded together."""
        alike: dict[tuple[frozenset[int], int], list[tuple[ReadPrompt, Answer]]] = defaultdict(list)
        for one in ones:
            skipped = _skipped(engine, row, one)
            try:
                measured = self._measure(engine, row, one, skipped)
            except FAILURES as error:
                self._fail(row, one.number, error)
            else:
                alike[skipped, min(self.max_tokens, self._n_ctx - len(one.prompt) - 1)].append((one, measured))
        for (skipped, limit), same in alike.items():
            self._decode(engine, row, same, skipped, limit)

    def _decode(
        self, engine: Engine, row: Row, ones: Sequence[tuple[ReadPrompt, Answer]], skipped: frozenset[int], limit: int
    ) -> None:
        """Answers of up to `limit` tokens, each with what was measured. Where they cannot be decoded together, each by itself:
        of several streams, a layer of some architectures (RWKV's) cannot be skipped."""

        def read(i: int, _prompt: Sequence[int], stream: int) -> Floats:
            engine.restore(ones[i][0].state, stream)
            return ones[i][0].logits

        waiting = dict(enumerate(ones))
        try:
            for i, answer in answers_together(engine, [one.prompt for one, _ in ones], limit, read=read, skipped=skipped):
                one, measured = waiting[i]
                how = engine.n_layer, sorted(skipped)
                found = found_answer(engine, self.questions[one.number], answer.tokens, answer.end is not None, *how)
                self._add(row, one.number, found | measured)
                del waiting[i]
        except FAILURES as error:
            for one, measured in waiting.values():
                if len(ones) > 1:
                    self._decode(engine, row, [(one, measured)], skipped, limit)
                else:
                    self._fail(row, one.number, error)

    def _fail(self, row: Row, number: int, error: Exception) -> None:
        self._add(row, number, failed(self.questions[number], error))

    def _add(self, row: Row, number: int, found: Answer) -> None:
        self.answers.add({"row": row.name, "question": number, **found})
        self.step(row)

    def _measure(self, engine: Engine, row: Row, one: ReadPrompt, skipped: frozenset[int]) -> Answer:
        """What is measured along the dense answer; the dense row's own choices are its answer."""
        if not differs(row, self.dense):
            return {"fidelity": 1.0} if one.number in self.measured else {}
        if not is_compared(row, self.dense) or (dense := self._compared.get(one.number)) is None:
            return {}
        if one.prompt != dense.prompt:  # of another template: the dense answer is followed after its own prompt
            one = self._read_prompt(engine, one.number, dense.prompt)
            skipped = _skipped(engine, row, one)
        logits = _along(engine, one, dense.answer, skipped)
        return {"kl": float(dense.targets.cost(logits)[KL]), "fidelity": fidelity(logits, dense.answer)}

    def _follow_dense(self, engine: Engine, ones: Sequence[ReadPrompt]) -> None:
        """Keep what other rows are compared with; the dense answers are there."""
        for one in ones:
            given = self.answers.found[self.dense.name, one.number]
            if "error" not in given:
                targets = Targets.of(_along(engine, one, given["ids"], frozenset()))
                self._compared[one.number] = Compared(one.prompt, given["ids"], targets)


def _model(row: Row) -> Model:
    return row.file, row.routers


def _reads_otherwise(path: str, n_ctx: int) -> bool:
    """Whether a model reads any prompt otherwise in a context of `n_ctx` than in a short one: LongRoPE's factors (Phi-3) go
    by the context."""
    model = ModelFile.open(path)
    key = f"{model.architecture}.rope.scaling.original_context_length"
    made_for = model.first.get(key) if model.first.kind(key) == "u32" else model.context_length
    return n_ctx > made_for and any(tensor.name == "rope_factors_long.weight" for _, tensor in model.tensors())


def _skipped(engine: Engine, row: Row, one: ReadPrompt) -> frozenset[int]:
    """The layers that a row's answer to a prompt skips."""
    return frozenset(engine.choice(row.skip, row.tolerance, len(one.prompt), one.scores))


def _along(engine: Engine, one: ReadPrompt, answer: Sequence[int], skipped: frozenset[int]) -> Floats:
    """The logits after a prompt and after each token of an answer, decoded without `skipped`: float32 [1 + n, n_vocab]."""
    engine.restore(one.state)
    found = [one.logits[None]]
    for start in range(0, len(answer), engine.n_batch):
        part = answer[start : start + engine.n_batch]
        found.append(engine.rows(part, len(one.prompt) + start, skipped)[0].copy())
    return np.concatenate(found)
