"""The map of the C++ (cpp_ext/README.md) names files, classes and tests that exist."""

from __future__ import annotations

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]
MAP = (ROOT / "cpp_ext" / "README.md").read_text()


def test_every_source_file_is_on_the_map():
    files = {path.stem for path in (ROOT / "cpp_ext").glob("*.[ch]*")}
    assert {name for name in files if not re.search(rf"\b{name}\b", MAP)} == set()


def test_named_tests_exist():
    table = MAP[MAP.index("## What we assume") :]
    in_cpp = "".join(path.read_text() for path in (ROOT / "tests" / "cpp").glob("*.cpp"))
    in_python = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    python = set(re.findall(r"`(test_\w+)`", table))
    cpp = set(re.findall(r"TEST `(\w+)`", table))
    assert len(python) > 5 < len(cpp)
    assert {name for name in python if f"def {name}(" not in in_python} == set()
    assert {name for name in cpp if f"TEST({name})" not in in_cpp} == set()


def test_named_classes_and_methods_exist():
    sources = "".join(path.read_text() for path in (ROOT / "cpp_ext").glob("*.[ch]*"))
    named = set(re.findall(r"`([A-Z]\w+)(?:::(\w+))?`", MAP))
    ours = {(cls, method) for cls, method in named if cls != cls.upper()}
    assert len(ours) > 10
    assert {cls for cls, _ in ours if not re.search(rf"(class|struct) {cls}\b", sources)} == set()
    assert {m for _, m in ours if m and not re.search(rf"\b{m}\b", sources)} == set()
