"""What a run leaves behind: routers.safetensors, the peft adapter, train.json, layers.png."""

from __future__ import annotations

import json
import os
from typing import Any

import torch

from ..gguf.router_format import WRITER, set_record, write_safetensors
from ..gguf.routers import Base, Routers
from .loop import Scores, Trainer
from .objective import below_half


def save_result(out: str, trainer: Trainer, lora: Any, record: dict[str, Any], skip: float | None) -> None:
    """Write routers, adapter and layers.png; `record` goes to train.json and, shortened, into the routers' metadata.

    skip: the share to recommend; None for what the recipe comes to, nothing where routers did not learn. A fixed set of layers
    is named in the metadata, for `first-cpp eval`.
    """
    bank, scores = trainer.routed.bank, trainer.scores()
    s = trainer.s
    if skip is None:
        skip = (
            share_below_half(scores) if s.recipe == "two-step" else 0.25 if s.layers == "routers" and s.max_share > 0 else 0.0
        )
    layers = {task: trainer.objective.left_out(keep, skip).float().mean(0).tolist() for task, keep in sorted(scores.items())}
    train: dict[str, Any] = {key: record[key] for key in ("method", "data", "command", "seconds") if key in record}
    if s.layers != "routers":
        train |= set_record(str(s.layers), trainer.objective.order, s.seed)
    weight, bias = (getattr(bank, name).detach().float().cpu().numpy() for name in ("weight", "bias"))
    base = Base("", weight.shape[0], weight.shape[1], "")  # which GGUF they go with is found by `python -m convert`
    routers = Routers(base, weight, bias, bank.norm_eps, (True,) * len(bias), skip, WRITER, train)
    write_safetensors(out, routers)
    if trainer.weights:
        config = lora.peft_config["default"]
        config.target_modules = sorted(config.target_modules)  # peft keeps a set: the file would differ from run to run
        lora.save_pretrained(os.path.join(out, "adapter"))
    plot_layers(os.path.join(out, "layers.png"), layers, skip)
    with open(os.path.join(out, "train.json"), "w", encoding="utf-8") as file:
        json.dump(record | {"skip": skip}, file, indent=1)
        file.write("\n")


def share_below_half(scores: Scores) -> float:
    """Mean share of layers whose keep score is below 0.5, to the nearest layer."""
    found = below_half(torch.cat(list(scores.values()))).float()
    return round(float(found.mean()) * found.shape[1]) / found.shape[1]


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
