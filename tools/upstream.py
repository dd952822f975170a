"""Does first_cpp work with another llama-cpp-python, and what moved there? python tools/upstream.py VERSION [--out report.md]

Installs first_cpp, built against VERSION, into an environment of its own, runs the library's tests there, and compares what
the two versions of llama_cpp offer: signatures, fields of structures and their types, constants. Exit code 1 where the tests
failed. It compiles llama.cpp, about 8 minutes on two cores, unless pip has it in its cache.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import venv
import xml.etree.ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ROOT = pathlib.Path(__file__).parents[1]
PIN = re.compile(r"(llama-cpp-python(?:\[server\])?==)([\w.]+)")
TESTS = ["tests/runtime", "tests/llama/test_layers_left_out.py", "tests/llama/test_drop_in.py", "tests/llama/test_faults.py"]
NEEDED = ["pytest>=8,<10", "hypothesis>=6.100,<7", "hypothesis-jsonschema>=0.23,<0.24", "jsonschema[format-nongpl]>=4.20,<5",
          "gguf>=0.17,<1", "scipy>=1.11,<2"]  # fmt: skip

# Run by the Python of either environment: what llama_cpp offers, as JSON.
SURFACE = """
import ctypes, inspect, json
import llama_cpp
from llama_cpp import llama_chat_format

def signature(thing):
    try:
        return str(inspect.signature(thing))
    except (TypeError, ValueError):
        return "?"

def listed(thing, name):
    found = getattr(thing, name, ())
    return found if isinstance(found, (list, tuple)) else ()  # ctypes' own classes have descriptors there

def type_name(kind):
    return getattr(kind, "__name__", str(kind))

found = {}
for name, member in vars(llama_cpp.Llama).items():
    if inspect.isfunction(member):
        found["Llama." + name] = signature(member)
for name, thing in vars(llama_cpp).items():
    if name.startswith("_"):
        continue
    if inspect.isclass(thing) and issubclass(thing, ctypes.Structure):
        found[name] = str([(field[0], type_name(field[1])) for field in listed(thing, "_fields_")])
    elif isinstance(thing, int):
        found[name] = str(int(thing))
    elif callable(thing) and name.startswith(("llama_", "ggml_", "gguf_")):
        types = listed(thing, "argtypes")
        found[name] = str(list(map(type_name, types))) if types else signature(thing)
for name in sorted(llama_chat_format.LlamaChatCompletionHandlerRegistry()._chat_handlers):
    found["chat format " + name] = "there"
print(json.dumps({"version": llama_cpp.__version__, "surface": found}))
"""


def pinned(text: str, version: str) -> str:
    """pyproject.toml with another llama-cpp-python.

    >>> pinned('requires = ["llama-cpp-python==0.3.36"]', "0.3.35")
    'requires = ["llama-cpp-python==0.3.35"]'
    """
    return PIN.sub(rf"\g<1>{version}", text)


def used_names(source: str) -> set[str]:
    """The names of llama_cpp that a source uses.

    >>> sorted(used_names("llama_cpp.llama_decode(x); super().create_completion(); llm.n_vocab()"))
    ['create_completion', 'llama_decode', 'n_vocab']
    """
    return set(re.findall(r"\.(\w+)\b", source)) | set(re.findall(r"from llama_cpp[\w.]* import (\w+)", source))


def moved(before: Mapping[str, str], after: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """What differs: name, before, after; an empty text where it is not there.

    >>> moved({"f": "(a)", "g": "()"}, {"f": "(a, b)", "h": "()"})
    [('f', '(a)', '(a, b)'), ('g', '()', ''), ('h', '', '()')]
    """
    names = sorted(set(before) | set(after))
    return [(name, before.get(name, ""), after.get(name, "")) for name in names if before.get(name) != after.get(name)]


@dataclass(frozen=True)
class Outcome:
    """What the tests came to.

    total: of all tests but skipped ones. failed: how many of each function failed, and what the first one said.
    """

    total: int
    failed: Mapping[str, tuple[int, str]]

    @property
    def passed(self) -> bool:
        """Whether there were tests, and none failed."""
        return self.total > 0 and not self.failed

    @classmethod
    def read(cls, junit: str) -> Outcome:
        """From the XML that pytest writes.

        >>> case = '<testcase classname="tests.a" name="test_b[{}]"><failure message="assert 1 == {}&#10;more"/></testcase>'
        >>> Outcome.read(f"<testsuites><testsuite>{case.format(1, 2)}{case.format(2, 3)}</testsuite></testsuites>")
        Outcome(total=2, failed={'tests.a: test_b': (2, 'assert 1 == 2 more')})
        """
        failed = dict[str, tuple[int, str]]()
        found = xml.etree.ElementTree.fromstring(junit).iter("testcase")
        cases = [case for case in found if case.find("skipped") is None]
        for case in cases:
            for fault in [*case.findall("failure"), *case.findall("error")]:
                name = f"{case.get('classname')}: {str(case.get('name')).partition('[')[0]}"
                said = [line.strip() for line in str(fault.get("message")).splitlines() if line.strip()]
                count, message = failed.get(name, (0, " ".join(said[:2])))
                failed[name] = count + 1, message
        return cls(len(cases), failed)


def report(versions: Sequence[str], differences: Sequence[tuple[str, str, str]], used: set[str], tests: Outcome) -> str:
    """The report in Markdown: which tests failed and why, what moved that we use, and how much else."""
    n_failed = sum(count for count, _ in tests.failed.values())
    ours = [one for one in differences if one[0].removeprefix("Llama.") in used]
    lines = [
        f"# llama-cpp-python {versions[0]} -> {versions[1]}",
        "",
        f"Tests: {'passed' if tests.passed else '**FAILED**'} ({tests.total - n_failed} of {tests.total} passed).",
        "",
    ]
    if tests.failed:
        lines += ["| test | failed | the first said |", "| --- | --- | --- |"]
        lines += [f"| {name} | {count} | {_cell(message)} |" for name, (count, message) in tests.failed.items()]
        lines += [""]
    lines += [
        f"{len(ours)} of the names that first_cpp uses moved, {len(differences) - len(ours)} others.",
        "",
    ]
    if ours:
        lines += ["| name | before | after |", "| --- | --- | --- |"]
        lines += [f"| `{name}` | {_cell(before)} | {_cell(after)} |" for name, before, after in ours]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    shown = text if len(text) <= 200 else text[:200] + "..."
    return f"`{shown.replace('|', '/')}`" if shown else "-"


def surface(python: str) -> tuple[str, dict[str, str]]:
    """Version and surface of the llama_cpp that a Python imports."""
    done = subprocess.run([python, "-c", SURFACE], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return found["version"], found["surface"]


def copy_source(to: pathlib.Path, version: str) -> None:
    """The tracked files, pinned to another version."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        target = to / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    project = to / "pyproject.toml"
    project.write_text(pinned(project.read_text(), version))


def build(folder: pathlib.Path) -> str:
    """An environment with first_cpp and what the tests need; returns its Python."""
    venv.create(folder / "venv", with_pip=True)
    python = str(folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python")
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    subprocess.run([*pip, str(folder / "source"), *NEEDED], check=True)
    return python


def run_tests(python: str, source: pathlib.Path) -> Outcome:
    """The tests, run against what is installed."""
    for package in ("first_cpp", "convert"):  # not the folder here: the installed one has the extension
        shutil.rmtree(source / package)
    found = source / "tests.xml"
    command = [python, "-m", "pytest", "-m", "not slow and not smollm2", "-p", "no:cacheprovider", f"--junit-xml={found}"]
    done = subprocess.run([*command, *TESTS], cwd=source, capture_output=True, text=True, check=False)
    print(done.stdout[-20000:])
    if not found.exists():
        return Outcome(0, {"pytest": (1, (done.stderr or done.stdout).strip()[-200:])})
    return Outcome.read(found.read_text())


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version", help="of llama-cpp-python, like 0.3.35")
    parser.add_argument("--out", help="write the report there too")
    args = parser.parse_args(argv)
    used = {name for file in (ROOT / "first_cpp").rglob("*.py") for name in used_names(file.read_text())}
    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder) / "source"
        copy_source(source, args.version)
        python = build(pathlib.Path(folder))
        before, after = surface(sys.executable), surface(python)
        tests = run_tests(python, source)
    text = report((before[0], after[0]), moved(before[1], after[1]), used, tests)
    print(text)
    if args.out:
        pathlib.Path(args.out).write_text(text)
    return 0 if tests.passed else 1


if __name__ == "__main__":
    sys.exit(main())
