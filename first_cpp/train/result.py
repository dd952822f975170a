"""What a run leaves behind: routers.safetensors, the peft adapter, train.json, layers.png."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import sys
from collections import defaultdict
from typing import Any

import torch

from ..gguf.new_file import new_file
from ..gguf.router_format import WRITER, set_record, write_safetensors
from ..gguf.routers import Base, Routers
from ..runtime.machine import describe_machine
from ..runtime.predicted_cost import Prediction
from .objective import below_half
from .trainer import Trainer
from .validation import Losses, Scores


def run_record(args: argparse.Namespace, trainer: Trainer, losses: Losses) -> dict[str, Any]:
    """What train.json holds of a run that ended with these validation losses."""
    gpus = [torch.cuda.get_device_name(trainer.processes.device)] if trainer.processes.device.type == "cuda" else []
    return {
        "method": method_of(args),
        "data": f"{', '.join(map(os.path.basename, args.data or args.prompts))} ({len(trainer.examples)} examples)",
        "command": shlex.join(["first-cpp", *sys.argv[1:]]),
        "seconds": round(trainer.seconds),
        "steps": trainer.step,
        "updates": trainer.step * trainer.objective.n_passes,
        "processes": trainer.processes.n,
        "settings": dataclasses.asdict(trainer.settings),
        "orders": trainer.orders,
        "valid_loss": losses,
        "torch": torch.__version__,
        "machine": ", ".join([*gpus, describe_machine()]),
    }


def method_of(args: argparse.Namespace) -> str:
    """What was trained, in words."""
    layers = args.layers if isinstance(args.layers, str) else ",".join(map(str, args.layers))
    if args.sets:
        layers = f"sets of {os.path.basename(args.sets)}"
    who = layers if layers == "routers" or args.sets else f"the layers {layers!r} for all prompts"
    how = "dense" if args.recipe == "exact" and args.max_share == 0 else f"{args.recipe}, {who}"
    return f"{how}, LoRA rank {args.rank}"


def save_result(trainer: Trainer, record: dict[str, Any], skip: float | None) -> None:
    """Write routers, adapter, layers.png and train.json to the trainer's folder.

    record: goes to train.json and, shortened, into the routers' metadata. skip: the share to recommend; None for what the
    recipe comes to.
    """
    out, scores = trainer.out, trainer.scores()
    if skip is None:
        skip = recommended_share(trainer, scores)
    save_routers(trainer, record, skip)
    if trainer.lora_weights:
        config = trainer.lora.peft_config["default"]
        config.target_modules = sorted(config.target_modules)  # peft keeps a set: the file would differ from run to run
        trainer.lora.save_pretrained(os.path.join(out, "adapter"))
    plotted = skip if trainer.objective.budget is None else skip or 0.25
    plot_layers(os.path.join(out, "layers.png"), chosen_by_task(trainer, scores, plotted), plotted)
    with new_file(os.path.join(out, "train.json"), "w") as file:
        file.write(json.dumps(record | {"skip": skip}, indent=1) + "\n")


def chosen_by_task(trainer: Trainer, scores: Scores, share: float) -> dict[str, list[float]]:
    """How often each layer is skipped at a share, by task: of prompts validated on, or with a budget, of those trained on."""
    if (budget := trainer.objective.budget) is None:
        found = {task: trainer.objective.skipped_layers(keep, share) for task, keep in scores.items()}  # [n, n_layer]
    else:
        by_task = defaultdict[str, list[Prediction]](list)
        for one in trainer.examples:
            by_task[one.task] += [one.prediction] if one.prediction else []
        found = {task: budget.skipped_layers(of, share) for task, of in by_task.items()}
    return {task: skipped.float().mean(0).tolist() for task, skipped in sorted(found.items())}


def recommended_share(trainer: Trainer, scores: Scores) -> float:
    """The share that a run recommends unasked: nothing where routers did not learn."""
    s = trainer.settings
    if s.recipe == "two-step":
        return share_below_half(scores)
    if trainer.objective.budget is not None:
        return trainer.objective.budget.routers.skip  # until the trained weights are calibrated
    return 0.25 if s.layers == "routers" and s.max_share > 0 else 0.0


def save_routers(trainer: Trainer, record: dict[str, Any], skip: float) -> None:
    """Write routers.safetensors. A fixed set of layers is named in its metadata, for `first-cpp eval`."""
    bank, s = trainer.routed.bank, trainer.settings
    train: dict[str, Any] = {key: record[key] for key in ("method", "data", "command", "seconds") if key in record}
    if trainer.objective.budget is not None:
        of_file = trainer.objective.budget.routers
        write_safetensors(trainer.out, dataclasses.replace(of_file, skip=skip, train=of_file.train | train))
        return
    if s.layers != "routers":
        train |= set_record(s.layers, trainer.objective.order, s.seed)
    weight, bias = (getattr(bank, name).detach().float().cpu().numpy() for name in ("weight", "bias"))
    base = Base("", weight.shape[0], weight.shape[1], "")  # which GGUF they go with is found by `python -m convert`
    routers = Routers(base, weight, bias, bank.norm_eps, (True,) * len(bias), skip, WRITER, train)
    write_safetensors(trainer.out, routers)


def share_below_half(scores: Scores) -> float:
    """Mean share of layers whose keep score is below 0.5, to the nearest layer."""
    found = below_half(torch.cat(list(scores.values()))).float()  # [n, n_layer]
    return round(float(found.mean()) * found.shape[1]) / found.shape[1]


def plot_layers(path: str, chosen: dict[str, list[float]], share: float) -> None:
    """A heat map: one row a task, one column a layer. chosen: how often each layer is skipped, by task."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["text.parse_math"] = False  # a task may be called $5_$
    import matplotlib.pyplot as plt

    tasks = list(chosen)
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.45 * len(tasks)), layout="constrained")
    image = axes.imshow([chosen[task] for task in tasks], aspect="auto", vmin=0, vmax=1, cmap="viridis")
    axes.set_yticks(range(len(tasks)), tasks)
    axes.set_xlabel("layer")
    axes.set_title(f"how often each layer is skipped at share {share:g}")
    figure.colorbar(image, ax=axes)
    with new_file(path) as file:
        figure.savefig(file, format="png", dpi=120)
    plt.close(figure)
