"""What documents say is so: links lead somewhere, generated parts are up to date, commands and options exist."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import re
import shlex
import sys
from urllib.parse import unquote

import pytest

from convert.__main__ import setup_arg_parser as convert_parser
from first_cpp.cli.main import setup_arg_parser

ROOT = pathlib.Path(__file__).parents[2]
BENCHMARKS = str(ROOT / "benchmarks")
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
    *(path for folder in ("docs", "examples", "research") for path in sorted((ROOT / folder).rglob("*.md"))),
    *sorted((ROOT / "first_cpp" / "adapters").rglob("*.md")),
]
PROSE = [path for path in PAGES if path.name not in ("command-line.md", "errors.md")]
"""Pages whose words are their own: the others show what help pages and docstrings say."""


def name_of(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


# -- links ---------------------------------------------------------------------------------------------------------------


def without_code(text: str) -> str:
    return re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)


def anchors(path: pathlib.Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(path: pathlib.Path) -> list[str]:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(path.read_text())):
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        page = path if not target else (path.parent / unquote(target)).resolve()
        if not page.exists() or (anchor and anchor not in anchors(page)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_relative_link_leads_somewhere(path):
    assert broken_links(path) == []


def test_a_broken_link_is_found(tmp_path):
    (tmp_path / "there.md").write_text("# One thing, and `another`\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](there.md) [b](there.md#one-thing-and-another) [c](gone.md) [d](there.md#gone) `[e](gone.md)`\n# Here\n[f](#here)"
    )
    assert broken_links(page) == ["gone.md", "there.md#gone"]


def test_every_page_is_reached_from_the_index():
    found, queue = set(), [ROOT / "README.md", ROOT / "docs" / "index.md"]
    while queue:
        page = queue.pop()
        if page in found or page.suffix != ".md":
            continue
        found.add(page)
        links = re.findall(r"\]\(([^)\s#]+\.md)", without_code(page.read_text()))
        queue += [(page.parent / link).resolve() for link in links if ":" not in link]
    assert {page for page in PAGES if page.is_relative_to(ROOT / "docs") or page.is_relative_to(ROOT / "examples")} <= found


def paths_in(path: pathlib.Path) -> list[str]:
    """Source files that a page names: from the root, from the package, or by their name alone."""
    return re.findall(r"`((?:[\w.-]+/)*[\w-]+\.(?:py|cpp|h|sh|yml))`", path.read_text())


@pytest.fixture(scope="module")
def known() -> list[str]:
    """The files here, but for those of environments and builds, which are many times more."""
    found = []
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in (".venv", "build", ".git")]
        found += [f"/{os.path.relpath(os.path.join(folder, file), ROOT)}" for file in files]
    return found


@pytest.mark.parametrize("path", [page for page in PAGES if page.parent.name != "research"], ids=name_of)
def test_every_source_file_that_a_page_names_is_there(path, known):
    assert [name for name in paths_in(path) if not any(file.endswith(f"/{name}") for file in known)] == []


# -- generated parts -----------------------------------------------------------------------------------------------------


def written_part(path: pathlib.Path, writer: str) -> str:
    return path.read_text().split(f"<!-- written by {writer} -->\n", 1)[1].split("<!-- end -->", 1)[0].strip()


def test_the_command_line_is_that_of_the_parsers():
    import command_line

    assert pathlib.Path(command_line.PAGE).read_text() == command_line.page(), "run `make docs`"


def test_every_error_stands_in_its_page():
    import errors_page

    assert written_part(pathlib.Path(errors_page.PAGE), "tools/errors_page.py") == errors_page.table(), "run `make docs`"


@pytest.mark.parametrize(
    "part", ["kept", "ways", "own_lora", "types", "speed", "calibration", "calibration_kinds", "calibrate_runs"]
)
def test_results_are_those_of_the_files(part):
    import results_page

    written = written_part(pathlib.Path(results_page.PAGE), f"tools/results_page.py {part}")
    assert written == getattr(results_page, part)(), "run `make docs`"


@pytest.mark.parametrize(
    ("page", "part", "function", "given"),
    [
        ("GUIDE", "calibration_growth", "calibration_growth", ()),
        ("NOTES", "chat_as_it_comes", "calibration", ("calibration_chat",)),
        ("NOTES", "chat_everyday", "calibration", ("calibration_everyday_1000",)),
        ("PAGE", "calibration_everyday", "calibration", ("calibration_everyday",)),
        ("PAGE", "calibration_tasks", "calibration", ("calibration_tasks",)),
        ("PAGE", "gemma", "gemma", ()),
    ],
)
def test_tables_on_other_pages_are_those_of_the_files(page, part, function, given):
    import results_page

    written = written_part(pathlib.Path(getattr(results_page, page)), f"tools/results_page.py {part}")
    assert written == getattr(results_page, function)(*given), "run `make docs`"


def test_the_picture_is_drawn_from_the_files():
    import results_page

    assert pathlib.Path(results_page.PICTURE).read_text() == results_page.picture(), "run `make docs`"
    assert pathlib.Path(results_page.HELD).read_text() == results_page.held_picture(), "run `make docs`"


def test_benchmarks_are_those_of_the_files(tmp_path, monkeypatch):
    import document

    page = pathlib.Path(document.PATH).read_text()
    monkeypatch.setattr(document, "PATH", str(tmp_path / "page.md"))
    document.write()
    assert (tmp_path / "page.md").read_text() == page, "run `make docs`"


def test_what_else_is_that_of_the_file():
    import what_else_page

    assert pathlib.Path(what_else_page.PAGE).read_text() == what_else_page.page(), "run `make docs`"
    assert pathlib.Path(what_else_page.PICTURE).read_text() == what_else_page.picture(), "run `make docs`"


def test_benchmarks_show_what_make_bench_runs(monkeypatch):
    """The pages, what is run, and what the figures came from are one list of commands."""
    import all as bench
    import commands
    import document
    import results_page
    import what_else_page

    paths = (document.PATH, what_else_page.PAGE, results_page.PAGE, results_page.GUIDE, results_page.NOTES)
    pages = [pathlib.Path(path).read_text() for path in paths]
    shown = {line for page in pages for line in re.findall(r"^    (.+)$", page, re.MULTILINE)}
    recorded = {path.stem: json.loads(path.read_text())["command"] for path in (ROOT / "benchmarks" / "results").glob("*.json")}
    assert set(recorded.values()) <= shown
    assert commands.COMMANDS.items() <= recorded.items()
    ran = []
    monkeypatch.setattr(bench.subprocess, "run", lambda command, **_: ran.append(command) or argparse.Namespace(stdout="[]"))
    monkeypatch.setattr(bench.document, "save_bench", lambda target, records, command: None)
    for name, command in commands.COMMANDS.items():
        bench.run(name, "/folder")
        words = shlex.join(ran[-1]).replace(f"{sys.executable} -m first_cpp", "first-cpp").replace("/folder/", "")
        words = words.replace(sys.executable, "python").replace(os.path.join(BENCHMARKS, os.pardir, ""), "")
        assert re.sub(r" --out \S+", "", words) == command


# -- the README ----------------------------------------------------------------------------------------------------------


def test_the_readme_is_short_and_names_its_two_commands():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 90
    assert "make demo" in text
    assert "make test" in text
    assert "written by tools/transcript.py" in text
    assert "$ first-cpp demo" in written_part(ROOT / "README.md", "tools/transcript.py")


def test_the_transcript_is_one_prompt_and_the_summary():
    import transcript

    parts = [
        "preparing m\n",
        "another ==\nWho?\n",
        f"{transcript.SHOWN} ==\nasked\n\nof this\n-- full\n   said\n",
        "m ==\nfast\n\nnext:\n  chat\n",
    ]
    lines = transcript.excerpt("\n== ".join(parts)).splitlines()
    shown = [f"== {transcript.SHOWN} ==", "asked", "...", "-- full", "   said", "...", "== m ==", "fast", "```"]
    assert lines == ["```", f"$ {transcript.COMMAND}", *shown]


@pytest.mark.smollm2
def test_the_python_of_the_readme_runs(smollm2, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    (n_run,) = re.findall(r"<Routing: (\d+) of 30 layers", capsys.readouterr().out)
    assert int(n_run) < 30


# -- commands ------------------------------------------------------------------------------------------------------------


OURS = r"(first-cpp [a-z]+|python -m convert|python research/try_ideas.py [a-z-]+) .*--"


def commands_in(path: pathlib.Path) -> list[str]:
    """Whole commands of ours that a page shows, in code blocks or as a line of their own, joined where they go on."""
    text = path.read_text().replace("\\\n", " ")
    lines = [*re.findall(r"^ {4}(.+)$", text, re.MULTILINE), *re.findall(r"^`([^`\n]+)`$", text, re.MULTILINE)]
    return [line for line in (line.split("  #")[0].strip() for line in lines) if re.match(OURS, line)]


def mentions_in(path: pathlib.Path) -> list[str]:
    """Commands that prose names, most of them with one option."""
    return [text for text in re.findall(r"`([^`\n]+)`", path.read_text()) if re.match(OURS, text)]


def verbs() -> dict[str, argparse.ArgumentParser]:
    return setup_arg_parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr,return-value]


def parser_of(command: str) -> tuple[argparse.ArgumentParser, list[str]]:
    """The parser of a command and its words. Raises SystemExit for an idea that does not exist."""
    words = shlex.split(command.split(" > ", maxsplit=1)[0].split(" | ", maxsplit=1)[0])
    if words[:2] == ["python", "research/try_ideas.py"]:
        import try_ideas

        return verbs()["train"], try_ideas.setup_arg_parser().parse_known_args(words[2:])[1]
    return (verbs()[words[1]], words[2:]) if words[0] == "first-cpp" else (convert_parser(), words[3:])


def parse(command: str) -> None:
    """Raises SystemExit where a command could not start as printed."""
    parser, words = parser_of(command)
    parser.parse_args(words)


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_commands_have_the_options_that_pages_show(path):
    for command in commands_in(path):
        try:
            parse(command)
        except SystemExit:
            pytest.fail(command)
    for mention in mentions_in(path):
        parser, words = parser_of(mention)
        assert {word for word in words if word.startswith("--")} <= set(parser._option_string_actions), mention


def rows_of_runs(path: pathlib.Path) -> list[str]:
    """The whole command of every row in the tables of tools/compare_runs.py."""
    found = []
    for part in re.findall(r"<!-- written by tools/compare_runs.py.*?<!-- end -->", path.read_text(), re.DOTALL):
        program, *base = re.split(r" (?=--)", re.search(r"^`(.+)`$", part, re.MULTILINE)[1])  # type: ignore[index]
        for line in re.findall(r"^\| (.+?) \| \d", part, re.MULTILINE):
            spans = re.findall(r"(no )?`([^`]+)`", line)
            other = [text for no, text in spans if not text.startswith("--")]
            names = {text.split()[0] for no, text in spans}
            kept = [word for word in base if word.split()[0] not in names and not (other and word.startswith("--orders"))]
            found.append(
                " ".join([*(other or [program]), *kept, *(text for no, text in spans if not no and text.startswith("--"))])
            )
    return found


@pytest.mark.parametrize("name", ["notes.md", "earlier.md"])
def test_every_row_of_the_notes_is_a_command(name):
    rows = rows_of_runs(ROOT / "research" / name)
    assert len(rows) > 10
    for command in rows:
        try:
            parse(command)
        except SystemExit:
            pytest.fail(command)


# -- words ---------------------------------------------------------------------------------------------------------------

AVOIDED = (
    r"left out",
    r"leav(e|es|ing) (\w+ ){0,2}out",
    r"pass(es|ed|ing)? by",
    r"c[oa]mes? along",
    r"that is none",
    r"do without",
    r"defaults for people",
    r"\b(it|that|this|line|command|file|page|answer|report)s? tells?\b",
    r"would have no end",
)


@pytest.mark.parametrize("path", PROSE, ids=name_of)
def test_prose_keeps_to_the_vocabulary(path):
    text = without_code(path.read_text())
    found = [match[0] for match in re.finditer("|".join(f"(?:{words})" for words in AVOIDED), text)]
    assert found == []


# -- contributors --------------------------------------------------------------------------------------------------------


def test_hooks_run_what_make_lint_runs():
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]  # type: ignore[index]
    made = [line.strip().replace("$(BIN)", ".venv/bin").replace(" $(CPP)", "") for line in recipe.splitlines()]
    hooks = re.findall(r"entry: (.+)", (ROOT / ".pre-commit-config.yaml").read_text())
    assert hooks == made


def test_the_workflow_runs_the_two_commands_on_pull_requests():
    text = (ROOT / ".github" / "workflows" / "test.yml").read_text()
    assert "pull_request:" in text
    assert "target: [test, lint]" in text
    assert "run: make ${{ matrix.target }}" in text
