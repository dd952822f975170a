"""The states of several conversations in memory: clients that alternate do not read each other's prefix again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import llama_cpp
import numpy as np
import numpy.typing as npt

from .context import ReadContext
from .policy import RoutingPolicy
from .state import LlamaState

WORTH = 16
"""Tokens that a state must save to be kept or loaded: fewer are read as quickly."""


@dataclass
class _Kept:
    """state: with its tokens and records. usable: leading positions that a prompt can take. n_bytes: of all of it."""

    state: LlamaState
    usable: int
    n_bytes: int

    @property
    def tokens(self) -> npt.NDArray[np.intc]:
        return self.state.input_ids  # type: ignore[no-any-return]


class Conversations:
    """Keeps at most `most_bytes` of states, the least recently used out first.

    The conversation that the model is at is not among them; its state is taken when a prompt of another one comes.
    """

    def __init__(
        self, llm: llama_cpp.Llama, read: ReadContext, policy: RoutingPolicy, most_bytes: int, logits_all: bool
    ) -> None:
        self._llm, self._read, self._policy, self.most_bytes = llm, read, policy, most_bytes
        self._logits_all = logits_all  # the base class keeps the logits of every position
        self._kept: list[_Kept] = []  # the least recently used first
        self.hits = 0
        """Prompts that found a longer prefix here than in the model."""
        self.hit_tokens = 0
        """Tokens that were not read again for that."""

    @property
    def n_bytes(self) -> int:
        """Of the states kept."""
        return sum(kept.n_bytes for kept in self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def switch(self, prompt: Sequence[int]) -> None:
        """Before a prompt is read: keep the state that it would overwrite, and load the one it can take the most of."""
        wanted = np.asarray(prompt, np.intc)
        live = self._live_tokens()
        usable = self._policy.usable_prefix()
        here = min(usable, common_prefix(live, wanted))
        found = max(self._kept, key=lambda kept: _worth(kept, wanted), default=None)
        there = _worth(found, wanted) if found is not None else 0
        if usable - here >= WORTH:
            self._keep(live, usable)
        if found is None or there < here + WORTH:
            return
        if self._load(found):
            self.hits += 1
            self.hit_tokens += there - here
        if found in self._kept:
            self._kept.remove(found)
            if there < found.usable:  # another conversation that begins alike: the one kept goes on, too
                self._kept.append(found)

    def _live_tokens(self) -> npt.NDArray[np.intc]:
        return np.array(self._llm.input_ids[: self._llm.n_tokens], np.intc)

    def _keep(self, tokens: npt.NDArray[np.intc], usable: int) -> None:
        """Take the model's state in, in place of those that it goes on from. Images have no tokens to be found by."""
        if self._read.n_image:
            return
        logits = self._logits(len(tokens))
        size = llama_cpp.llama_state_seq_get_size(self._llm.ctx, 0)
        if size + logits.nbytes > self.most_bytes:
            return
        self._kept = [kept for kept in self._kept if common_prefix(kept.tokens, tokens) < len(kept.tokens)]
        self._make_room(size + logits.nbytes)
        buffer = (llama_cpp.ctypes.c_uint8 * size)()
        if llama_cpp.llama_state_seq_get_data(self._llm.ctx, buffer, size, 0) != size:
            return
        state = llama_cpp.LlamaState(
            input_ids=tokens,
            scores=logits.copy(),
            n_tokens=len(tokens),
            llama_state=buffer,
            llama_state_size=size,
            seed=0,
        )
        taken = self._read.save(state)
        scores = 0 if taken.router_scores is None else taken.router_scores.nbytes
        kept = _Kept(taken, usable, size + tokens.nbytes + scores + logits.nbytes)
        self._make_room(kept.n_bytes)
        if kept.n_bytes <= self.most_bytes:
            self._kept.append(kept)

    def _logits(self, n_tokens: int) -> npt.NDArray[np.single]:
        """Those of the first positions, where they are kept, else none."""
        return self._llm.scores[: n_tokens if self._logits_all else 0]  # type: ignore[no-any-return]

    def _make_room(self, n_bytes: int) -> None:
        while self._kept and self.n_bytes + n_bytes > self.most_bytes:
            self._kept.pop(0)

    def _load(self, kept: _Kept) -> bool:
        """Go on from a state; False, with an empty context, where llama.cpp does not take it."""
        llm, state = self._llm, kept.state
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(llm.ctx), True)
        llm.n_tokens = 0
        taken = llama_cpp.llama_state_seq_set_data(llm.ctx, state.llama_state, state.llama_state_size, 0)
        if taken != state.llama_state_size:
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(llm.ctx), True)
            self._read.sync()
            return False
        llm.n_tokens = state.n_tokens
        llm.input_ids[: state.n_tokens] = state.input_ids
        self._logits(state.n_tokens)[:] = state.scores
        self._read.load(state)
        return True


def _worth(kept: _Kept, wanted: npt.NDArray[np.intc]) -> int:
    """How many leading tokens a prompt can take of a state."""
    return min(kept.usable, common_prefix(kept.tokens, wanted))


def common_prefix(a: npt.NDArray[np.intc], b: npt.NDArray[np.intc]) -> int:
    """How many leading tokens are the same.

    >>> common_prefix(np.array([1, 2, 3]), np.array([1, 2, 4, 5]))
    2
    """
    n = min(len(a), len(b))
    differing = np.flatnonzero(a[:n] != b[:n])
    return int(differing[0]) if len(differing) else n
