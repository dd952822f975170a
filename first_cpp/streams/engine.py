"""A `Llama` that evaluates whole answers at once: prompts read with all layers, answers without some, in few decodes."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from .. import _ext
from ..errors import RoutingError
from ..gguf.model_file import ModelFile
from ..llama import Llama
from ..runtime.choice import Setting, choose
from ..runtime.probe import check_answers
from ..runtime.prompt_probes import prompt_probes, read_layers
from ..skip import Skip
from . import MOST_POSITIONS, ONE_STREAM, ONLY_TOKENS, ROOM

Floats = npt.NDArray[np.float32]

STREAMS = 16
"""Answers that are decoded together: one batch reads the weights once for all of them."""


def streams_for(n_tokens: int, most: int = STREAMS) -> int:
    """How many answers to decode together, where a prompt and its answer may take `n_tokens` positions.

    >>> streams_for(300), streams_for(1153), streams_for(100_000)
    (16, 7, 1)
    """
    return max(1, min(most, MOST_POSITIONS // n_tokens))


class Engine(Llama):
    """A model that reads in several streams. By `read_prompt`, `read_next` and `rows`; `generate` is not for this one.

    n_tokens: positions that a prompt and its answer may take together. streams: answers that are decoded together, one of some
    architectures. routers: a side file, as `Llama` takes it.
    """

    def __init__(self, path: str, n_tokens: int, n_threads: int, streams: int = STREAMS, routers: str | None = None) -> None:
        n_stream = -(-n_tokens // ROOM) * ROOM
        architecture = ModelFile.open(path).architecture
        streams = 1 if architecture in ONE_STREAM else streams
        self.streams = streams
        size = min(512, n_stream)
        super().__init__(
            path,
            n_ctx=streams * n_stream,
            n_batch=size,
            n_ubatch=size,
            n_threads=n_threads,
            n_threads_batch=n_threads,
            skip=None,
            routers=routers,
            verbose=False,
        )
        check_answers(self)
        self._decode_size = size
        self._tokens_in = llama_cpp.llama_batch_init(size, 0, 1)
        self._states_in = llama_cpp.llama_batch_init(size, self.n_embd(), 1)
        self._memory = llama_cpp.llama_get_memory(self.ctx)
        self.room = n_stream
        """Positions of one stream."""
        self.n_layer = len(self._layers.unskippable)
        self.starts_anywhere = architecture not in ONLY_TOKENS and self._can_start()
        """Whether an evaluation may start at a later layer, from the hidden states that enter it."""
        llama_cpp.llama_memory_seq_rm(self._memory, 0, -1, -1)

    def _can_start(self) -> bool:
        """Tried: some models scale hidden states that come in, read the tokens in every layer, or the KV of earlier ones."""
        everything = frozenset(range(self.n_layer))
        if not self._layers.readable or self._layers.dense_because or self._layers.lacking(everything) != everything:
            return False
        tokens = self.tokenize(b"The quick brown fox jumps over the lazy dog.")[-8:]
        half = len(tokens) // 2
        self.read_prompt(tokens[:half])
        prefix = self.saved()
        logits, states = self.rows(tokens[half:], half, read_from=0)
        expected = logits.copy()
        for first in {1, self.n_layer // 2, self.n_layer - 1} - {0}:
            self.restore(prefix)
            try:
                found, _ = self.rows(tokens[half:], half, start=(first, states[first]))
            except RoutingError:
                return False
            if not np.allclose(found, expected, rtol=0, atol=1e-2 * float(expected.std())):
                return False
        return True

    @property
    def context_params(self) -> Any:
        """As in `Llama`, with a stream of its own for each answer."""
        return self._context_params

    @context_params.setter
    def context_params(self, params: Any) -> None:
        params.n_seq_max, params.kv_unified = self.streams, False
        Llama.context_params.fset(self, params)  # type: ignore[attr-defined]

    def close(self) -> None:
        """Free the model and the batches."""
        for name in ("_tokens_in", "_states_in"):
            if (batch := self.__dict__.pop(name, None)) is not None:
                llama_cpp.llama_batch_free(batch)
        super().close()

    @property
    def readable(self) -> bool:
        """Whether the hidden states that enter the layers can be read."""
        return self._layers.readable

    # -- prompts --------------------------------------------------------------------------------------------------------

    def read_prompt(self, tokens: Sequence[int], stream: int = 0, hidden: bool = False) -> list[Floats]:
        """Read a prompt into an empty stream, all layers; its last position's logits are `row(-1)`.

        With `hidden`, the hidden states entering each layer: n_layer of float32 [n_tokens, n_embd].
        """
        states = _ext.HiddenStates(self.n_layer) if hidden else None
        with self._layers.reading(states) if states is not None else nullcontext():
            self._read_all(tokens, stream)
        return [] if states is None else [points.reshape(len(tokens), -1) for points in states.points()]

    def read_scored(self, tokens: Sequence[int], stream: int = 0) -> npt.NDArray[np.float32] | None:
        """`read_prompt`, and what routers and cost probes read at each position, float32 [n_tokens, n_columns] as
        `prompt_probes` has them; None where there are none, or nothing can be read."""
        if self.routers is None or not self._layers.readable:
            self._read_all(tokens, stream)
            return None
        scores = prompt_probes(self.routers)
        with self._layers.reading(scores, read_layers(self.routers)):
            self._read_all(tokens, stream)
        return scores.scores()

    def choice(
        self, skip: Skip, tolerance: float | None, n_prompt: int, scores: npt.NDArray[np.float32] | None
    ) -> tuple[int, ...]:
        """The layers that a prompt's answer skips. tolerance: None for the file's own. scores: as `read_scored` gave them.
        Raises what `Llama.skip` and `Llama.tolerance` raise where this model cannot follow them."""
        self.skip, self.tolerance = skip, tolerance
        return choose(Setting(self.skip, self.tolerance or 0.0), self.routers, self._layers, n_prompt, scores).skipped

    def _read_all(self, tokens: Sequence[int], stream: int) -> None:
        llama_cpp.llama_memory_seq_rm(self._memory, stream, -1, -1)
        for start in range(0, len(tokens), self._decode_size):
            part = tokens[start : start + self._decode_size]
            outputs = [False] * (len(part) - 1) + [start + len(part) == len(tokens)]
            self._decode(self._tokens(part, range(start, start + len(part)), [stream] * len(part), outputs))

    def saved(self, stream: int = 0) -> bytes:
        """What a stream holds, for `restore`."""
        size = llama_cpp.llama_state_seq_get_size(self.ctx, stream)
        buffer = (ctypes.c_uint8 * size)()
        written = llama_cpp.llama_state_seq_get_data(self.ctx, buffer, size, stream)
        return bytes(memoryview(buffer)[:written])

    def restore(self, saved: bytes, stream: int = 0) -> None:
        """Fill a stream with what `saved` gave."""
        llama_cpp.llama_memory_seq_rm(self._memory, stream, -1, -1)
        buffer = (ctypes.c_uint8 * len(saved)).from_buffer_copy(saved)
        if llama_cpp.llama_state_seq_set_data(self.ctx, buffer, len(saved), stream) != len(saved):
            raise RuntimeError("llama.cpp could not restore the state of a prompt")

    def move(self, stream: int, to: int) -> None:
        """Move what a stream holds to another one. Not by llama_memory_seq_cp: it copies a stream's whole room, and of some
        architectures (DeepSeek 4) not all that the stream holds."""
        self.restore(self.saved(stream), to)
        llama_cpp.llama_memory_seq_rm(self._memory, stream, -1, -1)

    # -- answers --------------------------------------------------------------------------------------------------------

    def read_next(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        streams: Sequence[int],
        skipped: frozenset[int] = frozenset(),
    ) -> None:
        """Read one more token in each of `streams`, without the layers `skipped`; what follows them is in `row(0)`, `row(1)`
        and so on. To skip layers, the streams are neighbours, ascending."""
        with self._skipping(skipped):
            self._decode(self._tokens(tokens, positions, streams, [True] * len(tokens)))

    def row(self, i: int) -> Floats:
        """The logits of output `i` of the last evaluation, float32 [n_vocab]; gone with the next one."""
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self.ctx, i), shape=(self.n_vocab(),))

    def rows(
        self,
        answer: Sequence[int],
        position: int,
        skipped: frozenset[int] = frozenset(),
        start: tuple[int, Floats] | None = None,
        read_from: int | None = None,
    ) -> tuple[Floats, list[Floats]]:
        """Evaluate an answer after what stream 0 holds, in one decode without the layers `skipped`.

        start: a layer and the hidden states entering it, float32 [n, n_embd]: the layers before it are not computed.
        read_from: also return the hidden states entering this layer and each after it, and what leaves the last.
        Returns the logits after each token, float32 [n, n_vocab] (gone with the next evaluation), and those states.
        """
        n, skip = len(answer), skipped
        positions, streams, outputs = range(position, position + n), [0] * n, [True] * n
        if start is None:
            batch = self._tokens(answer, positions, streams, outputs)
        else:
            skip = skipped | frozenset(range(start[0]))
            batch = self._states(start[1], positions, streams, outputs)
        reader = None if read_from is None else _ext.HiddenStates(self.n_layer - read_from + 1)
        with self._skipping(skip):
            if reader is not None:
                self._layers.read(reader, range(read_from or 0, self.n_layer), final=True)
            self._decode(batch)
        states = [] if reader is None else [points.reshape(n, -1) for points in reader.points()]
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits(self.ctx), shape=(n, self.n_vocab())), states

    @contextmanager
    def _skipping(self, skipped: frozenset[int]) -> Iterator[None]:
        try:
            if skipped:
                self._layers.skip(skipped)
            yield
            self._layers.check()
        finally:
            self._layers.stop()

    # -- batches --------------------------------------------------------------------------------------------------------

    def _tokens(self, tokens: Sequence[int], positions: Sequence[int], streams: Sequence[int], outputs: Sequence[bool]) -> Any:
        batch = self._placed(self._tokens_in, positions, streams, outputs)
        for i, token in enumerate(tokens):
            batch.token[i] = token
        return batch

    def _states(self, states: Floats, positions: Sequence[int], streams: Sequence[int], outputs: Sequence[bool]) -> Any:
        batch = self._placed(self._states_in, positions, streams, outputs)
        states = np.ascontiguousarray(states, np.float32)
        ctypes.memmove(batch.embd, states.ctypes.data, states.nbytes)
        return batch

    def _placed(self, batch: Any, positions: Sequence[int], streams: Sequence[int], outputs: Sequence[bool]) -> Any:
        if len(positions) > self._decode_size:
            raise ValueError(f"a batch of {len(positions)} tokens, at most {self._decode_size} are evaluated at once")
        batch.n_tokens = len(positions)
        for i, (position, stream, output) in enumerate(zip(positions, streams, outputs, strict=True)):
            batch.pos[i], batch.n_seq_id[i], batch.logits[i] = position, 1, output
            batch.seq_id[i][0] = stream
        return batch

    def _decode(self, batch: Any) -> None:
        if status := llama_cpp.llama_decode(self.ctx, batch):
            self._layers.check()
            raise RoutingError(f"llama.cpp could not evaluate {batch.n_tokens} tokens (llama_decode returned {status})")
