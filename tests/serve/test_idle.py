"""The server's idle pass: once an answer, never in the way of a request, and its figures."""

from __future__ import annotations

import asyncio
import threading
import time

import httpx
import pytest
from hosting import hosting, order
from routers_files import routed_model
from server import NO_END, chat, serving

from first_cpp.runtime import idle_pass
from first_cpp.serve.access import AccessRules
from first_cpp.serve.app import build
from first_cpp.serve.prepare import Job
from first_cpp.serve.request_queue import RequestQueue
from first_cpp.serve.served_model import ServedModel


@pytest.fixture(scope="module")
def routed(tiny, models):
    return routed_model(tiny, models, seed=31)


def measured(server, n: int) -> list[dict]:
    """The answers of /v1/fidelity, once there are so many."""
    deadline = time.monotonic() + 20
    while len(found := server.http.get("/v1/fidelity").json()["data"]) < n:
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    return found


def test_answers_are_measured_while_nobody_asks(routed):
    with serving(routed, "--chat-format", "chatml", "--skip", 0.34, "-c", 2048) as server:
        answers = []
        for text in ("Secret words", "Again"):
            body = chat(text, logit_bias=NO_END, max_tokens=20)
            answers.append(server.http.post("/v1/chat/completions", json=body).json())
            found = measured(server, len(answers))
        assert [one["id"] for one in found] == [answer["id"] for answer in reversed(answers)]
        newest = found[0]
        assert newest["positions"] == 19
        assert newest["fidelity"] == pytest.approx(newest["equal"] / 19, abs=1e-4)
        assert newest["skipped_layers"] == answers[1]["first_cpp"]["skipped_layers"]
        assert "Secret" not in server.http.get("/v1/fidelity").text
        time.sleep(0.2)
        assert server.metric("first_cpp_fidelity_count") == 2  # once an answer
        assert server.metric("first_cpp_fidelity_sum") == pytest.approx(sum(one["fidelity"] for one in found), abs=1e-3)


def test_it_can_be_turned_off(routed):
    with serving(routed, "--chat-format", "chatml", "--skip", 0.34, "--no-catch-up") as server:
        server.http.post("/v1/chat/completions", json=chat())
        time.sleep(0.3)
        assert server.http.get("/v1/fidelity").json() == {"object": "list", "data": []}


@pytest.mark.timed
def test_sigterm_amid_the_pass_ends_the_server_within_a_second(routed):
    with serving(routed, "--chat-format", "chatml", "--skip", 0.34, "-c", 4096) as server:
        server.http.post("/v1/chat/completions", json=chat(logit_bias=NO_END, max_tokens=800))
        start = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - start < 1


@pytest.mark.timed
def test_a_request_amid_the_pass_is_not_delayed(routed, load, monkeypatch):
    """The pass is held in one large evaluation when the request comes; that ends at once, and the answer is right."""
    monkeypatch.setattr(idle_pass, "PART", 512)
    llm = load(routed, skip=0.34, n_ctx=4096)
    expected = load(routed, skip=0.34, n_ctx=4096).create_completion("Hello", max_tokens=8, temperature=0)["choices"]
    begun = threading.Event()
    step = llm._idle._step
    monkeypatch.setattr(llm._idle, "_step", lambda: (begun.set(), step())[1])
    worker = hosting(ServedModel(llm, "tiny", 0.34, 1.0, 512), RequestQueue(1))

    async def answer(prompt: str, n: int) -> dict:
        ask = {"max_tokens": n, "temperature": 0, "logit_bias": {2: -100.0}} if n > 8 else {"max_tokens": n, "temperature": 0}
        turn = worker.enter_queue()
        running = worker.start(order(Job(lambda: llm.create_completion(prompt, **ask), False, 0.34), "tiny"), turn)
        found = await running.part()
        assert await running.part() is None
        await running.end()
        return found

    async def scene() -> None:
        await answer("Once upon a time", 1000)
        await asyncio.to_thread(begun.wait, 10)
        start = time.monotonic()
        found = await answer("Hello", 8)
        assert time.monotonic() - start < 0.5
        assert found["choices"][0]["text"] == expected[0]["text"]
        cut_short = worker.models.measured.as_json()["data"]
        assert not cut_short or cut_short[0]["positions"] < 999

    asyncio.run(scene())
    worker.close()


def test_alternating_clients_find_their_conversation(routed, load):
    """By --cache-bytes: the third request goes on from the first one's state, and /metrics says so."""
    llm = load(routed, skip=0.34, chat_format="chatml", cache_bytes=10_000_000)
    worker = hosting(ServedModel(llm, "tiny", 0.34, 1.0, 512), RequestQueue(1))
    app = build(worker, AccessRules(None, 1 << 20))
    texts = ["Secret words that are long enough", "Another talk of someone else altogether"]

    async def scene() -> str:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            for text in (*texts, texts[0]):
                response = await client.post("/v1/chat/completions", json=chat(text))
                assert response.status_code == 200
                await asyncio.sleep(0.05)
            return (await client.get("/metrics")).text

    text = asyncio.run(scene())
    worker.close()
    assert "first_cpp_cache_hits_total 1.0" in text
    assert f"first_cpp_cache_bytes {float(llm.conversations.n_bytes)}" in text
    assert llm.conversations.hit_tokens >= len(texts[0])
