"""How a command ends: errors become one line on stderr and an exit code."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable

from .errors import FirstCppError

FAILURE, USAGE, INTERRUPTED = 1, 2, 130


def add_debug(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--debug", action="store_true", help="show a traceback with errors")


def run(command: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> int:
    """Run a command and return its exit code: 0, 1 failure, 2 input that cannot be used, 130 interrupted."""
    try:
        command(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone; nothing is left to say
        return FAILURE
    except (FirstCppError, OSError, RuntimeError, ValueError) as error:
        if args.debug:
            traceback.print_exc()
        else:
            print(f"error: {error}", file=sys.stderr)
        return USAGE if isinstance(error, FirstCppError) else FAILURE
    return 0
