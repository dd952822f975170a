"""python -m convert: routers into GGUF metadata, and block influence as routers."""

from __future__ import annotations

import argparse
import math
import os
import sys
import textwrap
from collections.abc import Iterator, Sequence

from first_cpp.cli.execute import add_debug, run
from first_cpp.cli.model_name import HELP, add_offline, find_models
from first_cpp.cli.next_commands import next_commands
from first_cpp.errors import MissingFileError, OptionError
from first_cpp.gguf.bundled import bundled_adapters, find_adapter
from first_cpp.gguf.embed import embed, write_lora_sidecar, write_sidecar
from first_cpp.gguf.merge import merge
from first_cpp.gguf.model_file import ModelFile, normal_path
from first_cpp.gguf.new_file import check_output
from first_cpp.gguf.quantise import check_type, stored_type
from first_cpp.gguf.router_format import carries_routers, load_routers, write_safetensors
from first_cpp.runtime.block_influence import DEFAULT_SKIP, MAX_TOKENS, TextError, influence_routers
from first_cpp.skip import parse_skip

EXAMPLES = """examples:
  python -m convert --routers routers.safetensors --model base.gguf --out model-first.gguf
  python -m convert --routers routers.safetensors --model base.gguf --sidecar --out adapter.gguf
  python -m convert --routers run/ --model base.gguf --merge --quantize Q4_0 --out model-first.gguf
  python -m convert --routers smollm2-135m-instruct --model SmolLM2-135M-Instruct.Q4_1.gguf --merge --out model-first.gguf
  python -m convert --block-influence --model base.gguf --text prompts.txt --out routers.safetensors
"""


def setup_arg_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m convert",
        description="Put routers into a GGUF model or a side file, or measure block influence as input-blind routers.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--routers",
        metavar="FILE",
        help="safetensors with weight [n_layer, n_embd] and bias [n_layer], the folder of a training run, or the name of an "
        f"adapter that is bundled with first_cpp: {', '.join(bundled_adapters())}",
    )
    what.add_argument(
        "--block-influence",
        action="store_true",
        help="measure how little each layer changes the residual stream (1 - cosine, ShortGPT) and write routers of it",
    )
    parser.add_argument("-m", "--model", required=True, metavar="MODEL", help=f"the base model: {HELP}")
    add_offline(parser.add_argument)
    parser.add_argument("--out", required=True, metavar="FILE", help="the file to write")
    parser.add_argument("--sidecar", action="store_true", help="write the routers alone, to be given as Llama(routers=...)")
    parser.add_argument(
        "--merge", action="store_true", help="--routers is a training run: fold its LoRA into the weights as well"
    )
    parser.add_argument("--quantize", metavar="TYPE", help="with --merge: requantise by llama.cpp, to Q4_0, Q4_K_M, Q8_0, ...")
    parser.add_argument("--text", metavar="FILE", help="prompts for --block-influence, one a line")
    parser.add_argument(
        "--skip", type=float, metavar="SHARE", help='share to recommend ("auto"); default: what the routers say'
    )
    parser.add_argument("--force", action="store_true", help="overwrite an existing output")
    parser.add_argument("--replace", action="store_true", help="replace routers that the base model already carries")
    parser.add_argument("--quiet", action="store_true", help="no progress bar and no summary")
    add_debug(parser)
    return parser


def command(args: argparse.Namespace) -> None:
    check(args)
    find_models(args, "model")
    if args.merge and not args.quiet:
        print(plan(args), file=sys.stderr)
    write(args)
    if not args.quiet:
        print("\n".join(said(args)))


def plan(args: argparse.Namespace) -> str:
    """What a merge, which can take minutes, is about to do, and the room that it needs meanwhile."""
    n_bytes = sum(4 * math.prod(tensor.shape) for _, tensor in ModelFile.open(args.model).tensors())
    then = f"then quantise as {args.quantize}" if args.quantize else "the changed tensors become F32 (--quantize: smaller)"
    room = f"meanwhile --out's folder needs {in_bytes(n_bytes)} more"
    text = f"plan: fold the LoRA of {args.routers} into {args.model}, {then}; {room}"
    return textwrap.fill(text, 80, subsequent_indent=6 * " ", break_long_words=False, break_on_hyphens=False)


def write(args: argparse.Namespace) -> None:
    """Write --out, of the kind that the options name."""
    if args.block_influence:
        write_influence(args.model, args.text, args.out, skip=args.skip, force=args.force, quiet=args.quiet)
        return
    routers = find_adapter(args.routers)
    settings = {"skip": args.skip, "force": args.force}
    if args.merge:
        merge(routers, args.model, args.out, quantize=args.quantize, quiet=args.quiet, **settings)
    elif args.sidecar and os.path.isdir(os.path.join(routers, "adapter")):
        write_lora_sidecar(routers, args.model, args.out, **settings)
    elif args.sidecar:
        write_sidecar(routers, args.model, args.out, **settings)
    else:
        embed(routers, args.model, args.out, replace=args.replace, quiet=args.quiet, **settings)


def said(args: argparse.Namespace) -> Iterator[str]:
    """What was written, how large it is, and the next commands."""
    out = normal_path(args.out)
    size = f"{out}: {in_bytes(os.path.getsize(out))}"
    if args.block_influence:
        yield f"{size}, input-blind routers by block influence"
        stem = os.path.basename(args.model).removesuffix(".gguf")
        replace = ["--replace"] * carries_routers(args.model)
        options = ["--routers", args.out, "--model", args.model, *replace, "--out", f"{stem}-first.gguf"]
        yield next_commands(["python", "-m", "convert", *options])
        return
    routers = load_routers(out)
    kind = "" if args.sidecar else f", {stored_type(ModelFile.open(out)) or 'of an unknown type'}"
    yield f"{size}{kind}" + ("" if args.sidecar else f" (the base has {in_bytes(os.path.getsize(args.model))})")
    share = routers.skip if routers.cost is None else routers.cost.mean_share(routers.cost.tolerance)
    says = f'skip="auto" skips {share:.0%} of them' if share else "they recommend no skipping by themselves: give --skip"
    yield f"routers for {routers.base.n_layer} layers; {says}"
    model = [args.model, "--routers", args.out] if args.sidecar else [args.out]
    chat = ["first-cpp", "chat", "-m", *model, *([] if share else ["--skip", "0.25"])]
    yield next_commands(["first-cpp", "inspect", args.out], chat)


def in_bytes(n: int) -> str:
    """A file's size, as people say it.

    >>> in_bytes(91_700_000), in_bytes(4_100)
    ('91.7 MB', '4.1 kB')
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= size:
            return f"{n / size:.1f} {unit}"
    return f"{n} bytes"


def check(args: argparse.Namespace) -> None:
    """Raise OptionError for options that do not go together and for an unknown type, SkipError for a share that is none."""
    if args.skip is not None:
        parse_skip(args.skip)
    if args.block_influence and args.text is None:
        raise OptionError("--block-influence needs prompts to measure on: --text FILE")
    if args.block_influence and (args.sidecar or args.replace):
        raise OptionError("--sidecar and --replace go with --routers")
    if args.text is not None and not args.block_influence:
        raise OptionError("--text goes with --block-influence")
    if args.quantize is not None and not args.merge:
        raise OptionError("--quantize goes with --merge")
    if args.quantize is not None:
        check_type(args.quantize)
    if args.merge and args.sidecar:
        raise OptionError("--merge folds the LoRA into the model, --sidecar writes it beside: choose one")


def write_influence(
    model: str, text: str, out: str, *, skip: float | None = None, force: bool = False, quiet: bool = False
) -> None:
    """Measure the block influence of `model` on the lines of `text` and write routers to `out` (safetensors).

    Raises TextError for a text without prompts, OutputError for an output that must not be written.
    """
    from first_cpp import Llama

    text, out = normal_path(text), normal_path(out)
    prompts = read_prompts(text)
    check_output(out, [*ModelFile.open(model).paths, text], force, 1 << 20)
    llm = Llama(model, n_ctx=MAX_TOKENS, skip=None, verbose=False)
    try:
        share = DEFAULT_SKIP if skip is None else skip
        routers = influence_routers(llm, prompts, share, source=os.path.basename(text), quiet=quiet)
    finally:
        llm.close()
    write_safetensors(out, routers)


def read_prompts(path: str) -> list[str]:
    """The non-empty lines of a UTF-8 file. Raises MissingFileError or TextError."""
    try:
        with open(path, encoding="utf-8") as file:
            prompts = [line.strip() for line in file if line.strip()]
    except FileNotFoundError:
        raise MissingFileError(f"--text {path} does not exist") from None
    except UnicodeDecodeError as error:
        raise TextError(f"--text {path} is not UTF-8: {error}") from None
    if not prompts:
        raise TextError(f"--text {path} has no prompts: one a line is expected")
    return prompts


def main(argv: Sequence[str] | None = None) -> int:
    return run(command, setup_arg_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
