"""What greedy answers are like beside the dense model's: how far they agree, whether they end in a loop, whether they end."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

TIMES, LEAST_TOKENS = 3, 12
"""An answer loops where its last tokens are one sequence so often in a row, and as many tokens together."""


def ends_in_loop(tokens: Sequence[int]) -> bool:
    """Whether an answer ends in a loop: its last tokens are one sequence, TIMES or more in a row, LEAST_TOKENS together.

    >>> ends_in_loop([1, 2, 3, *[7, 8, 9, 6] * 3]), ends_in_loop([1, 2, 3, *[7, 8, 9, 6] * 2]), ends_in_loop([5] * 11)
    (True, False, False)
    """
    for period in range(1, len(tokens) // TIMES + 1):
        looked_at = max(TIMES * period, LEAST_TOKENS)
        end = tokens[-looked_at:]
        if len(end) == looked_at and end[period:] == end[:-period]:
            return True
    return False


def agreement(tokens: Sequence[int], dense: Sequence[int]) -> float:
    """Tokens that two answers begin with alike, over those of the longer one: 1 only where they are the same.

    >>> agreement([1, 2, 3, 4], [1, 2, 5]), agreement([1, 2], [1, 2]), agreement([1, 2], [1, 2, 3, 4]), agreement([], [])
    (0.5, 1.0, 0.5, 1.0)
    """
    longer = max(len(tokens), len(dense))
    parts = next((i for i, (one, other) in enumerate(zip(tokens, dense, strict=False)) if one != other), None)
    alike = min(len(tokens), len(dense)) if parts is None else parts
    return alike / longer if longer else 1.0


def measures(given: Sequence[Mapping[str, Any]], dense: Sequence[Mapping[str, Any]] | None) -> dict[str, float | None]:
    """Of a row's answers, those of the dense model beside them by question, None where their tokens cannot be compared; answers
    that failed count in none.

    fidelity, kl: means over the answers that have them. agreement: mean. repetition, cut_off_rate: shares of the answers that
    end in a loop, and that the limit of tokens ended. None where there is no answer to take it from.
    """
    good = [one for one in given if "error" not in one]
    pairs = [(one, other) for one, other in zip(given, dense or (), strict=bool(dense)) if not {"error"} & {*one, *other}]
    return {
        "kl": _mean([one["kl"] for one in good if "kl" in one]),
        "fidelity": _mean([one["fidelity"] for one in good if "fidelity" in one]),
        "agreement": _mean([agreement(one["ids"], other["ids"]) for one, other in pairs]),
        "repetition": _mean([float(ends_in_loop(one["ids"])) for one in good]),
        "cut_off_rate": _mean([float(not one["ended"]) for one in good]),
    }


def _mean(values: Sequence[float]) -> float | None:
    return statistics.mean(values) if values else None
