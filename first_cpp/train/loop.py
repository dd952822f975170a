"""The training loop: batches, optimizer steps, logs, checkpoints that resume exactly."""

from __future__ import annotations

import csv
import functools
import hashlib
import json
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from ..errors import FirstCppError
from .data import Example, batches, in_parts
from .objective import Objective, Settings, answer_loss
from .rounding import Rounding
from .rule import Batch, Routed, collate

if TYPE_CHECKING:
    from rich.progress import Progress

VALID_SHARES = (0.0, 0.1, 0.25, 0.4)


class TrainingError(FirstCppError, RuntimeError):
    """Training that cannot go on; the last good checkpoint is kept."""


Losses: TypeAlias = dict[str, dict[float, float]]
Scores: TypeAlias = dict[str, Tensor]


@torch.no_grad()
def validate(objective: Objective, examples: Sequence[Example], batch_size: int, to: Any) -> tuple[Losses, Scores]:
    """Of each task, the mean answer cross entropy at each of VALID_SHARES, where nothing is ever left out at 0 alone; "mean" is
    that over tasks. And the keep scores of each task's prompts: [n, n_layer]."""
    shares = VALID_SHARES if objective.s.max_share > 0 else (0.0,)
    found: dict[str, dict[float, list[float]]] = defaultdict(lambda: {share: [] for share in shares})
    scores: dict[str, list[Tensor]] = defaultdict(list)
    for group in batches(examples, batch_size, 0, 0):
        prompts = objective.routed.read(to(collate(group)))
        for example, keep in zip(group, prompts.keep.cpu(), strict=True):
            scores[example.task].append(keep)
        for share in shares:
            run = (~objective.left_out(prompts.keep, share)).float() if share else None
            losses = answer_loss(objective.routed.logits(prompts, run), prompts.batch).tolist()
            for example, loss in zip(group, losses, strict=True):
                found[example.task][share].append(loss)
    means = {task: {share: sum(one) / len(one) for share, one in by_share.items()} for task, by_share in sorted(found.items())}
    mean = {share: sum(task[share] for task in means.values()) / len(means) for share in shares}
    return {"mean": mean, **means}, {task: torch.stack(rows) for task, rows in scores.items()}


@torch.no_grad()
def read_scores(routed: Routed, examples: Sequence[Example], batch_size: int, to: Any) -> Scores:
    """The keep scores of each task's prompts: [n, n_layer]."""
    found: dict[str, list[Tensor]] = defaultdict(list)
    for group in batches(examples, batch_size, 0, 0):
        for example, keep in zip(group, routed.scores(to(collate(group))).cpu(), strict=True):
            found[example.task].append(keep)
    return {task: torch.stack(rows) for task, rows in found.items()}


def native_precision() -> str:
    """ "bf16" where the hardware computes with it, else "float32": emulated, it is slower."""
    if torch.cuda.is_available():
        return "bf16"
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "float32"


class Trainer:
    """Runs the loop under Accelerate: one CPU, one GPU, or many by `accelerate launch`."""

    def __init__(
        self,
        routed: Routed,
        lora: Any,
        train: Sequence[Example],
        settings: Settings,
        out: str,
        order: Sequence[int] = (),
        order_on: Sequence[Example] = (),
    ) -> None:
        """order: of the layers, where it is given. order_on: examples to find one on, in place of the training data."""
        from accelerate import Accelerator

        self.accelerator = Accelerator()
        self.order_on = order_on or train
        self.routed, self.lora, self.train, self.s, self.out = routed, lora, train, settings, out
        self.per_epoch = math.ceil(len(train) / settings.batch_size)
        self.n_batches = math.ceil(self.per_epoch * settings.epochs)
        self.n_steps = math.ceil(self.n_batches / settings.accumulate)
        self.objective = Objective(routed, settings, self.n_steps, order)
        self.weights = weights = [p for p in lora.parameters() if p.requires_grad]
        groups = [
            {"params": weights, "lr": settings.lr},
            {"params": list(routed.bank.parameters()), "lr": settings.router_lr},
        ]
        self.optimizer = torch.optim.AdamW([g for g in groups if g["params"]], weight_decay=0.0)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._factor)
        self.step, self.seconds = 0, 0.0
        self.orders: dict[str, list[int]] = {}  # what routers started from, by task
        self._scores: Scores = {}  # of the validation data, as last validated
        self._epoch, self._batches = -1, list[list[Example]]()
        device = self.accelerator.device
        lora.to(device)
        routed.bank.to(device)
        self.parameters = [*weights, *routed.bank.parameters()]
        self.means = [torch.zeros_like(p, requires_grad=False) for p in self.parameters]
        self.n_averaged = 0
        self.rounding = Rounding(lora, settings.quantize)
        self.rounding.apply()

    def _factor(self, update: int) -> float:
        """Linear warm-up, then cosine to a tenth."""
        n_updates = self.n_steps * self.objective.n_passes
        warm = max(1, int(self.s.warmup * n_updates))
        if update < warm:
            return (update + 1) / warm
        return 0.55 + 0.45 * math.cos(math.pi * min(1.0, (update - warm) / max(1, n_updates - warm)))

    def autocast(self) -> torch.autocast:
        """The arithmetic of the settings; bf16 needs no scaling of gradients."""
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.s.precision == "bf16")

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
            "seconds": self.seconds,
            "settings": asdict(self.s),
            "of": self._of,
            "order": list(self.objective.order),
            "orders": self.orders,
            "parameters": [p.detach().cpu() for p in self.parameters],
            "means": [mean.cpu() for mean in self.means],
            "n_averaged": self.n_averaged,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }
        torch.save(state, part)
        os.replace(part, final)

    def resume(self) -> None:
        """Go on from the last checkpoint. Raises TrainingError if there is none, or it is of another run: other settings,
        examples, temperature or weights to train."""
        path = os.path.join(self.out, "checkpoint.pt")
        if not os.path.exists(path):
            raise TrainingError(f"--resume: no checkpoint in {self.out}")
        state = torch.load(path, map_location=self.accelerator.device, weights_only=True)
        was, mine = ({**settings, **of} for settings, of in ((state["settings"], state["of"]), (asdict(self.s), self._of)))
        if was != mine:
            changed = [key for key, value in mine.items() if was.get(key) != value]
            raise TrainingError(f"--resume: the checkpoint in {self.out} was made with other settings: {', '.join(changed)}")
        for parameter, value in zip(self.parameters, state["parameters"], strict=True):
            parameter.data.copy_(value)
        for mean, value in zip(self.means, state["means"], strict=True):
            mean.copy_(value)
        self.n_averaged = state["n_averaged"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.objective.order, self.orders = state["order"], state["orders"]
        self.step, self.seconds = state["step"], state["seconds"]
        self.rounding.apply()
        if self.accelerator.is_main_process:
            self._cut_log()

    @functools.cached_property
    def _of(self) -> dict[str, str]:
        """What a run depends on beside its settings."""
        return {
            "examples": _digest(self.train),
            "examples to order layers on": _digest(self.order_on),
            "temperature": repr(self.routed.temperature),
            "rank or model": repr([tuple(weight.shape) for weight in self.parameters]),
        }

    def start_log(self) -> None:
        """Take away what a run that was killed before its first checkpoint wrote."""
        for name in ("log.csv", "valid.jsonl") if self.accelerator.is_main_process else ():
            path = os.path.join(self.out, name)
            if os.path.exists(path):
                os.remove(path)

    def _cut_log(self) -> None:
        """Rows after the checkpoint will be written again; so will one that was being written when the run was killed."""
        self._keep_lines("log.csv", lambda line: line.startswith("step") or int(line.partition(",")[0]) <= self.step)
        self._keep_lines("valid.jsonl", lambda line: json.loads(line)["step"] <= self.step)

    def _keep_lines(self, name: str, wanted: Callable[[str], bool]) -> None:
        path = os.path.join(self.out, name)
        if os.path.exists(path):
            with open(path, encoding="utf-8", newline="") as file:
                lines = [line for line in file if line.endswith("\n") and wanted(line)]
            with open(path + ".part", "w", encoding="utf-8", newline="") as file:
                file.writelines(lines)
            os.replace(path + ".part", path)

    # -- the loop -------------------------------------------------------------------------------------------------------

    def progress(self, quiet: bool) -> Progress:
        """A progress bar and its console on standard error, of the main process alone."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        console = Console(stderr=True, quiet=not self.accelerator.is_main_process)
        return Progress(*columns, console=console, disable=quiet)

    def run(
        self, valid: Sequence[Example], validate_every: int = 0, quiet: bool = False, stop_after: int | None = None
    ) -> Losses:
        """Train to the end, or to the step `stop_after`, on the same schedule.

        Returns the validation loss by task and share (empty without validation data).
        """
        progress = self.progress(quiet)
        with progress:
            end = min(self.n_steps, stop_after or self.n_steps)
            bar = progress.add_task("training", total=end, completed=self.step)
            while self.step < end:
                started = time.perf_counter()
                self._choose_learners()
                loss, share, tokens = self._learn()
                self.step += 1
                seconds = time.perf_counter() - started
                self.seconds += seconds
                self._log(self.step, loss, share, tokens / seconds)
                words = f"loss {loss:.3f} share {share:.2f} {tokens / seconds:.0f} tokens/s"
                progress.update(bar, completed=self.step, description=words)
                if self.step % self.s.checkpoint == 0:
                    self.save()
                if valid and validate_every and self.step % validate_every == 0:
                    found = self._validate(valid)
                    progress.console.print(f"step {self.step}: validation loss by share {_short(found['mean'])}")
        self.save()
        if self.step == self.n_steps and self.n_averaged:  # after the checkpoint, which goes on from the last weights
            for parameter, mean in zip(self.parameters, self.means, strict=True):
                parameter.data.copy_(mean)
            self.rounding.apply()
        return self._validate(valid) if valid else {}

    def _learn(self) -> tuple[float, float, int]:
        """One step: a batch, or as many as `accumulate` says, and an update after every pass over the answers.

        Returns the mean loss, the mean share of layers left out, and the tokens.
        """
        passes, tokens = [], 0
        first = self.step * self.s.accumulate
        numbers = range(first, min(first + self.s.accumulate, self.n_batches))
        for number in numbers:
            examples = self._own(self._examples(number))
            for part in in_parts(examples, self.s.part_tokens):
                batch = self.to_device(collate(part))
                passes.append(self.objective.passes(batch, self.step, len(part) / len(examples) / len(numbers)))
                tokens += int(batch.mask.sum())
        total, left_out = 0.0, 0.0
        for _ in range(self.objective.n_passes):
            for one in passes:
                with self.autocast():
                    loss, share = next(one)
                self._check(loss)
                if loss.requires_grad:  # routers alone learn nothing where nothing is chosen
                    self.accelerator.backward(loss)
                total, left_out = total + float(loss.detach()), left_out + share
            self._update()
        return total / self.objective.n_passes, left_out / self.objective.n_passes, tokens

    def _examples(self, number: int) -> list[Example]:
        """The examples of a batch, counted from the start of the run."""
        epoch, i = divmod(number, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, batches(self.train, self.s.batch_size, self.s.seed, epoch)
        return self._batches[i]

    def scores(self) -> Scores:
        """The keep scores of the prompts last validated on; without validation, of the first that it trained on."""
        if not self._scores:
            with self.autocast():
                self._scores = read_scores(self.routed, self.train[:200], self.s.batch_size, self.to_device)
        return self._scores

    def _validate(self, valid: Sequence[Example]) -> Losses:
        with self.autocast():
            found, self._scores = validate(self.objective, valid, self.s.batch_size, self.to_device)
        if self.accelerator.is_main_process:
            with open(os.path.join(self.out, "valid.jsonl"), "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": self.step, "loss": found}) + "\n")
        return found

    def _choose_learners(self) -> None:
        routers, lora = self.objective.learns(self.step)
        self.routed.bank.requires_grad_(routers)
        for weight in self.weights:
            weight.requires_grad_(lora)

    def _own(self, examples: list[Example]) -> list[Example]:
        """This process's part of a batch; one at least, so that all processes take the same steps."""
        n, i = self.accelerator.num_processes, self.accelerator.process_index
        return examples[i::n] or [examples[i % len(examples)]]

    def _check(self, loss: Tensor) -> None:
        if not math.isfinite(float(loss.detach())):
            raise TrainingError(f"the loss is {float(loss)} at step {self.step + 1}; the last checkpoint in {self.out} is kept")

    def _update(self) -> None:
        if self.accelerator.num_processes > 1:
            for p in self.parameters:
                if p.grad is not None:
                    p.grad = self.accelerator.reduce(p.grad, reduction="mean")
        for group in self.optimizer.param_groups:  # apart: straight-through gradients are large, and would shrink LoRA's
            torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.schedule.last_epoch > (1 - self.s.average) * self.n_steps * self.objective.n_passes:
            self.n_averaged += 1
            for parameter, mean in zip(self.parameters, self.means, strict=True):
                mean.lerp_(parameter.detach(), 1 / self.n_averaged)
        self.rounding.apply()

    def _log(self, step: int, loss: float, share: float, rate: float) -> None:
        if not self.accelerator.is_main_process:
            return
        with open(os.path.join(self.out, "log.csv"), "a", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            if file.tell() == 0:
                writer.writerow(["step", "loss", "share", "tokens_per_second"])
            writer.writerow([step, f"{loss:.6f}", f"{share:.4f}", f"{rate:.1f}"])


def _digest(examples: Sequence[Example]) -> str:
    return hashlib.sha256(repr([(one.task, one.prompt, one.response) for one in examples]).encode()).hexdigest()


def _short(found: dict[float, float]) -> str:
    return ", ".join(f"{share:g}: {loss:.3f}" for share, loss in found.items())
