"""From the options of `first-cpp train` to a trainer that is ready to run: model, data, routers, LoRA, teacher."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors import OptionError
from ..gguf.bundled import find_adapter
from ..gguf.model_file import ModelFile
from ..runtime.machine import physical_cores
from ..skip import check_layers, layers_for_share
from .dense_answers import AskedPrompt, Step, as_examples, dense_answers, own_prompts, read_prompts
from .examples import Example, draw, read_examples
from .model import add_lora, decoder_layers, load_model, native_precision, start_from
from .processes import Processes
from .prompt_costs import with_predictions
from .routed_model import RoutedModel
from .router_bank import RouterBank
from .set_budget import SetBudget, read_sets
from .settings import Ask, Settings
from .teacher import Teacher
from .trainer import Trainer

N_OWN_PROMPTS = 300
"""That a model writes itself where no --limit says how many."""


@dataclass(frozen=True)
class Data:
    """The examples of a run: to train on, to validate on, and to order layers on (empty: the training data)."""

    train: list[Example]
    valid: list[Example]
    search: list[Example]


def set_up(args: argparse.Namespace) -> tuple[Trainer, list[Example]]:
    """A trainer that is ready to run, and the validation data; the folder --out is made once all is known to be good."""
    torch.manual_seed(args.seed)
    model, tokenizer = load_model(args.model)
    layers = decoder_layers(model)
    order = checked_order(args, len(layers))
    base = None if os.path.isdir(args.model) or not args.sets else ModelFile.open(args.model).base
    budget = SetBudget(read_sets(args.sets, base, len(layers))) if args.sets else None
    data = Processes().from_main(lambda: read_data(args, tokenizer))
    routed = make_routed(args, model, layers)
    settings = settings_of(args)
    taught = None if settings.teacher == "base" else find_adapter(settings.teacher)
    teacher = Teacher(load_model(args.model)[0], taught) if settings.teacher else None
    if teacher is not None and settings.precision == "bf16":
        teacher.hold_in_bf16()
    os.makedirs(args.out, exist_ok=True)
    if budget is not None:
        settings = dataclasses.replace(settings, max_share=min(settings.max_share, budget.most))
    trainer = Trainer(routed, routed.model, data.train, settings, args.out, order, data.search)
    trainer.checkpoint_seconds = 60 * args.checkpoint
    trainer.objective.teacher = teacher and teacher.to(trainer.processes.device)
    return trainer, data.valid if budget is None else start_budget(trainer, budget, data.valid)


def start_budget(trainer: Trainer, budget: SetBudget, valid: list[Example]) -> list[Example]:
    """Let a file's budget choose the layers; returns the validation data with its predicted costs."""

    def predicted(examples: Sequence[Example]) -> list[Example]:
        with trainer.autocast():
            part = trainer.settings.part_tokens
            return with_predictions(trainer.routed, budget.probes, examples, part, trainer.to_device)

    trainer.examples, valid = trainer.processes.from_main(lambda: (predicted(trainer.examples), predicted(valid)))
    budget.learn(trainer.examples)
    trainer.objective.budget, trainer.routed.scores_prompts = budget, False
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
    """The examples that the options name, checked and limited; those of --prompts answered by the dense model."""
    if args.prompts:
        return asked_data(args, tokenizer)

    def read(paths: list[str]) -> list[Example]:
        return read_examples(paths, tokenizer, args.max_prompt, args.max_response) if paths else []

    train = draw(read(args.data), args.limit, args.seed)
    return Data(train, draw(read(args.valid), args.valid_limit, 0), read(args.search_data))


def asked_data(args: argparse.Namespace, tokenizer: Any) -> Data:
    """The prompts of the options, or the model's own, with the dense model's answers; both are kept in --out."""
    ask = Ask(args.samples, args.sample_temperature, args.max_tokens, args.seed)
    threads = physical_cores()
    os.makedirs(args.out, exist_ok=True)
    with shown(args.quiet) as show:
        if args.prompts == ["self"]:
            n = args.limit or N_OWN_PROMPTS
            prompts = own_prompts(args.model, n, args.seed, args.out, threads, show("prompts that the model writes"))
        else:
            prompts = draw(read_prompts(args.prompts), args.limit, args.seed)
        valid = draw(read_prompts(args.valid), args.valid_limit, 0) if args.valid else []

        def answered(of: list[AskedPrompt], words: str) -> list[Example]:
            room = args.max_prompt + args.max_tokens + 1
            records = dense_answers(args.model, of, ask, args.out, room, threads, show(words)) if of else []
            return as_examples(records, tokenizer, args.max_prompt) if of else []

        return Data(answered(prompts, "the dense model's answers"), answered(valid, "its answers to validate on"), [])


@contextlib.contextmanager
def shown(quiet: bool) -> Iterator[Callable[[str], Step]]:
    """Yields what makes a bar on standard error, by its words."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as progress:

        def bar(words: str) -> Step:
            task = progress.add_task(words, total=None)
            return lambda done, total: progress.update(task, completed=done, total=total)

        yield bar


def make_routed(args: argparse.Namespace, model: Any, layers: nn.ModuleList) -> RoutedModel:
    """The model with LoRA and routers, new ones or those of --init."""
    config = model.config.get_text_config()
    bank = RouterBank(len(layers), config.hidden_size, getattr(config, "rms_norm_eps", 1e-5))
    lora: Any = add_lora(model, layers, args.rank, 2 * args.rank) if args.rank else model.requires_grad_(False)
    if args.init:
        start_from([find_adapter(run) for run in args.init], lora, bank)
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
        teacher=args.teacher or ("base" if args.prompts else ""),
        router_part=args.router_part,
        alpha=args.alpha,
        regulariser=args.regulariser,
        precision=native_precision() if args.precision == "auto" else args.precision,
        quantize=args.quantize,
        seed=args.seed,
    )
