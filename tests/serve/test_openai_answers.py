"""What answers hold for OpenAI clients beside their text: calls of tools, and logprobs."""

from __future__ import annotations

import json

import numpy as np
import pytest
from protocol import TEXT, ask, refusal
from server import NO_END

# -- tools -------------------------------------------------------------------------------------------------------------

SCHEMA = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}


def tool(name):
    return {"type": "function", "function": {"name": name, "description": "Counts", "parameters": SCHEMA}}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("names", "choice"),
    [
        (["one"], "required"),
        (["one", "two"], "required"),
        (["one", "two"], {"type": "function", "function": {"name": "two"}}),
        (
            ["one", "two"],
            {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [tool("two")]}},
        ),
    ],
    ids=["one", "any", "named", "allowed"],
)
def test_a_forced_call_is_a_call(client, names, choice, stream):
    answer = ask(client, tools=[tool(name) for name in names], tool_choice=choice, max_tokens=200, stream=stream)
    if stream:
        chunks = list(answer)
        call, *more = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
        assert {one.index for one in (call, *more)} == {0}
        call.function.arguments += "".join(one.function.arguments for one in more)
        reason = chunks[-1].choices[0].finish_reason
        assert not "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    else:
        (call,) = answer.choices[0].message.tool_calls
        reason = answer.choices[0].finish_reason
        assert answer.choices[0].message.content is None
    assert call.function.name in (["two"] if isinstance(choice, dict) else names)
    assert json.loads(call.function.arguments)["n"] in (1, 2)
    assert call.id
    assert reason == "tool_calls"


def test_older_functions_are_tools(client):
    answer = ask(client, functions=[tool("one")["function"]], function_call={"name": "one"}, max_tokens=60)
    assert answer.choices[0].message.tool_calls[0].function.name == "one"


def test_a_template_without_a_place_for_tools_refuses_them(protocol_server):
    error = refusal(protocol_server, tools=[tool("one")])
    assert error["param"] == "tools"
    assert "no place for tools" in error["message"]


def test_a_tool_that_is_not_there(protocol_server):
    choice = {"type": "function", "function": {"name": "three"}}
    assert refusal(protocol_server, tools=[tool("one")], tool_choice=choice)["param"] == "tool_choice"


@pytest.mark.parametrize(
    ("text", "content", "found"),
    [
        ('<tool_call>\n{"name": "one", "arguments": {"n": 1}}\n</tool_call>', "", [("one", '{"n": 1}')]),
        ('Yes. <tool_call>{"name": "one", "arguments": {}}</tool_call>', "Yes.", [("one", "{}")]),
        ('{"name": "two", "parameters": {"n": 2}}', "", [("two", '{"n": 2}')]),
        ('{"name": "three", "arguments": {}}', '{"name": "three", "arguments": {}}', []),
        ("<tool_call>{broken</tool_call>", "<tool_call>{broken</tool_call>", []),
        ("Just text.", "Just text.", []),
        ("one {of} us", "one {of} us", []),
        ("[1] says so.", "[1] says so.", []),
        ("<tool", "<tool", []),
        ('<tool_call>{"name": "one", "arguments": {}}', "", [("one", "{}")]),  # its end was a control token
        (
            '<tool_call>{"name": "one", "arguments": {}}</tool_call>\n<tool_call>{"name": "two", "arguments": {}}</tool_call>',
            "",
            [("one", "{}"), ("two", "{}")],
        ),
        (
            '<|python_tag|>{"name": "one", "parameters": {"n": 1}}; {"name": "two", "parameters": {}}',
            "",
            [("one", '{"n": 1}'), ("two", "{}")],
        ),
        (
            '{"name": "one", "parameters": {"n": 1}}; {"name": "two", "parameters": {}}',
            "",
            [("one", '{"n": 1}'), ("two", "{}")],
        ),
        (
            '[TOOL_CALLS] [{"name": "one", "arguments": {"n": 1}}, {"name": "two", "arguments": {}}]',
            "",
            [("one", '{"n": 1}'), ("two", "{}")],
        ),
        ('[{"name": "one", "arguments": {"n": 1}}]', "", [("one", '{"n": 1}')]),
        ('Yes.[TOOL_CALLS]one[ARGS]{"n": 1}[TOOL_CALLS]two[CALL_ID]abc[ARGS]{}', "Yes.", [("one", '{"n": 1}'), ("two", "{}")]),
        ('one{"n": 1}', "", [("one", '{"n": 1}')]),
        ('[TOOL_CALLS]three[ARGS]{"n": 1}', '[TOOL_CALLS]three[ARGS]{"n": 1}', []),
    ],
)
def test_calls_are_found_in_what_a_model_wrote(text, content, found):
    from first_cpp.serve.tool_calls import found_calls, stream_with_calls

    names = ["one", "two"]
    said, calls = found_calls(text, names, False)
    assert (said, [(call.name, call.arguments) for call in calls]) == (content, found)
    deltas = [{"role": "assistant"}, *({"content": text[i : i + 3]} for i in range(0, len(text), 3)), {}]
    chunks = [{"choices": [{"delta": delta, "finish_reason": None}]} for delta in deltas]
    chunks[-1]["choices"][0]["finish_reason"] = "stop"
    sent = [chunk["choices"][0] for chunk in stream_with_calls(iter(chunks), names, False) if chunk]
    assert "".join(one["delta"].get("content") or "" for one in sent).strip() == content
    assert [c["function"]["name"] for one in sent for c in one["delta"].get("tool_calls", ())] == [name for name, _ in found]
    assert sent[-1]["finish_reason"] == ("tool_calls" if found else "stop")


@pytest.mark.parametrize(
    "text", ["{no call}", '<tool_call>{"name": "one", "arguments": {}}</tool_call>', "<think>a</think>{b}", "<tool"]
)
def test_the_logprobs_of_text_that_is_held_back_are_sent_once(text):
    from first_cpp.serve.reasoning import Thinking, stream_with_reasoning
    from first_cpp.serve.tool_calls import stream_with_calls

    chunks = [
        {"choices": [{"delta": {"content": a}, "logprobs": {"content": [{"token": a}]}, "finish_reason": None}]} for a in text
    ]
    chunks.append({"choices": [{"delta": {}, "logprobs": None, "finish_reason": "stop"}]})
    parted = stream_with_reasoning(iter(chunks), Thinking("<think>", "</think>"))
    sent = [chunk["choices"][0]["logprobs"] for chunk in stream_with_calls(parted, ["one"], False) if chunk]
    assert "".join(one["token"] for logprobs in sent if logprobs for one in logprobs["content"]) == text


# -- logprobs and echo -------------------------------------------------------------------------------------------------


def truth(load, protocol_model, tokens: list[int]) -> list[float]:
    """The logprob of each token after the first, from a dense model that reads them alone."""
    llm = load(protocol_model, n_ctx=1024, logits_all=True, skip=None)
    llm.eval(tokens)
    logits = np.asarray(llm.scores[: len(tokens) - 1], np.float64)
    logits -= logits.max(1, keepdims=True)
    logprobs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return [float(logprobs[i, token]) for i, token in enumerate(tokens[1:])]


PROMPT_TOKENS = [1, 40, 77, 101, 3, 200]


def test_echoed_logprobs_are_those_of_the_prompts_tokens(client, load, protocol_model):
    """As lm-evaluation-harness asks for them."""
    answer = client.completions.create(
        model="tiny", prompt=PROMPT_TOKENS, max_tokens=1, temperature=0, logprobs=1, echo=True, logit_bias=NO_END
    ).choices[0]
    assert answer.logprobs.token_logprobs[0] is None
    assert answer.logprobs.token_logprobs[1 : len(PROMPT_TOKENS)] == pytest.approx(
        truth(load, protocol_model, PROMPT_TOKENS), abs=2e-3
    )
    assert len(answer.logprobs.tokens) == len(answer.logprobs.top_logprobs) == len(answer.logprobs.text_offset)
    for logprob, top in list(zip(answer.logprobs.token_logprobs, answer.logprobs.top_logprobs, strict=True))[1:]:
        assert max(top.values()) >= logprob


@pytest.mark.parametrize("prompt", ["Once upon", [1, 40, 77]])
def test_max_tokens_0_only_reads_the_prompt(client, prompt):
    given = {"model": "tiny", "prompt": prompt, "max_tokens": 0, "temperature": 0}
    answer = client.completions.create(**given, echo=True, logprobs=0)
    if isinstance(prompt, str):
        assert answer.choices[0].text == prompt
        assert answer.choices[0].logprobs.text_offset[0] == 0
    assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", 0)
    assert client.completions.create(**given).choices[0].text == ""
    chunks = list(client.completions.create(**given, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == ""


def test_echo_in_a_stream(client):
    given = {"model": "tiny", "prompt": "Once", "max_tokens": 5, "temperature": 0, "logit_bias": NO_END, "echo": True}
    whole = client.completions.create(**given).choices[0].text
    assert whole.startswith("Once")
    assert "".join(chunk.choices[0].text for chunk in client.completions.create(**given, stream=True)) == whole


def test_logprobs_without_echo_are_the_answers(client, load, protocol_model):
    given = {"model": "tiny", "prompt": PROMPT_TOKENS, "max_tokens": 4, "temperature": 0, "logit_bias": NO_END}
    found = client.completions.create(**given, logprobs=3, extra_body={"skip": None}).choices[0].logprobs
    assert len(found.token_logprobs) == 4
    assert all(1 <= len(top) <= 4 for top in found.top_logprobs)
    llm = load(protocol_model, n_ctx=1024, logits_all=True, skip=None)
    llm.create_completion(PROMPT_TOKENS, max_tokens=4, temperature=0, logit_bias={int(k): v for k, v in NO_END.items()})
    made = llm.input_ids[: llm.n_tokens].tolist()
    expected = truth(load, protocol_model, made)[len(PROMPT_TOKENS) - 1 :]
    assert found.token_logprobs[: len(expected)] == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("echo", [False, True])
def test_logprobs_end_where_a_stop_ended_the_text(client, echo):
    given = {"model": "tiny", "prompt": "Hello", "max_tokens": 20, "temperature": 0, "logit_bias": NO_END, "echo": echo}
    text = client.completions.create(**given).choices[0].text
    stop = text[-8:-4]
    found = client.completions.create(**given, stop=stop, logprobs=1).choices[0]
    assert found.text == text[: text.index(stop)]
    assert "".join(found.logprobs.tokens).lstrip("▁ ") == found.text
    assert len(found.logprobs.token_logprobs) == len(found.logprobs.text_offset) == len(found.logprobs.tokens)


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_of_a_chat_end_where_a_stop_ended_the_text(client, stream):
    more = {"max_tokens": 20, "logit_bias": NO_END}
    text = ask(client, **more).choices[0].message.content
    answer = ask(client, **more, stop=text[8:11], logprobs=True, stream=stream)
    choices = [chunk.choices[0] for chunk in answer] if stream else answer.choices
    tokens = [one.token for choice in choices if choice.logprobs for one in choice.logprobs.content]
    assert "".join(tokens) == text[: text.index(text[8:11])]


@pytest.mark.parametrize("prompt", [["a", "b"], [[1], [2]], [1, "a"], [1.5], [True], [-1], [320], 5, [[]], []], ids=str)
def test_prompts_that_are_refused(protocol_server, prompt):
    assert refusal(protocol_server, TEXT, prompt=prompt)["param"] == "prompt"
