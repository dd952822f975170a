"""`Llama`: llama_cpp.Llama whose decoding leaves out the layers that the prompt chose.

The path of a prompt: `generate` drops what the KV cache cannot vouch for and starts an answer; its first `eval` is prefill,
all layers run and the routers score every position; `_decide` turns the scores into a set of layers; every later `eval` of
that answer is decoding, without those layers (`Layers.left_out`, cpp_ext/graph_patch.cpp).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import os
import threading
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from . import _ext
from .errors import AnswerCancelled, BusyError, ContextFull, OffloadError, OptionError, RoutingError, SkipError
from .gguf.model_file import fingerprint, normal_path, open_model
from .gguf.routers import Base, Routers, check_base, find_lora, load_routers, read_routers
from .runtime.answer import Answer, ContextEnd, Timing
from .runtime.arguments import check_keywords, check_sizes, why_no_context
from .runtime.choice import Choice, asked_share, choose
from .runtime.grammar import check_grammar
from .runtime.hidden_states import read_hidden_states
from .runtime.kv_record import NOTHING, KvRecord
from .runtime.layers import Layers
from .runtime.one_thread import CLOSED, OneThread
from .runtime.routing import Routing
from .runtime.state import LlamaState
from .runtime.token_text import Pieces
from .skip import Skip, check_kv, check_layers, check_prefill, layers_for_share, parse_skip

_BASE_GENERATE = inspect.signature(llama_cpp.Llama.generate)
_BASE_COMPLETION = inspect.signature(llama_cpp.Llama._create_completion)


class Llama(llama_cpp.Llama):  # type: ignore[misc]
    """A drop-in `llama_cpp.Llama` that leaves layers out of decoding (FiRST, arXiv 2410.12513).

    All arguments and methods of the base class work as they do there. Further arguments:

    skip: which layers decoding leaves out. "auto": the share that the router file recommends, nothing without routers;
        None or 0: nothing; a number below 1: that share of the layers, those with the lowest keep scores; a list of ints:
        exactly those. Can be set between answers.
    routers: a GGUF file to take routers from instead of the model file (`python -m convert --routers ... --sidecar`).
    release_kv: give the KV memory of skipped layers back to the system once a prompt has decided. The next prompt is then
        read from its beginning.
    prefill: "full" reads the whole prompt with all layers. "routed" reads its first `route_tokens` with all layers, decides on
        them, and reads the rest without the skipped layers: TTFT falls too, and quality falls more
        (docs/reference/benchmarks.md).
    route_tokens: with prefill="routed", how many prompt tokens decide; by default one micro-batch (n_ubatch).
    kv: "drop": a layer left out writes no KV (or recurrent state). "keep": it writes them all the same, at the cost of reading
        the weights that make them: a saved state is then whole for stock llama_cpp, and `leaving_out` never reads again.
    strict: raise RoutingError where layers are to be left out of a model that has none to leave out; by default it runs dense
        with one warning.

    Raises TypeError for unknown keywords, and the errors of `first_cpp.errors` for files, routers and settings that do not fit.
    """

    # of the base class, which has no annotations
    n_tokens: int
    input_ids: npt.NDArray[np.intc]
    scores: npt.NDArray[np.single]
    tokenizer_: Any
    _model: Any

    def __init__(
        self,
        model_path: str | bytes | os.PathLike[str],
        *,
        skip: object = "auto",
        routers: str | bytes | os.PathLike[str] | None = None,
        release_kv: bool = False,
        prefill: str = "full",
        route_tokens: int | None = None,
        kv: str = "drop",
        strict: bool = False,
        **kwargs: Any,
    ) -> None:
        self._exclusive = OneThread()
        check_keywords(kwargs)
        check_sizes(kwargs)
        check_prefill(prefill, route_tokens)
        check_kv(kv, release_kv)
        parsed = parse_skip(skip)
        path = normal_path(model_path)
        parts = open_model(path)
        self._routers_path = None if routers is None else normal_path(routers)
        found = self._find_routers(parts[0][1], path)
        if isinstance(parsed, float) and parsed > 0 and found is None:
            raise SkipError(
                f"skip={skip!r} needs routers and there are none in {path}; give routers=FILE, a list of layers, or make some "
                "with `python -m convert --routers`"
            )
        kwargs["lora_path"] = find_lora(self._routers_path, kwargs.get("lora_path"))
        offload = kwargs.get("n_gpu_layers", 0) != 0 and bool(llama_cpp.llama_supports_gpu_offload())
        if offload and parsed is not None and not (parsed == "auto" and found is None):
            raise OffloadError(
                f"n_gpu_layers={kwargs['n_gpu_layers']} with skip={skip!r}: layers can be left out on the CPU only; "
                "use n_gpu_layers=0, or skip=None"
            )

        self._layers = Layers(keep_kv=kv == "keep")
        self._kv_mode, self._strict = kv, strict
        self._offload = offload
        self._skip: Skip = None
        self._release_kv = release_kv
        self._prefill, self._route_tokens_asked = prefill, route_tokens
        self._routers = found
        self._routing: Routing | None = None
        self._answer: Answer | None = None
        self._answering = threading.Lock()
        self._timed = Answer()
        self._forced: frozenset[int] | None = None
        self._kv = KvRecord()
        self._foreign = 0
        self._scores_read = _ext.RouterScores(found.weight, found.bias, found.norm_eps) if found else None
        self._warned = False

        self._load(path, kwargs)

        self._n_layer = int(llama_cpp.llama_model_n_layer(self._model.model))
        self._pieces = Pieces(self._model) if type(self.tokenizer_) is llama_cpp.LlamaTokenizer else None
        if found is not None:
            architecture = self.metadata.get("general.architecture", "")
            model = Base(architecture, self._n_layer, self.n_embd(), fingerprint(parts))
            check_base(found, model, self._routers_path or path)
        self._micro_batch = min(self.n_batch, self.context_params.n_ubatch or self.n_batch)
        self._route_tokens = (route_tokens or self._micro_batch) if prefill == "routed" else self._n_ctx
        self._fit_to_context()
        self._look_at_graph()
        self.skip = parsed

    def _load(self, path: str, settings: dict[str, Any]) -> None:
        """Load the model and create its context, as the base class does it."""
        try:
            super().__init__(model_path=path, **settings)
        except ValueError as error:
            if "llama_context" not in str(error):
                raise
            raise OptionError(why_no_context(self._model.model, self.context_params)) from error

    def _find_routers(self, file: _ext.GgufFile, path: str) -> Routers | None:
        return load_routers(self._routers_path) if self._routers_path else read_routers(file, path)

    # -- settings ---------------------------------------------------------------------------------------------------

    @property
    def context_params(self) -> Any:
        """The llama_context_params of the base class, with the callback set before the context is created from them."""
        return self._context_params

    @context_params.setter
    def context_params(self, params: Any) -> None:
        if not self._offload:
            self._layers.attach(params)
        self._context_params = params

    @property
    def skip(self) -> Skip:
        """Which layers decoding leaves out; a change takes effect with the next prompt."""
        return self._skip

    @skip.setter
    def skip(self, value: object) -> None:
        skip = parse_skip(value)
        if isinstance(skip, float):
            if skip > 0 and self._routers is None:
                raise SkipError(f"skip={value!r} needs routers, and this model was loaded without; a list of layers needs none")
            layers_for_share(skip, self._n_layer)
        if isinstance(skip, tuple):
            check_layers(skip, self._n_layer)
        if skip and not (skip == "auto" and self._routers is None):
            self._check_possible(skip if isinstance(skip, tuple) else ())
        self._skip = skip

    @property
    def routers(self) -> Routers | None:
        """The routers in use, None when the model has none."""
        return self._routers

    @property
    def unskippable(self) -> tuple[str, ...]:
        """For each layer why it cannot be left out of this model's graphs; an empty string where it can."""
        return self._layers.trouble

    @property
    def dense_because(self) -> str:
        """Why no layer at all can be left out of this model; an empty string where some can."""
        return self._layers.unsupported

    @property
    def routing(self) -> Routing | None:
        """What the last prompt decided, None before the first."""
        return self._routing

    @property
    def draft_model(self) -> Any:
        """What drafts tokens ahead of decoding, as given to the constructor."""
        return self._draft_model

    @draft_model.setter
    def draft_model(self, draft_model: Any) -> None:
        if draft_model is not None and not getattr(self, "_logits_all", True):
            raise ValueError("a draft model needs the logits of every token: give draft_model= to the constructor")
        self._draft_model = draft_model

    @property
    def timing(self) -> Timing:
        """How long the last answer took, the one going on included."""
        return self._timed.timing

    @contextlib.contextmanager
    def leaving_out(self, layers: Iterable[int]) -> Iterator[None]:
        """Evaluate every token inside without `layers`, prompt or not. Nothing is routed meanwhile.

        Tokens evaluated before, with other layers left out, are read again where they lack KV that is now needed.
        Raises SkipError for layers that do not exist or cannot be left out of this model.
        """
        wanted = parse_skip(list(layers))
        assert isinstance(wanted, tuple)
        check_layers(wanted, self._n_layer)
        if wanted:
            self._check_possible(wanted)
        before, self._forced = self._forced, frozenset(wanted)
        try:
            yield
        finally:
            self._forced = before

    def _check_possible(self, layers: Iterable[int]) -> None:
        """Raise for layers that cannot be left out of this model; if none can, warn once, or raise where it is strict."""
        if self._offload:
            raise OffloadError("layers on a GPU: layers can be left out on the CPU only; load with n_gpu_layers=0")
        if self._layers.unsupported:
            self._warn_dense(self._layers.unsupported)
            return
        for layer in layers:
            if self._layers.trouble[layer]:
                raise SkipError(f"layer {layer} of this model cannot be left out: {self._layers.trouble[layer]}")

    def _warn_dense(self, why: str) -> None:
        if self._strict:
            raise RoutingError(f"no layer of {self.model_path} can be left out: {why}; strict=False runs it dense")
        if not self._warned:
            warnings.warn(f"no layer of {self.model_path} can be left out, it runs dense: {why}", RuntimeWarning, stacklevel=4)
            self._warned = True

    def _fit_to_context(self) -> None:
        """llama.cpp rounds n_ctx up; tokens beyond the number asked for are recorded too, so that they can be read again."""
        missing = self._n_ctx - len(self.input_ids)
        if missing > 0:
            self.input_ids = np.concatenate([self.input_ids, np.zeros(missing, np.intc)])
            if self._logits_all:
                self.scores = np.concatenate([self.scores, np.zeros((missing, self._n_vocab), np.single)])

    def _look_at_graph(self) -> None:
        """Learn how this model's graphs are laid out: those of a step and of a micro-batch are built and not computed."""
        model = self._model.model
        for unsupported, why in (
            (self._offload, "it has layers on a GPU"),
            (self._ctx.memory is None, "it has no KV cache"),
            (llama_cpp.llama_model_has_encoder(model), "it has an encoder"),
            (llama_cpp.llama_model_is_diffusion(model), "it generates by diffusion"),
        ):
            if unsupported:
                self._layers.declare_unsupported(self._n_layer, why)
                return
        for n_tokens in sorted({1, self._micro_batch}):  # where ggml puts nodes in memory depends on their size
            self._batch.set_batch(batch=[0] * n_tokens, n_past=0, logits_all=False)
            with self._layers.probing(self._n_layer):
                self._ctx.decode(self._batch)
            self._ctx.kv_cache_seq_rm(-1, 0, -1)
        self._ctx.reset_timings()

    # -- one answer -------------------------------------------------------------------------------------------------

    def generate(self, tokens: Sequence[int], *args: Any, **kwargs: Any) -> Generator[int, Sequence[int] | None, None]:
        """Yield the tokens that answer a prompt; arguments as in `llama_cpp.Llama.generate`.

        Raises BusyError when it is resumed after a newer prompt was started on this model, AnswerCancelled after `cancel`.
        """
        given = _BASE_GENERATE.bind(self, tokens, *args, **kwargs).arguments
        given.pop("self")
        reset = given.get("reset", True)
        answer = Answer()
        end = given.get("stopping_criteria")
        if isinstance(end, ContextEnd):
            given["stopping_criteria"] = end.further
        with self._exclusive:
            if not len(tokens) and (reset or self.n_tokens == 0):
                raise ValueError("the prompt has no tokens")
            given["tokens"] = self._drop_unusable(list(tokens), reset)
            self._set_answer(answer)  # last: a prompt that is refused starts no answer
            self._timed = answer
        inner = super().generate(**given)
        sent: Sequence[int] | None = None
        try:
            while True:
                with self._exclusive:
                    if self._answer is not answer:
                        raise BusyError("this answer cannot go on: the same Llama was reset or given a newer prompt")
                    self._go_on(answer)
                    try:
                        token = inner.send(sent)
                    except StopIteration:
                        return
                    except ContextFull:
                        if answer.left_out is None or not isinstance(end, ContextEnd):
                            raise
                        end.reached = True
                        return
                    except RuntimeError as error:
                        if answer.cancelled:
                            raise AnswerCancelled("the answer was cancelled") from error
                        raise
                    answer.running = False
                    if answer.cancelled:
                        raise AnswerCancelled("the answer was cancelled")
                answer.count()
                sent = yield token
                answer.resume()
        finally:
            inner.close()
            if self._answer is answer:
                self._set_answer(None)

    def cancel(self) -> None:
        """End the answer that is going on, from any thread: `generate` raises AnswerCancelled, also amid prefill.

        Without an answer it does nothing. The model stays usable, and the next answer is not concerned.
        """
        with self._answering:
            if self._answer is not None:
                self._answer.cancelled = True
                self._layers.abort(self._answer.running)  # a suspended answer ends when it is resumed

    def _go_on(self, answer: Answer) -> None:
        with self._answering:
            if answer.cancelled:
                raise AnswerCancelled("the answer was cancelled")
            answer.running = True

    def _set_answer(self, answer: Answer | None) -> None:
        with self._answering:
            self._answer = answer
            self._layers.abort(False)

    def eval(self, tokens: Sequence[int]) -> None:
        """Evaluate tokens after those already there: as prompt, as answer, or dense when called by itself.

        Raises ContextFull, and changes nothing, where the context has no room for them.
        """
        with self._exclusive:
            if (asked := self.n_tokens + len(tokens)) > self._n_ctx:
                raise ContextFull(
                    f"Requested tokens ({asked}) exceed context window of {self._n_ctx}; a larger n_ctx= has room"
                )
            answer = self._answer
            if answer is not None and answer.left_out is not None and self._forced is None:
                if self.n_tokens == self._kv.end:  # the per-token path: nothing was changed behind our back
                    self._run(tokens, answer.left_out)
                else:
                    self._evaluate(tokens, answer.left_out)
            elif answer is None:
                self._evaluate(tokens, self._forced_set(), self._sink())
            elif answer.left_out is not None:
                self._evaluate(tokens, self._forced_set())
            else:
                self._read_prompt(answer, tokens)

    def _read_prompt(self, answer: Answer, tokens: Sequence[int]) -> None:
        """Prefill and decision: all layers on every position that decides, with prefill="routed" fewer on the rest."""
        self._forget_beyond()
        scores = self._sink()
        whole = self._forced is not None or self._foreign > 0
        end = self.n_tokens + len(tokens)
        deciding = len(tokens) if whole else max(0, self._route_tokens - self.n_tokens)
        if deciding:
            self._evaluate(tokens[:deciding], self._forced_set(), scores)
        self._routing = self._decide(end)
        answer.left_out = frozenset(self._routing.skipped)
        if rest := tokens[deciding:]:
            self._evaluate(rest, answer.left_out)

    def _sink(self) -> _ext.RouterScores | None:
        """Where the scores of the next positions go; None where nothing is routed or text before them has none."""
        self._forget_beyond()
        scores = self._scores_read
        if scores is None or not self._routed():
            return None
        if len(scores) < self._foreign:  # images have no scores, and do not count
            known = scores.scores()
            scores.load(np.pad(known, ((0, self._foreign - len(known)), (0, 0)), constant_values=np.nan))
        return scores if len(scores) >= self.n_tokens else None

    def _evaluate(self, tokens: Sequence[int], left_out: frozenset[int], scores: _ext.RouterScores | None = None) -> None:
        """Evaluate after what is there, reading again what lacks layers that run now."""
        self._forget_beyond()
        readable = self._kv.readable_with(left_out)
        if readable < self.n_tokens:
            tokens = self._rewind(readable) + list(tokens)
        self._run(tokens, left_out, scores)

    def _run(self, tokens: Sequence[int], left_out: frozenset[int], scores: _ext.RouterScores | None = None) -> None:
        start = self.n_tokens
        try:
            if scores is not None:
                scores.seek(start)
                self._layers.read(scores)
            parts = (tokens,) if len(tokens) <= self._micro_batch else self._micro_batches(tokens)
            for part in parts:  # Ctrl-C is heard between two
                if left_out:
                    self._layers.leave_out(left_out)
                super().eval(part)
                if left_out or scores is not None:
                    self._layers.check()
        except BaseException as error:
            if isinstance(error, RuntimeError):
                self._rewind(start)  # what was evaluated in part cannot be vouched for
            self._requires_eval = True  # whatever logits there are, they are not those of the last position
            raise
        finally:
            if left_out or scores is not None:
                self._layers.stop()
            self._kv.append(self.n_tokens, left_out, self._layers.lacking(left_out))

    def _micro_batches(self, tokens: Sequence[int]) -> Iterator[Sequence[int]]:
        """The parts in which llama.cpp evaluates `tokens`: batches of n_batch, in micro-batches of n_ubatch."""
        for batch in range(0, len(tokens), self.n_batch):
            end = min(batch + self.n_batch, len(tokens))
            for start in range(batch, end, self._micro_batch):
                yield tokens[start : min(start + self._micro_batch, end)]

    def _drop_unusable(self, tokens: list[int], reset: bool) -> list[int]:
        """Rewind to the prefix that a fresh model would have evaluated the same way; returns the tokens to evaluate."""
        self._forget_beyond()
        usable = self._kv.evaluated_like(self._forced_set())
        if self._routed() and self._scores_read is not None and not self._foreign:
            usable = min(usable, len(self._scores_read))
        if usable >= self._route_tokens and self._forced is None and not self._foreign:
            usable = self._kv.evaluated_like(frozenset(self._choose().skipped), start=self._route_tokens)
        images = self._foreign
        if reset and tokens[:images] != self.input_ids[:images].tolist():
            self._foreign = 0  # another prompt: its tokens are all there is to read
        dropped = self._rewind(usable)
        return tokens if reset else dropped + tokens

    def _forced_set(self) -> frozenset[int]:
        """The layers of `leaving_out`; none where the model cannot do without (it warned when it was asked)."""
        return NOTHING if self._forced is None or self._layers.unsupported else self._forced

    def _rewind(self, n_tokens: int) -> list[int]:
        """Go back to the first `n_tokens` positions, or to none where the memory cannot; returns the tokens dropped.

        Raises RoutingError where that would drop images: they have no tokens to be read again.
        """
        before = self.n_tokens
        if n_tokens >= before:
            return []
        # a recurrent state has no past; a sliding window has dropped the cells that an earlier position needs
        if self._is_recurrent or self._is_hybrid or llama_cpp.llama_memory_seq_pos_min(self._ctx.memory, 0) > 0:
            n_tokens = 0
        if n_tokens < self._foreign:
            raise RoutingError("images would have to be read again for this prompt; reset() and give them again")
        if n_tokens == 0:
            super().reset()
        self.n_tokens = n_tokens
        self._requires_eval = True
        self._forget_beyond()
        return [int(token) for token in self.input_ids[n_tokens:before]]

    def _forget_beyond(self) -> None:
        """The base class goes back by lowering n_tokens; our records follow.

        Positions that came without `eval` (a multimodal handler's images) were evaluated dense, and only there.
        """
        self._kv.truncate(self.n_tokens)
        self._foreign = min(self._foreign, self.n_tokens)
        if self._kv.end < self.n_tokens:
            self._foreign = self.n_tokens
            self._kv.append(self.n_tokens, NOTHING)
        if self._scores_read is not None and len(self._scores_read) > self.n_tokens:
            self._scores_read.seek(self.n_tokens)

    # -- the decision -----------------------------------------------------------------------------------------------

    def _routed(self) -> bool:
        return self._forced is None and asked_share(self._skip, self._routers) > 0 and not self._layers.unsupported

    def _deciding(self) -> int:
        """How many of the positions read so far decide; after images all, because all were read with all layers."""
        return self.n_tokens if self._foreign else min(self.n_tokens, self._route_tokens)

    def _decide(self, n_prompt: int) -> Routing:
        choice = self._choose()
        released = 0
        if self._release_kv and choice.skipped:
            released = self._layers.release(choice.skipped)
            self._kv.lose(frozenset(choice.skipped))
        holding = [layer for layer in range(self._n_layer) if not released or layer not in choice.skipped]
        return Routing(
            keep=choice.keep,
            skipped=choice.skipped,
            n_layer=self._n_layer,
            prompt_tokens=self._deciding(),
            why=choice.why,
            kv_bytes=self._layers.kv_bytes(),
            kv_bytes_used=self._layers.kv_bytes(holding) * n_prompt // self._n_ctx,
            kv_bytes_released=released,
        )

    def _choose(self) -> Choice:
        if self._forced is not None:
            why = f"dense: {self._layers.unsupported}" if self._layers.unsupported else "leaving_out()"
            return Choice(None, tuple(sorted(self._forced_set())), why)
        n = self._deciding()
        scores = self._scores_read.scores()[:n] if self._scores_read is not None and self._routed() else None
        return choose(self._skip, self._routers, self._layers, n, scores)

    # -- hidden states ----------------------------------------------------------------------------------------------

    def hidden_states(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """The residual stream of `tokens`, evaluated alone from position 0 with all layers.

        Returns float32 [n_layer + 1, n_tokens, n_embd]: what enters each layer, and what leaves the last.
        Raises ValueError for no tokens or more than n_ctx, RoutingError for a model whose graph does not name its layers.
        """
        if not 0 < len(tokens) <= self._n_ctx:
            raise ValueError(f"hidden_states takes 1 to n_ctx={self._n_ctx} tokens, got {len(tokens)}")
        if self._layers.unsupported or not self._layers.readable:
            why = self._layers.unsupported or "its graph does not name them all"
            raise RoutingError(f"the hidden states of this model cannot be read: {why}")
        with self._exclusive:
            self.reset()
            return read_hidden_states(self, self._layers, tokens)

    # -- state ------------------------------------------------------------------------------------------------------

    def save_state(self) -> LlamaState:
        """The base class's state, with what is known of its positions."""
        with self._exclusive:
            self._forget_beyond()
            scores = None if self._scores_read is None else self._scores_read.scores()
            return LlamaState(super().save_state(), self._kv.copy(), self._foreign, scores, self._router_id())

    def load_state(self, state: llama_cpp.LlamaState) -> None:
        """Restore a state; one of stock llama_cpp is taken as evaluated with all layers."""
        with self._exclusive:
            super().load_state(state)
            self._set_answer(None)
            self._kv, self._foreign = KvRecord(), 0
            scores = None
            if isinstance(state, LlamaState):
                self._kv, self._foreign = state.kv.copy(), state.foreign
                scores = state.router_scores if state.router_id == self._router_id() else None
            else:
                self._kv.append(self.n_tokens, NOTHING)
            if self._scores_read is not None:
                self._scores_read.load(np.empty((0, self._n_layer), np.float32) if scores is None else scores)

    def _router_id(self) -> str | None:
        """Tells routers apart: scores of others are of no use."""
        if self._routers is None:
            return None
        return hashlib.sha256(self._routers.weight.tobytes() + self._routers.bias.tobytes()).hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        skip = list(self._skip) if isinstance(self._skip, tuple) else self._skip
        state = {**super().__getstate__(), "skip": skip, "routers": self._routers_path, "release_kv": self._release_kv}
        state |= {"kv": self._kv_mode, "strict": self._strict}
        state |= {"prefill": self._prefill, "route_tokens": self._route_tokens_asked}
        if self._routers_path and state["lora_path"] == self._routers_path:
            state["lora_path"] = None  # found in the side file again
        return state

    def close(self) -> None:
        """Free the model. Closing again is fine; any other use afterwards raises ClosedError."""
        if not hasattr(self, "_stack") or self._exclusive.forked:
            return  # the constructor failed early; or the model is the parent process's
        with self._exclusive:
            super().close()
            if hasattr(self, "_model") and self._model is not CLOSED:
                self._model.model = self._model.vocab = CLOSED  # tokenizers taken from this model hold on to it
            self._pieces = None
            self._ctx = self._model = self._batch = self.tokenizer_ = CLOSED

    # -- one thread at a time ---------------------------------------------------------------------------------------

    def _create_completion(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        # One step of a whole answer is the whole answer: no other thread comes between its tokens.
        given = _BASE_COMPLETION.bind(self, *args, **kwargs)
        given.apply_defaults()
        end = given.arguments["stopping_criteria"] = ContextEnd(given.arguments["stopping_criteria"])
        inner = super()._create_completion(*given.args[1:], **given.kwargs)
        try:
            while True:
                with self._exclusive:
                    try:
                        chunk = next(inner)
                    except StopIteration:
                        return
                if end.reached and chunk["choices"][0]["finish_reason"] == "stop":
                    chunk["choices"][0]["finish_reason"] = "length"
                yield chunk
        finally:
            inner.close()

    @functools.wraps(llama_cpp.Llama.create_chat_completion)
    def create_chat_completion(self, *args: Any, **kwargs: Any) -> Any:
        with self._exclusive:  # multimodal handlers evaluate images by themselves
            return super().create_chat_completion(*args, **kwargs)

    def _init_sampler(self, *args: Any, **kwargs: Any) -> Any:
        if (grammar := kwargs.get("grammar")) is not None:
            check_grammar(self, grammar._grammar, grammar._root)  # llama.cpp would end the process
        return super()._init_sampler(*args, **kwargs)

    @functools.wraps(llama_cpp.Llama.sample)
    def sample(self, *args: Any, **kwargs: Any) -> int:
        with self._exclusive:
            return super().sample(*args, **kwargs)  # type: ignore[no-any-return]

    @functools.wraps(llama_cpp.Llama.embed)
    def embed(self, *args: Any, **kwargs: Any) -> Any:
        with self._exclusive:
            return super().embed(*args, **kwargs)

    def detokenize(self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False) -> bytes:
        """The text of `tokens`, as in the base class."""
        if self._pieces is None:
            return super().detokenize(tokens, prev_tokens=prev_tokens, special=special)  # type: ignore[no-any-return]
        return self._pieces.text(tokens, special)

    def reset(self) -> None:
        """As in the base class; an answer that was going on ends."""
        with self._exclusive:
            super().reset()
            if self._answer is not None and self._answer.left_out is not None:
                self._set_answer(None)  # an answer that is decoding ends here; one that has not begun is resetting itself
            self._forget_beyond()
