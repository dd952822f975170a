"""The server's metrics, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from ..runtime.answer import Timing
from ..runtime.routing import Routing

_TTFT = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120)
_TPOT = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1)


class Metrics:
    """Counters of one server, in a registry of its own. Times are in seconds."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, waiting: Callable[[], int], n_layer: int) -> None:
        self._registry = r = CollectorRegistry()
        self._requests = Counter("first_cpp_requests", "Requests by route and HTTP status", ["route", "status"], registry=r)
        self._cancelled = Counter("first_cpp_answers_cancelled", "Answers whose client went away", registry=r)
        self._prompt = Counter("first_cpp_prompt_tokens", "Prompt tokens, those reused from the KV cache included", registry=r)
        self._tokens = Counter("first_cpp_tokens", "Tokens generated", registry=r)
        self._waited = Histogram("first_cpp_wait_seconds", "Time in the queue before an answer", buckets=_TTFT, registry=r)
        self._ttft = Histogram("first_cpp_ttft_seconds", "Time to first token, without the wait", buckets=_TTFT, registry=r)
        self._tpot = Histogram("first_cpp_tpot_seconds", "Mean time per output token after it", buckets=_TPOT, registry=r)
        self._skipped = Summary("first_cpp_layers_skipped", "Layers that an answer's decoding skipped", registry=r)
        Gauge("first_cpp_layers", "Layers of the model", registry=r).set(n_layer)
        Gauge("first_cpp_queue_length", "Requests waiting in the queue", registry=r).set_function(waiting)

    def request(self, route: str, status: int) -> None:
        self._requests.labels(route, str(status)).inc()

    def waited(self, seconds: float) -> None:
        self._waited.observe(seconds)

    def cancelled(self) -> None:
        self._cancelled.inc()

    def answer(self, routing: Routing, timing: Timing) -> None:
        """Count an answer whose prompt was read, finished or not."""
        self._prompt.inc(routing.prompt_tokens)
        self._tokens.inc(timing.n_tokens)
        self._skipped.observe(len(routing.skipped))
        if timing.n_tokens > 0:
            self._ttft.observe(timing.ttft)
        if timing.n_tokens > 1:
            self._tpot.observe(timing.tpot)

    def text(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self._registry)
