"""The hook of one llama context: skips layers, reads hidden states, gives KV pages back."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import llama_cpp

from .. import _ext
from ..errors import RoutingError
from .kv_record import NOTHING
from .llama_log import hush


class Layers:
    """The layers of one llama context and what can be done with them. One per context; it must outlive it.

    keep_kv: skipped layers still write their KV cache or recurrent state; those whose cache another layer reads always do.
    """

    def __init__(self, keep_kv: bool = False) -> None:
        self._keep_kv = keep_kv
        self._aborting = False
        self._hook = _ext.EvalHook()
        # ctypes objects that the context goes on using
        self._callback = llama_cpp.llama_cpp.ggml_backend_sched_eval_callback(_ext.EvalHook.callback)
        self._abort = llama_cpp.llama_cpp.ggml_abort_callback(_ext.EvalHook.abort_callback)
        self.unskippable: tuple[str, ...] = ()
        """For each layer why it cannot be skipped in this model's graphs; empty where it can."""
        self.cache: list[_ext.CacheTensor] = []
        """The KV cache tensors (and recurrent states) that the layers write."""
        self._inputs: list[str] = []
        self._output = ""
        self._found: list[str] = []  # the outputs of layers from the first on, as far as they are known by name
        self._kept: frozenset[int] = NOTHING
        self._skipped: frozenset[int] = NOTHING
        self._reader: _ext.HiddenStateReader | None = None

    def attach(self, params: Any) -> None:
        """Set the callbacks in `llama_context_params`, before the context is created."""
        params.cb_eval = self._callback
        params.abort_callback = self._abort
        params.cb_eval_user_data = params.abort_callback_data = self._hook.user_data

    @contextlib.contextmanager
    def probing(self, n_layer: int) -> Iterator[None]:
        """Learn the layout from the graph that is evaluated inside; nothing of it is computed.

        A layer that cannot be skipped in one of these graphs can be skipped in none.
        """
        self._hook.probe_begin(n_layer)
        try:
            yield
        finally:
            layout = self._hook.probe_finish()
        layers = layout.layers
        first = not self.unskippable
        self.cache = layout.cache
        self._inputs = [layer.input for layer in layers]
        self._output = layers[-1].output
        self._kept |= {il for il, layer in enumerate(layers) if self._keep_kv or layer.cache_is_shared}
        reasons = (layer.unskippable_keep_cache if il in self._kept else layer.unskippable for il, layer in enumerate(layers))
        self.unskippable = tuple(reasons) if first else tuple(a or b for a, b in zip(self.unskippable, reasons, strict=True))
        found = list(itertools.takewhile(bool, (layer.output for layer in layers)))
        if not first and found != self._found:
            self.declare_dense(n_layer, "its graphs name the outputs of layers differently")
        self._found = found
        self._hook.set_outputs(found)

    def declare_dense(self, n_layer: int, why: str) -> None:
        """No layer of this model can be skipped; instead of probing."""
        self.unskippable = (why,) * n_layer

    @property
    def dense_because(self) -> str:
        """Why no layer at all can be skipped; empty when some can."""
        return self.unskippable[0] if all(self.unskippable) else ""

    def skip(self, layers: frozenset[int]) -> None:
        """Skip `layers` in the next micro-batch."""
        if layers != self._skipped:
            self._hook.set_actions([self._action(il, layers) for il in range(len(self._found))])
            self._skipped = layers
        self._hook.start_skipping()

    def _action(self, layer: int, skipped: frozenset[int]) -> _ext.LayerAction:
        if layer not in skipped:
            return _ext.LayerAction.RUN
        return _ext.LayerAction.SKIP_KEEP_CACHE if layer in self._kept else _ext.LayerAction.SKIP

    @property
    def readable(self) -> bool:
        """Whether the hidden states entering every layer, and leaving the last, are known by name."""
        return bool(self._output) and all(self._inputs)

    def lacking(self, skipped: frozenset[int]) -> frozenset[int]:
        """The layers whose KV a position lacks that was evaluated with `skipped` skipped."""
        return skipped - self._kept if self._kept else skipped

    def read(self, reader: _ext.HiddenStateReader, layers: Iterable[int] | None = None, final: bool = False) -> None:
        """Hand the hidden states entering `layers`, ascending, or all, to `reader` until `stop`; `final`: also what leaves the
        last."""
        names = self._inputs if layers is None else [self._inputs[layer] for layer in layers]
        names = names + [self._output] * final
        self._reader = reader  # the hook keeps a bare pointer
        self._hook.start_reading(reader, names)

    @contextlib.contextmanager
    def reading(
        self, reader: _ext.HiddenStateReader, layers: Iterable[int] | None = None, final: bool = False
    ) -> Iterator[None]:
        """`read` for the evaluations inside. Raises RoutingError at the end if a graph did not allow it."""
        self.read(reader, layers, final)
        try:
            yield
            self.check()
        finally:
            self.stop()

    def stop(self) -> None:
        """All layers run again, and nobody reads; graphs are as llama.cpp built them."""
        self._hook.stop()
        self._reader = None

    def abort(self, on: bool) -> None:
        """While on, evaluations end between two graph nodes with status 2. From any thread."""
        if on != self._aborting:
            self._aborting = on
            hush(on)
        self._hook.abort(on)

    def check(self) -> None:
        """Raise RoutingError if a graph did not allow what was asked since the last check."""
        if error := self._hook.take_error():
            raise RoutingError(error)

    def kv_bytes(self, layers: Collection[int] | None = None) -> int:
        """Bytes of the KV cache, of `layers` or of all: every cell, used or not."""
        return sum(t.n_bytes for t in self.cache if layers is None or t.layer in layers)

    def release(self, layers: Collection[int]) -> int:
        """Give the KV pages of `layers` back to the system; what they held is lost. Returns the bytes given back."""
        return sum(_ext.release_pages(t.address, t.n_bytes) for t in self.cache if t.layer in layers)
