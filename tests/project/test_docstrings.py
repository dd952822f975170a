"""Every public class and function has an example in its docstring, and every example in the package runs."""

from __future__ import annotations

import doctest
import importlib
import inspect
import os
import pathlib
import shutil

import llama_cpp
import pytest
from routers_files import routed_model

import first_cpp

ROOT = pathlib.Path(__file__).parents[2]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for package in ("first_cpp", "convert")
    for path in (ROOT / package).rglob("*.py")
    if ">>> " in path.read_text()
)


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    """The files that examples name: a tiny model, one with routers, and a side file."""
    found = tmp_path_factory.mktemp("examples")
    shutil.copy(tiny, found / "model.gguf")
    os.rename(routed_model(tiny, found), found / "model-first.gguf")
    os.rename(routed_model(tiny, found, sidecar=True), found / "adapter.gguf")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_examples_run(module, folder, monkeypatch):
    monkeypatch.chdir(folder)
    loaded = importlib.import_module(module)
    names = {name: getattr(first_cpp, name) for name in first_cpp.__all__}
    flags = doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL
    result = doctest.testmod(loaded, extraglobs=names, optionflags=flags)
    assert result.attempted
    assert not result.failed


def public():
    """What `import first_cpp` offers, and the methods that `Llama` has beyond its base class."""
    for name in first_cpp.__all__:
        thing = getattr(first_cpp, name)
        if callable(thing) and not (inspect.isclass(thing) and issubclass(thing, Exception)):
            yield pytest.param(thing, id=name)
    for name in set(dir(first_cpp.Llama)) - set(dir(llama_cpp.Llama)):
        member = getattr(first_cpp.Llama, name)
        if not name.startswith("_") and inspect.isfunction(member):
            yield pytest.param(member, id=f"Llama.{name}")


@pytest.mark.parametrize("thing", sorted(public(), key=lambda one: one.id))
def test_public_names_have_an_example(thing):
    assert ">>> " in (inspect.getdoc(thing) or ""), thing
