"""Serve a model to OpenAI clients and to the browser, one answer at a time, each without the layers it can do without."""

from __future__ import annotations

import argparse
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ..cli.execute import add_debug
from ..cli.options import check_chat_format, is_local, number, whole_number
from ..errors import MissingExtraError, OptionError
from ..gguf.bundled import find_demo_model
from ..gguf.model_file import context_length
from ..runtime.arguments import MOST_THREADS
from ..runtime.machine import physical_cores
from ..skip import Skip, skip_from_text

if TYPE_CHECKING:
    from ..llama import Llama
    from .served import Served

KEY_VARIABLE = "FIRST_CPP_API_KEY"


EPILOG = """examples:
  first-cpp serve
  first-cpp serve -m model-first.gguf --skip 0.25 --max-skip 0.4

Then open http://127.0.0.1:8080 in a browser, or give an OpenAI client base_url=http://127.0.0.1:8080/v1. docs/guide/server.md
lists routes, metrics and limits.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = EPILOG, argparse.RawDescriptionHelpFormatter
    model = parser.add_argument_group("model")
    model.add_argument("-m", "--model", metavar="FILE", help="a GGUF model (default: the one of the demo extra)")
    model.add_argument("--routers", metavar="FILE", help="a GGUF file to take routers from")
    model.add_argument("--alias", metavar="NAME", help="the model's name in requests and answers (default: its file's)")
    model.add_argument("--chat-format", metavar="NAME", help="a chat format of llama-cpp-python (default: the model's own)")
    model.add_argument(
        "-c", "--ctx", metavar="TOKENS", type=whole_number(8), help="context length (default: the model's, at most 4096)"
    )
    model.add_argument(
        "-t", "--threads", metavar="N", type=whole_number(1, MOST_THREADS), help="threads (default: physical cores)"
    )
    model.add_argument("--logits-all", action="store_true", help="keep all logits, which logprobs need: 4 bytes x ctx x vocab")
    model.add_argument("--embeddings", action="store_true", help="serve /v1/embeddings too; prefill gets slower")

    skip = parser.add_argument_group("layers")
    skip.add_argument(
        "--skip",
        default="auto",
        help="what requests that do not say get: auto, none, 0.3 or 7,11; one layer: 7, (default: auto)",
    )
    skip.add_argument(
        "--max-skip",
        metavar="SHARE",
        type=number(0, 1),
        default=1.0,
        help="the largest share that may be asked for (default: 1)",
    )

    network = parser.add_argument_group("network")
    network.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    network.add_argument("--port", type=whole_number(0), default=8080, help="port, 0 for any free one (default: %(default)s)")
    network.add_argument("--api-key", metavar="KEY", help=f"clients must send it (default: the variable {KEY_VARIABLE})")
    network.add_argument("--allow-open", action="store_true", help="listen beyond this machine without a key")
    network.add_argument(
        "--cors", metavar="ORIGIN", action="append", default=[], help="web pages of this origin may ask too; can be repeated"
    )

    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--queue", metavar="N", type=whole_number(0), default=16, help="requests that may wait (default: %(default)s)"
    )
    limits.add_argument(
        "--max-body", metavar="BYTES", type=whole_number(1), default=1 << 20, help="largest request (default: %(default)s)"
    )
    limits.add_argument("--max-prompt", metavar="TOKENS", type=whole_number(1), help="longest prompt (default: the context)")
    limits.add_argument(
        "--grace", metavar="SECONDS", type=number(0), default=30.0, help="time to finish after SIGTERM (default: %(default)g)"
    )
    parser.add_argument("--verbose", action="store_true", help="log requests and what llama.cpp says")
    add_debug(parser)


def command(args: argparse.Namespace) -> None:
    skip = skip_from_text(args.skip)
    key = _key(args)
    _check(args, skip)
    try:
        from .answering import Desk
        from .app import build
        from .guard import Rules
        from .line import Line
        from .process import Process, listen_on
        from .prometheus import Metrics
        from .served import Served
    except ImportError as error:
        raise MissingExtraError(f'serve needs more packages ({error}): pip install "first-cpp[server]"') from error

    path = args.model or find_demo_model()
    n_ctx = args.ctx or context_length(path)
    listener = listen_on(args.host, args.port)
    llm = _load(path, n_ctx, skip, args)
    served = Served(
        llm, args.alias or Path(path).stem, skip, args.max_skip, args.max_prompt or n_ctx, args.logits_all, args.embeddings
    )
    served.check_skip(skip)
    line = Line(args.queue)
    desk = Desk(llm, line, Metrics(lambda: line.waiting, served.n_layer))
    rules = Rules(key, args.max_body, tuple(args.cors), local_only=is_local(args.host))
    process = Process(build(served, desk, rules), desk, args.grace, args.verbose, lambda: _greet(listener, served))
    try:
        process.run([listener])
    finally:
        desk.close()
    if process.interrupted:
        raise KeyboardInterrupt


def _load(path: str, n_ctx: int, skip: Skip, args: argparse.Namespace) -> Llama:
    import llama_cpp

    from ..llama import Llama

    threads = args.threads or physical_cores()
    pooling = llama_cpp.LLAMA_POOLING_TYPE_MEAN if args.embeddings else llama_cpp.LLAMA_POOLING_TYPE_UNSPECIFIED
    return Llama(
        path,
        skip=skip,
        routers=args.routers,
        n_ctx=n_ctx,
        n_threads=threads,
        n_threads_batch=threads,
        chat_format=args.chat_format,
        logits_all=args.logits_all,
        embedding=args.embeddings,
        pooling_type=pooling,
        verbose=args.verbose,
    )


def _greet(listener: socket.socket, served: Served) -> None:
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    skip = list(served.skip) if isinstance(served.skip, tuple) else served.skip
    routers = "" if served.llm.routers else ", no routers"
    url = f"http://{host}:{port}"
    print(
        f"{url} serves {served.name} ({served.n_layer} layers, skip {skip}{routers}): open it in a browser, "
        f"or give an OpenAI client base_url={url}/v1",
        flush=True,
    )


# -- checks before anything is loaded -----------------------------------------------------------------------------------


def _key(args: argparse.Namespace) -> str | None:
    given: str | None = os.environ.get(KEY_VARIABLE) if args.api_key is None else args.api_key
    if given is not None and (not given or given != given.strip()):
        raise OptionError(f"an API key must not be empty, nor begin or end with a space; got {given!r}")
    if given is None and not is_local(args.host) and not args.allow_open:
        raise OptionError(
            f"--host {args.host} can be reached from other machines: give --api-key (or {KEY_VARIABLE}), or --allow-open"
        )
    return given


def _check(args: argparse.Namespace, skip: Skip) -> None:
    if isinstance(skip, float) and skip > args.max_skip:
        raise OptionError(f"--skip {skip:g} is above --max-skip {args.max_skip:g}")
    if args.max_prompt and args.ctx and args.max_prompt > args.ctx:
        raise OptionError(f"--max-prompt {args.max_prompt} is above --ctx {args.ctx}")
    for origin in args.cors:
        parts = urlsplit(origin)
        if origin != "*" and (not parts.netloc or f"{parts.scheme}://{parts.netloc}" != origin):
            raise OptionError(f"--cors {origin}: an origin is like https://example.org or http://localhost:3000, or *")
    if args.chat_format is not None:
        check_chat_format(args.chat_format)
