"""One quiet line about an answer: tokens, speed, TTFT, the layers that ran, and what leaving the others out should gain."""

from __future__ import annotations

from typing import Any

from ..gguf.byte_limit import Reads, byte_limit, weight_reads
from ..llama import Llama
from ..runtime.answer import Timing
from ..runtime.routing import Routing, picture


class Summary:
    """What one model's answers are told with. Reads the model's tensor table once."""

    def __init__(self, llm: Llama) -> None:
        self._llm = llm
        self._reads: Reads = weight_reads(llm.model_path)

    def expected(self, routing: Routing) -> float:
        """The speed-up of decoding over dense by the bytes that a token reads, weights and KV."""
        return byte_limit(self._reads, self._llm.kv_cache, self._llm.n_ctx(), self._llm.n_tokens, routing.skipped)

    def line(self, routing: Routing, timing: Timing) -> str:
        """The line."""
        rate = f"{1 / timing.tpot:.1f} tokens/s" if timing.tpot else "- tokens/s"
        run = routing.n_layer - len(routing.skipped)
        parts = [
            f"{timing.n_tokens} tokens",
            rate,
            f"TTFT {timing.ttft:.2f} s",
            f"{run} of {routing.n_layer} layers {picture(routing.skipped, routing.n_layer)}",
        ]
        if routing.skipped:
            parts.append(f"{self.expected(routing):.2f}x expected over dense")
        return " · ".join(parts)

    def as_json(self, routing: Routing, timing: Timing) -> dict[str, Any]:
        """The same as an object; times in milliseconds."""
        return {
            "tokens": timing.n_tokens,
            "ttft_ms": timing.ttft * 1e3,
            "tpot_ms": timing.tpot * 1e3,
            "n_layer": routing.n_layer,
            "skipped_layers": list(routing.skipped),
            "keep": None if routing.keep is None else list(routing.keep),
            "expected_speedup": self.expected(routing),
            "why": routing.why,
        }
