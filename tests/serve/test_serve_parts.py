"""Parts of the server by themselves: the queue, an answer that takes long, what command lines share."""

from __future__ import annotations

import asyncio
import json
import os
import time
import types

import pytest
from hosting import hosting, order
from server import serving

from first_cpp import SkipError, Timing
from first_cpp.cli.options import is_local, number, whole_number
from first_cpp.gguf.model_file import context_length
from first_cpp.runtime.machine import physical_cores
from first_cpp.serve import answer_response
from first_cpp.serve.access import AccessControl, AccessRules
from first_cpp.serve.answer_response import AnswerResponse
from first_cpp.serve.prepare import Job
from first_cpp.serve.prometheus import Metrics
from first_cpp.serve.request_queue import QueueClosed, QueueFull, RequestQueue
from first_cpp.serve.worker import Worker
from first_cpp.skip import skip_from_text


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 10))


# -- the queue -------------------------------------------------------------------------------------------------------


def test_queue_serves_in_order():
    async def scene():
        queue = RequestQueue(3)
        turns = [queue.enter() for _ in range(4)]
        assert [turn.done() for turn in turns] == [True, False, False, False]
        assert queue.waiting == 3
        queue.leave(turns[2])  # does not want to wait any longer
        queue.leave(turns[0])
        queue.leave(turns[0])
        assert [turn.done() for turn in (turns[1], turns[3])] == [True, False]
        queue.leave(turns[1])
        assert turns[3].done()
        queue.leave(turns[3])
        assert not queue.busy
        assert queue.enter().done()

    run(scene())


def test_queue_is_bounded():
    async def scene():
        queue = RequestQueue(1)
        first, second = queue.enter(), queue.enter()
        with pytest.raises(QueueFull):
            queue.enter()
        queue.leave(first)
        assert second.done()
        assert not queue.enter().done()

    run(scene())


def test_closed_queue_serves_only_the_request_being_served():
    async def scene():
        queue = RequestQueue(5)
        first, second = queue.enter(), queue.enter()
        queue.close()
        with pytest.raises(QueueClosed):
            queue.enter()
        with pytest.raises(QueueClosed):
            await second
        queue.leave(second)
        assert queue.busy
        queue.leave(first)
        assert not queue.busy

    run(scene())


# -- an answer that takes long -----------------------------------------------------------------------------------------


class SlowModel:
    """Takes the place of a model that reads a long prompt."""

    routing, timing, skip = None, Timing(), None

    def cancel(self):
        pass

    def close(self):
        pass


class NoRecords:
    def record(self):
        return None


def make_worker(llm, queue: RequestQueue) -> Worker:
    return hosting(types.SimpleNamespace(name="slow", llm=llm), queue, NoRecords(), idle=False)


def answer(job: Job, receive) -> list[dict]:
    """What AnswerResponse sends."""
    sent = []

    async def send(message):
        sent.append(message)

    async def scene():
        queue = RequestQueue(1)
        worker = make_worker(SlowModel(), queue)
        await AnswerResponse(worker, order(job))({"type": "http"}, receive, send)
        await asyncio.sleep(0.05)
        assert not queue.busy
        worker.close()

    run(scene())
    return sent


async def stays():
    await asyncio.Event().wait()


def test_stream_is_kept_alive_while_the_prompt_is_read(monkeypatch):
    monkeypatch.setattr(answer_response, "PING_SECONDS", 0.05)

    def chunks():
        time.sleep(0.2)
        yield {"choices": [{"finish_reason": "stop"}]}

    sent = answer(Job(chunks, stream=True), stays)
    text = b"".join(message.get("body", b"") for message in sent).decode()
    assert text.count(": still at work\n\n") >= 2
    assert text.endswith('data: {"choices":[{"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n')
    assert (sent[0]["status"], sent[-1]["more_body"]) == (200, False)


def test_error_before_the_first_token_has_its_status_and_one_after_it_is_an_event(caplog):
    def chunks(n):
        yield from [{"choices": []}] * n
        raise RuntimeError("made up")

    early, late = (answer(Job(lambda n=n: chunks(n), stream=True), stays) for n in (0, 1))
    assert early[0]["status"] == 500
    assert json.loads(early[1]["body"])["error"]["type"] == "server_error"
    assert late[0]["status"] == 200
    assert "error" in json.loads(late[-1]["body"].removeprefix(b"data: "))
    assert b"made up" not in early[1]["body"] + late[-1]["body"]  # for the log, not for clients
    assert caplog.text.count("RuntimeError: made up") == 2


def test_reader_that_does_not_read_holds_up_nobody():
    """The answer is made to its end, whatever its client does with it."""

    async def scene():
        worker = make_worker(SlowModel(), RequestQueue(1))
        reached = asyncio.Event()

        async def send(_):
            reached.set()
            await stays()

        chunks = Job(lambda: ({"choices": []} for _ in range(9)), stream=True)
        lazy = asyncio.create_task(AnswerResponse(worker, order(chunks))({"type": "http"}, stays, send))
        await reached.wait()
        for _ in range(100):
            await asyncio.sleep(0.01)
            if not worker.queue.busy:
                break
        assert not worker.queue.busy
        lazy.cancel()
        worker.close()

    run(scene())


def test_nothing_is_sent_to_who_has_gone():
    async def gone():
        return {"type": "http.disconnect"}

    assert answer(Job(lambda: time.sleep(0.2), stream=False), gone) == []


# -- what command lines share ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "skip"),
    [
        ("auto", "auto"),
        ("None", None),
        ("0.3", 0.3),
        ("0", 0.0),
        ("7,11", (7, 11)),
        ("[4]", (4,)),
        ("7,", (7,)),
        (" [2, 1] ", (1, 2)),
    ],
)
def test_skip_as_text(text, skip):
    assert skip_from_text(text) == skip


@pytest.mark.parametrize("text", ["", "some", "1", "-0.5", "nan", "3,3", "[", "0.1,0.2"])
def test_bad_skip_as_text(text):
    with pytest.raises(SkipError):
        skip_from_text(text)


def test_defaults(tiny, smollm2):
    assert 1 <= physical_cores() <= os.cpu_count()
    assert (context_length(tiny), context_length(smollm2)) == (2048, 4096)


@pytest.mark.parametrize(("host", "local"), [("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("localhost", True),
                                             ("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("", False)])  # fmt: skip
def test_local_addresses(host, local):
    assert is_local(host) == local


def test_numbers_as_text():
    import argparse

    assert (whole_number(1)("5"), number(0, 1)("0.5"), number(0)("7")) == (5, 0.5, 7.0)
    for parse, text in ((whole_number(1), "0"), (whole_number(1), "1.0"), (number(0, 1), "1.1"), (number(0), "inf")):
        with pytest.raises(argparse.ArgumentTypeError, match=text):
            parse(text)


# -- open to all ---------------------------------------------------------------------------------------------------------


def test_open_server_answers_under_any_name(tiny):
    with serving(tiny, "--host", "0.0.0.0", "--allow-open", "-c", 64) as server:
        assert server.http.get("/v1/models", headers={"Host": "example.org"}).status_code == 200
        assert server.http.get("/v1/models", headers={"Origin": "https://example.org"}).status_code == 403


def test_a_body_that_does_not_come():
    """Its first half, and then nothing: the connection is given up, other requests are not concerned."""
    sent = []

    async def receive():
        if not sent:
            sent.append("half")
            return {"type": "http.request", "body": b'{"prompt"', "more_body": True}
        await asyncio.sleep(60)

    async def send(message):
        sent.append(message)

    async def never(scope, receive, send):
        raise AssertionError("the application must not see it")

    rules = AccessRules(key=None, max_body=1000, local_only=False, body_seconds=0.05)
    scope = {"type": "http", "path": "/v1/completions", "headers": []}
    asyncio.run(AccessControl(never, rules, Metrics(lambda: 0), [], [])(scope, receive, send))
    start, body = sent[1:]
    assert start["status"] == 408
    assert json.loads(body["body"])["error"]["code"] == "body_too_slow"
