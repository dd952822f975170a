"""python -m convert: routers into GGUF metadata, and block influence as routers."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from first_cpp.cli.execute import add_debug, run
from first_cpp.errors import FirstCppError
from first_cpp.gguf.bundled import find_adapter, shipped_adapters
from first_cpp.gguf.embed import embed, write_sidecar
from first_cpp.skip import parse_skip

from .write_influence import write_influence

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
        f"adapter that comes with first_cpp: {', '.join(shipped_adapters())}",
    )
    what.add_argument(
        "--block-influence",
        action="store_true",
        help="measure how little each layer changes the residual stream (1 - cosine, ShortGPT) and write routers of it",
    )
    parser.add_argument("--model", required=True, metavar="GGUF", help="the base model")
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
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_debug(parser)
    return parser


def command(args: argparse.Namespace) -> None:
    if args.skip is not None:
        parse_skip(args.skip)
    routers = find_adapter(args.routers or "")
    if args.block_influence:
        if args.text is None:
            raise ConvertUsage("--block-influence needs prompts to measure on: --text FILE")
        if args.sidecar or args.replace:
            raise ConvertUsage("--sidecar and --replace go with --routers")
        write_influence(args.model, args.text, args.out, skip=args.skip, force=args.force, quiet=args.quiet)
    elif args.text is not None:
        raise ConvertUsage("--text goes with --block-influence")
    elif args.quantize is not None and not args.merge:
        raise ConvertUsage("--quantize goes with --merge")
    elif args.merge and args.sidecar:
        raise ConvertUsage("--merge folds the LoRA into the model, --sidecar writes it beside: choose one")
    elif args.merge:
        from first_cpp.gguf.merge import merge

        merge(routers, args.model, args.out, quantize=args.quantize, skip=args.skip, force=args.force, quiet=args.quiet)
    elif args.sidecar and os.path.isdir(os.path.join(routers, "adapter")):
        from first_cpp.gguf.merge import write_lora_sidecar

        write_lora_sidecar(routers, args.model, args.out, skip=args.skip, force=args.force)
    elif args.sidecar:
        write_sidecar(routers, args.model, args.out, skip=args.skip, force=args.force)
    else:
        embed(routers, args.model, args.out, skip=args.skip, force=args.force, replace=args.replace, quiet=args.quiet)


class ConvertUsage(FirstCppError, ValueError):
    """Options that do not go together."""


def main(argv: Sequence[str] | None = None) -> int:
    return run(command, setup_arg_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
