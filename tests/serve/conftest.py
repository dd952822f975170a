"""A server that tests of several files ask."""

from __future__ import annotations

import pytest
from routers_files import routed_model
from server import serving

OPEN_TO = "https://example.org"


@pytest.fixture(scope="session")
def embedding_server(tiny, models):
    """With embeddings, and open to the pages of one other site."""
    options = ("--alias", "tiny", "--chat-format", "chatml", "-c", 512)
    with serving(routed_model(tiny, models, seed=31), *options, "--embeddings", "--cors", OPEN_TO) as started:
        yield started
        assert started.stop() == 0
