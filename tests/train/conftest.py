"""What trainings of tests load."""

from __future__ import annotations

import pytest
import reference
from training import Words

from first_cpp.gguf.synthetic import SHAPES


@pytest.fixture
def tiny_hf(monkeypatch):
    """What --model loads, whatever its name."""

    def load(_path):
        return reference.make_model(SHAPES["tiny"], seed=2), Words()

    monkeypatch.setattr("first_cpp.train.run_setup.load_model", load)
