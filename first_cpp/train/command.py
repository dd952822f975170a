"""Train routers and LoRA by the rule that inference follows: the prompt runs every layer and chooses which layers the answer
passes by. Output: routers.safetensors, the peft adapter, train.json, log.csv, layers.png."""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

from ..cli.execute import add_debug
from ..errors import FirstCppError
from ..gguf.bundled import find_adapter
from ..runtime.machine import describe_machine
from ..skip import FIXED, check_layers, layers_for_share


class TrainUsage(FirstCppError, ValueError):
    """Options that do not go together, or an output folder that is taken."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", required=True, help="a Hugging Face folder or a GGUF file")
    add("--data", required=True, nargs="+", metavar="JSONL", help="training data: one object a line, prompt and response")
    add("--valid", nargs="*", default=[], metavar="JSONL", help="validation data")
    add("--out", required=True, metavar="DIR", help="folder for what the run leaves behind")
    add("--resume", action="store_true", help="go on from the last checkpoint in --out")
    add(
        "--init",
        nargs="+",
        metavar="RUN",
        help="start from the routers and LoRA of an earlier run, or of an adapter that comes with first_cpp; of several, "
        "from the mean of their LoRA and the routers of the last",
    )
    add("--rank", type=int, default=16, help="LoRA rank, 0 for none (default: %(default)s)")
    add(
        "--epochs",
        type=float,
        default=1.0,
        help="times that the data is read; 0 trains nothing: to search orders, or for a mean",
    )
    add("--stop-after", type=int, metavar="STEPS", help="end here, on the schedule of --epochs; --resume goes on to its end")
    add("--batch-size", type=int, default=8)
    add("--accumulate", type=int, default=1, help="batches per step (default: %(default)s)")
    add(
        "--part-tokens",
        type=int,
        default=4096,
        help="tokens in memory at once; larger batches go in parts (default: %(default)s)",
    )
    add("--lr", type=float, default=3e-4, help="learning rate of LoRA (default: %(default)s)")
    add("--router-lr", type=float, default=1e-4, help="learning rate of the routers (default: %(default)s)")
    add(
        "--average",
        type=float,
        default=0.0,
        metavar="PART",
        help="part of the run, its end, over whose updates the weights are averaged for the result (default: %(default)s)",
    )
    add("--max-share", type=float, default=0.5, help="largest share of layers left out in training; 0 trains dense")
    add(
        "--passes",
        type=int,
        default=3,
        help="optimizer steps a batch, dense and at shares, one where nothing is left out (default: %(default)s)",
    )
    add("--curriculum", type=float, default=0.0, help="part of the run over which the largest share grows from 0")
    add("--distill", type=float, default=1.0, help="weight of KL to the model's own dense output (default: %(default)s)")
    add(
        "--teacher",
        metavar="RUN",
        default="",
        help="match the dense output of an earlier run, not rounded, in place of the answers: with --quantize and --init of "
        "the same run, rounding is learned and nothing else",
    )
    add(
        "--layers",
        type=who_chooses,
        default="routers",
        metavar="WHO",
        help=f"who chooses: routers, or a set equal for all prompts: search, {', '.join(FIXED)}, or layers in the order in "
        "which growing shares leave them out, like 14,13,5 (default: %(default)s)",
    )
    add(
        "--start",
        choices=["search", "influence"],
        help="order of layers to start from: searched (default) or by block influence; with --init, in place of its routers",
    )
    add(
        "--search-data",
        nargs="+",
        default=[],
        metavar="JSONL",
        help="examples on which layers are ordered, in place of the training data: some that the LoRA of --init has not seen",
    )
    add("--recipe", default="exact", choices=["exact", "two-step"], help="two-step: routers with the base frozen, then LoRA")
    add("--router-part", type=float, default=0.3, help="two-step: part of the run for the routers (default: %(default)s)")
    add("--alpha", type=float, default=0.1, help="two-step: penalty for not skipping (default: %(default)s)")
    add("--regulariser", type=float, default=0.01, help="two-step: lambda, for decided routers (default: %(default)s)")
    add(
        "--prompt-gradient",
        default="keys",
        choices=["keys", "all"],
        help="what prompts teach: the keys and values that answers read, or all weights before them, which is slower",
    )
    add(
        "--precision",
        default="auto",
        choices=["auto", "bf16", "float32"],
        help="auto: bf16 where the hardware computes with it",
    )
    add(
        "--quantize",
        choices=["Q4_0", "Q4_1", "Q5_0", "Q5_1"],
        default="",
        help="train for the weights that `python -m convert --merge --quantize` of this type will write: rounded, LoRA and all",
    )
    add("--temperature", type=float, default=0.05, help="of the straight-through gradient to the routers")
    add(
        "--skip",
        type=float,
        help='share to recommend ("auto"); default: 0.25; two-step: what falls below 0.5; nothing without routers',
    )
    add("--max-prompt", type=int, default=1024, help="longest prompt in tokens")
    add("--max-response", type=int, default=512, help="longest response in tokens")
    add("--limit", type=int, help="train on this many examples, drawn by --seed, of each task equally many")
    add("--checkpoint", type=int, default=200, metavar="STEPS", help="steps between checkpoints (default: %(default)s)")
    add("--validate", type=int, default=0, metavar="STEPS", help="steps between validations (0: at the end)")
    add("--valid-limit", type=int, default=200, help="validation examples used, of each task equally many")
    add("--seed", type=int, default=0)
    add("--quiet", action="store_true", help="no progress bar")
    add_debug(parser)


def who_chooses(text: str) -> str | tuple[int, ...]:
    """An argparse type: a name, or layers in an order."""
    if text in ("routers", "search", *FIXED):
        return text
    layers = text.split(",")
    if not all(layer.strip().isdecimal() for layer in layers) or len(set(map(int, layers))) < len(layers):
        raise argparse.ArgumentTypeError(f"{text!r} is none of routers, search, {', '.join(FIXED)}, and no list of layers")
    return tuple(map(int, layers))


def _given_order(given: tuple[int, ...], n_layer: int, max_share: float) -> list[int]:
    """All layers, those given first. Raises TrainUsage where the largest share asks for more of them."""
    check_layers(given, n_layer)
    if layers_for_share(max_share, n_layer) > len(given):
        allowed = len(given) / n_layer
        raise TrainUsage(
            f"--layers names {len(given)} of {n_layer} layers: --max-share is {max_share}, allowed: up to {allowed:.3g}"
        )
    return [*given, *(layer for layer in range(n_layer) if layer not in given)]


def command(args: argparse.Namespace) -> None:
    _check(args)
    try:
        import torch
    except ImportError:
        raise TrainUsage("training needs PyTorch and transformers: pip install 'first-cpp[train]'") from None

    from .loop import Trainer, native_precision
    from .model import add_lora, decoder_layers, load_model, start_from
    from .objective import Settings
    from .result import save_result
    from .rule import Routed, RouterBank
    from .start import begin, kind_of_order
    from .teacher import Teacher

    if args.search_data and kind_of_order(args.layers, args.start, args.init is not None, args.max_share) is None:
        raise TrainUsage("--search-data is to order layers on, and this run orders none: with --init it needs --start")
    _hush(args.quiet)
    torch.manual_seed(args.seed)
    started = time.time()
    model, tokenizer = load_model(args.model)
    layers = decoder_layers(model)
    for share in (args.max_share, args.skip or 0):
        layers_for_share(share, len(layers))  # raises when none would stay
    method, order = _method(args), list[int]()
    if isinstance(args.layers, tuple):
        args.layers, order = "given", _given_order(args.layers, len(layers), args.max_share)
    train, valid, order_on = _examples(args, tokenizer)
    config = model.config.get_text_config()
    bank = RouterBank(len(layers), config.hidden_size, getattr(config, "rms_norm_eps", 1e-5))
    lora: Any = add_lora(model, layers, args.rank, 2 * args.rank) if args.rank else model.requires_grad_(False)
    if args.init:
        start_from([find_adapter(run) for run in args.init], lora, bank)
    routed = Routed(lora, layers, bank, args.temperature, args.prompt_gradient)
    args.precision = native_precision() if args.precision == "auto" else args.precision
    fields = [field.name for field in dataclasses.fields(Settings) if hasattr(args, field.name)]
    settings = Settings(**{name: getattr(args, name) for name in fields})
    teacher = Teacher(load_model(args.model)[0], find_adapter(args.teacher)) if args.teacher else None
    os.makedirs(args.out, exist_ok=True)
    trainer = Trainer(routed, lora, train, settings, args.out, order, order_on)
    trainer.objective.teacher = teacher and teacher.to(trainer.accelerator.device)
    if args.resume:
        trainer.resume()
    else:
        trainer.start_log()
        begin(trainer, args.start, args.init is not None, args.quiet)
    losses = trainer.run(valid, args.validate, args.quiet, args.stop_after)
    if not trainer.accelerator.is_main_process:
        return
    save_result(args.out, trainer, lora, _record(args, method, trainer, losses), args.skip)
    print(f"{args.out}: routers.safetensors, adapter/, train.json, log.csv, layers.png ({time.time() - started:.0f} s)")


def _hush(quiet: bool) -> None:
    """Keep what transformers and peft say to their own users from ours; quiet: their progress bars, too."""
    from transformers.utils import logging

    if quiet:
        logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)  # of their own next releases
    warnings.filterwarnings("ignore", "Could not find a config file", UserWarning)  # peft, of a base that is a GGUF


def _examples(args: argparse.Namespace, tokenizer: Any) -> tuple[list[Any], list[Any], list[Any]]:
    """Those to train on, to validate on, and to order layers on."""
    from .data import draw, read_examples

    def read(paths: list[str]) -> list[Any]:
        return read_examples(paths, tokenizer, args.max_prompt, args.max_response) if paths else []

    train = draw(read(args.data), args.limit, args.seed)
    return train, draw(read(args.valid), args.valid_limit, 0), read(args.search_data)


def _record(args: argparse.Namespace, method: str, trainer: Any, losses: Any) -> dict[str, Any]:
    """What train.json says of a run."""
    import torch

    return {
        "method": method,
        "data": ", ".join(f"{os.path.basename(path)}" for path in args.data) + f" ({len(trainer.train)} examples)",
        "command": " ".join(["first-cpp", *sys.argv[1:]]),
        "seconds": round(trainer.seconds),
        "steps": trainer.step,
        "updates": trainer.step * trainer.objective.n_passes,
        "settings": dataclasses.asdict(trainer.s),
        "orders": trainer.orders,
        "valid_loss": losses,
        "torch": torch.__version__,
        "machine": ", ".join([*_gpu(trainer.accelerator.device), describe_machine()]),
    }


def _gpu(device: Any) -> list[str]:
    """The name of the GPU that trains, if one does."""
    import torch

    return [torch.cuda.get_device_name(device)] if device.type == "cuda" else []


def _method(args: argparse.Namespace) -> str:
    layers = args.layers if isinstance(args.layers, str) else ",".join(map(str, args.layers))
    who = "routers" if layers == "routers" else f"the layers {layers!r} for all prompts"
    how = "nothing left out" if args.recipe == "exact" and args.max_share == 0 else f"{args.recipe}, {who}"
    return f"{how}, LoRA rank {args.rank}"


_RANGES: tuple[tuple[tuple[str, ...], Callable[[float], bool], str], ...] = (
    (("max_share", "skip"), lambda x: 0 <= x < 1, "0 up to, not including, 1"),
    (("epochs",), lambda x: 0 <= x < math.inf, "0 or more"),
    (("curriculum", "router_part", "average"), lambda x: 0 <= x <= 1, "0 to 1"),
    (("distill", "alpha", "regulariser"), lambda x: 0 <= x < math.inf, "a weight, 0 or more"),
    (("temperature", "lr", "router_lr"), lambda x: 0 < x < math.inf, "above 0"),
    (
        ("batch_size", "accumulate", "checkpoint", "max_prompt", "max_response", "passes", "stop_after", "part_tokens"),
        lambda x: x >= 1,
        "1 or more",
    ),
)


def _check(args: argparse.Namespace) -> None:
    """Refuse what cannot work before anything is loaded."""
    for names, fits, allowed in _RANGES:
        for name in names:
            value = getattr(args, name)
            if value is not None and not fits(value):
                raise TrainUsage(f"--{name.replace('_', '-')} is {value}, allowed: {allowed}")
    if args.init and args.rank == 0:
        raise TrainUsage("--init starts from an earlier LoRA: --rank must be that LoRA's, not 0")
    if args.start and (args.layers != "routers" or args.max_share == 0):
        raise TrainUsage("--start is where routers start: --layers must be routers and --max-share above 0")
    if args.quantize and args.rank == 0:
        raise TrainUsage("--quantize rounds the sum of base and LoRA: --rank must be 1 or more")
    if args.teacher and (args.recipe == "two-step" or args.distill == 0):
        raise TrainUsage("--teacher is matched by KL: --recipe must be exact and --distill above 0")
    if args.rank < 0:
        raise TrainUsage("--rank must be 0 or more")
    if args.recipe == "two-step" and (args.rank == 0 or args.layers != "routers"):
        raise TrainUsage("--recipe two-step trains routers, then LoRA: --rank must be 1 or more and --layers routers")
    taken = os.path.exists(os.path.join(args.out, "train.json")) or os.path.exists(os.path.join(args.out, "checkpoint.pt"))
    if taken and not args.resume:
        raise TrainUsage(f"--out {args.out} holds a run already; choose another folder, or go on with --resume")
