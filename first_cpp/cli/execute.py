"""How a command ends: errors become one line on stderr and an exit code."""

from __future__ import annotations

import argparse
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType

from ..errors import FirstCppError
from ..gguf.printable import printable
from ..runtime.llama_log import ggml_levels
from .output import finish_output, prepare_streams
from .signals import handling

FAILURE, USAGE, INTERRUPTED, TERMINATED = 1, 2, 130, 143


class _Terminated(BaseException):
    """SIGTERM: what was begun is undone on the way out, and what was printed stays."""


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise _Terminated


def add_debug(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--debug", action="store_true", help="show a traceback with errors")


def run(command: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> int:
    """Run a command and return its exit code: 0, 1 failure, 2 input that cannot be used, 130 interrupted, 143 terminated."""
    try:
        with handling(signal.SIGTERM, _terminate), ggml_levels():
            prepare_streams()
            command(args)
            sys.stdout.flush()
    except _Terminated:
        return TERMINATED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone; nothing is left to say
        return FAILURE
    except (FirstCppError, OSError, RuntimeError, ValueError) as error:
        if getattr(args, "debug", False):
            traceback.print_exc()
        else:
            print(f"error: {printable(str(error))}", file=sys.stderr)
        finish_output()
        return USAGE if isinstance(error, FirstCppError) else FAILURE
    return 0
