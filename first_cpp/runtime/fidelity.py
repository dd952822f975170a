"""What skipping cost an answer: the dense model's first choices beside those that decoding had."""

from __future__ import annotations

from dataclasses import dataclass

import llama_cpp
import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Fidelity:
    """How an answer's decoding agrees with the dense model, over the positions that were decoded with layers skipped.

    positions: how many of them were measured. equal: those at which the first choice (the token with the highest logit) is the
    dense model's. kl: mean KL divergence from the dense model's distribution to the one that decoding had, in nats per token;
    None unless `Llama(measure="kl")`.

    >>> Fidelity(positions=40, equal=38).share
    0.95
    """

    positions: int
    equal: int
    kl: float | None = None

    @property
    def share(self) -> float:
        """equal / positions."""
        return self.equal / self.positions

    def line(self) -> str:
        """The measure for people.

        >>> Fidelity(positions=40, equal=38).line()
        "fidelity 0.95: 38 of 40 choices are the full model's"
        """
        return f"fidelity {self.share:.2f}: {self.equal} of {self.positions} choices are the full model's"


@dataclass(frozen=True)
class ComparedToken:
    """One token of an answer.

    position: in the context. token: the one given. dense: the dense model's first choice in its place, where decoding's was
    another; None where it was the same, or not measured.

    >>> ComparedToken(position=12, token=5, dense=7).dense
    7
    """

    position: int
    token: int
    dense: int | None


class AnswerMeasure:
    """Records what decoding chose at each position of one answer, and compares it with what the dense model would have.

    what: None records nothing, "choice" first choices, "kl" whole distributions too (4 bytes per token of the vocabulary
    and position). logits_all: the base class computes the logits of every token, not of the last one alone.
    """

    def __init__(self, llm: llama_cpp.Llama, what: str | None, logits_all: bool) -> None:
        self._llm, self.what, self.logits_all = llm, what, logits_all
        self.clear()

    def clear(self) -> None:
        """A new answer begins."""
        self._end: int | None = None
        self._decoded: dict[int, int] = {}
        self._log_probabilities: dict[int, npt.NDArray[np.float32]] = {}
        self.dense: dict[int, int] = {}
        """Position -> the dense model's first choice for the token after it, as far as it was measured."""
        self._kl: dict[int, float] = {}

    def record(self, end: int, n_tokens: int) -> None:
        """Take the first choices after a decoding step of `n_tokens` that ends at position `end`."""
        if self.what is None:
            return
        rows = self._llm.scores[end - n_tokens : end] if self.logits_all else self.logits(1)
        for position, row in enumerate(rows, end - len(rows)):
            self._decoded[position] = int(row.argmax())
            if self.what == "kl":
                self._log_probabilities[position] = log_softmax(row)

    def end(self, position: int) -> None:
        """The last token of the answer is the one at `position`: what was read from there on was drafted, and not taken."""
        self._end = position
        for drafted in [at for at in self._decoded if at >= position]:
            del self._decoded[drafted]
            self._log_probabilities.pop(drafted, None)

    def compare(self, start: int, n_tokens: int) -> None:
        """Take the dense model's choices of the evaluation that has just read `n_tokens` from position `start` on."""
        for position, row in enumerate(self.logits(n_tokens), start):
            if position in self._decoded:
                self.dense[position] = int(row.argmax())
            if (skipping := self._log_probabilities.pop(position, None)) is not None:
                dense = log_softmax(row)
                self._kl[position] = float(np.exp(dense) @ (dense - skipping))

    def wants(self, start: int, n_tokens: int) -> bool:
        """Whether any of these positions was decoded and is to be compared."""
        return any(position in self._decoded for position in range(start, start + n_tokens))

    def logits(self, n_rows: int) -> npt.NDArray[np.float32]:
        """The last rows of logits that llama.cpp holds, float32 [n_rows, n_vocab]; valid until the next evaluation."""
        n_vocab = self._llm.n_vocab()
        first = llama_cpp.llama_get_logits_ith(self._llm.ctx, -n_rows)
        return np.ctypeslib.as_array(first, shape=(n_rows * n_vocab,)).reshape(n_rows, n_vocab)

    @property
    def fidelity(self) -> Fidelity | None:
        """What was measured so far; None where nothing was."""
        if not self.dense:
            return None
        equal = sum(self._decoded[position] == token for position, token in self.dense.items())
        return Fidelity(len(self.dense), equal, float(np.mean(list(self._kl.values()))) if self._kl else None)

    @property
    def differing(self) -> dict[int, tuple[int, int]]:
        """Position -> the first choices of decoding and of the dense model for the token after it, where they differ."""
        return {at: (self._decoded[at], token) for at, token in sorted(self.dense.items()) if self._decoded[at] != token}

    def compared(self) -> list[ComparedToken]:
        """The tokens of the answer beside the dense model's choices; the first was predicted with all layers."""
        if not self._decoded:
            return []
        first, last = min(self._decoded), max(self._decoded) + 1
        never_evaluated = last in (self._llm.n_tokens, self._end)  # a draft may lie in its place
        end = last if never_evaluated else min(last + 1, self._llm.n_tokens)
        given = [int(token) for token in self._llm.input_ids[first:end]]
        if never_evaluated:
            given.append(self._llm.timing.last_token)
        dense = {at + 1: choices[1] for at, choices in self.differing.items()}
        return [ComparedToken(at, token, dense.get(at)) for at, token in enumerate(given, first)]


def log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Log-probabilities of one row of logits."""
    shifted = logits - logits.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()), np.float32)
