"""The server's log: one line an entry, with clients' text escaped, so that nobody forges a line or drives the terminal."""

from __future__ import annotations

import logging
import traceback
from typing import Any

from ..gguf.printable import printable

LOG = logging.getLogger("first_cpp.serve")
_MOST_CHARACTERS = 2000


def one_line(text: str) -> str:
    r"""The text without characters that end lines or drive terminals, and not too long.

    >>> print(one_line("a\nGET /forged \x1b[2J"))
    a\nGET /forged \x1b[2J
    """
    return printable(text, _MOST_CHARACTERS)


def exception_lines(error: BaseException) -> str:
    """A traceback in which the message is one line."""
    lines = traceback.format_tb(error.__traceback__)
    return "".join(lines) + f"{type(error).__name__}: {one_line(str(error))}"


class OneLineFormatter(logging.Formatter):
    """Level and message on one line; an exception's traceback below it."""

    def format(self, record: logging.LogRecord) -> str:
        text = f"{record.levelname}: {one_line(record.getMessage())}"
        error = record.exc_info[1] if record.exc_info else None
        return text if error is None else f"{text}\n{exception_lines(error)}"


def log_config(verbose: bool) -> dict[str, Any]:
    """What `logging.config.dictConfig` takes: uvicorn's loggers and ours, on stderr."""
    level = "INFO" if verbose else "WARNING"
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"one_line": {"()": OneLineFormatter}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "one_line", "stream": "ext://sys.stderr"}},
        "loggers": {
            name: {"handlers": ["stderr"], "level": level, "propagate": False}
            for name in ("uvicorn", "uvicorn.access", "first_cpp.serve", "asyncio")
        },
    }
