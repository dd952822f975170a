"""Writes docs/reference/command-line.md from the parsers themselves: python tools/command_line.py"""

from __future__ import annotations

import argparse
import os
import re
from unittest import mock

from convert.__main__ import setup_arg_parser as convert_parser
from first_cpp.cli.main import VERBS
from first_cpp.cli.main import setup_arg_parser as first_cpp_parser

PAGE = os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir, "docs", "reference", "command-line.md")
_HEAD = """# Command line

Written by `make docs` from the commands' own parsers. `first-cpp VERB --help` prints the same in the terminal,
`first-cpp completion bash` (zsh, fish, ...) a completion script. Exit codes: 0, 1 failure, 2 usage, 130 Ctrl-C, 143 SIGTERM.
"""


def page() -> str:
    """The whole page, the same on every machine: its home folder is `~`."""
    with mock.patch.dict(os.environ, {"HOME": "~"}):
        os.environ.pop("XDG_CACHE_HOME", None)
        verbs = first_cpp_parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr]
        parsers = {f"first-cpp {verb}": verbs[verb] for verb in VERBS} | {"python -m convert": convert_parser()}
    links = "\n".join(f"- [`{name}`](#{name.replace(' ', '-')}): {_purpose(parser)}" for name, parser in parsers.items())
    return "\n".join([_HEAD, links, "", *(_section(name, parser) for name, parser in parsers.items())])


def _purpose(parser: argparse.ArgumentParser) -> str:
    sentence = " ".join((parser.description or "").split()).split(". ")[0].rstrip(".")
    return f"{sentence}."


def _section(name: str, parser: argparse.ArgumentParser) -> str:
    parts = [f"## {name}", "", " ".join((parser.description or "").split()), ""]
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if action.help != argparse.SUPPRESS and action.dest != "help"]
        if not actions:
            continue
        if group.title not in ("options", "optional arguments", "positional arguments"):
            parts += [f"### {name}: {group.title}", *([group.description] if group.description else []), ""]
        parts += ["| | default | |", "| --- | --- | --- |", *map(_row, actions), ""]
    if parser.epilog:
        parts += ["```", parser.epilog.strip(), "```", ""]
    return "\n".join(parts)


def _row(action: argparse.Action) -> str:
    needed = action.required and bool(action.option_strings)
    cells = [_name(action), "needed" if needed else _default(action), _meaning(action)]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _name(action: argparse.Action) -> str:
    value = action.metavar if isinstance(action.metavar, str) else None
    if value is None and action.choices is not None:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    if not action.option_strings:
        return f"`{value or action.dest}`"
    takes = "" if action.nargs == 0 else f" {value or action.dest.upper()}"
    return ", ".join(f"`{option}{takes if i == len(action.option_strings) - 1 else ''}`"
                     for i, option in enumerate(action.option_strings))  # fmt: skip


def _default(action: argparse.Action) -> str:
    """The default; of one that depends on the machine, `(default: all cores, %(default)s)` in the help, the words."""
    words = re.search(r"\(default: ([^()]+), %\(default\)s\)", action.help or "")
    if words:
        return words[1]
    given = action.default
    if given is None or given is False or given in ([], "", argparse.SUPPRESS):
        return ""
    return f"`{given:g}`" if isinstance(given, float) else f"`{given}`"


def _meaning(action: argparse.Action) -> str:
    """The help, without the default that has a column of its own."""
    text = re.sub(r"\s*\(default: ([^()]*, )?%\(default\)s\)", "", action.help or "")
    return " ".join((text % {"default": action.default, "prog": "first-cpp"}).split())


def main() -> None:
    with open(PAGE, "w", encoding="utf-8") as file:
        file.write(page())


if __name__ == "__main__":
    main()
