"""What several tests of calibrating measure."""

from __future__ import annotations

import pytest
from calibrating import idle_tensors

from first_cpp.gguf.synthetic import SHAPES, write_model
from first_cpp.streams.engine import Engine


@pytest.fixture(scope="session")
def idle(models):
    path = models / "idle.gguf"
    write_model(path, SHAPES["tiny"], idle_tensors(SHAPES["tiny"]))
    return str(path)


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("".join(f"Question {i}: what is {i} times {i * 7 % 11}?\n" for i in range(60)))
    return str(path)


@pytest.fixture
def engine(tiny):
    engine = Engine(tiny, 300, 1, streams=4)
    yield engine
    engine.close()
