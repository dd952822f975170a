"""`Llama`: llama_cpp.Llama whose decoding skips the layers that the prompt chose.

The path of a prompt: `generate` (`runtime.decoding`) drops what the KV cache cannot vouch for and begins an answer; its first
`eval` is prefill: all layers run and the routers score every position (`runtime.context`); `runtime.policy` turns the scores
into a set of layers; every later `eval` of that answer is decoding, and skips them (`runtime.layers`, cpp_ext/graph_patch.cpp).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, TypeVar

import llama_cpp
import numpy as np
import numpy.typing as npt

from ._ext import CacheTensor
from .gguf.demo_model import demo_model_with_routers
from .gguf.lora_file import find_lora
from .gguf.model_file import ModelFile
from .gguf.router_format import load_routers, read_routers
from .gguf.routers import Routers, check_base
from .runtime.answer import CurrentAnswer
from .runtime.arguments import Arguments, check_base_arguments, check_cache_heads, wants_gpu
from .runtime.at_exit import end_at_exit
from .runtime.context import ReadContext
from .runtime.conversations import Conversations
from .runtime.fidelity import AnswerMeasure, ComparedToken, Fidelity
from .runtime.held import HeldFidelity
from .runtime.hidden_states import read_hidden_states
from .runtime.idle_pass import IdlePass
from .runtime.layers import Layers
from .runtime.one_thread import exclusive
from .runtime.per_call import PerCallLlama
from .runtime.policy import RoutingPolicy, check_predicting, hold
from .runtime.probe import learn_layout
from .runtime.routing import Routing
from .runtime.state import LlamaState, restore, take
from .runtime.structured import Structured
from .skip import Skip, SkipSetting, share_without_routers

L = TypeVar("L", bound="Llama")


class Llama(PerCallLlama):
    """A drop-in `llama_cpp.Llama` that skips layers in decoding (FiRST, arXiv 2410.12513).

    All arguments and methods of the base class work as they do there. Further arguments:

    skip: which layers decoding skips. "auto": as many as the prompt can spare within `tolerance`, where the file has cost
        probes, else the share that it recommends, nothing without routers; None or 0: nothing; a number below 1: that share of
        the layers, those with the lowest keep scores, or the file's set; a list of ints: exactly those.
    tolerance: with skip="auto" and cost probes, what one more skipped layer may cost, KL in nats per token; None: the
        file's own.
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
    measure: "choice": decoding's first choices are kept, to be compared by `catch_up` (`fidelity`); "kl": whole distributions,
        at 4 bytes per token of the vocabulary and position; None: nothing.
    fidelity: with skip="auto", the mean fidelity of answers to hold, above 0 and at most 1: how much is skipped follows what
        `catch_up` measures (`held`). fidelity_state: a file that keeps how much that was.
    cache_bytes: memory for the states of other conversations, so that those which alternate are not read again
        (`conversations`).

    Raises TypeError for unknown keywords, and the errors of `first_cpp.errors` for files, routers and settings that do not fit.

    >>> llm = Llama("model-first.gguf", verbose=False)
    >>> answer = llm.create_completion("Hello", max_tokens=4, temperature=0)
    >>> llm.routing.skipped
    (4, 5)
    """

    def __init__(
        self,
        model_path: str | bytes | os.PathLike[str],
        *,
        skip: SkipSetting = "auto",
        routers: str | bytes | os.PathLike[str] | Routers | None = None,
        release_kv: bool = False,
        prefill: Literal["full", "routed"] = "full",
        route_tokens: int | None = None,
        kv: Literal["drop", "keep"] = "drop",
        strict: bool = False,
        measure: Literal["choice", "kl"] | None = "choice",
        fidelity: float | None = None,
        fidelity_state: str | os.PathLike[str] | None = None,
        cache_bytes: int = 0,
        tolerance: float | None = None,
        **kwargs: Any,
    ) -> None:
        check_base_arguments(kwargs)
        how = (skip, routers, release_kv, prefill, route_tokens, kv, strict, measure)
        own = self._arguments = Arguments(*how, fidelity, fidelity_state, cache_bytes, tolerance)
        file = ModelFile.open(model_path)
        check_cache_heads(kwargs, file.head_sizes)
        self._spelling = file.spelling()
        self._routers = self._find_routers(file)
        held = hold(own, self._routers, file.path)
        kwargs["lora_path"] = find_lora(own.routers_path, kwargs.get("lora_path"))
        self._offload = wants_gpu(own, self._routers, kwargs)
        self._layers = Layers(keep_kv=kv == "keep")
        self._current = CurrentAnswer(self._layers.abort)
        self._routing: Routing | None = None
        self._structured = Structured(file.path, self._current.is_cancelled)
        super().__init__(file.path, **kwargs)
        end_at_exit(self._exclusive, self._layers)
        if self._routers is not None:
            check_base(self._routers, file.base, own.routers_path or file.path)
        self._read = ReadContext(self, self._layers, self._routers, self._forget_logits)
        deciding = (route_tokens or self._read.micro_batch) if prefill == "routed" else self._n_ctx
        learn_layout(self, self._layers, file.n_layer, self._read.micro_batch, self._offload)
        self._policy = RoutingPolicy(self, self._layers, self._read, self._routers, deciding, own, self._offload, held)
        kept = (self._read, self._policy, cache_bytes, self._logits_all)
        self._conversations = Conversations(self, *kept) if cache_bytes else None
        self._measure = AnswerMeasure(self, measure, self._logits_all)
        self._idle = IdlePass(self, self._read, self._policy, self._current, self._measure, self._exclusive, self._layers.abort)
        self.skip = own.skip

    @classmethod
    def from_demo(cls: type[L], **settings: Any) -> L:
        """The model of the demo extra with its bundled adapter: trained routers, and a LoRA that is folded in once, in seconds.

        settings: arguments of `Llama`. Raises MissingExtraError or MissingFileError, both naming the extra, without it.

        >>> llm = Llama.from_demo(verbose=False)  # doctest: +SKIP
        """
        return cls(demo_model_with_routers(), **settings)

    def _find_routers(self, file: ModelFile) -> Routers | None:
        """The routers given, those of the file named, or the model's own. Raises SkipError or SettingError where settings need
        some."""
        own = self._arguments
        found: Routers | None = own.routers if isinstance(own.routers, Routers) else None
        if found is None:
            found = load_routers(own.routers_path) if own.routers_path else read_routers(file.first, file.path)
        check_predicting(own.tolerance, found, file.path)
        if found is None and isinstance(own.skip, float) and own.skip > 0:
            raise share_without_routers(own.skip, file.path)
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
    def skip(self, value: SkipSetting) -> None:
        self._policy.set_skip(value)

    @property
    def tolerance(self) -> float | None:
        """What one more skipped layer may cost with skip="auto", KL in nats per token; None without cost probes. A change takes
        effect with the next prompt; None sets the file's own. Raises SettingError for what is no number of at least 0."""
        return self._policy.tolerance

    @tolerance.setter
    def tolerance(self, value: float | None) -> None:
        self._policy.set_tolerance(value)

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

    def catch_up(self, stop: Callable[[], bool] | None = None) -> bool:
        """Read what the last answer was decoded with layers skipped again, with all of them, while nobody waits.

        The next turn then reads only what is new, and `fidelity` says what skipping cost. Ends early, keeping what was done,
        when `stop()` returns true or another call arrives, which is not kept waiting. Returns whether all has been read.

        >>> llm = Llama("model-first.gguf", verbose=False)
        >>> answer = llm.create_completion("Hello", max_tokens=9, temperature=0)
        >>> llm.catch_up()
        True
        >>> llm.fidelity.positions == llm.timing.n_tokens - 1
        True
        """
        return self._idle.run(stop)

    @property
    def fidelity(self) -> Fidelity | None:
        """How the last answer agrees with the dense model, as far as `catch_up` has read it; None before."""
        return self._measure.fidelity

    @property
    def held(self) -> HeldFidelity | None:
        """What holds `Llama(fidelity=)`: its target, the mean so far, and the dial; None where none was asked for."""
        return self._policy.held

    @property
    def conversations(self) -> Conversations | None:
        """The other conversations kept by `Llama(cache_bytes=)`, None without it."""
        return self._conversations

    def compared_answer(self) -> list[ComparedToken]:
        """The tokens of the last answer beside the dense model's choices, once `catch_up` has read it; none where it was dense.

        >>> llm = Llama("model-first.gguf", verbose=False)
        >>> answer = llm.create_completion("Hello", max_tokens=9, temperature=0)
        >>> llm.catch_up()
        True
        >>> differing = [one for one in llm.compared_answer() if one.dense is not None]
        >>> len(differing) == llm.fidelity.positions - llm.fidelity.equal
        True
        """
        return self._measure.compared()

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
        self._read.settle()
        return self._read.save(take(self, self._logits_all, super().save_state))

    @exclusive
    def load_state(self, state: llama_cpp.LlamaState) -> None:
        """Restore a state; one of stock llama_cpp counts as dense. Raises StateError, having reset the model."""
        self._current.end()
        self._forget_answer()
        restore(self, self._logits_all, super().load_state, state)
        self._read.load(state)

    def __getstate__(self) -> dict[str, Any]:
        state = {**super().__getstate__(), **self._arguments.state(self.skip, self._policy.own_tolerance)}
        if self._arguments.routers_path and state["lora_path"] == self._arguments.routers_path:
            state["lora_path"] = None  # found in the side file again
        return state
