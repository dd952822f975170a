"""From the options of `first-cpp train` to a trainer that is ready to run: model, data, routers, LoRA, teacher."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..cli.folder_lock import locked_folder
from ..errors import OptionError
from ..gguf.bundled import find_adapter
from ..gguf.model_file import ModelFile
from ..skip import check_layers, layers_for_share
from .asked_data import AskedData, Data
from .examples import Example, draw, read_examples
from .model import add_lora, check_foldable, decoder_layers, load_model, native_precision, start_from
from .option_checks import check_not_taken
from .processes import Processes
from .prompt_costs import predicted
from .routed_model import RoutedModel
from .router_bank import RouterBank
from .run_progress import PREDICTIONS, RunProgress
from .set_budget import SetBudget, read_sets
from .settings import RECORDED, Settings
from .teacher import Teacher
from .trainer import Trainer


@dataclass
class Run:
    """A run that is set up: the trainer, its validation data so far, what chooses layers, and prompts still to be answered.

    asked: where --prompts are not all answered yet; the trainer has some of the examples until `read_rest`.
    """

    trainer: Trainer
    valid: list[Example]
    budget: SetBudget | None
    asked: AskedData | None

    def read_rest(self, progress: RunProgress) -> None:
        """Let the dense model answer the other prompts, and predict what all cost."""
        if (asked := self.asked) is not None:
            data = self.trainer.processes.from_main(lambda: asked.read(progress))
            self.trainer.use(data.train, data.search)
            self.valid, self.asked = data.valid, None
        if self.budget is not None:
            self.valid = start_budget(self.trainer, self.budget, self.valid, progress)


def set_up(args: argparse.Namespace, stack: contextlib.ExitStack) -> Run:
    """A trainer that is ready to run; the folder --out is made once all is known to be good.

    Of prompts that are to be answered first, it has some, to measure on. stack: closes what a run that ends early leaves open.
    """
    torch.manual_seed(args.seed)
    if args.rank:
        check_foldable(args.model)
    model, tokenizer = load_model(args.model)
    layers = decoder_layers(model)
    order = checked_order(args, len(layers))
    base = None if os.path.isdir(args.model) or not args.sets else ModelFile.open(args.model).base
    n_embd = model.config.get_text_config().hidden_size
    budget = SetBudget(read_sets(args.sets, base, len(layers), n_embd)) if args.sets else None
    processes = Processes()
    asked = stack.enter_context(contextlib.closing(AskedData(args))) if args.prompts else None
    if asked is not None:  # the answers are kept in --out
        hold_folder(args, processes, stack)
    data = processes.from_main(lambda: read_data(args, tokenizer) if asked is None else asked.sample())
    routed = make_routed(args, model, layers)
    routed.scores_prompts = budget is None
    settings = settings_of(args)
    teacher = load_teacher(args, settings)
    if asked is None:
        hold_folder(args, processes, stack)
    if budget is not None:
        settings = dataclasses.replace(settings, max_share=min(settings.max_share, budget.most))
    trainer = Trainer(routed, routed.model, data.train, settings, args.out, order, data.search)
    trainer.checkpoint_seconds = 60 * args.checkpoint
    trainer.objective.teacher = teacher and teacher.to(trainer.processes.device)
    return Run(trainer, data.valid, budget, asked)


def hold_folder(args: argparse.Namespace, processes: Processes, stack: contextlib.ExitStack) -> None:
    """Make --out, and hold it to the end of the run, which no other may write to meanwhile.

    Raises OutputError where another holds it, OptionError where one has left a run there since the options were checked.
    """

    def held() -> None:
        stack.enter_context(locked_folder(args.out))
        check_not_taken(args)

    processes.from_main(held)


def load_teacher(args: argparse.Namespace, settings: Settings) -> Teacher | None:
    """The model whose output is matched; none where the data has that output, or the run's own is taken."""
    if settings.teacher in ("", RECORDED):
        return None
    teacher = Teacher(load_model(args.model)[0], None if settings.teacher == "base" else find_adapter(settings.teacher))
    return teacher.hold_in_bf16() if settings.precision == "bf16" else teacher


def start_budget(
    trainer: Trainer, budget: SetBudget, valid: list[Example], progress: RunProgress | None = None
) -> list[Example]:
    """Let a file's budget choose the layers; returns the validation data with its predicted costs."""
    n_train, n = len(trainer.examples), len(trainer.examples) + len(valid)
    progress = progress or RunProgress()
    trainer.objective.budget = budget

    def both() -> tuple[list[Example], list[Example]]:
        step = progress.begin(PREDICTIONS)
        found = predicted(trainer, trainer.examples, lambda done, _total: step(done, n))
        return found, predicted(trainer, valid, lambda done, _total: step(n_train + done, n))

    trainer.examples, valid = trainer.processes.from_main(both)
    budget.learn(trainer.examples)
    return valid


def checked_order(args: argparse.Namespace, n_layer: int) -> list[int]:
    """All layers, those that --layers names first; none where it names none.

    Raises SkipError for a share that no layer would remain of, and OptionError where the largest share asks for more layers
    than --layers names.
    """
    for share in (args.max_share, args.skip or 0):
        layers_for_share(share, n_layer)
    if isinstance(args.layers, str):
        return []
    given: tuple[int, ...] = args.layers
    check_layers(given, n_layer)
    if layers_for_share(args.max_share, n_layer) > len(given):
        raise OptionError(
            f"--layers names {len(given)} of {n_layer} layers: --max-share is {args.max_share}, "
            f"allowed: up to {len(given) / n_layer:.3g}"
        )
    return [*given, *(layer for layer in range(n_layer) if layer not in given)]


def read_data(args: argparse.Namespace, tokenizer: Any) -> Data:
    """The examples that the options name, checked and limited."""

    def read(paths: list[str]) -> list[Example]:
        return read_examples(paths, tokenizer, args.max_prompt, args.max_response) if paths else []

    train = draw(read(args.data), args.limit, args.seed)
    return Data(train, draw(read(args.valid), args.valid_limit, 0), read(args.search_data))


def make_routed(args: argparse.Namespace, model: Any, layers: nn.ModuleList) -> RoutedModel:
    """The model with LoRA and routers, new ones or those of --init."""
    config = model.config.get_text_config()
    bank = RouterBank(len(layers), config.hidden_size, getattr(config, "rms_norm_eps", 1e-5))
    lora: Any = add_lora(model, layers, args.rank, 2 * args.rank) if args.rank else model.requires_grad_(False)
    if args.init:
        start_from([find_adapter(run) for run in args.init], lora, None if args.sets else bank)
    return RoutedModel(lora, layers, bank, args.temperature)


def settings_of(args: argparse.Namespace) -> Settings:
    """The settings that the options come to."""
    return Settings(
        epochs=args.epochs,
        batch_size=args.batch_size,
        accumulate=args.accumulate,
        part_tokens=args.part_tokens,
        lr=args.lr,
        router_lr=args.router_lr,
        average=args.average,
        recipe=args.recipe,
        layers="sets" if args.sets else args.layers if isinstance(args.layers, str) else "given",
        max_share=args.max_share,
        passes=args.passes,
        distill=args.distill,
        teacher=args.teacher or (RECORDED if args.prompts else ""),
        router_part=args.router_part,
        alpha=args.alpha,
        regulariser=args.regulariser,
        precision=native_precision() if args.precision == "auto" else args.precision,
        quantize=args.quantize,
        seed=args.seed,
    )
