"""Checkpoints: all that a step depends on, and what the run depends on, to refuse those of another run."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..gguf.new_file import new_file
from .examples import Example
from .settings import TrainingError

NAME = "checkpoint.pt"


def save_checkpoint(folder: str, state: dict[str, Any]) -> None:
    """Write a state with "settings" and "of", what the run depends on, to the folder's checkpoint."""
    with new_file(os.path.join(folder, NAME)) as file:
        torch.save(state, file)


def load_checkpoint(folder: str, settings: dict[str, Any], depends_on: dict[str, str], device: Any) -> dict[str, Any]:
    """The state in the folder's checkpoint.

    Raises TrainingError if there is none, or if it is of a run with other settings, or that depends on something else.
    """
    if not has_checkpoint(folder):
        raise TrainingError(f"--resume: no checkpoint in {folder}; without --resume the run begins anew")
    state = _read(folder, device)
    was, mine = {**state["settings"], **depends_on, **state["of"]}, {**settings, **depends_on}  # older ones say less
    if was != mine:
        changed = [key for key, value in mine.items() if was.get(key) != value]
        raise TrainingError(f"--resume: the checkpoint in {folder} was made with other settings: {', '.join(changed)}")
    return state


def has_checkpoint(folder: str) -> bool:
    """Whether a run has left one there."""
    return os.path.exists(os.path.join(folder, NAME))


def steps_done(folder: str) -> int:
    """The step of the folder's checkpoint; 0 without one. Raises TrainingError for one that cannot be read."""
    return int(_read(folder, "cpu")["step"]) if has_checkpoint(folder) else 0


def _read(folder: str, device: Any) -> dict[str, Any]:
    path = os.path.join(folder, NAME)
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        missing = {"step", "settings", "of", "parameters"} - state.keys()
    except Exception as error:  # of many kinds, for a file that is empty, cut off or no checkpoint
        why = str(error).partition("\n")[0] or type(error).__name__
        raise TrainingError(f"--resume: {path} is not a readable checkpoint ({why})") from error
    if missing:
        raise TrainingError(f"--resume: {path} is no checkpoint of a run: it lacks {', '.join(sorted(missing))}")
    return state


@torch.no_grad()
def weights_digest(model: nn.Module) -> str:
    """A hash of some values of each frozen weight, before training rounds them: of the model that a run starts from."""
    found = hashlib.sha256()
    for p in model.parameters():
        if not p.requires_grad:
            values = p.flatten()
            found.update(values[:: max(1, len(values) // 64)].float().cpu().numpy().tobytes())
    return found.hexdigest()


def digest(examples: Sequence[Example]) -> str:
    """A hash of what examples say."""
    return hashlib.sha256(repr([(one.task, one.prompt, one.response) for one in examples]).encode()).hexdigest()
