"""`skip=` of one call: what a model loaded with that setting does, and nothing of it afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import inspect

import llama_cpp
import pytest
from helpers import tokens
from routers_files import budget_routers, routed_model

from first_cpp import AnswerCancelled, AsyncLlama, SkipError

ASK = {"max_tokens": 12, "temperature": 0}
CHAT = [{"role": "user", "content": "Hello there"}]
SKIPS = [None, 0.34, [1, 4], "auto"]


@pytest.fixture(scope="module")
def routed(tiny, models):
    return routed_model(tiny, models, seed=61)


@pytest.fixture
def load_routed(routed, load):
    return lambda **settings: load(routed, chat_format="chatml", **settings)


def text_of(answer) -> str:
    return answer["choices"][0].get("text") or answer["choices"][0]["message"]["content"]


CALLS = {
    "completion": lambda llm, **skip: text_of(llm.create_completion("Once", **ASK, **skip)),
    "call": lambda llm, **skip: text_of(llm("Once", **ASK, **skip)),
    "stream": lambda llm, **skip: "".join(c["choices"][0]["text"] for c in llm("Once", stream=True, **ASK, **skip)),
    "chat": lambda llm, **skip: text_of(llm.create_chat_completion(CHAT, **ASK, **skip)),
    "chat stream": lambda llm, **skip: [
        c["choices"][0]["delta"] for c in llm.create_chat_completion(CHAT, stream=True, **ASK, **skip)
    ],
    "generate": lambda llm, **skip: [
        token for token, _ in zip(llm.generate(tokens(20), temp=0.0, **skip), range(8), strict=False)
    ],
}


@pytest.mark.parametrize("skip", SKIPS, ids=str)
@pytest.mark.parametrize("call", CALLS)
def test_a_call_is_that_of_a_model_loaded_so(load_routed, call, skip):
    other = load_routed(skip=skip)
    expected, routing = CALLS[call](other), other.routing
    llm = load_routed(skip=[5])
    before = CALLS[call](llm)
    assert CALLS[call](llm, skip=skip) == expected
    assert (llm.routing.skipped, llm.routing.keep) == (routing.skipped, routing.keep)
    assert llm.skip == (5,)
    assert CALLS[call](llm) == before
    assert llm.routing.skipped == (5,)


@pytest.mark.parametrize("ended", ["abandoned", "cancelled", "another prompt"])
def test_an_answer_that_is_left_leaves_nothing(load_routed, ended):
    llm = load_routed(skip=None)
    expected = text_of(llm("Once", **ASK))
    stream = llm.create_chat_completion(CHAT, stream=True, skip=0.5, **ASK)
    for _ in range(4):
        next(stream)
        assert llm.skip is None
    assert len(llm.routing.skipped) == 3
    if ended == "abandoned":
        stream.close()
    elif ended == "cancelled":
        llm.cancel()
        with pytest.raises(AnswerCancelled):
            list(stream)
    assert text_of(llm("Once", **ASK)) == expected
    assert llm.routing.skipped == ()


def test_two_turns_are_those_of_a_fresh_model(load_routed):
    """The second call reads again what the first one's setting left out."""
    llm = load_routed(skip="auto")
    first = llm.create_chat_completion(CHAT, skip=0.5, **ASK)["choices"][0]["message"]
    talk = [*CHAT, first, {"role": "user", "content": "And then?"}]
    second = text_of(llm.create_chat_completion(talk, skip=[2], **ASK))
    assert second == text_of(load_routed(skip=[2]).create_chat_completion(talk, **ASK))


@pytest.mark.parametrize("skip", [1.5, [99], "none", True])
def test_refused_before_anything_is_read(load_routed, skip):
    llm = load_routed()
    for call in (llm, llm.create_completion, llm.generate):
        for more in ({}, {"stream": True}) if call != llm.generate else ({},):
            with pytest.raises(SkipError, match="skip"):
                call([5, 6, 7], skip=skip, **more)
    with pytest.raises(SkipError):
        llm.create_chat_completion(CHAT, stream=True, skip=skip)
    assert llm.timing is None
    assert llm.routing is None
    assert llm.skip == "auto"


def test_beside_a_fidelity_that_is_held(tiny, load):
    """A call with a setting of its own is no answer of the dial's."""
    llm = load(tiny, routers=budget_routers(tiny), fidelity=0.9)
    dial = llm.held.dial
    llm("Once", skip=[2], **ASK)
    llm.catch_up()
    llm("Twice", skip=None, **ASK)
    assert llm.held.dial == dial
    assert "held" not in llm.routing.why
    llm("Thrice", **ASK)
    assert "held" in llm.routing.why


def test_what_help_shows(load_routed):
    llm = load_routed()
    for name in ("create_completion", "create_chat_completion", "__call__", "generate"):
        method, base = getattr(llm, name), getattr(llama_cpp.Llama, name)
        assert [*inspect.signature(method).parameters] == [*[*inspect.signature(base).parameters][1:], "skip"]
        assert "skip" in method.__doc__


# -- asyncio -------------------------------------------------------------------------------------------------------


def test_async_calls(load_routed):
    llm = load_routed(skip=None)
    expected = [CALLS[name](load_routed(skip=[1, 4])) for name in ("call", "chat stream", "generate")]

    async def main():
        model = AsyncLlama(llama=llm)
        assert (model.routing, model.timing, model.skip) == (None, None, None)
        text = text_of(await model("Once", skip=[1, 4], **ASK))
        stream = await model.create_chat_completion(CHAT, stream=True, skip=[1, 4], **ASK)
        deltas = [chunk["choices"][0]["delta"] async for chunk in stream]
        found = []
        async with contextlib.aclosing(model.generate(tokens(20), temp=0.0, skip=[1, 4])) as answer:
            async for token in answer:
                found.append(token)
                if len(found) == 8:
                    break
        assert model.routing.skipped == (1, 4)
        assert model.timing.n_tokens >= 8
        model.skip = [2]
        assert llm.skip == model.skip == (2,)
        return [text, deltas, found]

    assert asyncio.run(main()) == expected


def test_async_cancel(load_routed):
    async def main():
        model = AsyncLlama(llama=load_routed(skip=None, n_ctx=2048))
        stream = await model("Once", stream=True, max_tokens=1900, temperature=0.9, seed=0, logit_bias={2: -100}, skip=0.5)
        count = 0

        async def consume():
            nonlocal count
            async for _ in stream:
                count += 1
                if count == 3:
                    model.cancel()

        with pytest.raises(AnswerCancelled):
            await consume()
        await stream.aclose()
        return count, (await model("Once", **ASK))["usage"]["completion_tokens"]

    count, after = asyncio.run(main())
    assert 3 <= count < 1900
    assert after
