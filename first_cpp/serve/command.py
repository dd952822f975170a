"""Serve a model to OpenAI clients and to the browser, one answer at a time; each skips the layers that its prompt chose."""

from __future__ import annotations

import argparse
import os
import socket
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ..cli.execute import add_debug
from ..cli.extras import need_extra
from ..cli.held_options import add_held_arguments, held_settings
from ..cli.model_options import ModelOptions, add_model_arguments, model_options
from ..cli.options import is_local, number, whole_number
from ..errors import OptionError
from ..runtime.held import MOST_SHARE

if TYPE_CHECKING:
    from ..llama import Llama
    from .served_model import ServedModel

KEY_VARIABLE = "FIRST_CPP_API_KEY"
MOST_PORT = 65535
EPILOG = """examples:
  first-cpp serve
  first-cpp serve -m model-first.gguf --skip 0.25 --max-skip 0.4

Then open http://127.0.0.1:8080 in a browser, or give an OpenAI client
base_url=http://127.0.0.1:8080/v1. --skip is for requests that have no `skip`.
docs/guide/server.md lists routes, metrics and limits.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options to its parser."""
    parser.epilog, parser.formatter_class = EPILOG, argparse.RawDescriptionHelpFormatter
    add_model_arguments(parser)
    _add_serving(parser)
    add_held_arguments(parser)
    _add_network(parser)
    _add_limits(parser)
    add_debug(parser)


def _add_serving(parser: argparse.ArgumentParser) -> None:
    serving = parser.add_argument_group("serving")
    serving.add_argument("--alias", metavar="NAME", help="the model's name in requests and answers (default: its file's)")
    serving.add_argument(
        "--max-skip",
        metavar="SHARE",
        type=number(0, 1),
        default=1.0,
        help="the largest skip share that a request may ask for (default: 1)",
    )
    serving.add_argument(
        "--no-catch-up", action="store_true", help="do not read an answer again with all layers while no request waits"
    )
    serving.add_argument(
        "--cache-bytes",
        metavar="BYTES",
        type=whole_number(0, 2**62),
        default=0,
        help="memory for conversations other than the last, so that those which alternate are not read again (default: 0)",
    )
    serving.add_argument("--logits-all", action="store_true", help="keep all logits, for logprobs: 4 bytes x ctx x vocabulary")
    serving.add_argument("--embeddings", action="store_true", help="serve /v1/embeddings too; prefill gets slower")


def _add_network(parser: argparse.ArgumentParser) -> None:
    network = parser.add_argument_group("network")
    network.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    network.add_argument(
        "--port", type=whole_number(0, MOST_PORT), default=8080, help="port, 0 for any free one (default: %(default)s)"
    )
    network.add_argument("--api-key", metavar="KEY", help=f"clients must send it (default: the variable {KEY_VARIABLE})")
    network.add_argument("--allow-open", action="store_true", help="listen beyond this machine without a key")
    network.add_argument(
        "--cors",
        metavar="ORIGIN",
        action="append",
        default=[],
        help="web pages of this origin may use the server too; can be repeated",
    )


def _add_limits(parser: argparse.ArgumentParser) -> None:
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


def command(args: argparse.Namespace) -> None:
    """Check the options, listen, load the model, serve until a signal."""
    need_extra("serve", "server", "fastapi", "uvicorn", "prometheus_client", "starlette_context", "sse_starlette")
    options = model_options(args)
    held_settings(args)
    key = _key(args)
    _check(args, options)
    listener = listen_on(args.host, args.port)
    serve(listener, options, key, args)


def serve(listener: socket.socket, options: ModelOptions, key: str | None, args: argparse.Namespace) -> None:
    """Load the model and serve it. Raises KeyboardInterrupt when SIGINT ended it."""
    from ..cli.answer_record import AnswerRecorder
    from .access import AccessRules
    from .app import build
    from .idle import IdleReader
    from .process import ServerProcess
    from .prometheus import Metrics
    from .request_queue import RequestQueue
    from .served_model import ServedModel
    from .worker import Worker

    llm = load(options, args)
    name, max_prompt = args.alias or options.name, args.max_prompt or llm.n_ctx()
    served = ServedModel(
        llm, name, options.skip, args.max_skip, max_prompt, args.logits_all, args.embeddings, options.tolerance
    )
    served.check_skip(options.skip)
    queue = RequestQueue(args.queue)
    metrics = Metrics(lambda: queue.waiting, served.n_layer)
    if llm.conversations is not None:
        metrics.conversations(llm.conversations)
    worker = Worker(llm, queue, metrics, AnswerRecorder(llm), IdleReader(llm, metrics, not args.no_catch_up))
    rules = AccessRules(key, args.max_body, tuple(args.cors), local_only=is_local(args.host))
    process = ServerProcess(build(served, worker, rules), worker, args.grace, args.verbose, lambda: _greet(listener, served))
    try:
        process.run([listener])
    finally:
        worker.close()
    if process.interrupted:
        raise KeyboardInterrupt


def load(options: ModelOptions, args: argparse.Namespace) -> Llama:
    """The model, with what embeddings and logprobs need."""
    import llama_cpp

    pooling = llama_cpp.LLAMA_POOLING_TYPE_MEAN if args.embeddings else llama_cpp.LLAMA_POOLING_TYPE_UNSPECIFIED
    return options.load(
        logits_all=args.logits_all,
        embedding=args.embeddings,
        pooling_type=pooling,
        cache_bytes=args.cache_bytes,
        measure=None if args.no_catch_up else "choice",
        **held_settings(args),
    )


def listen_on(host: str, port: int) -> socket.socket:
    """A socket bound to an address, not listening yet. Raises OSError that names the address.

    >>> listen_on("127.0.0.1", 0).getsockname()[0]
    '127.0.0.1'
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        raise OSError(f"cannot listen on {host} port {port}: {error.strerror}") from error
    return bound


def _greet(listener: socket.socket, served: ServedModel) -> None:
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


def _check(args: argparse.Namespace, options: ModelOptions) -> None:
    if isinstance(options.skip, float) and options.skip > args.max_skip:
        raise OptionError(f"--skip {options.skip:g} is above --max-skip {args.max_skip:g}")
    if args.fidelity is not None and args.max_skip < MOST_SHARE:
        raise OptionError(f"--fidelity moves the skip share up to {MOST_SHARE:g}, above --max-skip {args.max_skip:g}")
    if args.max_prompt and args.ctx and args.max_prompt > args.ctx:
        raise OptionError(f"--max-prompt {args.max_prompt} is above --ctx {args.ctx}")
    for origin in args.cors:
        parts = urlsplit(origin)
        if origin != "*" and (not parts.netloc or f"{parts.scheme}://{parts.netloc}" != origin):
            raise OptionError(f"--cors {origin}: an origin is like https://example.org or http://localhost:3000, or *")
