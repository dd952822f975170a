"""The tests of ideas use the tiny model and the helpers of tests/."""

from __future__ import annotations

import pytest
import reference

from first_cpp.gguf.synthetic import SHAPES


@pytest.fixture
def hf():
    """The tiny model in PyTorch."""
    return reference.make_model(SHAPES["tiny"], seed=2)
