"""From the options of `first-cpp train` to a trainer that is ready to run: model, data, routers, LoRA, teacher."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors import OptionError
from ..gguf.bundled import find_adapter
from ..skip import check_layers, layers_for_share
from .examples import Example, draw, read_examples
from .model import add_lora, decoder_layers, load_model, native_precision, start_from
from .routed_model import RoutedModel
from .router_bank import RouterBank
from .settings import Settings
from .teacher import Teacher
from .trainer import Trainer


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
    data = read_data(args, tokenizer)
    routed = make_routed(args, model, layers)
    teacher = Teacher(load_model(args.model)[0], find_adapter(args.teacher)) if args.teacher else None
    os.makedirs(args.out, exist_ok=True)
    trainer = Trainer(routed, routed.model, data.train, settings_of(args), args.out, order, data.search)
    trainer.objective.teacher = teacher and teacher.to(trainer.accelerator.device)
    return trainer, data.valid


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
        start_from([find_adapter(run) for run in args.init], lora, bank)
    return RoutedModel(lora, layers, bank, args.temperature, args.prompt_gradient)


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
        layers=args.layers if isinstance(args.layers, str) else "given",
        max_share=args.max_share,
        passes=args.passes,
        curriculum=args.curriculum,
        distill=args.distill,
        teacher=args.teacher,
        router_part=args.router_part,
        alpha=args.alpha,
        regulariser=args.regulariser,
        precision=native_precision() if args.precision == "auto" else args.precision,
        quantize=args.quantize,
        prompt_gradient=args.prompt_gradient,
        seed=args.seed,
        checkpoint=args.checkpoint,
    )
