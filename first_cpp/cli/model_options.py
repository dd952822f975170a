"""What `chat` and `run` share: the model's arguments, and a model loaded from them with defaults for people."""

from __future__ import annotations

import argparse
import logging
import os
import random
import sys
from typing import Any

import llama_cpp

from ..errors import MissingExtraError, MissingFileError, OptionError
from ..gguf.bundled import find_demo_model
from ..gguf.model_file import context_length, normal_path
from ..llama import Llama
from ..runtime.arguments import MOST_THREADS
from ..runtime.machine import physical_cores
from ..skip import skip_from_text
from .options import check_chat_format, not_empty, number, whole_number

_LARGE = 1 << 30  # bytes of a file that is worth a progress bar


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    model = parser.add_argument_group("model")
    model.add_argument("-m", "--model", metavar="FILE", help="a GGUF model (default: the one of the demo extra)")
    model.add_argument("--hf-repo", metavar="USER/NAME", help="a Hugging Face repository to take the model from")
    model.add_argument("--hf-file", metavar="NAME", help="the file in --hf-repo, or a pattern like *q4_0.gguf")
    model.add_argument("--routers", metavar="FILE", help="a GGUF file to take routers from")
    model.add_argument("--lora", metavar="FILE", help="a LoRA to apply")
    model.add_argument("--chat-format", metavar="NAME", help="a chat format of llama-cpp-python (default: the model's own)")
    model.add_argument(
        "--skip",
        default="auto",
        metavar="SHARE",
        help="layers left out: auto, none, 0.3 or 7,11; one layer: 7, (default: %(default)s)",
    )
    model.add_argument(
        "-c", "--ctx", metavar="TOKENS", type=whole_number(8), help="context length (default: the model's, at most 4096)"
    )
    model.add_argument(
        "-t", "--threads", metavar="N", type=whole_number(1, MOST_THREADS), help="threads (default: physical cores)"
    )
    model.add_argument("--verbose", action="store_true", help="show what llama.cpp says")


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
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


def load_model(args: argparse.Namespace) -> Llama:
    """The model that the arguments name. Raises OptionError for those that do not go together, and as `Llama` does."""
    skip = skip_from_text(args.skip)
    if args.hf_file and not args.hf_repo:
        raise OptionError(f"--hf-file {args.hf_file} needs --hf-repo USER/NAME")
    if args.hf_repo and args.model:
        raise OptionError("-m and --hf-repo name two models; give one")
    if args.chat_format is not None:
        check_chat_format(args.chat_format)
    threads = args.threads or physical_cores()
    settings: dict[str, Any] = {
        "skip": skip if not isinstance(skip, tuple) else list(skip),
        "routers": args.routers,
        "lora_path": args.lora,
        "chat_format": args.chat_format,
        "n_threads": threads,
        "n_threads_batch": threads,
        "seed": random.SystemRandom().randrange(2**31),  # llama_cpp's own default is the same in every run
        "verbose": args.verbose,
    }
    llm = _from_repository(args, settings) if args.hf_repo else _from_file(args, settings)
    if not args.verbose:
        logging.getLogger("llama-cpp-python").setLevel(logging.CRITICAL)  # a cancelled prefill is no error
    return llm


def _from_file(args: argparse.Namespace, settings: dict[str, Any]) -> Llama:
    path = normal_path(find_demo_model() if args.model is None else args.model)
    settings["n_ctx"] = args.ctx or context_length(path)
    size = os.path.getsize(path)
    return watched(path, size)(path, **settings) if size > _LARGE and sys.stderr.isatty() else Llama(path, **settings)


def _from_repository(args: argparse.Namespace, settings: dict[str, Any]) -> Llama:
    try:
        import huggingface_hub  # noqa: F401
    except ImportError:
        raise MissingExtraError("--hf-repo needs another package: pip install huggingface-hub") from None
    settings["n_ctx"] = args.ctx or 4096
    try:
        found: Llama = Llama.from_pretrained(args.hf_repo, args.hf_file or "*.gguf", **settings)
    except ValueError as error:
        if "file" in str(error).lower() and not isinstance(error, MissingFileError):
            raise OptionError(f"--hf-repo {args.hf_repo} --hf-file {args.hf_file or '*.gguf'}: {error}") from error
        raise
    return found


def watched(path: str, size: int) -> type[Llama]:
    """A Llama class that shows on stderr how far loading has come."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    progress = Progress(
        TextColumn(f"loading {os.path.basename(path)}"),
        BarColumn(),
        DownloadColumn(),
        console=Console(stderr=True),
        transient=True,
    )

    class Watched(Llama):
        @property
        def model_params(self) -> Any:
            return self._model_params

        @model_params.setter
        def model_params(self, params: Any) -> None:
            task = progress.add_task("", total=size)

            def on_progress(share: float, _: Any) -> bool:
                progress.update(task, completed=int(share * size))
                return True

            self._on_progress = llama_cpp.llama_progress_callback(on_progress)  # llama.cpp goes on using it
            params.progress_callback = self._on_progress
            self._model_params = params

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            with progress:
                super().__init__(*args, **kwargs)

    return Watched
