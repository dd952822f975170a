"""Where a training step's time goes: SmolLM2-135M on random tokens, three steps after one that warms up.

    python research/profile_training.py [--precision bf16] [--quantize Q4_0] [--passes 2] [--teacher base] [--page FILE]

Prints a page, and writes it where --page says. Prompts have 60 to 260 tokens and answers 8 to 56; which tokens they are changes
no time. --teacher: what answers are matched, as in `first-cpp train`: nothing but the answers and the model's own dense output;
the base, computed beside; or answers, what was recorded with them.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from first_cpp.gguf.bundled import find_demo_model
from first_cpp.runtime.machine import describe_machine
from first_cpp.train import objective
from first_cpp.train.batch import collate
from first_cpp.train.dense_outputs import N_TOP, Outputs
from first_cpp.train.examples import Example
from first_cpp.train.losses import AnswerLoss, RecordedLoss
from first_cpp.train.model import add_lora, decoder_layers, load_model
from first_cpp.train.routed_model import RoutedModel
from first_cpp.train.router_bank import RouterBank
from first_cpp.train.settings import Settings
from first_cpp.train.teacher import Teacher
from first_cpp.train.trainer import Trainer

STEPS = 3
HEAD = "of the forwards: output head"
LOSSES = ("targets from the dense logits", "KL and cross entropy, gated passes", "cross entropy, dense pass")


class Clock:
    """Wall time of functions by name, calls inside calls included."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)

    def watch(self, owner: Any, attribute: str, name: str | Callable[..., str]) -> None:
        """Time every call of an attribute. name: of the row, or a function of the call's arguments."""
        function = getattr(owner, attribute)

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            result = function(*args, **kwargs)
            row = name if isinstance(name, str) else name(*args, **kwargs)
            self.seconds[row] += time.perf_counter() - started
            self.calls[row] += 1
            return result

        setattr(owner, attribute, timed)


def random_examples(n: int, vocabulary: int) -> list[Example]:
    """Prompts of 60 to 260 tokens and answers of 8 to 56, as if the dense model had given each token as likely as the next."""
    rng = random.Random(0)

    def tokens(low: int, high: int) -> list[int]:
        return [rng.randrange(3, vocabulary) for _ in range(rng.randint(low, high))]

    def example() -> Example:
        prompt, answer = tokens(60, 260), tokens(8, 56)
        top = np.array([rng.sample(range(vocabulary), N_TOP) for _ in answer], np.int32)
        return Example("t", prompt, answer, outputs=Outputs(top, np.full(top.shape, -np.log(2.0 * N_TOP), np.float32)))

    return [example() for _ in range(n)]


def make_trainer(folder: str, **of: Any) -> Trainer:
    """SmolLM2 with LoRA of rank 16 and routers that prefer the middle layers, batches of 8. of: as in `Settings`."""
    torch.manual_seed(0)
    model, tokenizer = load_model(find_demo_model())
    layers = decoder_layers(model)
    lora = add_lora(model, layers, 16, 32)
    bank = RouterBank(len(layers), model.config.hidden_size, 1e-5)
    torch.nn.init.normal_(bank.bias, std=0.3)
    routed = RoutedModel(lora, layers, bank)
    settings = Settings(batch_size=8, **of)
    trainer = Trainer(routed, lora, random_examples(8 * (STEPS + 1), len(tokenizer)), settings, folder)
    if settings.teacher == "base":
        teacher = Teacher(load_model(find_demo_model())[0], None)
        trainer.objective.teacher = teacher.hold_in_bf16() if settings.precision == "bf16" else teacher
    return trainer


def profile(trainer: Trainer) -> tuple[Clock, float]:
    """The clock of STEPS steps after one that warms up, and the seconds of all of them."""
    trainer.run([], quiet=True, stop_after=1)
    clock = Clock()
    clock.watch(RoutedModel, "prefill", "prefill of the prompts")
    clock.watch(RoutedModel, "answer_logits", lambda _self, _p, gate=None: f"forward, {'dense' if gate is None else 'gated'}")
    clock.watch(Teacher, "__call__", "the teacher, prompts and answers")
    for loss in (AnswerLoss, RecordedLoss):
        clock.watch(loss, "__init__", LOSSES[0])
        clock.watch(loss, "__call__", LOSSES[1])
    clock.watch(objective, "answer_cross_entropy", LOSSES[2])
    clock.watch(trainer.accelerator, "backward", "backward")
    clock.watch(trainer, "_update", "clipping and optimizer")
    clock.watch(trainer.routed.model.get_output_embeddings(), "forward", HEAD)
    started = time.perf_counter()
    trainer.run([], quiet=True, stop_after=1 + STEPS)
    return clock, time.perf_counter() - started


def prefill_variants(trainer: Trainer) -> dict[str, float]:
    """Seconds a step of the prefill alone, with less to do: what gradients, LoRA and padding cost."""
    groups = [trainer.batch_examples(number) for number in range(1, 1 + STEPS)]

    def seconds(prefills: Callable[[list[Example]], object]) -> float:
        started = time.perf_counter()
        for group in groups:
            prefills(group)
        return (time.perf_counter() - started) / STEPS

    def whole(group: list[Example]) -> object:
        return trainer.routed.prefill(collate(group))

    with trainer.autocast():
        found = {"as in training": seconds(whole)}
    with torch.no_grad(), trainer.autocast():
        found["without gradients"] = seconds(whole)
        with trainer.lora.disable_adapter():
            found["without gradients and LoRA"] = seconds(whole)
        found["without gradients, each prompt alone, so without padding"] = seconds(lambda group: [whole([e]) for e in group])
    return found


def page(trainer: Trainer, clock: Clock, seconds: float, command: str) -> str:
    """The figures as Markdown. command: that makes them."""
    numbers = range(1, 1 + STEPS)
    batches = [collate(trainer.batch_examples(number)) for number in numbers]
    cells, tokens = sum(b.answer_mask.numel() for b in batches), sum(int(b.answer_mask.sum()) for b in batches)
    prompts, columns = sum(int(b.prompt_mask.sum()) for b in batches), sum(b.prompt_mask.numel() for b in batches)
    head = clock.seconds[HEAD] + sum(clock.seconds[name] for name in LOSSES)
    padding = 1 - tokens / cells
    rows = [
        f"| {name} | {spent / STEPS:.2f} | {100 * spent / seconds:.0f} % | {clock.calls[name] / STEPS:g} |"
        for name, spent in sorted(clock.seconds.items(), key=lambda row: -row[1])
    ]
    variants = [f"| {name} | {spent:.2f} |" for name, spent in prefill_variants(trainer).items()]
    return "\n".join(
        [
            "# Where a training step's time goes",
            "",
            f"Written by `{command}`: SmolLM2-135M, LoRA of rank 16, batches of 8, "
            f"{trainer.settings.passes} passes; mean of {STEPS} steps after one that warms up.",
            f"{describe_machine()}; torch {torch.__version__}, {torch.get_num_threads()} threads.",
            "",
            f"A step: {seconds / STEPS:.2f} s for {prompts / STEPS:.0f} prompt tokens and {tokens / STEPS:.0f} answer tokens; "
            f"{100 * (1 - prompts / columns):.0f} % of the prompt columns and {100 * padding:.0f} % of the answer columns are "
            "padding.",
            "",
            "| part | seconds | of the step | calls |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
            f"Logits at answer tokens alone, none at padding, would save at most {100 * padding * head / seconds:.1f} % of a "
            "step in the forward passes: the padding's part of output head and losses.",
            "",
            "| the prefill alone | seconds |",
            "| --- | --- |",
            *variants,
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", default="", metavar="FILE", help="where the figures go as well")
    parser.add_argument("--precision", default="float32", choices=["bf16", "float32"], help="(default: %(default)s)")
    parser.add_argument("--quantize", default="", metavar="TYPE", help="train for weights of this type")
    parser.add_argument("--passes", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--teacher", default="", choices=["", "base", "answers"])
    args = parser.parse_args()
    of = {name: value for name, value in vars(args).items() if name != "page"}
    words = [f"--{name} {value}" for name, value in of.items() if value != parser.get_default(name)]
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(folder, **of)
        text = page(trainer, *profile(trainer), " ".join(["python research/profile_training.py", *words]))
    print(text)
    if args.page:
        with open(args.page, "w", encoding="utf-8") as file:
            file.write(text)


if __name__ == "__main__":
    main()
