"""What evaluations read."""

from __future__ import annotations

import json

import pytest
from evaluating import QUESTIONS
from routers_files import routed_model


@pytest.fixture(scope="session")
def routed(tiny, models):
    return routed_model(tiny, models, seed=71)


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in QUESTIONS))
    return str(path)
