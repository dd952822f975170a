"""Which layers an answer skips: the setting, the routers, and what has been read."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from types import EllipsisType

import llama_cpp

from ..errors import OffloadError, RoutingError, SettingError, SkipError
from ..gguf.routers import Routers
from ..skip import Skip, check_layers, layers_for_share, no_routers, parse_skip, share_without_routers, skip_in_words
from .arguments import Arguments, check_tolerance
from .choice import Choice, Setting, choose
from .context import ReadContext
from .fidelity import Fidelity
from .held import MOST_SHARE, HeldFidelity
from .kv_record import NOTHING
from .layers import Layers
from .predicted_cost import dial_of, tolerance_of
from .routing import Routing


def check_predicting(tolerance: float | None, routers: Routers | None, path: str) -> None:
    """Raise SettingError for a tolerance where nothing predicts costs. path: the model, which the error names."""
    if tolerance is not None and (routers is None or routers.cost is None):
        raise SettingError(
            f"tolerance={tolerance:g} needs cost probes, and there are none for {path}; `first-cpp calibrate` makes some"
        )


def hold(own: Arguments, routers: Routers | None, path: str) -> HeldFidelity | None:
    """What holds the fidelity, where one is asked for. Raises SettingError where it cannot be held."""
    if own.fidelity is None:
        return None
    if routers is None:
        raise SettingError(no_routers(f"fidelity={own.fidelity!r}", path))
    state = None if own.fidelity_state is None else os.fspath(own.fidelity_state)
    dial = min(1.0, routers.skip / MOST_SHARE) if routers.cost is None else dial_of(routers.cost)
    return HeldFidelity(own.fidelity, dial=dial, path=state)


class RoutingPolicy:
    """Decides for each prompt.

    route_tokens: the prompt tokens that decide, n_ctx for whole prompts. own: the arguments of `Llama`. offload: layers are on
    a GPU, and none can be skipped. held: chooses the share, or with
    cost probes the tolerance, that "auto" stands for.
    """

    def __init__(
        self,
        llm: llama_cpp.Llama,
        layers: Layers,
        read: ReadContext,
        routers: Routers | None,
        route_tokens: int,
        own: Arguments,
        offload: bool,
        held: HeldFidelity | None = None,
    ) -> None:
        self._layers, self._read, self._routers = layers, read, routers
        self._path, self._n_ctx, self._n_layer = llm.model_path, llm.n_ctx(), len(layers.unskippable)
        self._own, self._offload, self._warned = own, offload, False
        self.route_tokens = route_tokens
        self.skip: Skip = None
        """The setting, checked; a call may have one of its own (`asking`)."""
        self._of_call: Skip | EllipsisType = ...
        self._held = held
        self._drawn: float | None = None
        """The share, or with cost probes the tolerance, of the answer going on, where a fidelity is held; None before it begins
        and once it was measured."""
        self._share = 0.0
        self._skips_nothing = False
        self._cost = None if routers is None else routers.cost
        self.forced: frozenset[int] | None = None
        """The layers of `Llama.skipping`, None outside it."""
        self.set_tolerance(own.tolerance)

    def describe(self) -> list[str]:
        """The model and the setting in a few words."""
        dense = self._layers.dense_because
        routers = "without routers" if self._routers is None else "with routers"
        return [f"{self._n_layer} layers", routers, f"dense: {dense}" if dense else f"skip {skip_in_words(self.skip)}"]

    # -- settings ---------------------------------------------------------------------------------------------------

    def set_skip(self, value: object) -> None:
        """Take a skip setting. Raises as `check_skip` does."""
        self.skip = self.check_skip(value)

    @contextlib.contextmanager
    def asking(self, skip: Skip) -> Iterator[None]:
        """Prompts that are read inside go by this setting instead of `self.skip`."""
        before, self._of_call = self._of_call, skip
        try:
            yield
        finally:
            self._of_call = before

    @property
    def _skip(self) -> Skip:
        """The setting that a prompt goes by now."""
        return self.skip if self._of_call is ... else self._of_call

    def check_skip(self, value: object) -> Skip:
        """A skip setting, checked. Raises SkipError, OffloadError or RoutingError where this model cannot follow it."""
        skip = parse_skip(value)
        if isinstance(skip, float):
            if skip > 0 and self._routers is None:
                raise share_without_routers(skip, self._path)
            layers_for_share(skip, self._n_layer)
        if isinstance(skip, tuple):
            check_layers(skip, self._n_layer)
        if skip and not (skip == "auto" and self._routers is None):
            self._check_possible(skip if isinstance(skip, tuple) else ())
        return skip

    @property
    def tolerance(self) -> float | None:
        """What one more skipped layer may cost for "auto", nats per token, of the last answer where a fidelity is held.

        None where nothing predicts.
        """
        if self._cost is None:
            return None
        if self._held is not None:
            return self._share
        return self._cost.tolerance if self.own_tolerance is None else self.own_tolerance

    def set_tolerance(self, value: object) -> None:
        """Take a tolerance, None for the file's own. Raises SettingError."""
        tolerance = check_tolerance(value)
        check_predicting(tolerance, self._routers, self._path)
        if tolerance is not None and self._held is not None:
            raise SettingError(f"tolerance={tolerance:g}: the fidelity that is held moves the tolerance; give one of them")
        self.own_tolerance: float | None = tolerance

    @property
    def _setting(self) -> Setting:
        if self._held is None or self._skip != "auto":
            return Setting(self._skip, self.tolerance or 0.0)
        return Setting(self._share, 0.0) if self._cost is None else Setting("auto", self._share)

    @contextlib.contextmanager
    def forcing(self, layers: Iterable[int]) -> Iterator[None]:
        """Skip `layers` for all that is evaluated inside. Raises as `set_skip` does."""
        chosen = parse_skip(list(layers))
        assert isinstance(chosen, tuple)
        check_layers(chosen, self._n_layer)
        if chosen:
            self._check_possible(chosen)
        before, self.forced = self.forced, frozenset(chosen)
        try:
            yield
        finally:
            self.forced = before

    def _check_possible(self, layers: Iterable[int]) -> None:
        """Raise for layers that cannot be skipped in this model; if none can, warn once, or raise where it is strict."""
        if self._offload:
            raise OffloadError("layers on a GPU: layers can be skipped on the CPU only; load with n_gpu_layers=0")
        if not (why := self._layers.dense_because):
            for layer in layers:
                if reason := self._layers.unskippable[layer]:
                    raise SkipError(f"layer {layer} of this model cannot be skipped: {reason}")
            return
        if self._own.strict:
            raise RoutingError(f"no layer of {self._path} can be skipped: {why}; strict=False runs it dense")
        if not self._warned:
            warnings.warn(f"no layer of {self._path} can be skipped, it runs dense: {why}", RuntimeWarning, stacklevel=6)
            self._warned = True

    # -- a fidelity that is held ------------------------------------------------------------------------------------

    @property
    def held(self) -> HeldFidelity | None:
        """What holds the fidelity, where one was asked for."""
        return self._held

    def begin_answer(self, before: Fidelity | None) -> None:
        """An answer begins; `before` is the fidelity of the one before it, as far as it was measured."""
        self.settle(before)
        if self._held is not None and self._skip == "auto" and self.forced is None:
            self._skips_nothing = False
            if self._cost is not None:
                self._drawn = self._share = tolerance_of(self._cost, self._held.dial)
            else:
                self._drawn = self._share = self._held.level(round(MOST_SHARE * self._n_layer)) / self._n_layer

    def settle(self, fidelity: Fidelity | None) -> None:
        """Take the fidelity of the last answer, once; a dense one has 1."""
        if self._held is None or self._drawn is None:
            return
        if fidelity is not None:
            self._held.observe(fidelity.share)
        elif self._drawn == 0 or self._skips_nothing:
            self._held.observe(1.0)
        self._drawn = None

    # -- the decision -----------------------------------------------------------------------------------------------

    @property
    def forced_set(self) -> frozenset[int]:
        """The layers of `Llama.skipping`; none where the model has none to skip (it warned when it was asked)."""
        return NOTHING if self.forced is None or self._layers.dense_because else self.forced

    @property
    def scoring(self) -> bool:
        """Whether what routers or cost probes read decides."""
        asked = (self._held is not None and self._skip == "auto") or self._setting.reads_prompt(self._routers)
        return asked and self.forced is None and not self._layers.dense_because

    def deciding(self, n_read: int) -> int:
        """How many of the positions read decide; after images all, because all were read with all layers."""
        return n_read if self._read.n_image else min(n_read, self.route_tokens)

    def choose(self, n_read: int) -> Choice:
        """The layers to skip by what has been read."""
        if self.forced is not None:
            why = f"dense: {self._layers.dense_because}" if self._layers.dense_because else "skipping()"
            return Choice(None, tuple(sorted(self.forced_set)), why)
        n = self.deciding(n_read)
        choice = choose(self._setting, self._routers, self._layers, n, self._read.scores(n) if self.scoring else None)
        if self._held is None or self._skip != "auto":
            return choice
        return replace(choice, why=f"{choice.why}; {self._held.line()}")

    def decide(self, n_read: int, n_prompt: int) -> Routing:
        """Choose for the answer that begins, and give the KV of the skipped layers back where that was asked for.

        n_read: positions read; n_prompt: positions of the whole prompt.
        """
        choice, layers = self.choose(n_read), self._layers
        self._skips_nothing = not choice.skipped
        # what a layer that runs reads of a skipped one's cache stays
        lost = layers.lacking(frozenset(choice.skipped)) if self._own.release_kv else NOTHING
        released = layers.release(lost)
        self._read.kv.lose(lost)
        holding = [layer for layer in range(self._n_layer) if not released or layer not in lost]
        return Routing(
            keep=choice.keep,
            skipped=choice.skipped,
            n_layer=self._n_layer,
            prompt_tokens=self.deciding(n_read),
            why=choice.why,
            cost=choice.cost,
            level=choice.level,
            changed=choice.changed,
            kv_bytes=layers.kv_bytes(),
            kv_bytes_used=layers.kv_bytes(holding) * n_prompt // self._n_ctx,
            kv_bytes_released=released,
        )

    def how_to_read(self, position: int) -> tuple[frozenset[int], int, bool]:
        """How a prompt is read from a position on: the layers to skip, for how many tokens, and whether routers score them."""
        if position < self.route_tokens or self._read.n_image:
            n_most = self._n_ctx if self._read.n_image else self.route_tokens - position
            return NOTHING, n_most, self.scoring
        return frozenset(self.choose(position).skipped), self._n_ctx, False

    def usable_prefix(self) -> int:
        """How many positions a fresh model would have evaluated the same way for a prompt that begins with them."""
        read = self._read
        usable = read.kv.evaluated_like(self.forced_set)
        if self.scoring and read.n_scored is not None and not read.n_image:
            usable = min(usable, read.n_scored)
        if usable >= self.route_tokens and self.forced is None and not read.n_image:
            skipped = frozenset(self.choose(read.kv.end).skipped)
            usable = read.kv.evaluated_like(skipped, start=self.route_tokens)
        return usable
