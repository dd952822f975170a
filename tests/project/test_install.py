"""The package as users get it: the wheel's content, and a fresh environment."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import tarfile
import venv
import zipfile

import llama_cpp
import pytest

from first_cpp.serve.app import PAGE_ROUTES

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
    assert {"first_cpp/_ext.pyi", "first_cpp/py.typed"} <= set(names)
    page = {path.name for path in (ROOT / "first_cpp" / "serve" / "page").iterdir()}
    assert page == set(PAGE_ROUTES.values())
    assert {f"first_cpp/serve/page/{name}" for name in page} <= set(names)
    adapter = ("README.md", "routers.safetensors", "adapter/adapter_config.json", "adapter/adapter_model.safetensors")
    for bundled in ("smollm2-135m-everyday", "smollm2-135m-instruct"):
        assert {f"first_cpp/adapters/{bundled}/{name}" for name in adapter} <= set(names)


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


USER = """
from first_cpp import AsyncLlama, Llama, Routing, load_routers

def share(path: str) -> float:
    llm = Llama(path, skip=0.25)
    routing = llm.routing
    reveal_type(routing)
    print(llm.timing.ttft)
    llm.route()
    load_routers(3)
    return routing.share

def strings() -> None:
    llm = Llama.from_demo(kv="keep", skip="auto")
    reveal_type(llm)
    Llama("m", prefill="rooted")
    Llama("m", measure="kl", kv="kept")
    llm.skip = "all"
    llm.create_completion("Hello", skip="all")
    llm.create_completion("Hello", skip=[3])
    llm.create_chat_completion([], skip=None)
    llm.skip = (2, 3)

async def awaited(llm: AsyncLlama) -> None:
    await llm.create_completion("Hello", skip=0.2)
    await llm.create_completion("Hello", skip="most")
    reveal_type(llm.routing)
"""


@pytest.mark.slow
def test_mypy_sees_our_types_in_a_users_script(wheel, tmp_path):
    """Installed from the wheel, away from the sources: what is public has types, and mistakes are found."""
    site, python = tmp_path / "site", tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, *PIP, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    venv.create(tmp_path / "venv")
    (folder,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    beside = pathlib.Path(llama_cpp.__file__).parents[1]  # mypy takes the base class from there
    (folder / "wheel.pth").write_text(f"{site}\n{beside}\n")
    (tmp_path / "user.py").write_text(USER)
    command = [sys.executable, "-m", "mypy", "--python-executable", str(python), "--strict", "user.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    found = {int(line.split(":")[1]): line for line in done.stdout.splitlines() if line.startswith("user.py:")}
    assert 'Revealed type is "first_cpp.' in found[7]
    assert "Routing | None" in found[7]
    assert 'of "Timing | None" has no attribute "ttft"' in found[8]
    assert '"Llama" has no attribute "route"' in found[9]
    assert 'incompatible type "int"' in found[10]
    assert 'of "Routing | None" has no attribute "share"' in found[11]
    assert 'Revealed type is "first_cpp.llama.Llama"' in found[15]
    assert "Literal['full', 'routed']" in found[16]
    assert "Literal['drop', 'keep']" in found[17]
    assert "Literal['auto']" in found[18]
    assert "Literal['auto']" in found[19]
    assert "Literal['auto']" in found[26]
    assert "Routing | None" in found[27]
    assert set(found) == {7, 8, 9, 10, 11, 15, 16, 17, 18, 19, 26, 27}


@pytest.mark.slow
def test_the_source_archive_holds_what_a_build_needs_and_no_more(tmp_path, monkeypatch):
    from scikit_build_core.build import build_sdist

    monkeypatch.chdir(ROOT)
    with tarfile.open(tmp_path / build_sdist(str(tmp_path))) as archive:
        names = {name.split("/")[1] for name in archive.getnames()}
    assert {"first_cpp", "convert", "cpp_ext", "pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE"} <= names
    assert not names & {"research", "benchmarks", "docs", "examples", "tests", "tools", ".github", ".ci"}
