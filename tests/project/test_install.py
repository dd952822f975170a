"""The package as users get it: the wheel's content, and a fresh environment."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import venv
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[2]
HOME = os.environ["HOME"]
PIP = ["-m", "pip", "--disable-pip-version-check", "-q"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, *PIP, "wheel", "--no-deps", "-w", str(folder), str(ROOT)], check=True)
    (path,) = folder.glob("first_cpp-*.whl")
    return path


@pytest.mark.slow
def test_wheel_holds_the_two_packages_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"first_cpp", "convert", "first_cpp-0.1.0.dist-info"}
    assert any(name.startswith("first_cpp/_ext.") and name.endswith(".so") for name in names)
    assert "first_cpp/_ext.pyi" in names
    page = {path.name for path in (ROOT / "first_cpp" / "server" / "page").iterdir()}
    assert page == {"index.html", "style.css", "app.js", "icon.svg"}
    assert {f"first_cpp/serve/page/{name}" for name in page} <= set(names)
    adapter = ("README.md", "routers.safetensors", "adapter/adapter_config.json", "adapter/adapter_model.safetensors")
    assert {f"first_cpp/adapters/smollm2-135m-instruct/{name}" for name in adapter} <= set(names)


@pytest.mark.slow
def test_wheel_installs_into_an_empty_environment(wheel, tiny, tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    # with the real HOME: pip's wheel cache has llama.cpp compiled
    subprocess.run([python, *PIP, "install", str(wheel)], check=True, cwd=tmp_path, env={**os.environ, "HOME": HOME})
    code = f"""
from first_cpp import Llama
import first_cpp
llm = Llama({tiny!r}, skip=[1, 2], verbose=False)
llm("hello", max_tokens=4)
print(first_cpp.__file__, llm.routing.skipped)
"""
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert str(tmp_path) in done.stdout
    assert "(1, 2)" in done.stdout
    version = subprocess.run(
        [python, "-m", "first_cpp", "--version"], capture_output=True, text=True, check=True, cwd=tmp_path
    ).stdout
    assert str(tmp_path) in version
    assert subprocess.run([python, "-m", "convert", "--help"], capture_output=True, check=True, cwd=tmp_path).stdout
