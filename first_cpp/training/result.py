"""What a run leaves behind: routers.safetensors, the peft adapter, train.json, layers.png."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch

from .data import Example, batches
from .rule import Routed, collate, lowest


def save_result(out: str, routed: Routed, lora: Any, record: dict[str, Any], skip: float) -> None:
    """Write routers and adapter; `record` goes to train.json and, shortened, into the routers' metadata."""
    from safetensors.torch import save_file

    metadata = {"norm_eps": repr(routed.bank.norm_eps), "skip": repr(skip)}
    metadata |= {f"train.{key}": str(record[key]) for key in ("method", "data", "command", "seconds") if key in record}
    tensors = {name: getattr(routed.bank, name).detach().cpu().contiguous() for name in ("weight", "bias")}
    save_file(tensors, os.path.join(out, "routers.safetensors"), metadata=metadata)
    lora.save_pretrained(os.path.join(out, "adapter"))
    with open(os.path.join(out, "train.json"), "w", encoding="utf-8") as file:
        json.dump(record, file, indent=1)
        file.write("\n")


@torch.no_grad()
def layers_by_task(routed: Routed, examples: Sequence[Example], share: float, to: Any) -> dict[str, list[float]]:
    """For each task, how often each layer is left out at `share`: 0..1."""
    n_layer = routed.bank.bias.shape[0]
    count = int(share * n_layer + 0.5)
    sums: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros(n_layer))
    n: dict[str, int] = defaultdict(int)
    for group in batches(examples, 8, 0, 0):
        chosen = lowest(routed.scores(to(collate(group))), count).float().cpu()
        for row, example in zip(chosen, group, strict=True):
            sums[example.task] += row
            n[example.task] += 1
    return {task: (sums[task] / n[task]).tolist() for task in sorted(sums)}


def plot_layers(path: str, found: dict[str, list[float]], share: float) -> None:
    """A heat map: one row a task, one column a layer."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    tasks = list(found)
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.45 * len(tasks)), layout="constrained")
    image = axes.imshow([found[task] for task in tasks], aspect="auto", vmin=0, vmax=1, cmap="viridis")
    axes.set_yticks(range(len(tasks)), tasks)
    axes.set_xlabel("layer")
    axes.set_title(f"how often each layer is left out at share {share:g}")
    figure.colorbar(image, ax=axes)
    figure.savefig(path, dpi=120)
    plt.close(figure)
