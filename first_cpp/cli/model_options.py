"""The options of a model, for every verb that answers: its arguments, their checks, and a model loaded from them."""

from __future__ import annotations

import argparse
import functools
import os
import random
import sys
from dataclasses import dataclass
from typing import Any

from ..errors import OptionError
from ..gguf.model_file import ModelFile, context_length
from ..gguf.router_format import router_keys
from ..llama import Llama
from ..runtime.arguments import MOST_THREADS
from ..runtime.machine import physical_cores
from ..skip import Skip, check_layers, share_without_routers, skip_from_text
from .model_name import HELP, add_offline, check_name, find_model, find_model_to_use
from .options import check_chat_format, not_empty, number, whole_number
from .plain_chat import PlainChat, has_template

_LARGE = 1 << 30  # bytes of a file that is worth a progress bar
_ALWAYS_FINE = 1 << 16  # tokens of context
_MOST_STRETCH = 16  # times the context that a model was trained for


@dataclass(frozen=True)
class ModelOptions:
    """Which model to load and how; every default is what a command without that option uses.

    model: a name as `find_model` takes them, None for the one of the demo extra. tolerance: what one more skipped layer may
    cost, None for the file's. ctx: tokens, None for the model's own context, at most 4096. threads: None for the physical
    cores. offline: take models of the Hugging Face hub from the cache alone.

    >>> llm = ModelOptions("model-first.gguf", skip=0.34).load()
    >>> llm.skip
    0.34
    >>> llm.close()
    """

    model: str | None = None
    routers: str | None = None
    lora: str | None = None
    chat_format: str | None = None
    skip: Skip = "auto"
    tolerance: float | None = None
    ctx: int | None = None
    threads: int | None = None
    verbose: bool = False
    offline: bool = False

    def __post_init__(self) -> None:
        if self.chat_format is not None:
            check_chat_format(self.chat_format)
        if self.model is not None:
            check_name(self.model)

    @functools.cached_property
    def path(self) -> str:
        """The model's file, downloaded where that is needed; the demo model comes with the adapter made for it, unless another
        is given.

        Raises as `find_model_to_use`.
        """
        find = find_model_to_use if self.routers is None and self.lora is None else find_model
        return find(self.model, self.offline)

    @property
    def name(self) -> str:
        """The model's name: its file's, without the ending."""
        return os.path.splitext(os.path.basename(self.path))[0]

    @property
    def n_ctx(self) -> int:
        """Tokens of context that the model is loaded with."""
        return self.ctx or context_length(self.path)

    def load(self, **settings: Any) -> Llama:
        """The model; `settings` are further arguments of `Llama`, whose errors are raised."""
        threads = self.threads or physical_cores()
        settings |= {
            "skip": self.skip,
            "tolerance": self.tolerance,
            "routers": None if self.routers is None else find_model(self.routers, self.offline),
            "lora_path": self.lora,
            "chat_format": self.chat_format,
            "n_ctx": self.n_ctx,
            "n_threads": threads,
            "n_threads_batch": threads,
            "seed": random.SystemRandom().randrange(2**31),  # llama_cpp's own default is the same in every run
            "verbose": self.verbose,
        }
        self._check_context()
        size = os.path.getsize(self.path) if os.path.exists(self.path) else 0  # Llama raises the error of a missing file
        kind = watched(self.path, size) if size > _LARGE and sys.stderr.isatty() else Llama
        llm = kind(self.path, **settings)
        if self.chat_format is None and not has_template(llm):
            llm.chat_handler = PlainChat(llm.model_path)
        return llm

    def check_file(self) -> None:
        """Raise FirstCppError where it is known without loading that the file cannot be loaded as these options say."""
        file = ModelFile.open(self.path)
        if isinstance(self.skip, tuple):
            check_layers(self.skip, file.n_layer)
        if isinstance(self.skip, float) and self.skip > 0 and not (self.routers or router_keys(file.first)):
            raise share_without_routers(self.skip, file.path)
        self._check_context()

    def _check_context(self) -> None:
        """Raise OptionError for a context that no model of this kind has, before llama.cpp reserves memory for it."""
        if self.ctx is None or self.ctx <= _ALWAYS_FINE or not os.path.exists(self.path):
            return
        trained = ModelFile.open(self.path).context_length
        if self.ctx > (most := max(_ALWAYS_FINE, _MOST_STRETCH * trained)):
            raise OptionError(f"-c {self.ctx}: the model was trained for {trained} tokens of context; at most {most} are taken")


def add_model_arguments(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """Add the options of a model to a verb's parser; `model_options` reads them. several: -m can be repeated, so is a list."""
    model = parser.add_argument_group("model")
    told = f"{HELP} (default: the one of the demo extra)" + ("; can be repeated" if several else "")
    model.add_argument("-m", "--model", metavar="MODEL", action="append" if several else "store", help=told)
    add_offline(model.add_argument)
    model.add_argument("--routers", metavar="FILE", help="a GGUF file to take routers from")
    model.add_argument("--lora", metavar="FILE", help="a LoRA to apply")
    model.add_argument("--chat-format", metavar="NAME", help="a chat format of llama-cpp-python (default: the model's own)")
    model.add_argument(
        "--skip",
        default="auto",
        metavar="SHARE",
        help="layers to skip: auto, none, a share like 0.3, or layers like 7,11; one layer: 7, (default: %(default)s)",
    )
    model.add_argument(
        "--tolerance",
        metavar="COST",
        type=number(0),
        help="with --skip auto: what one more skipped layer may cost, KL in nats a token (default: the file's)",
    )
    model.add_argument(
        "-c", "--ctx", metavar="TOKENS", type=whole_number(8), help="context length (default: the model's, at most 4096)"
    )
    model.add_argument(
        "-t", "--threads", metavar="N", type=whole_number(1, MOST_THREADS), help="threads (default: physical cores)"
    )
    model.add_argument("--verbose", action="store_true", help="show what llama.cpp prints")


def model_options(args: argparse.Namespace) -> ModelOptions:
    """The options that `add_model_arguments` added. Raises OptionError, SkipError or MissingExtraError before any work."""
    return ModelOptions(
        model=args.model,
        routers=args.routers,
        lora=args.lora,
        chat_format=args.chat_format,
        skip=skip_from_text(args.skip),
        tolerance=args.tolerance,
        ctx=args.ctx,
        threads=args.threads,
        verbose=args.verbose,
        offline=args.offline,
    )


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of sampling to a verb's parser; `sampling_of` reads them."""
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument("-n", "--max-tokens", metavar="N", type=whole_number(1), help="longest answer (default: the context)")
    sampling.add_argument("--temp", type=number(0), default=0.8, help="temperature, 0 is greedy (default: %(default)s)")
    sampling.add_argument("--top-k", type=whole_number(0), default=40, help="(default: %(default)s)")
    sampling.add_argument("--top-p", type=number(0, 1), default=0.95, help="(default: %(default)s)")
    sampling.add_argument("--min-p", type=number(0, 1), default=0.05, help="(default: %(default)s)")
    sampling.add_argument("--repeat-penalty", type=number(0.01, 100), default=1.0, help="(default: %(default)s)")
    sampling.add_argument("--seed", type=whole_number(0), help="for the same answer again")
    sampling.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", type=not_empty, help="end the answer here; can be repeated"
    )


def sampling_of(args: argparse.Namespace) -> dict[str, Any]:
    """Keywords of create_completion and create_chat_completion."""
    return {
        "max_tokens": args.max_tokens,
        "temperature": args.temp,
        "top_k": args.top_k,
        "top_p": args.top_p,
        "min_p": args.min_p,
        "repeat_penalty": args.repeat_penalty,
        "seed": args.seed,
        "stop": args.stop,
    }


def watched(path: str, size: int) -> type[Llama]:
    """A Llama class that shows on stderr how far loading has come."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    terminal = open(os.dup(2), "w", encoding="utf-8", errors="replace")  # noqa: SIM115 - closed below; llama_cpp hides stderr
    progress = Progress(
        TextColumn(f"loading {os.path.basename(path)}"),
        BarColumn(),
        DownloadColumn(),
        console=Console(file=terminal),
        transient=True,
    )
    task = progress.add_task("", total=size)

    class Watched(Llama):
        def on_load_progress(self, share: float) -> None:
            progress.update(task, completed=int(share * size))

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            with terminal, progress:
                super().__init__(*args, **kwargs)

    return Watched
