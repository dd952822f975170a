"""The options of a fidelity that is held, for the verbs that answer many prompts."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import OptionError
from .options import not_empty, number


def add_held_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --fidelity and --fidelity-state; `held_settings` reads them."""
    held = parser.add_argument_group("fidelity")
    held.add_argument(
        "--fidelity",
        metavar="SHARE",
        type=number(0.01, 1),
        help="skip as much as keeps this mean share of first choices the full model's, like 0.95 (needs --skip auto)",
    )
    held.add_argument(
        "--fidelity-state", metavar="FILE", type=not_empty, help="keep there how much that was, and begin with it next time"
    )


def held_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `Llama`. Raises OptionError where other options contradict them."""
    if args.fidelity is None:
        if args.fidelity_state is not None:
            raise OptionError(f"--fidelity-state {args.fidelity_state} needs --fidelity")
        return {}
    if args.skip.strip().lower() != "auto":
        raise OptionError(f"--fidelity {args.fidelity:g} chooses how much is skipped; it needs --skip auto, not {args.skip}")
    if args.no_catch_up:
        raise OptionError(f"--fidelity {args.fidelity:g} is held by what the idle pass measures; it needs no --no-catch-up")
    return {"fidelity": args.fidelity, "fidelity_state": args.fidelity_state}
