"""What a file's sets of layers are predicted to cost prompts, from the hidden states of the model in PyTorch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from ..gguf.cost_probes import CostProbes
from ..runtime.predicted_cost import Prediction, predict
from .batch import Batch, collate
from .examples import Example, micro_batches
from .fit_routers import prompt_inputs
from .routed_model import RoutedModel
from .trainer import Trainer


def with_predictions(
    routed: RoutedModel,
    probes: CostProbes,
    examples: Sequence[Example],
    part_tokens: int,
    to_device: Callable[[Batch], Batch],
    step: Callable[[int, int], object] = lambda _done, _total: None,
) -> list[Example]:
    """The examples, in their order, each with what every level is predicted to cost its prompt. step: for a progress bar."""
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].prompt))
    found: dict[int, Prediction] = {}
    done = 0
    for group in micro_batches([examples[i] for i in order], part_tokens):
        inputs = prompt_inputs(routed, to_device(collate(group))).numpy()  # [b, 2 * n_layer, n_embd]
        for log_costs in log_cost(probes, inputs):
            found[order[done]] = predict(probes, log_costs)
            done += 1
        step(done, len(examples))
    return [dataclasses.replace(example, prediction=found[i]) for i, example in enumerate(examples)]


def predicted(
    trainer: Trainer, examples: Sequence[Example], step: Callable[[int, int], object] = lambda _done, _total: None
) -> list[Example]:
    """`with_predictions` of a run whose budget chooses the layers."""
    assert trainer.objective.budget is not None
    with trainer.autocast():
        part, probes = trainer.settings.part_tokens, trainer.objective.budget.probes
        return with_predictions(trainer.routed, probes, examples, part, trainer.to_device, step)


def log_cost(probes: CostProbes, inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Predicted log costs of each set, float64 [b, n_set], from what `prompt_inputs` gives, [b, 2 * n_layer, n_embd]."""
    rows = [*probes.read, *(inputs.shape[1] // 2 + layer for layer in probes.last)]
    read = inputs[:, rows].astype(np.float64)
    found: npt.NDArray[np.float64] = np.einsum("bre,sre->bs", read, probes.weight) + probes.bias
    return found
