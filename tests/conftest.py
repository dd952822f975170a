"""Tiny random models that the tests write themselves; SmolLM2 where the demo extra is installed."""

from __future__ import annotations

import os
import pathlib
import signal
import sysconfig

import pytest

if (worker := os.environ.get("PYTEST_XDIST_WORKER", "")) and hasattr(os, "sched_setaffinity"):
    # A core each, before OpenMP counts them: workers that share cores would start threads for all, which spin for one another.
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

from first_cpp import Llama
from first_cpp._version import describe
from first_cpp.errors import MissingFileError
from first_cpp.gguf.bundled import find_demo_model
from first_cpp.gguf.synthetic import SHAPES, write_random

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell starts what runs in the background; children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> list[str]:
    return describe().splitlines()


@pytest.fixture(autouse=True)
def _no_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture(autouse=True)
def _activated(monkeypatch):
    """`first-cpp` and `python` are found, as in an environment that a shell activated: commands are printed by these names."""
    monkeypatch.setenv("PATH", os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")]))


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> pathlib.Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def tiny(models) -> str:
    """A Llama of 6 layers in F32."""
    path = models / "tiny.gguf"
    write_random(path, SHAPES["tiny"])
    return str(path)


@pytest.fixture(scope="session")
def tiny_q8(models) -> str:
    path = models / "tiny-q8_0.gguf"
    write_random(path, SHAPES["tiny"], "q8_0")
    return str(path)


@pytest.fixture(scope="session")
def smollm2() -> str:
    try:
        return find_demo_model()
    except MissingFileError:
        pytest.skip("needs the demo extra")


@pytest.fixture
def hf():
    """The tiny model in PyTorch."""
    import reference

    return reference.make_model(SHAPES["tiny"], seed=2)


@pytest.fixture
def load():
    """Load models that are closed when the test ends."""
    opened = []

    def _load(path, cls=Llama, **kwargs):
        settings = {"verbose": False, "n_ctx": 512, "n_threads": 2, "n_threads_batch": 2, "seed": 1, **kwargs}
        opened.append(cls(os.fspath(path), **settings))
        return opened[-1]

    yield _load
    for llm in opened:
        llm.close()
