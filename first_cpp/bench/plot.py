"""The median step and the speed-up by skip share, with the limit as a line."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

from ..gguf.new_file import new_file
from .engines import skip_text
from .records import Record

STYLES = {"first_cpp": "o-", "pruned": "x--", "stock": "s", "other": "D"}


def draw(records: Sequence[Record], path: str) -> None:
    """Write a picture (the suffix gives the format): a pair of panels for each model file, decoding test and configuration.

    Rows with drafts are not drawn: what they gain depends on the text. Needs matplotlib; raises ValueError without records of
    decoding.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    groups = _groups(records)
    if not groups:
        raise ValueError("a plot needs a decoding test: -n or -pg")
    figure, axes = plt.subplots(len(groups), 2, figsize=(10, 3.8 * len(groups)), squeeze=False)
    for (left, right), (title, of_group) in zip(axes, groups.items(), strict=True):
        for label, style, points in _lines(of_group):
            left.plot([*map(_share, points)], [one["step_p50_ms"] for one in points], style, label=label)
            if all(one["speedup"] for one in points):
                right.plot([*map(_share, points)], [one["speedup"] for one in points], style, label=label)
        limits = sorted((one for one in of_group if one["byte_limit"] is not None), key=_share)
        if limits:
            right.plot([*map(_share, limits)], [one["byte_limit"] for one in limits], "k:", label="limit by bytes")
        left.set_title(title, loc="left", fontsize=10)
        left.set(ylabel="median step, ms", xlabel="skipped layers, %")
        left.set_ylim(0, 1.1 * left.get_ylim()[1])
        right.set(ylabel="speed-up over stock", xlabel="skipped layers, %")
        left.legend()
        if right.lines:
            right.legend()
    figure.tight_layout()
    with new_file(path) as file:
        figure.savefig(file, format=os.path.splitext(path)[1][1:] or "png")
    plt.close(figure)


def not_drawn(records: Sequence[Record]) -> str:
    """What of the records has no place in the picture, as a sentence; empty where all of them have."""
    rest = []
    if any(one["draft"] for one in records):
        rest.append("rows with drafts, whose gain depends on the text")
    if any(not one["n_gen"] for one in records):
        rest.append("tests that decode nothing")
    return f"not drawn: {'; '.join(rest)}" if rest else ""


def _lines(records: Sequence[Record]) -> Iterator[tuple[str, str, list[Record]]]:
    """Label, style and points of each line: an engine's shares; a set of layers is a point of its own."""
    for engine, style in STYLES.items():
        rows = [one for one in records if one["engine"] == engine]
        shares = sorted((one for one in rows if not isinstance(one["skip"], list)), key=_share)
        if shares:
            yield engine if engine != "other" else shares[0]["model_type"], style, shares
        for one in rows:
            if isinstance(one["skip"], list):
                yield f"{engine} {skip_text(tuple(one['skip']))}", style[0], [one]


def _groups(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records of decoding by model file, test and configuration, under the title of their panels."""
    decoding = [one for one in records if one["n_gen"] and not one["draft"]]
    keys = ("n_threads", "n_batch", "n_ubatch", "type_k", "type_v", "flash_attn")
    varied = [key for key in keys if len({one[key] for one in decoding}) > 1]
    groups: dict[str, list[Record]] = {}
    for one in decoding:
        settings = [f"{one['n_threads']} thread" + "s" * (one["n_threads"] > 1)]
        settings += [f"{key} {one[key]}" for key in varied if key != "n_threads"]
        groups.setdefault(f"{one['model_name']}, {one['test']}, {', '.join(settings)}", []).append(one)
    return groups


def _share(one: dict[str, Any]) -> float:
    return float(one["n_skipped"] / one["n_layer"]) * 100
