"""JSON Lines files, checked line by line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from ..errors import FirstCppError, MissingFileError


class DataError(FirstCppError, ValueError):
    """A data file that cannot be used; the message names the file and line."""


def lines(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield FILE:LINE and the object of every line. Raises DataError for one that is not UTF-8, JSON or an object."""
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                where = f"{path}:{number}"
                try:
                    encoding = "utf-8-sig" if number == 1 else "utf-8"  # Windows begins files with a mark
                    record = json.loads(line.decode(encoding))
                except UnicodeDecodeError as error:
                    raise DataError(f"{where}: not UTF-8 ({error.reason} at byte {error.start})") from None
                except json.JSONDecodeError as error:
                    raise DataError(f"{where}: not JSON ({error.msg} at column {error.colno})") from None
                except (ValueError, RecursionError) as error:  # numbers of thousands of digits, brackets of thousands of levels
                    raise DataError(f"{where}: not JSON that can be read ({error})") from None
                if not isinstance(record, dict):
                    raise DataError(f"{where}: expected an object with prompt and response, found {type(record).__name__}")
                yield where, record
    except FileNotFoundError:
        raise MissingFileError(f"data file does not exist: {path}") from None


def field(record: dict[str, Any], name: str, where: str) -> str:
    """A text field of a line. Raises DataError when it is missing, empty or not text.

    >>> field({"prompt": "Hello"}, "prompt", "data.jsonl:1")
    'Hello'
    """
    value = record.get(name)
    if not isinstance(value, str) or not value.strip():
        found = "missing" if name not in record else "empty" if value == "" or isinstance(value, str) else repr(value)
        raise DataError(f"{where}: {name} is {found}, expected text")
    _check_text(value, name, where)
    return value


def task_of(record: dict[str, Any], where: str) -> str:
    """The name of a line's task, empty where it has none. Raises DataError for one that is no name.

    >>> task_of({"task": "qa"}, "data.jsonl:1"), task_of({"task": 7}, "data.jsonl:2"), task_of({"task": None}, "data.jsonl:3")
    ('qa', '7', '')
    """
    value = record.get("task")
    if isinstance(value, (dict, list)):
        raise DataError(f"{where}: task is {value!r:.80}, expected text")
    name = "" if value is None else str(value)
    _check_text(name, "task", where)
    return name


def _check_text(value: str, name: str, where: str) -> None:
    if any("\ud800" <= sign <= "\udfff" for sign in value):
        raise DataError(f"{where}: {name} has half of a surrogate pair (\\ud800 to \\udfff), which is not text")
