"""Serve a model to OpenAI clients and to the browser, one answer at a time; each skips the layers that its prompt chose."""

from __future__ import annotations

import argparse
import functools
import os
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ..cli.execute import add_debug
from ..cli.extras import need_extra
from ..cli.held_options import add_held_arguments, held_settings
from ..cli.model_options import ModelOptions, add_model_arguments, model_options
from ..cli.options import is_local, number, whole_number
from ..errors import OptionError, SkipError
from ..runtime.held import MOST_SHARE

if TYPE_CHECKING:
    from .hosted_models import LoadedModel
    from .idle import MeasuredAnswers
    from .prometheus import Metrics
    from .served_model import ServedModel

KEY_VARIABLE = "FIRST_CPP_API_KEY"
MOST_PORT = 65535
EPILOG = """examples:
  first-cpp serve
  first-cpp serve -m model-first.gguf --skip 0.25 --max-skip 0.4
  first-cpp serve -m model.gguf -m model-first.gguf --keep-alive 300

Then open http://127.0.0.1:8080 in a browser, or give an OpenAI client
base_url=http://127.0.0.1:8080/v1. --skip is for requests that have no `skip`.
docs/guide/server.md lists routes, metrics and limits.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options to its parser."""
    parser.epilog, parser.formatter_class = EPILOG, argparse.RawDescriptionHelpFormatter
    add_model_arguments(parser, several=True)
    _add_serving(parser)
    add_held_arguments(parser)
    _add_network(parser)
    _add_limits(parser)
    add_debug(parser)


def _add_serving(parser: argparse.ArgumentParser) -> None:
    serving = parser.add_argument_group("serving")
    serving.add_argument(
        "--alias",
        metavar="NAME",
        action="append",
        default=[],
        help="the model's name in requests and answers (default: its file's); with several models one for each",
    )
    serving.add_argument(
        "--keep-alive",
        metavar="SECONDS",
        type=number(0),
        help="free the model's memory after so long without a request; the next one loads it (default: never)",
    )
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
    options = each_model(args)
    held_settings(args)
    key = _key(args)
    _check(args, options)
    named = named_models(options, args.alias)
    listener = listen_on(args.host, args.port)
    serve(listener, named, key, args)


def each_model(args: argparse.Namespace) -> list[ModelOptions]:
    """The options of each model that a command line names. Raises as `model_options`."""
    return [model_options(argparse.Namespace(**{**vars(args), "model": name})) for name in args.model or [None]]


def named_models(options: list[ModelOptions], aliases: list[str]) -> dict[str, ModelOptions]:
    """The models by the names that requests call them. Raises OptionError for names that do not fit, FirstCppError for the file
    of a further model that cannot be served."""
    if aliases and len(aliases) != len(options):
        raise OptionError(f"--alias: {len(aliases)} names for {len(options)} models; give one for each, in their order")
    named: dict[str, ModelOptions] = {}
    for position, one in enumerate(options):
        name = aliases[position] if aliases else one.name
        if name in named:
            raise OptionError(f"two models are called {name!r}; give each an --alias")
        named[name] = one
        if position > 0:  # the first is loaded at once, the others perhaps in an hour
            one.check_file()
    return named


def serve(listener: socket.socket, named: dict[str, ModelOptions], key: str | None, args: argparse.Namespace) -> None:
    """Load the first model and serve them all. Raises KeyboardInterrupt when SIGINT ended it."""
    from .access import AccessRules
    from .app import build
    from .hosted_models import HostedModels
    from .idle import MeasuredAnswers
    from .process import ServerProcess
    from .prometheus import Metrics
    from .request_queue import RequestQueue
    from .worker import Worker

    queue = RequestQueue(args.queue)
    metrics, measured = Metrics(lambda: queue.waiting), MeasuredAnswers()
    loaders = {name: functools.partial(load, one, name, args, metrics, measured) for name, one in named.items()}
    models = HostedModels(loaders, metrics, measured)
    first = models.load_first().served
    worker = Worker(models, queue, metrics, args.keep_alive)
    rules = AccessRules(key, args.max_body, tuple(args.cors), local_only=is_local(args.host))
    greet = functools.partial(_greet, listener, first, models.names[1:])
    process = ServerProcess(build(worker, rules), worker, args.grace, args.verbose, greet)
    try:
        process.run([listener])
    finally:
        worker.close()
    if process.interrupted:
        raise KeyboardInterrupt


def load(
    options: ModelOptions, name: str, args: argparse.Namespace, metrics: Metrics, measured: MeasuredAnswers
) -> LoadedModel:
    """The model, with what embeddings and logprobs need. Raises what loading raises, SkipError for a --skip that it cannot."""
    import llama_cpp

    from ..cli.answer_record import AnswerRecorder
    from .hosted_models import LoadedModel
    from .idle import IdleReader
    from .served_model import ServedModel

    pooling = llama_cpp.LLAMA_POOLING_TYPE_MEAN if args.embeddings else llama_cpp.LLAMA_POOLING_TYPE_UNSPECIFIED
    llm = options.load(
        logits_all=args.logits_all,
        embedding=args.embeddings,
        pooling_type=pooling,
        cache_bytes=args.cache_bytes,
        measure=None if args.no_catch_up else "choice",
        **held_settings(args),
    )
    max_prompt = args.max_prompt or llm.n_ctx()
    served = ServedModel(
        llm, name, options.skip, args.max_skip, max_prompt, args.logits_all, args.embeddings, options.tolerance
    )
    try:
        served.check_skip(options.skip)
    except SkipError:
        llm.close()
        raise
    return LoadedModel(served, IdleReader(llm, metrics, not args.no_catch_up, measured), AnswerRecorder(llm))


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


def _greet(listener: socket.socket, served: ServedModel, further: Sequence[str]) -> None:
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    skip = list(served.skip) if isinstance(served.skip, tuple) else served.skip
    routers = "" if served.llm.routers else ", no routers"
    url = f"http://{host}:{port}"
    print(
        f"{url} serves {', '.join([f'{served.name} ({served.n_layer} layers, skip {skip}{routers})', *further])}: "
        "open it in a browser, "
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


def _check(args: argparse.Namespace, options: list[ModelOptions]) -> None:
    skip = options[0].skip
    if isinstance(skip, float) and skip > args.max_skip:
        raise OptionError(f"--skip {skip:g} is above --max-skip {args.max_skip:g}")
    for name in ("routers", "lora", "fidelity", "fidelity_state") if len(options) > 1 else ():
        if getattr(args, name) is not None:
            raise OptionError(f"--{name.replace('_', '-')} is of one model, and there are {len(options)}")
    if args.fidelity is not None and args.max_skip < MOST_SHARE:
        raise OptionError(f"--fidelity moves the skip share up to {MOST_SHARE:g}, above --max-skip {args.max_skip:g}")
    if args.max_prompt and args.ctx and args.max_prompt > args.ctx:
        raise OptionError(f"--max-prompt {args.max_prompt} is above --ctx {args.ctx}")
    for origin in args.cors:
        parts = urlsplit(origin)
        if origin != "*" and (not parts.netloc or f"{parts.scheme}://{parts.netloc}" != origin):
            raise OptionError(f"--cors {origin}: an origin is like https://example.org or http://localhost:3000, or *")
