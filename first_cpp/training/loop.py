"""The training loop: routers and LoRA together, the share to skip drawn per batch, checkpoints that resume exactly."""

from __future__ import annotations

import csv
import json
import math
import os
import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import FirstCppError
from .data import Example, batches
from .rule import Batch, Routed, collate, lowest

VALID_SHARES = (0.0, 0.1, 0.25, 0.4)


class TrainingError(FirstCppError, RuntimeError):
    """Training that cannot go on; the last good checkpoint is kept."""


@dataclass(frozen=True)
class Settings:
    """What decides a run: two runs with equal settings, data and model end with the same weights."""

    epochs: float = 1.0
    batch_size: int = 8
    accumulate: int = 1
    lr: float = 3e-4
    router_lr: float = 3e-3
    warmup: float = 0.05
    max_share: float = 0.5
    dense_share: float = 0.15
    """Part of the batches that are trained with nothing left out."""
    curriculum: float = 0.0
    """Part of the run over which the largest share grows from 0."""
    distill: float = 0.0
    """Weight of KL to the model's own dense output, beside cross entropy."""
    seed: int = 0
    checkpoint: int = 200
    """Optimizer steps between checkpoints."""


def share_of(step: int, n_steps: int, s: Settings) -> float:
    """The share to skip at a step: depends on seed and step alone, so that a resumed run draws the same."""
    rng = random.Random(f"share-{s.seed}-{step}")
    if rng.random() < s.dense_share:
        return 0.0
    grown = 1.0 if s.curriculum <= 0 else min(1.0, (step + 1) / (s.curriculum * n_steps))
    return rng.random() * s.max_share * grown


def answer_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Mean cross entropy over all answer tokens of a batch."""
    return F.cross_entropy(logits.float().flatten(0, 1), batch.targets.flatten(), ignore_index=-100)


def distill_loss(logits: Tensor, dense: Tensor, batch: Batch) -> Tensor:
    """Mean KL(dense || routed) over the answer tokens."""
    mask = batch.targets != -100
    return F.kl_div(logits[mask].float().log_softmax(-1), dense[mask].float().softmax(-1), reduction="batchmean")


def batch_loss(routed: Routed, batch: Batch, share: float, distill: float) -> Tensor:
    """The loss of one batch with `share` of the layers left out, chosen by each row's own prompt."""
    count = math.floor(share * routed.bank.bias.shape[0] + 0.5)
    if count == 0:
        return answer_loss(routed.logits(batch), batch)
    keep = routed.scores(batch)
    logits = routed.logits(batch, lowest(keep, count), keep)
    loss = answer_loss(logits, batch)
    if distill > 0:
        with torch.no_grad():
            dense = routed.logits(batch)
        loss = loss + distill * distill_loss(logits, dense, batch)
    return loss


@torch.no_grad()
def validate(routed: Routed, examples: Sequence[Example], batch_size: int, to: Any) -> dict[float, float]:
    """Mean answer cross entropy per token at each of VALID_SHARES."""
    n_layer = routed.bank.bias.shape[0]
    sums, tokens = dict.fromkeys(VALID_SHARES, 0.0), 0
    for group in batches(examples, batch_size, 0, 0):
        batch = to(collate(group))
        n = int((batch.targets != -100).sum())
        keep, tokens = routed.scores(batch), tokens + n
        for share in VALID_SHARES:
            count = math.floor(share * n_layer + 0.5)
            logits = routed.logits(batch, lowest(keep, count) if count else None)
            sums[share] += float(answer_loss(logits, batch)) * n
    return {share: value / tokens for share, value in sums.items()}


class Trainer:
    """Runs the loop under Accelerate: one CPU, one GPU, or many by `accelerate launch`."""

    def __init__(self, routed: Routed, lora: Any, train: Sequence[Example], settings: Settings, out: str) -> None:
        from accelerate import Accelerator

        # bf16 where the hardware has it; CPUs without it are slower that way
        self.accelerator = Accelerator(
            mixed_precision="bf16" if torch.cuda.is_available() else "no", gradient_accumulation_steps=settings.accumulate
        )
        self.routed, self.lora, self.train, self.s, self.out = routed, lora, train, settings, out
        per_epoch = math.ceil(len(train) / settings.batch_size)
        self.n_batches = max(1, math.ceil(per_epoch * settings.epochs))
        self.n_steps = math.ceil(self.n_batches / settings.accumulate)
        weights = [p for p in lora.parameters() if p.requires_grad]
        groups = [
            {"params": weights, "lr": settings.lr},
            {"params": list(routed.bank.parameters()), "lr": settings.router_lr},
        ]
        self.optimizer = torch.optim.AdamW([g for g in groups if g["params"]], weight_decay=0.0)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._factor)
        self.step = 0
        device = self.accelerator.device
        lora.to(device)
        routed.bank.to(device)
        self.parameters = [*weights, *routed.bank.parameters()]

    def _factor(self, step: int) -> float:
        """Linear warm-up, then cosine to a tenth."""
        warm = max(1, int(self.s.warmup * self.n_steps))
        if step < warm:
            return (step + 1) / warm
        return 0.55 + 0.45 * math.cos(math.pi * min(1.0, (step - warm) / max(1, self.n_steps - warm)))

    def to_device(self, batch: Batch) -> Batch:
        device = self.accelerator.device
        return Batch(batch.ids.to(device), batch.mask.to(device), batch.split)

    # -- checkpoints: everything a step depends on, written beside and renamed ------------------------------------------

    def save(self) -> None:
        if not self.accelerator.is_main_process:
            return
        part, final = os.path.join(self.out, "checkpoint.part"), os.path.join(self.out, "checkpoint.pt")
        state = {
            "step": self.step,
            "settings": asdict(self.s),
            "parameters": [p.detach().cpu() for p in self.parameters],
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }
        torch.save(state, part)
        os.replace(part, final)

    def resume(self) -> None:
        """Go on from the last checkpoint. Raises TrainingError if there is none, or it is of another run."""
        path = os.path.join(self.out, "checkpoint.pt")
        if not os.path.exists(path):
            raise TrainingError(f"--resume: no checkpoint in {self.out}")
        state = torch.load(path, map_location=self.accelerator.device, weights_only=True)
        if state["settings"] != asdict(self.s):
            changed = [key for key, value in asdict(self.s).items() if state["settings"].get(key) != value]
            raise TrainingError(f"--resume: the checkpoint in {self.out} was made with other settings: {', '.join(changed)}")
        for parameter, value in zip(self.parameters, state["parameters"], strict=True):
            parameter.data.copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.step = state["step"]
        self._cut_log()

    def _cut_log(self) -> None:
        """Rows after the checkpoint will be written again."""
        path = os.path.join(self.out, "log.csv")
        if os.path.exists(path):
            with open(path, encoding="utf-8", newline="") as file:
                rows = list(csv.reader(file))
            kept = [rows[0], *(row for row in rows[1:] if int(row[0]) <= self.step)]
            with open(path + ".part", "w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows(kept)
            shutil.move(path + ".part", path)

    # -- the loop -------------------------------------------------------------------------------------------------------

    def run(self, valid: Sequence[Example], validate_every: int = 0, quiet: bool = False) -> dict[float, float]:
        """Train to the end; returns the validation loss per share (empty without validation data)."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        per_epoch = math.ceil(len(self.train) / self.s.batch_size)
        epoch_batches: list[list[Example]] = []
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        progress = Progress(*columns, console=Console(stderr=True), disable=quiet or not self.accelerator.is_main_process)
        found: dict[float, float] = {}
        with progress:
            bar = progress.add_task("training", total=self.n_steps, completed=self.step)
            epoch = -1
            while self.step < self.n_steps:
                started, tokens, total = time.perf_counter(), 0, 0.0
                share = share_of(self.step, self.n_steps, self.s)
                first = self.step * self.s.accumulate
                for i in range(first, min(first + self.s.accumulate, self.n_batches)):
                    if i // per_epoch != epoch:
                        epoch = i // per_epoch
                        epoch_batches = batches(self.train, self.s.batch_size, self.s.seed, epoch)
                    batch = self.to_device(self._own(collate(epoch_batches[i % per_epoch])))
                    with self.accelerator.autocast():
                        loss = batch_loss(self.routed, batch, share, self.s.distill) / self.s.accumulate
                    self._check(loss)
                    if loss.requires_grad:  # routers alone learn nothing from a batch without a choice
                        self.accelerator.backward(loss)
                    total, tokens = total + float(loss.detach()), tokens + int(batch.mask.sum())
                self._update()
                self.step += 1
                rate = tokens / (time.perf_counter() - started)
                self._log(self.step, total, share, rate)
                progress.update(bar, completed=self.step, description=f"loss {total:.3f} share {share:.2f} {rate:.0f} tokens/s")
                if self.step % self.s.checkpoint == 0:
                    self.save()
                if valid and validate_every and self.step % validate_every == 0:
                    found = validate(self.routed, valid, self.s.batch_size, self.to_device)
                    self._log_validation(found)
                    progress.console.print(f"step {self.step}: validation loss by share {_short(found)}")
        self.save()
        if valid:
            found = validate(self.routed, valid, self.s.batch_size, self.to_device)
            self._log_validation(found)
        return found

    def _own(self, batch: Batch) -> Batch:
        """This process's rows of a batch."""
        n, i = self.accelerator.num_processes, self.accelerator.process_index
        return batch if n == 1 else Batch(batch.ids[i::n], batch.mask[i::n], batch.split)

    def _check(self, loss: Tensor) -> None:
        if not math.isfinite(float(loss.detach())):
            raise TrainingError(f"the loss is {float(loss)} at step {self.step + 1}; the last checkpoint in {self.out} is kept")

    def _update(self) -> None:
        if self.accelerator.num_processes > 1:
            for p in self.parameters:
                if p.grad is not None:
                    p.grad = self.accelerator.reduce(p.grad, reduction="mean")
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _log(self, step: int, loss: float, share: float, rate: float) -> None:
        if not self.accelerator.is_main_process:
            return
        path = os.path.join(self.out, "log.csv")
        new = not os.path.exists(path)
        with open(path, "a", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["step", "loss", "share", "tokens_per_second"])
            writer.writerow([step, f"{loss:.6f}", f"{share:.4f}", f"{rate:.1f}"])

    def _log_validation(self, found: dict[float, float]) -> None:
        if self.accelerator.is_main_process:
            with open(os.path.join(self.out, "valid.jsonl"), "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": self.step, "loss": {str(k): v for k, v in found.items()}}) + "\n")


def _short(found: dict[float, float]) -> str:
    return ", ".join(f"{share:g}: {loss:.3f}" for share, loss in found.items())
