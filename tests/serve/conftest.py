"""Servers that tests of several files ask, and a browser on one of them."""

from __future__ import annotations

import pytest
from page_in_chromium import Page, chromium
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


@pytest.fixture(scope="session")
def page_server(tiny, models):
    with serving(routed_model(tiny, models, seed=41), "--chat-format", "chatml", "--max-skip", 0.5, "-c", 512) as started:
        yield started


@pytest.fixture(scope="session")
def browser():
    yield from chromium()


@pytest.fixture
def page(browser, page_server):
    """Answers are made by a stand-in where a test sets `window.answer`, so that their text is known."""
    browser.get("about:blank")
    browser.execute_cdp_cmd("Storage.clearDataForOrigin", {"origin": page_server.url, "storageTypes": "local_storage"})
    browser.get_log("browser")  # errors of a server that has ended since
    opened = Page(browser, page_server.url)
    yield opened
    assert opened.errors() == []


@pytest.fixture(scope="session")
def protocol_model(tiny, models):
    return routed_model(tiny, models, seed=71)


@pytest.fixture(scope="session")
def protocol_server(protocol_model):
    with serving(protocol_model, "--chat-format", "chatml", "--alias", "tiny", "--logits-all", "-c", 1024) as started:
        yield started


@pytest.fixture(scope="session")
def client(protocol_server):
    return protocol_server.client()


@pytest.fixture(scope="module")
def serve_model(tiny, models):
    return routed_model(tiny, models, seed=31)


@pytest.fixture(scope="module")
def server(serve_model):
    with serving(serve_model, "--chat-format", "chatml", "--alias", "tiny", "--logits-all", "--queue", 2) as started:
        yield started


@pytest.fixture(scope="module")
def strict(serve_model):
    """With a key, and little allowed."""
    limits = ("--max-skip", 0.4, "--max-prompt", 100, "--max-body", 3000, "--queue", 0)
    with serving(serve_model, "--api-key", "s3cret", "--chat-format", "chatml", *limits, key="s3cret") as started:
        yield started
