"""AsyncLlama: the same answers awaited, calls in order, and a cancelled task that frees the model at once."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time

import llama_cpp
import pytest
from helpers import greedy, tokens
from routers_files import routed_model

from first_cpp import AsyncLlama
from first_cpp.runtime.idle_thread import IdleThread
from first_cpp.runtime.streaming import AnswerThread

ASK = {"max_tokens": 16, "temperature": 0}
CHAT = [{"role": "user", "content": "Hello there"}]


@pytest.fixture(scope="module")
def routed(tiny, models):
    return routed_model(tiny, models, seed=41)


@pytest.fixture
def llm(routed, load):
    return load(routed, skip=0.34, n_ctx=2048, chat_format="chatml")


def test_awaited_answers_are_the_same(llm):
    expected = llm("Once", **ASK)["choices"], llm.create_chat_completion(CHAT, **ASK)["choices"]

    async def main():
        model = AsyncLlama(llama=llm)
        return (await model("Once", **ASK))["choices"], (await model.create_chat_completion(CHAT, **ASK))["choices"]

    assert asyncio.run(main()) == expected


def test_streams(llm):
    expected = [chunk["choices"] for chunk in llm("Once", stream=True, **ASK)]
    prompt = tokens(20)
    expected_tokens = greedy(llm, prompt, 6)

    async def main():
        model = AsyncLlama(llama=llm)
        chunks = [chunk["choices"] async for chunk in await model.create_completion("Once", stream=True, **ASK)]
        found = []
        async with contextlib.aclosing(model.generate(prompt, temp=0.0)) as answer:
            async for token in answer:
                found.append(token)
                if len(found) == 6:
                    break
        return chunks, found

    assert asyncio.run(main()) == (expected, expected_tokens)


def test_calls_wait_for_each_other_in_order(llm):
    alone = [llm(text, **ASK)["choices"] for text in ("One", "Two", "Three")]

    async def main():
        model = AsyncLlama(llama=llm)
        return await asyncio.gather(*(model(text, **ASK) for text in ("One", "Two", "Three")))

    assert [one["choices"] for one in asyncio.run(main())] == alone


@pytest.mark.timed
@pytest.mark.parametrize("stream", [False, True])
def test_a_cancelled_task_frees_the_model(llm, stream):
    expected = llm("Once", **ASK)["choices"]

    async def main():
        model = AsyncLlama(llama=llm)

        async def answer():
            found = await model("A long one", max_tokens=1900, temperature=0.9, stream=stream)
            if stream:
                async for _ in found:
                    pass

        task = asyncio.create_task(answer())
        while llm.timing.n_tokens < 3 or llm._current.answer is None:
            await asyncio.sleep(0.002)
        start = time.perf_counter()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return time.perf_counter() - start, await model("Once", **ASK)

    seconds, after = asyncio.run(main())
    assert seconds < 0.5
    assert after["choices"] == expected


def test_a_task_cancelled_amid_prefill(llm):
    long = tokens(2000, seed=5)
    start = time.perf_counter()
    greedy(llm, long, 1)
    whole = time.perf_counter() - start

    async def main():
        model = AsyncLlama(llama=llm)
        llm.reset()
        start = time.perf_counter()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(model(long, **ASK), timeout=whole / 4)
        return time.perf_counter() - start

    assert asyncio.run(main()) < whole * 0.8


@pytest.mark.parametrize("kind", ["answer", "idle pass"])
def test_ending_ones_own_work_ends_no_answer_of_another_thread(llm, monkeypatch, kind):
    expected, release = greedy(llm, tokens(20), 6), threading.Event()
    if kind == "answer":
        stop = AnswerThread(llm, lambda: [release.wait(10)], lambda item: None).stop
    else:
        monkeypatch.setattr(llm, "catch_up", lambda: release.wait(10))
        idle = IdleThread(llm)
        idle.begin()
        stop = idle.pause
    answer = llm.generate(tokens(20), temp=0.0, repeat_penalty=1.0)
    found = [next(answer)]
    stopping = threading.Thread(target=stop)
    stopping.start()
    time.sleep(0.05)
    found += [next(answer) for _ in range(5)]
    release.set()
    stopping.join()
    assert found == expected


def test_a_task_cancelled_at_its_end_is_cancelled(llm, monkeypatch):
    stop = AnswerThread.stop
    monkeypatch.setattr(AnswerThread, "stop", lambda self: (time.sleep(0.3), stop(self))[1])

    async def main():
        task = asyncio.create_task(AsyncLlama(llama=llm)("Once", **ASK))
        await asyncio.sleep(0.15)  # the answer is there, its thread is being ended
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def test_a_cancelled_embed_keeps_its_turn(routed, load):
    embedder = load(routed, embedding=True, n_ctx=2048, pooling_type=1)

    async def main():
        model = AsyncLlama(llama=embedder)
        task = asyncio.create_task(model.embed(["word " * 200] * 8))
        await asyncio.sleep(0.02)
        task.cancel()
        after = await model.embed("one")
        with pytest.raises(asyncio.CancelledError):
            await task
        return after

    assert len(asyncio.run(main())) == 128


def test_errors_come_through(llm):
    async def main():
        model = AsyncLlama(llama=llm)
        with pytest.raises(ValueError, match="exceed context window"):
            await model(tokens(4000), **ASK)
        return await model("Once", **ASK)

    assert asyncio.run(main())["choices"]


def test_it_loads_and_closes(routed):
    async def main():
        async with AsyncLlama(routed, skip=0.34, verbose=False) as model:
            found = await model("Once", **ASK)
        with pytest.raises(RuntimeError, match="closed"):
            await model("Once", **ASK)
        return found

    assert asyncio.run(main())["choices"]


@pytest.mark.timed
def test_it_catches_up_while_nothing_is_awaited(llm):
    """Never before that, and not unless asked to."""

    async def main():
        model = AsyncLlama(llama=llm, catch_up=True)
        first = asyncio.create_task(model("Once", **ASK))
        second = asyncio.create_task(model("Twice", **ASK))
        await first
        assert llm.fidelity is None
        await second
        deadline = time.monotonic() + 10
        while llm.fidelity is None or llm.fidelity.positions < 15:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        found = (await model("Once", **ASK))["choices"]
        await model.close()
        return found

    expected = llm("Once", **ASK)["choices"]
    assert asyncio.run(main()) == expected


def test_one_model_in_one_event_loop_after_another(llm):
    """With calls that wait for each other in both: asyncio's locks are of the loop in which they were waited for."""
    model = AsyncLlama(llama=llm)

    async def main():
        answers = await asyncio.gather(*(model.create_completion("Once", **ASK) for _ in range(3)))
        return [answer["choices"] for answer in answers]

    assert asyncio.run(main()) == asyncio.run(main())


def test_embeddings_are_awaited(tiny, load):
    llm = load(tiny, embedding=True, pooling_type=llama_cpp.LLAMA_POOLING_TYPE_MEAN)
    model = AsyncLlama(llama=llm)
    assert asyncio.run(model.create_embedding(["Once", "twice"])) == llm.create_embedding(["Once", "twice"])
