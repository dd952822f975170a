"""The server's metrics, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from ..runtime.answer import Timing
from ..runtime.conversations import Conversations
from ..runtime.routing import Routing
from .served_model import ServedModel

_TTFT = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120)
_TPOT = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1)
_LOAD = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120, 300)
_FIDELITY = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.975, 0.99, 1)


class CacheCollector(Collector):
    """What the cache of conversations counts, read when it is asked for; nothing without one."""

    kept: Conversations | None = None

    def collect(self) -> Iterator[Metric]:
        kept = self.kept
        if kept is None:
            return
        yield CounterMetricFamily("first_cpp_cache_hits", "Prompts whose conversation was found in the cache", kept.hits)
        yield CounterMetricFamily("first_cpp_cache_hit_tokens", "Tokens that were not read again for that", kept.hit_tokens)
        yield GaugeMetricFamily("first_cpp_cache_bytes", "Bytes of conversations in the cache", kept.n_bytes)
        yield GaugeMetricFamily("first_cpp_cache_conversations", "Conversations in the cache", len(kept))


class Metrics:
    """Counters of one server, in a registry of its own. Times are in seconds."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, waiting: Callable[[], int]) -> None:
        self._registry = r = CollectorRegistry()
        self._requests = Counter("first_cpp_requests", "Requests by route and HTTP status", ["route", "status"], registry=r)
        self._cancelled = Counter("first_cpp_answers_cancelled", "Answers whose client went away", registry=r)
        self._prompt = Counter("first_cpp_prompt_tokens", "Prompt tokens, those reused from the KV cache included", registry=r)
        self._tokens = Counter("first_cpp_tokens", "Tokens generated", registry=r)
        self._waited = Histogram("first_cpp_wait_seconds", "Time in the queue before an answer", buckets=_TTFT, registry=r)
        self._ttft = Histogram("first_cpp_ttft_seconds", "Time to first token, without the wait", buckets=_TTFT, registry=r)
        self._tpot = Histogram("first_cpp_tpot_seconds", "Mean time per output token after it", buckets=_TPOT, registry=r)
        self._skipped = Summary("first_cpp_layers_skipped", "Layers that an answer's decoding skipped", registry=r)
        self._fidelity = Histogram(
            "first_cpp_fidelity", "Share of an answer's first choices that are the dense model's", buckets=_FIDELITY, registry=r
        )
        self._layers = Gauge("first_cpp_layers", "Layers of the model loaded last", registry=r)
        self._loads = Histogram("first_cpp_load_seconds", "Time to load a model", ["model"], buckets=_LOAD, registry=r)
        self._models = Gauge("first_cpp_models_loaded", "Models that are loaded", registry=r)
        Gauge("first_cpp_queue_length", "Requests waiting in the queue", registry=r).set_function(waiting)

        self._cache = CacheCollector()
        r.register(self._cache)

    def loaded(self, served: ServedModel, seconds: float) -> None:
        """A model was loaded, and is the one that the metrics of layers and of conversations are about."""
        self._loads.labels(served.name).observe(seconds)
        self._layers.set(served.n_layer)
        self._models.set(1)
        self._cache.kept = served.llm.conversations

    def freed(self) -> None:
        """The model that was loaded is not any longer."""
        self._models.set(0)
        self._cache.kept = None

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

    def fidelity(self, share: float) -> None:
        """Count an answer that was read again with all layers."""
        self._fidelity.observe(share)

    def text(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self._registry)
