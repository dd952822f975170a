"""What has been read into a llama context: for each position its KV, what probes read, and whether it is an image's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import llama_cpp
import numpy as np
import numpy.typing as npt

from .. import _ext
from ..errors import RoutingError, SettingError
from ..gguf.routers import Routers
from .kv_record import NOTHING, KvRecord
from .layers import Layers
from .prompt_probes import identity, prompt_probes, read_layers
from .state import LlamaState

_BASE = llama_cpp.Llama  # programs put our class in its place


class ReadContext:
    """The positions read so far, in step with the base class, which keeps their tokens and their number.

    llm: the model; only what llama_cpp.Llama itself does is asked of it. forget_logits: called when the logits that llama.cpp
    holds are no longer those of the last position.
    """

    def __init__(
        self, llm: llama_cpp.Llama, layers: Layers, routers: Routers | None, forget_logits: Callable[[], None]
    ) -> None:
        self._llm, self._layers, self._forget_logits = llm, layers, forget_logits
        self._memory = llama_cpp.llama_get_memory(llm.ctx)
        self._has_no_past = llama_cpp.llama_model_is_recurrent(llm.model) or llama_cpp.llama_model_is_hybrid(llm.model)
        self.window = int(llama_cpp.llama_model_n_swa(llm.model))
        """Positions that layers with a sliding window look back; 0 where there are none."""
        self._router_id = None if routers is None else identity(routers)
        self._scores = None if routers is None else prompt_probes(routers)
        self._read_layers = () if routers is None else read_layers(routers)
        self.micro_batch = min(llm.n_batch, llm.context_params.n_ubatch or llm.n_batch)
        self.kv = KvRecord()
        self.n_image = 0
        """Positions up to the end of the last image: they came without tokens, and have no scores."""
        self.pending: list[int] = []
        """Tokens after the last position that an interrupted idle pass was to read again."""

    # -- what is known ----------------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Follow the base class, which goes back by lowering n_tokens and lets multimodal handlers evaluate images."""
        n_tokens = self._llm.n_tokens
        if self._scores is not None and len(self._scores) > n_tokens:
            self._scores.seek(n_tokens)
        if self.kv.end > n_tokens:
            self.kv.truncate(n_tokens)
            self._forget_logits()
        self.n_image = min(self.n_image, n_tokens)
        if self.kv.end < n_tokens:  # an image was evaluated dense; only there do positions come without `evaluate`
            self.n_image = n_tokens
            self.kv.append(n_tokens, NOTHING)
            self._pad_scores()

    def _pad_scores(self) -> None:
        """Images have no scores, and do not count."""
        if self._scores is not None:
            known = self._scores.scores()
            self._scores.load(np.pad(known, ((0, self.n_image - len(known)), (0, 0)), constant_values=np.nan))

    @property
    def n_scored(self) -> int | None:
        """Positions whose router scores are known; None where nothing scores."""
        return None if self._scores is None else len(self._scores)

    def scores(self, n_positions: int) -> npt.NDArray[np.float32] | None:
        """What routers and cost probes read at the first positions, float32 [at most n_positions, n_columns] as `prompt_probes`
        has them, NaN for images; None without routers."""
        return None if self._scores is None else self._scores.scores()[:n_positions]

    # -- reading ----------------------------------------------------------------------------------------------------

    def evaluate(self, tokens: Sequence[int], skipped: frozenset[int], score: bool = False) -> None:
        """Evaluate tokens after those there, and those again before them that lack KV of layers that run now.

        score: let the routers score these positions, where all positions before them have scores.
        """
        self.sync()
        readable = self.kv.readable_with(skipped)
        if readable < self._llm.n_tokens or self.pending:
            pending, self.pending = self.pending, []
            tokens = self.rewind(readable) + pending + list(tokens)
        self.run(tokens, skipped, score)

    def run(
        self,
        tokens: Sequence[int],
        skipped: frozenset[int],
        score: bool = False,
        evaluate: Callable[[Sequence[int]], None] | None = None,
    ) -> None:
        """`evaluate` where nothing before needs to be read again: the path of every decoded token.

        evaluate: in place of the base class's eval of a micro-batch.
        """
        start, scores = self._llm.n_tokens, self._scores_from_here() if score else None
        try:
            if scores is not None:
                scores.seek(start)
                self._layers.read(scores, self._read_layers)
            parts = (tokens,) if len(tokens) <= self.micro_batch else self._micro_batches(tokens)
            for part in parts:  # Ctrl-C is heard between two
                if skipped:
                    self._layers.skip(skipped)
                if evaluate is None:
                    _BASE.eval(self._llm, part)
                else:
                    evaluate(part)
                if skipped or scores is not None:
                    self._layers.check()
        except BaseException as error:
            if isinstance(error, RuntimeError):
                self.rewind(start)  # what was evaluated in part cannot be relied on
            self._forget_logits()
            if isinstance(error, RuntimeError):
                self._check_tokens(tokens)
            raise
        finally:
            if skipped or scores is not None:
                self._layers.stop()
            self.kv.append(self._llm.n_tokens, skipped, self._layers.lacking(skipped))

    def _check_tokens(self, tokens: Sequence[int]) -> None:
        """Raise SettingError for a number that is no token; a vocabulary without an unknown token makes -1 of some texts."""
        for token in tokens:
            if not 0 <= token < self._llm.n_vocab():
                raise SettingError(f"{token} is not a token of this model: 0 to {self._llm.n_vocab() - 1}")

    def _scores_from_here(self) -> _ext.RouterScores | None:
        return self._scores if self._scores is not None and len(self._scores) >= self._llm.n_tokens else None

    def _micro_batches(self, tokens: Sequence[int]) -> Iterator[Sequence[int]]:
        """The parts in which llama.cpp evaluates `tokens`: batches of n_batch, in micro-batches of n_ubatch."""
        n_batch = self._llm.n_batch
        for batch in range(0, len(tokens), n_batch):
            end = min(batch + n_batch, len(tokens))
            for start in range(batch, end, self.micro_batch):
                yield tokens[start : min(start + self.micro_batch, end)]

    # -- going back -------------------------------------------------------------------------------------------------

    def rewind(self, n_positions: int) -> list[int]:
        """Go back to the first positions, or to none where the memory cannot; returns the tokens dropped.

        Raises RoutingError where that would drop images: they have no tokens to be read again.
        """
        before = self._llm.n_tokens
        if n_positions >= before:
            return []
        # a recurrent state has no past; a sliding window may have dropped the cells that these positions, or one less, need
        needed = max(0, n_positions - 1 - self.window) if self.window else 0
        if self._has_no_past or llama_cpp.llama_memory_seq_pos_min(self._memory, 0) > needed:
            n_positions = 0
        if n_positions < self.n_image:
            raise RoutingError("images would have to be read again for this prompt; reset() and give them again")
        if n_positions == 0:
            _BASE.reset(self._llm)
        self._llm.n_tokens = n_positions
        self._forget_logits()
        self.sync()
        return [int(token) for token in self._llm.input_ids[n_positions:before]]

    def new_prompt(self, tokens: Sequence[int]) -> None:
        """A prompt that does not begin with what was read up to the last image: its tokens are all there is to read."""
        if list(tokens[: self.n_image]) != self._llm.input_ids[: self.n_image].tolist():
            self.n_image = 0

    # -- states -----------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Read what an interrupted idle pass has not: the context holds all its tokens again."""
        self.sync()
        if self.pending:
            self.evaluate([], NOTHING, score=True)

    def save(self, state: llama_cpp.LlamaState) -> LlamaState:
        """The base class's state with what is known of its positions."""
        scores = None if self._scores is None else self._scores.scores()
        return LlamaState(state, self.kv.copy(), self.n_image, scores, self._router_id)

    def load(self, state: llama_cpp.LlamaState) -> None:
        """What is known of a state that the base class has loaded; one of stock llama_cpp was evaluated dense."""
        self.kv, self.n_image, self.pending, scores = KvRecord(), 0, [], None
        self._forget_logits()  # llama.cpp still holds those of what was evaluated before
        if isinstance(state, LlamaState):
            self.kv, self.n_image = state.kv.copy(), state.n_image
            scores = state.router_scores if state.router_id == self._router_id else None
        else:
            self.kv.append(self._llm.n_tokens, NOTHING)
        if self._scores is not None:
            self._scores.load(np.empty((0, self._scores.n_columns), np.float32) if scores is None else scores)
