"""The models that a command line names: files, and random weights of a known shape, written once and kept."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .._version import __version__
from ..cli.extras import need_extra
from ..errors import MissingFileError, OptionError
from ..gguf.demo_model import cache_folder
from ..gguf.model_file import ModelFile
from ..gguf.new_file import new_path
from ..gguf.routers import Routers
from ..gguf.synthetic import FILE_TYPES, SHAPES, write_random

RANDOM = "random"
"""The value of --routers that stands for random ones."""


@dataclass(frozen=True)
class BenchModel:
    """A model to measure.

    path: the GGUF. name: what it is called in reports. routers: a file with routers, or routers; None for those in the model
    file, if any. random: its weights are random.
    """

    path: str
    name: str
    routers: str | Routers | None = None
    random: bool = False


def default_cache() -> str:
    """The folder where synthetic models are kept."""
    return cache_folder()


def check_models(args: argparse.Namespace) -> None:
    """Raise OptionError, MissingFileError or MissingExtraError for models that cannot be measured, before anything is."""
    for option, allowed, values in (
        ("--synthetic", SHAPES, _shapes(args)),
        ("--type", FILE_TYPES, args.type.split(",")),
    ):
        for value in values:
            if value not in allowed:
                raise OptionError(f"{option}: {value!r} is unknown; allowed: {', '.join(allowed)}")
    if not args.model and not _shapes(args):
        raise OptionError("no model: give -m FILE or --synthetic SHAPE")
    routers = [] if args.routers in (None, RANDOM) else [args.routers]
    for path in [*args.model, *([args.vs] if args.vs else []), *routers]:
        if not os.path.isfile(path):
            raise MissingFileError(f"there is no file {path}")
    if _shapes(args):
        need_extra("--synthetic", "bench", "gguf")


def models_of(args: argparse.Namespace) -> Iterator[BenchModel]:
    """The models in order; a synthetic one is written when its turn comes."""
    stems = [_stem(path) for path in args.model]
    for path, stem in zip(args.model, stems, strict=True):
        routers = random_routers(ModelFile.open(path)) if args.routers == RANDOM else args.routers
        yield BenchModel(path, stem if stems.count(stem) == 1 else path, routers)
    for shape, file_type in itertools.product(_shapes(args), args.type.split(",")):
        yield synthetic_model(shape, file_type, args.cache)


def _shapes(args: argparse.Namespace) -> list[str]:
    return [name for name in args.synthetic.split(",") if name]


def _stem(path: str) -> str:
    """The file's name without its suffix."""
    return os.path.basename(path).removesuffix(".gguf")


def synthetic_model(shape: str, file_type: str, cache: str) -> BenchModel:
    """A model with random weights and random routers; the file is written once, then kept in the folder `cache`.

    Raises MissingExtraError without the gguf package.
    """
    need_extra("--synthetic", "bench", "gguf")
    path = os.path.join(cache, f"{shape}-{file_type}-{__version__}.gguf")
    if not os.path.exists(path):
        os.makedirs(cache, exist_ok=True)
        print(f"writing {shape} {file_type.upper()} with random weights to {path}", file=sys.stderr)
        with new_path(path) as part:
            write_random(part, SHAPES[shape], file_type)
    name = f"{shape} {file_type.upper()} (random weights)"
    return BenchModel(path, name, random_routers(ModelFile.open(path)), random=True)


def random_routers(model: ModelFile, seed: int = 0) -> Routers:
    """Random routers for a model: prefill scores a prompt as it does with trained ones.

    >>> from first_cpp.gguf.model_file import ModelFile
    >>> random_routers(ModelFile.open("model.gguf")).weight.shape
    (6, 128)
    """
    base = model.base
    weight = np.random.default_rng(seed).normal(0, 0.02, (base.n_layer, base.n_embd)).astype(np.float32)
    return Routers(
        base=base,
        weight=weight,
        bias=np.zeros(base.n_layer, np.float32),
        norm_eps=model.norm_eps,
        skippable=(True,) * base.n_layer,
        skip=0.0,
    )
