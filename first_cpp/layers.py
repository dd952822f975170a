"""The hook of one llama context: leaves layers out, reads the residual stream, gives KV pages back."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import Any

import llama_cpp

from . import _ext
from .errors import RoutingError


class Layers:
    """The layers of one llama context and what can be done with them. One per context; it must outlive it."""

    def __init__(self) -> None:
        self._hook = _ext.EvalHook()
        # ctypes objects that the context goes on using
        self._callback = llama_cpp.llama_cpp.ggml_backend_sched_eval_callback(_ext.EvalHook.callback)
        self._layout: _ext.Layout | None = None
        self._n_layer = 0
        self._unsupported = ""

    def attach(self, params: Any) -> None:
        """Set the callback in `llama_context_params`, before the context is created."""
        params.cb_eval = self._callback
        params.cb_eval_user_data = self._hook.user_data

    @contextlib.contextmanager
    def probing(self, n_layer: int) -> Iterator[None]:
        """Learn the layout from the one small graph that is evaluated inside; nothing of it is computed."""
        self._n_layer = n_layer
        self._hook.probe_begin(n_layer)
        try:
            yield
        finally:
            self._layout = self._hook.probe_finish()

    def declare_unsupported(self, n_layer: int, why: str) -> None:
        """No layer of this model can be left out; instead of probing."""
        self._n_layer = n_layer
        self._unsupported = why

    def trouble(self) -> list[str]:
        """For each layer why it cannot be left out of this model's graphs; empty where it can."""
        if self._layout is None:
            return [self._unsupported or "the graph was not looked at"] * self._n_layer
        return [layer.trouble for layer in self._layout.layers]

    @property
    def cache(self) -> list[_ext.CacheTensor]:
        """The KV cache tensors (and recurrent states) that each layer writes."""
        return self._layout.cache if self._layout is not None else []

    @contextlib.contextmanager
    def left_out(self, layers: Collection[int]) -> Iterator[None]:
        """Evaluate without `layers`. Raises RoutingError afterwards if a graph did not allow it."""
        if not layers:
            yield
            return
        self._hook.leave_out([layer in layers for layer in range(self._n_layer)])
        try:
            yield
        finally:
            self._hook.leave_out([])
        self._check()

    @contextlib.contextmanager
    def reading(self, sink: _ext.ResidualSink | None, final: bool = False) -> Iterator[None]:
        """Hand the hidden states entering every layer to `sink` (None: to nobody); with `final` also what leaves the last."""
        if sink is None:
            yield
            return
        assert self._layout is not None, "hidden states are read after probing"
        names = [layer.input for layer in self._layout.layers]
        if final:
            names.append(f"l_out-{len(names) - 1}")
        self._hook.read(sink, names)
        try:
            yield
        finally:
            self._hook.read(None, [])
        self._check()

    def _check(self) -> None:
        if error := self._hook.take_error():
            raise RoutingError(error)

    def cache_bytes(self) -> int:
        """Bytes of KV cache (and recurrent state) of all layers."""
        return sum(tensor.n_bytes for tensor in self.cache)

    def release(self, layers: Collection[int]) -> int:
        """Give the KV pages of `layers` back to the system; what they held is lost. Returns the bytes given back."""
        return sum(_ext.release_pages(t.address, t.n_bytes) for t in self.cache if t.layer in layers)
