"""The structure of the packages, read from the source: imports run downwards, rooms stay small, names say one thing."""

from __future__ import annotations

import ast
import builtins
import graphlib
import pathlib
import sys
from collections import Counter

import pytest

ROOT = pathlib.Path(__file__).parents[2]
MOST_LINES = 400
# From the ground up. A room imports from its own and from those below it.
ROOMS = (
    {"errors", "_version", "skip", "_ext"},
    {"gguf"},
    {"runtime"},
    {"llama", "aio", "__init__"},
    {"streams"},
    {"cli", "llm_plugin", "lm_eval"},
    {"chat", "serve", "bench", "evaluate", "train", "calibrate", "tune"},
    {"__main__"},
)
VERBS = ROOMS[6]


def modules() -> dict[str, pathlib.Path]:
    found = {}
    for package in ("first_cpp", "convert"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(module: str) -> set[str]:
    """The modules of ours that a module imports, anywhere in it."""
    path = MODULES[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            names = [name.name for name in node.names if name.name != "_ext"]  # compiled, below all
            found |= {f"{source}.{name}" if f"{source}.{name}" in MODULES else source for name in names}
    return {name for name in found if name in MODULES and name != module}


GRAPH = {module: imports(module) for module in MODULES}


def room(module: str) -> int:
    name = module.split(".")[1] if "." in module else "__init__"
    return next(i for i, names in enumerate(ROOMS) if name in names)


def test_imports_have_no_cycle():
    list(graphlib.TopologicalSorter(GRAPH).static_order())


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("first_cpp")])
def test_imports_run_downwards(module):
    for other in GRAPH[module]:
        assert not other.startswith("convert"), f"{module} imports {other}"
        if other == "first_cpp":
            assert room(module) > room("first_cpp"), f"{module} imports the whole package"
            continue
        assert room(other) <= room(module), f"{module} imports {other}, which stands above it"
        here, there = f"{module}.".split(".")[1], other.split(".")[1]
        assert here == there or not {here, there} <= VERBS, f"the verb {here} knows the verb {there}"


@pytest.mark.parametrize("module", MODULES)
def test_modules_are_small(module):
    assert len(MODULES[module].read_text().splitlines()) <= MOST_LINES


def test_llama_is_a_face():
    assert len(MODULES["first_cpp.llama"].read_text().splitlines()) <= 300


def test_no_two_modules_of_one_name():
    names = Counter(module.rsplit(".", 1)[-1] for module in MODULES)
    for own in ("command", "__main__"):  # each verb has its command
        names.pop(own, None)
    assert [name for name, count in names.items() if count > 1] == []


def test_no_module_shadows_pythons_own():
    own = set(sys.stdlib_module_names) | set(dir(builtins))
    assert [module for module in MODULES if module.rsplit(".", 1)[-1] in own - {"__main__"}] == []


@pytest.mark.parametrize("module", MODULES)
def test_nothing_reaches_into_another_objects_underscore(module):
    """`self._x`, `cls._x` and llama_cpp's own are fine; another object's are not."""
    allowed = ALLOWED_UNDERSCORES.get(module, set()) | LLAMA_CPP
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            owner = node.value
            mine = isinstance(owner, ast.Name) and owner.id in ("self", "cls", "os", "sys")
            assert mine or node.attr in allowed or _is_super(owner), f"{module}:{node.lineno} reaches into {node.attr}"


def _is_super(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"


# Of llama-cpp-python, which has no public way.
LLAMA_CPP = {"_grammar", "_root", "_lib", "_name", "_chat_handlers", "_create_completion", "_init_sampler"}
ALLOWED_UNDERSCORES = {
    "first_cpp.runtime.kv_record": {"_runs"},  # of a copy that is being made
    "first_cpp.runtime.one_thread": {"_exclusive"},  # of the methods that it decorates
    "first_cpp.evaluate.metrics": {"_compute_score_from_stats", "_extract_corpus_statistics"},  # sacrebleu's
}
