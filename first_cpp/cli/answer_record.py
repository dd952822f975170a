"""The record of one answer, the same everywhere: the line under it, `run --json`, the server's field, the llm plugin."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..gguf.byte_limit import Reads, byte_limit, weight_reads
from ..llama import Llama
from ..runtime.routing import picture, words_changed

_MOST_DROPPED = 4  # parts of the line


@dataclass(frozen=True)
class AnswerRecord:
    """What one answer was: its tokens, its times and its layers.

    tokens: generated. prompt_tokens: that the decision stands on. ttft_ms: milliseconds to the first token, without the
    wait in a queue. tpot_ms: mean milliseconds per token after it, None below two tokens. n_layer: layers of the model.
    skipped_layers: ascending. keep: mean keep score of each layer, None where no scores were read. why: how the layers
    were chosen. expected_speedup: of decoding over dense, by the bytes that a token reads. predicted_cost: KL that skipping is
    predicted to cost, nats per token; expected_change: the share of tokens that it is expected to change; None without cost
    probes.

    >>> record = AnswerRecord(20, 9, 120.0, 12.5, 6, (2, 4), None, "fixed set", 1.31)
    >>> print(record.line())
    20 tokens · 80.0 tokens/s · TTFT 0.12 s · 4 of 6 layers ##.#.# · 1.31x expected over dense
    """

    tokens: int
    prompt_tokens: int
    ttft_ms: float
    tpot_ms: float | None
    n_layer: int
    skipped_layers: tuple[int, ...]
    keep: tuple[float, ...] | None
    why: str
    expected_speedup: float
    predicted_cost: float | None = None
    expected_change: float | None = None

    def as_json(self) -> dict[str, Any]:
        """The record as an object of JSON; every field is there, scores and times are rounded.

        >>> AnswerRecord(1, 9, 120.0, None, 6, (2, 4), None, "fixed set", 1.3123).as_json()["expected_speedup"]
        1.312
        """
        return {
            "tokens": self.tokens,
            "prompt_tokens": self.prompt_tokens,
            "ttft_ms": round(self.ttft_ms, 3),
            "tpot_ms": None if self.tpot_ms is None else round(self.tpot_ms, 3),
            "n_layer": self.n_layer,
            "skipped_layers": list(self.skipped_layers),
            "keep": None if self.keep is None else [round(keep, 4) for keep in self.keep],
            "why": self.why,
            "expected_speedup": round(self.expected_speedup, 3),
            "predicted_cost": _finite(self.predicted_cost),
            "expected_change": _finite(self.expected_change),
        }

    def line(self, width: int | None = None) -> str:
        """The record as one line for people. width: its columns; what matters least is dropped where they are few.

        >>> print(AnswerRecord(20, 9, 120.0, 12.5, 6, (2, 4), None, "fixed set", 1.31).line(width=72))
        20 tokens · 80.0 tokens/s · TTFT 0.12 s · 4 of 6 layers · 1.31x expected
        """
        lines = [" · ".join(self._parts(dropped)) for dropped in range(_MOST_DROPPED + 1)]
        return next((line for line in lines if width is None or len(line) <= width), lines[-1])

    def _parts(self, dropped: int) -> list[str]:
        """dropped: how much to leave out, in this order: the picture, "over dense", TTFT, words changed."""
        layers = f"{self.n_layer - len(self.skipped_layers)} of {self.n_layer} layers"
        return [
            f"{self.tokens} token{'s' * (self.tokens != 1)}",
            f"{1e3 / self.tpot_ms:.1f} tokens/s" if self.tpot_ms else "- tokens/s",
            *([f"TTFT {self.ttft_ms / 1e3:.2f} s"] if dropped < 3 else []),
            layers if dropped else f"{layers} {picture(self.skipped_layers, self.n_layer)}",
            *(self._gain(dropped) if self.skipped_layers else []),
        ]

    def _gain(self, dropped: int) -> list[str]:
        gain = f"{self.expected_speedup:.2f}x expected" + (" over dense" if dropped < 2 else "")
        changed = [] if self.expected_change is None or dropped > 3 else [words_changed(self.expected_change)]
        return [gain, *changed]


def _finite(value: float | None) -> float | None:
    """JSON has no infinity."""
    return None if value is None or not math.isfinite(value) else round(value, 5)


class AnswerRecorder:
    """Makes the records of one model's answers; reads the model's tensor table once.

    >>> from first_cpp import Llama
    >>> llm = Llama("model-first.gguf", verbose=False)
    >>> recorder = AnswerRecorder(llm)
    >>> recorder.record() is None
    True
    >>> answer = llm.create_completion("Hello", max_tokens=3, logit_bias={2: -100})
    >>> recorder.record().tokens
    3
    """

    def __init__(self, llm: Llama) -> None:
        self._llm = llm
        self._reads: Reads = weight_reads(llm.model_path)

    def record(self) -> AnswerRecord | None:
        """The record of the last answer, None before the first."""
        routing, timing = self._llm.routing, self._llm.timing
        if routing is None or timing is None:
            return None
        return AnswerRecord(
            tokens=timing.n_tokens,
            prompt_tokens=routing.prompt_tokens,
            ttft_ms=timing.ttft * 1e3,
            tpot_ms=timing.tpot * 1e3 if timing.n_tokens > 1 else None,
            n_layer=routing.n_layer,
            skipped_layers=tuple(routing.skipped),
            keep=routing.keep,
            why=routing.why,
            expected_speedup=byte_limit(
                self._reads, self._llm.kv_cache, self._llm.n_ctx(), self._llm.n_tokens, routing.skipped
            ),
            predicted_cost=routing.cost,
            expected_change=routing.changed,
        )
