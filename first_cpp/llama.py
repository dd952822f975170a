"""`Llama`: llama_cpp.Llama whose decoding skips the layers that the prompt chose.

The path of a prompt: `generate` drops what the KV cache cannot vouch for and begins an answer; its first `eval` is prefill: all
layers run and the routers score every position (`runtime.context`); `runtime.policy` turns the scores into a set of layers;
every later `eval` of that answer is decoding, and skips them (`runtime.layers`, cpp_ext/graph_patch.cpp).
"""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from ._ext import CacheTensor
from .errors import ContextFull, SkipError
from .gguf.lora_file import find_lora
from .gguf.model_file import ModelFile
from .gguf.router_format import load_routers, read_routers
from .gguf.routers import Routers, check_base
from .runtime.answer import Answer, ContextEnd, CurrentAnswer, Timing
from .runtime.arguments import Arguments, check_base_arguments, wants_gpu
from .runtime.context import ReadContext
from .runtime.guarded import GuardedLlama
from .runtime.hidden_states import read_hidden_states
from .runtime.layers import Layers
from .runtime.one_thread import exclusive
from .runtime.policy import RoutingPolicy
from .runtime.probe import learn_layout
from .runtime.routing import Routing
from .runtime.state import LlamaState
from .runtime.structured import Structured
from .skip import Skip

_BASE_GENERATE = inspect.signature(llama_cpp.Llama.generate)


class Llama(GuardedLlama):
    """A drop-in `llama_cpp.Llama` that skips layers in decoding (FiRST, arXiv 2410.12513).

    All arguments and methods of the base class work as they do there. Further arguments:

    skip: which layers decoding skips. "auto": the share that the router file recommends, nothing without routers; None or 0:
        nothing; a number below 1: that share of the layers, those with the lowest keep scores; a list of ints: exactly those.
    routers: a GGUF file to take routers from instead of the model file (`python -m convert --routers ... --sidecar`), or
        `Routers`.
    release_kv: give the KV memory of skipped layers back to the system once a prompt has decided. The next prompt is then
        read from its beginning.
    prefill: "full" reads the whole prompt with all layers. "routed" reads its first `route_tokens` with all layers, decides on
        them, and skips layers in the rest too: TTFT falls, and quality falls more (docs/reference/benchmarks.md).
    route_tokens: with prefill="routed", how many prompt tokens decide; by default one micro-batch (n_ubatch).
    kv: "drop": a skipped layer writes no KV (or recurrent state). "keep": it writes them all the same, at the cost of reading
        the weights that make them: a saved state is then whole for stock llama_cpp, and `skipping` never reads again.
    strict: raise RoutingError where a model has no layer to skip; by default it runs dense with one warning.

    Raises TypeError for unknown keywords, and the errors of `first_cpp.errors` for files, routers and settings that do not fit.

    >>> llm = Llama("model-first.gguf", verbose=False)
    >>> answer = llm.create_completion("Hello", max_tokens=4, temperature=0)
    >>> llm.routing.skipped
    (0, 1)
    """

    def __init__(
        self,
        model_path: str | bytes | os.PathLike[str],
        *,
        skip: object = "auto",
        routers: str | bytes | os.PathLike[str] | Routers | None = None,
        release_kv: bool = False,
        prefill: str = "full",
        route_tokens: int | None = None,
        kv: str = "drop",
        strict: bool = False,
        **kwargs: Any,
    ) -> None:
        check_base_arguments(kwargs)
        own = self._arguments = Arguments(skip, routers, release_kv, prefill, route_tokens, kv, strict)
        file = ModelFile.open(model_path)
        self._routers = self._find_routers(file)
        kwargs["lora_path"] = find_lora(own.routers_path, kwargs.get("lora_path"))
        self._offload = wants_gpu(own, self._routers, kwargs)
        self._layers = Layers(keep_kv=kv == "keep")
        self._current = CurrentAnswer(self._layers.abort)
        self._routing: Routing | None = None
        self._structured = Structured(file.path, self._current.is_cancelled)
        super().__init__(file.path, **kwargs)
        if self._routers is not None:
            check_base(self._routers, file.base, own.routers_path or file.path)
        self._read = ReadContext(self, self._layers, self._routers, self.forget_logits)
        deciding = (route_tokens or self._read.micro_batch) if prefill == "routed" else self._n_ctx
        learn_layout(self, self._layers, file.n_layer, self._read.micro_batch, self._offload)
        self._policy = RoutingPolicy(self, self._layers, self._read, self._routers, deciding, own, self._offload)
        self.skip = own.skip

    def _find_routers(self, file: ModelFile) -> Routers | None:
        """The routers given, those of the file named, or the model's own. Raises SkipError where a share needs some."""
        if isinstance((own := self._arguments).routers, Routers):
            return own.routers
        found = load_routers(own.routers_path) if own.routers_path else read_routers(file.first, file.path)
        if found is None and isinstance(own.skip, float) and own.skip > 0:
            raise SkipError(
                f"skip={own.skip!r} needs routers and there are none in {file.path}; give routers=FILE, a list of layers, or "
                "make some with `python -m convert --routers`"
            )
        return found

    # -- settings and facts -----------------------------------------------------------------------------------------

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
        """Which layers decoding skips; a change takes effect with the next prompt."""
        return self._policy.skip

    @skip.setter
    def skip(self, value: object) -> None:
        self._policy.set_skip(value)

    @property
    def routers(self) -> Routers | None:
        """The routers in use, None when the model has none."""
        return self._routers

    @property
    def unskippable(self) -> tuple[str, ...]:
        """For each layer why it cannot be skipped in this model's graphs; an empty string where it can."""
        return self._layers.unskippable

    @property
    def dense_because(self) -> str:
        """Why no layer at all of this model can be skipped; an empty string where some can."""
        return self._layers.dense_because

    @property
    def kv_cache(self) -> list[CacheTensor]:
        """The tensors of the KV cache, and recurrent states, with the layer that writes each."""
        return self._layers.cache

    @property
    def routing(self) -> Routing | None:
        """What the last prompt decided, None before the first."""
        return self._routing

    @property
    def timing(self) -> Timing:
        """How long the last answer took, or takes."""
        return self._current.last.timing

    @contextlib.contextmanager
    def skipping(self, layers: Iterable[int]) -> Iterator[None]:
        """Skip `layers` for every token evaluated inside, prompt or not. Nothing is routed meanwhile.

        Tokens evaluated before, with other layers skipped, are read again where they lack KV that is now needed.
        Raises SkipError for layers that do not exist or cannot be skipped in this model.

        >>> llm = Llama("model.gguf", verbose=False)
        >>> with llm.skipping([2, 3]):
        ...     llm.eval(llm.tokenize(b"Hello"))
        """
        with self._policy.forcing(layers):
            yield

    # -- one answer -------------------------------------------------------------------------------------------------

    def generate(self, tokens: Sequence[int], *args: Any, **kwargs: Any) -> Generator[int, Sequence[int] | None, None]:
        """Yield the tokens that answer a prompt; arguments as in `llama_cpp.Llama.generate`.

        Raises BusyError when it is resumed after a newer prompt was started on this model, AnswerCancelled after `cancel`.

        >>> llm = Llama("model-first.gguf", verbose=False)
        >>> answer = llm.generate(llm.tokenize(b"Hello"), temp=0.0)
        >>> tokens = [next(answer) for _ in range(3)]
        """
        given = _BASE_GENERATE.bind(self, tokens, *args, **kwargs).arguments
        given.pop("self")
        reset, end = given.get("reset", True), given.get("stopping_criteria")
        answer = Answer()
        if isinstance(end, ContextEnd):
            given["stopping_criteria"] = end.further
        with self._exclusive:
            if not len(tokens) and (reset or self.n_tokens == 0):
                raise ValueError("the prompt has no tokens")
            given["tokens"] = self._drop_unusable(list(tokens), reset)
            self._current.begin(answer)  # last: a prompt that is refused begins no answer
        inner = super().generate(**given)
        try:
            yield from self._current.steps(inner, answer, self._exclusive, end if isinstance(end, ContextEnd) else None)
        finally:
            inner.close()
            self._current.end(answer)

    def cancel(self) -> None:
        """End the answer that is going on, from any thread: `generate` raises AnswerCancelled, also amid prefill.

        Without an answer it does nothing. The model stays usable, and the next answer is not concerned.
        """
        self._current.cancel()

    def eval(self, tokens: Sequence[int]) -> None:
        """Evaluate tokens after those already there: as prompt, as answer, or dense when called by itself.

        Raises ContextFull, and changes nothing, where the context has no room for them.
        """
        with self._exclusive:
            if (asked := self.n_tokens + len(tokens)) > self._n_ctx:
                raise ContextFull(
                    f"Requested tokens ({asked}) exceed context window of {self._n_ctx}; a larger n_ctx= has room"
                )
            answer, read, policy = self._current.answer, self._read, self._policy
            if answer is not None and answer.skipped is not None and policy.forced is None:
                if self.n_tokens == read.kv.end:  # the per-token path: nothing was changed behind our back
                    read.run(tokens, answer.skipped)
                else:
                    read.evaluate(tokens, answer.skipped)
            elif answer is None or answer.skipped is not None:
                read.evaluate(tokens, policy.forced_set, score=answer is None and policy.scoring)
            else:
                self._read_prompt(answer, tokens)

    def _read_prompt(self, answer: Answer, tokens: Sequence[int]) -> None:
        """Prefill and decision: all layers on every position that decides, with prefill="routed" fewer on the rest."""
        read, policy = self._read, self._policy
        read.sync()
        end = self.n_tokens + len(tokens)
        whole = policy.forced is not None or read.n_image > 0
        deciding = len(tokens) if whole else max(0, policy.route_tokens - self.n_tokens)
        if deciding:
            read.evaluate(tokens[:deciding], policy.forced_set, policy.scoring)
        self._routing = policy.decide(self.n_tokens, end)
        answer.skipped = frozenset(self._routing.skipped)
        if rest := tokens[deciding:]:
            read.evaluate(rest, answer.skipped)

    def _drop_unusable(self, tokens: list[int], reset: bool) -> list[int]:
        """Rewind to the prefix that a fresh model would have evaluated the same way; returns the tokens to evaluate."""
        self._read.sync()
        usable = self._policy.usable_prefix()
        if reset:
            self._read.new_prompt(tokens)
        dropped = self._read.rewind(usable)
        return tokens if reset else dropped + tokens

    def reset(self) -> None:
        """As in the base class; an answer that was going on ends."""
        with self._exclusive:
            super().reset()
            answer = self._current.answer
            if answer is not None and answer.skipped is not None:
                self._current.end()  # an answer that is decoding ends here; one that has not begun is resetting itself
            self._read.sync()

    @exclusive
    def hidden_states(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """The residual stream of `tokens`, evaluated alone from position 0 with all layers.

        Returns float32 [n_layer + 1, n_tokens, n_embd]: what enters each layer, and what leaves the last.
        Raises ValueError for no tokens or more than n_ctx, RoutingError for a model whose graph does not name its layers.

        >>> Llama("model.gguf", verbose=False).hidden_states([5, 6, 7]).shape
        (7, 3, 128)
        """
        self.reset()
        return read_hidden_states(self, self._layers, tokens)

    # -- state ------------------------------------------------------------------------------------------------------

    @exclusive
    def save_state(self) -> LlamaState:
        """The base class's state, with what is known of its positions."""
        return self._read.save(super().save_state())

    @exclusive
    def load_state(self, state: llama_cpp.LlamaState) -> None:
        """Restore a state; one of stock llama_cpp is taken as evaluated with all layers."""
        super().load_state(state)
        self._current.end()
        self._read.load(state)

    def __getstate__(self) -> dict[str, Any]:
        state = {**super().__getstate__(), **self._arguments.state(self.skip)}
        if self._arguments.routers_path and state["lora_path"] == self._arguments.routers_path:
            state["lora_path"] = None  # found in the side file again
        return state
