"""TPOT and speed-up against the share of layers left out, with the limit as a line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def draw(records: Sequence[dict[str, Any]], path: str) -> None:
    """Write a picture (the suffix tells the format): one pair of panels for each model and decoding test. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    decoding = [one for one in records if one["n_gen"] and not one["draft"]]
    groups = sorted({(one["model_type"], one["test"], one["n_threads"]) for one in decoding})
    if not groups:
        raise ValueError("--plot needs a decoding test: -n or -pg")
    figure, axes = plt.subplots(len(groups), 2, figsize=(10, 3.6 * len(groups)), squeeze=False)
    for (left, right), group in zip(axes, groups, strict=True):
        of_group = [one for one in decoding if (one["model_type"], one["test"], one["n_threads"]) == group]
        for engine, style in (("first_cpp", "o-"), ("pruned", "x--"), ("stock", "s")):
            points = sorted((one for one in of_group if one["engine"] == engine), key=_share)
            left.plot([*map(_share, points)], [one["tpot_p50_ms"] for one in points], style, label=engine)
            right.plot([*map(_share, points)], [one["speedup"] for one in points], style, label=engine)
        limits = sorted((one for one in of_group if one["byte_limit"] is not None), key=_share)
        right.plot([*map(_share, limits)], [one["byte_limit"] for one in limits], "k:", label="byte limit")
        left.set(
            title=f"{group[0]}, {group[1]}, {group[2]} threads",
            ylabel="TPOT, ms (median)",
            xlabel="share left out",
            ylim=(0, None),
        )
        right.set(ylabel="speed-up over stock", xlabel="share left out")
        left.legend()
        right.legend()
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def _share(one: dict[str, Any]) -> float:
    return float(one["layers_skipped"] / one["n_layer"])
