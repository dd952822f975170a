"""The training loop: batches, optimizer steps, logs, checkpoints that resume exactly."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .batch import Batch, collate
from .checkpoint import digest, has_checkpoint, load_checkpoint, save_checkpoint, weights_digest
from .examples import Example, batches, micro_batches
from .interrupts import held_interrupts
from .model import hold_in_bf16
from .objective import Objective
from .processes import Processes
from .rounding import Rounding
from .routed_model import RoutedModel
from .run_log import RunLog
from .run_progress import STEPS, VALIDATION, Phase, RunProgress, Step
from .settings import Settings, TrainingError
from .validation import Losses, Scores, by_share, prompt_scores, validate
from .weight_average import WeightAverage

CHECKPOINT_SECONDS = 300.0
"""Between two checkpoints, where nothing else is asked for."""


def steps_of(n_examples: int, settings: Settings) -> tuple[int, int, int]:
    """Batches of an epoch, batches and steps of a run.

    >>> steps_of(10, Settings(batch_size=4, epochs=2.0, accumulate=2))
    (3, 6, 3)
    """
    per_epoch = math.ceil(n_examples / settings.batch_size)
    n_batches = math.ceil(per_epoch * settings.epochs)
    return per_epoch, n_batches, math.ceil(n_batches / settings.accumulate)


class Trainer:
    """Runs the loop under Accelerate: on one CPU, one GPU, or in the several processes of `torchrun`, which take parts of each
    batch and come to the same weights.

    parameters: all that learn, LoRA weights first, then the routers'. orders: of layers, that routers started from, by task.
    checkpoint_seconds: after which the next step is followed by a checkpoint.
    """

    def __init__(
        self,
        routed: RoutedModel,
        lora: Any,
        examples: Sequence[Example],
        settings: Settings,
        out: str,
        order: Sequence[int] = (),
        search_examples: Sequence[Example] = (),
    ) -> None:
        """lora: the model in `routed`, whose weights that require a gradient learn. out: folder of the run.

        order: of the layers, where it is given. search_examples: to find one on, in place of the training data.
        """
        self.processes = Processes()
        self.accelerator = self.processes.accelerator
        self.routed, self.lora, self.examples, self.settings, self.out = routed, lora, examples, settings, out
        self.search_examples = search_examples or examples
        self._count()
        self.objective = Objective(routed, settings, self.n_steps, order)
        self._given_order = list(order)
        self.lora_weights = [p for p in lora.parameters() if p.requires_grad]
        self._make_optimizer()
        self._base = weights_digest(lora)
        self.step, self.seconds = 0, 0.0
        self.checkpoint_seconds, self._saved = CHECKPOINT_SECONDS, time.monotonic()
        self.orders: dict[str, list[int]] = {}
        self._scores: Scores = {}  # of the validation data, as last validated
        lora.to(self.processes.device)
        routed.bank.to(self.processes.device)
        self.parameters = [*self.lora_weights, *routed.bank.parameters()]
        self.average = WeightAverage(self.parameters)
        self.log = RunLog(out, self.processes.is_main)
        self.rounding = Rounding(lora, settings.quantize)
        if settings.precision == "bf16":
            hold_in_bf16(lora)
        self.rounding.apply()

    def use(self, examples: Sequence[Example], search_examples: Sequence[Example] = ()) -> None:
        """Train on these examples in place of others, before the first step."""
        self.examples, self.search_examples = examples, search_examples or examples
        self._count()
        self.objective.n_steps = self.n_steps
        self._make_optimizer()  # whose schedule depends on the number of steps

    def _count(self) -> None:
        self.per_epoch, self.n_batches, self.n_steps = steps_of(len(self.examples), self.settings)
        self._epoch, self._batches = -1, list[list[Example]]()

    def _make_optimizer(self) -> None:
        groups = [
            {"params": self.lora_weights, "lr": self.settings.lr},
            {"params": list(self.routed.bank.parameters()), "lr": self.settings.router_lr},
        ]
        self.optimizer = torch.optim.AdamW([g for g in groups if g["params"]], weight_decay=0.0)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate_factor)

    @property
    def n_updates(self) -> int:
        """Optimizer steps of the whole run."""
        return self.n_steps * self.objective.n_passes

    def _rate_factor(self, update: int) -> float:
        """Linear warm-up, then cosine to a tenth."""
        warm = max(1, int(self.settings.warmup * self.n_updates))
        if update < warm:
            return (update + 1) / warm
        return 0.55 + 0.45 * math.cos(math.pi * min(1.0, (update - warm) / max(1, self.n_updates - warm)))

    def autocast(self) -> torch.autocast:
        """The arithmetic of the settings; bf16 needs no scaling of gradients."""
        return torch.autocast(self.processes.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16")

    def to_device(self, batch: Batch) -> Batch:
        """The batch on the device that trains."""
        device = self.processes.device
        return dataclasses.replace(batch, ids=batch.ids.to(device), mask=batch.mask.to(device))

    # -- checkpoints ----------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint that `resume` goes on from exactly. Raises TrainingError where weights are not finite."""
        if not all(bool(p.isfinite().all()) for p in self.parameters):
            raise TrainingError(f"weights are not finite after step {self.step}; {self._kept}, a lower --lr may help")
        if not self.processes.is_main:
            return
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "settings": dataclasses.asdict(self.settings),
            "of": self._depends_on,
            "order": list(self.objective.order),
            "orders": self.orders,
            "parameters": [p.detach().cpu() for p in self.parameters],
            "means": [mean.cpu() for mean in self.average.means],
            "n_averaged": self.average.count,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }
        save_checkpoint(self.out, state)
        self._saved = time.monotonic()

    def is_due(self) -> bool:
        """Whether it is time for a checkpoint."""
        return time.monotonic() - self._saved >= self.checkpoint_seconds

    def resume(self) -> None:
        """Go on from the last checkpoint. Raises TrainingError if there is none, or it is of another run: other settings,
        examples, temperature or weights to train."""
        state = load_checkpoint(self.out, dataclasses.asdict(self.settings), self._depends_on, self.processes.device)
        for parameter, value in zip(self.parameters, state["parameters"], strict=True):
            parameter.data.copy_(value)
        self.average.load(state["means"], state["n_averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.objective.order, self.orders = state["order"], state["orders"]
        self.step, self.seconds = state["step"], state["seconds"]
        self.rounding.apply()
        self.log.cut(self.step)

    @functools.cached_property
    def _depends_on(self) -> dict[str, str]:
        """What a run depends on beside its settings."""
        return {
            "examples": digest(self.examples),
            "examples to order layers on": digest(self.search_examples),
            "temperature": repr(self.routed.temperature),
            "layers that --layers names": repr(self._given_order),
            "sets": "" if self.objective.budget is None else repr(self.objective.budget.probes.sets),
            "rank or model": repr([tuple(weight.shape) for weight in self.parameters]),
            "weights of the model": self._base,
        }

    # -- the loop -------------------------------------------------------------------------------------------------------

    def run(
        self,
        valid: Sequence[Example],
        validate_every: int = 0,
        quiet: bool = False,
        stop_after: int | None = None,
        progress: RunProgress | None = None,
    ) -> Losses:
        """Train to the end, or to the step `stop_after`, on the same schedule. Ctrl-C ends it after a step, with a checkpoint.

        progress: of the whole run; without one, the steps have a bar of their own unless `quiet`.
        Returns the validation loss by task and share (empty without validation data).
        """
        if progress is None:
            shown = self.processes.is_main
            with RunProgress([Phase(STEPS, 1.0)], quiet, shown=shown) as alone:
                return self.run(valid, validate_every, quiet, stop_after, alone)
        with held_interrupts() as interrupted:
            first, end = self.step, min(self.n_steps, stop_after or self.n_steps)
            done = progress.begin(STEPS)
            while self.step < end:
                progress.word(self._timed_step())
                done(self.step - first, end - first)
                if any(self.processes.sums([float(interrupted())])):  # all stop after the same step
                    self.save()
                    raise KeyboardInterrupt
                if self.is_due():
                    self.save()
                if valid and validate_every and self.step % validate_every == 0:
                    found = self._validate(valid)
                    progress.say(f"step {self.step}: validation loss by share {by_share(found['mean'])}")
        self.save()
        if self.step == self.n_steps and self.average.count:  # after the checkpoint, which holds the last weights
            self.average.apply()
            self.rounding.apply()
        return self._validate(valid, progress.begin(VALIDATION)) if valid else {}

    def _timed_step(self) -> str:
        """One step and its row in the log: words for the progress bar."""
        started = time.perf_counter()
        self._choose_learners()
        loss, share, tokens = self._learn()
        self.step += 1
        seconds = time.perf_counter() - started
        self.seconds += seconds
        self.log.add_step(self.step, loss, share, tokens / seconds)
        return f"loss {loss:.3f} share {share:.2f} {tokens / seconds:.0f} tokens/s"

    def _learn(self) -> tuple[float, float, int]:
        """The passes of one step's batches, an update after each.

        Returns the mean loss, the mean skip share, and the tokens.
        """
        passes, own_tokens = self._passes()
        total_loss, total_share, tokens = 0.0, 0.0, 0.0
        for _ in range(self.objective.n_passes):
            own_loss, own_share = 0.0, 0.0
            for micro_batch in passes:
                with self.autocast():
                    loss, share = next(micro_batch)
                if loss.requires_grad:  # routers alone learn nothing where nothing is chosen
                    self.accelerator.backward(loss)
                own_loss, own_share = own_loss + float(loss.detach()), own_share + share
            loss_of_all, share_of_all, tokens = self.processes.sums([own_loss, own_share, own_tokens])
            self._check(loss_of_all)
            total_loss, total_share = total_loss + loss_of_all, total_share + share_of_all
            self._update()
        self.rounding.apply()  # once a step: it costs as much as a pass, and an update moves few weights to another level
        return total_loss / self.objective.n_passes, total_share / self.objective.n_passes, int(tokens)

    def _passes(self) -> tuple[list[Iterator[tuple[Tensor, float]]], int]:
        """The passes of each micro-batch of a step, weighted to a mean over its examples, and the step's tokens.

        Of this process: the sum over all is the mean. One without a part of a batch learns nothing from its first example, so
        that all take the same steps.
        """
        passes, tokens = [], 0
        first = self.step * self.settings.accumulate
        numbers = range(first, min(first + self.settings.accumulate, self.n_batches))
        for number in numbers:
            whole = self.batch_examples(number)
            own = self.processes.own(whole)
            for group in micro_batches(own or whole[:1], self.settings.part_tokens):
                batch = self.to_device(collate(group))
                weight = len(group) / len(whole) / len(numbers) if own else 0.0
                passes.append(self.objective.passes(batch, self.step, weight))
                tokens += int(batch.mask.sum()) if own else 0
        return passes, tokens

    def batch_examples(self, number: int) -> list[Example]:
        """The examples of a batch, counted from the start of the run."""
        epoch, i = divmod(number, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, batches(self.examples, self.settings.batch_size, self.settings.seed, epoch)
        return self._batches[i]

    def scores(self) -> Scores:
        """The keep scores of the prompts last validated on; without validation, of the first that it trained on."""
        if not self._scores:
            with self.autocast():
                self._scores = prompt_scores(self.routed, self.examples[:200], self.settings.batch_size, self.to_device)
        return self._scores

    def _validate(self, valid: Sequence[Example], step: Step = lambda _done, _total: None) -> Losses:
        with self.autocast():
            size = self.settings.batch_size
            losses, self._scores = validate(self.objective, valid, size, self.to_device, self.processes, step)
        self.log.add_validation(self.step, losses)
        return losses

    def _choose_learners(self) -> None:
        routers, lora = self.objective.learns(self.step)
        self.routed.bank.requires_grad_(routers)
        for weight in self.lora_weights:
            weight.requires_grad_(lora)

    @property
    def _kept(self) -> str:
        there = has_checkpoint(self.out)
        return f"the last checkpoint in {self.out} is kept" if there else f"there is no checkpoint yet in {self.out}"

    def _check(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise TrainingError(f"the loss is {loss} at step {self.step + 1}; {self._kept}, a lower --lr may help")

    def _update(self) -> None:
        """One optimizer step with the gradients of all processes."""
        self.processes.sum_gradients(self.parameters)
        for group in self.optimizer.param_groups:  # apart: straight-through gradients are large, and would shrink LoRA's
            torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.schedule.last_epoch > (1 - self.settings.average) * self.n_updates:
            self.average.add()
