"""/v1/responses with the real openai client, and reasoning apart from the answer; a grammar says what the model writes."""

from __future__ import annotations

import json

import openai
import pydantic
import pytest
from openai.types.responses.response_create_params import ResponseCreateParamsBase
from raw_gguf import with_metadata
from routers_files import routed_model
from server import NO_END, error_of, serving

from first_cpp.serve.reasoning import ReasoningReader, Thinking
from first_cpp.serve.requests import FIELDS_OF_CALLERS, ONLY_DEFAULTS, REFUSED
from first_cpp.serve.response_events import ResponseEvents, response_skeleton
from first_cpp.serve.responses import ResponseRequest

TEMPLATE = """{% for tool in tools or [] %}[{{ tool['function']['name'] }}]{% endfor %}{% for m in messages %}{{ m['role'] }}:
{% if m['reasoning_content'] %}<think>{{ m['reasoning_content'] }}</think>{% endif %}{{ m['content'] }}
{% for c in m['tool_calls'] or [] %}<tool_call>{{ c['function']['name'] }}</tool_call>{% endfor %}{% endfor %}assistant:"""
SCHEMA = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
TOOL = {"type": "function", "name": "count", "description": "Counts", "parameters": SCHEMA, "strict": True}
CALL = {"name": "count", "arguments": {"n": 1}}


@pytest.fixture(scope="module")
def server(tiny, models):
    file = with_metadata(routed_model(tiny, models, seed=501), models / "thinks.gguf", tokenizer__chat_template=TEMPLATE)
    with serving(str(file), "--alias", "tiny", "-c", 1024) as started:
        yield started


@pytest.fixture(scope="module")
def client(server):
    return server.client()


def ask(client, **more):
    return client.responses.create(**{"model": "tiny", "input": "Hello", "max_output_tokens": 120, "temperature": 0, **more})


def writing(text: str) -> dict:
    """Fields of a request whose answer is this text."""
    return {"extra_body": {"grammar": f"root ::= {json.dumps(text)}"}}


# -- text ----------------------------------------------------------------------------------------------------------------


def test_a_response_says_what_the_chat_says(client):
    more = {"temperature": 0, "extra_body": {"logit_bias": NO_END, "skip": [2]}}
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    chat = client.chat.completions.create(model="tiny", messages=messages, max_tokens=9, **more)
    found = ask(client, instructions="Be brief.", max_output_tokens=9, **more)
    assert found.output_text == chat.choices[0].message.content != ""
    assert (found.usage.input_tokens, found.usage.output_tokens) == (chat.usage.prompt_tokens, chat.usage.completion_tokens)
    assert (found.status, found.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert found.model_extra["first_cpp"]["skipped_layers"] == [2]
    assert (found.instructions, found.max_output_tokens, found.model) == ("Be brief.", 9, "tiny")
    items = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "Hello"}]},
    ]
    assert ask(client, input=items, max_output_tokens=9, **more).output_text == found.output_text


@pytest.mark.parametrize("text", ["Four.", "<think>\nTwo and two.\n</think>\n\nFour.", "<think>Never done"])
def test_a_stream_adds_up_to_the_response(client, text):
    whole = ask(client, **writing(text))
    with client.responses.stream(model="tiny", input="Hello", max_output_tokens=120, temperature=0, **writing(text)) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert list(map(shown, final.output)) == list(map(shown, whole.output))
    assert final.usage == whole.usage
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:3] == ["response.created", "response.in_progress", "response.output_item.added"]
    assert kinds[-2:] == ["response.output_item.done", "response.completed"]
    said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    thought = "".join(event.delta for event in events if event.type == "response.reasoning_text.delta")
    assert (thought, said) == split(text)
    assert final.output_text == said
    assert final.model_extra["first_cpp"]["tokens"] > 0


def shown(item) -> dict:
    """An item without its id, and without what the client adds."""
    found = item.to_dict() | {"id": 0}
    return found | {"content": [{name: part[name] for name in ("type", "text")} for part in found["content"]]}


def split(text: str) -> tuple[str, str]:
    thought, _, said = text.removeprefix("<think>").partition("</think>") if "<think>" in text else ("", "", text)
    return thought.strip(), said.strip()


def test_a_stream_that_is_cut_off_is_incomplete(client):
    *_, last = ask(client, stream=True, max_output_tokens=5, extra_body={"logit_bias": NO_END})
    assert last.type == "response.incomplete"
    assert last.response.output[0].status == "incomplete"
    assert last.response.usage.output_tokens == 5


def test_events_have_names_and_no_mark_of_the_end(server):
    body = {"input": "Hello", "max_output_tokens": 3, "stream": True}
    with server.http.stream("POST", "/v1/responses", json=body) as stream:
        lines = [line for line in stream.iter_lines() if line]
    names = [line.removeprefix("event: ") for line in lines[::2]]
    assert [json.loads(line.removeprefix("data: "))["type"] for line in lines[1::2]] == names
    assert names[0] == "response.created"
    assert "[DONE]" not in lines[-1]


# -- calls and formats ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "count"}], ids=["required", "named"])
def test_a_forced_call(client, choice, stream):
    found = last_of(ask(client, tools=[TOOL], tool_choice=choice, stream=stream), stream)
    (call,) = found.output
    assert (call.type, call.name, call.status) == ("function_call", "count", "completed")
    assert json.loads(call.arguments)["n"] in (1, 2)
    assert found.status == "completed"


def last_of(response, stream: bool):
    if not stream:
        return response
    *_, last = response
    return last.response


@pytest.mark.parametrize("stream", [False, True])
def test_calls_amid_text_and_reasoning(client, stream):
    call = f"<tool_call>{json.dumps(CALL)}</tool_call>"
    text = f"<think>Count.</think>Let me see. {call}\n{call}"
    found = last_of(ask(client, tools=[TOOL], stream=stream, max_output_tokens=300, **writing(text)), stream)
    assert [item.type for item in found.output][:4] == ["reasoning", "message", "function_call", "function_call"]
    assert found.output[0].content[0].text == "Count."
    assert found.output_text.strip() == "Let me see."
    calls = [item for item in found.output if item.type == "function_call"]
    assert [(one.name, json.loads(one.arguments)) for one in calls] == [("count", {"n": 1})] * 2
    assert len({one.call_id for one in calls}) == 2
    assert found.usage.output_tokens_details.reasoning_tokens > 0


def test_a_conversation_goes_on_with_what_was_answered(client, server):
    """Items of an answer can be sent back: the template sees what a chat's messages would show it."""
    text = f"<think>Count.</think>Yes. <tool_call>{json.dumps(CALL)}</tool_call>"
    first = ask(client, tools=[TOOL], max_output_tokens=300, **writing(text))
    call = first.output[-1]
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "1"}
    items = [{"role": "user", "content": "Hello"}, *[item.to_dict() for item in first.output], result]
    ours = ask(client, input=items, tools=[TOOL], max_output_tokens=4)
    calls = [{"id": call.call_id, "type": "function", "function": {"name": "count", "arguments": call.arguments}}]
    answered = {"role": "assistant", "content": "Yes.", "reasoning_content": "Count.", "tool_calls": calls}
    told = {"role": "tool", "tool_call_id": call.call_id, "content": "1"}
    tools = [{"type": "function", "function": {name: value for name, value in TOOL.items() if name != "type"}}]
    chat = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "Hello"}, answered, told], tools=tools, max_tokens=4, temperature=0
    )
    assert ours.usage.input_tokens == chat.usage.prompt_tokens


def test_a_format_is_held(client):
    class Found(pydantic.BaseModel):
        n: bool

    parsed = client.responses.parse(model="tiny", input="Hello", temperature=0, max_output_tokens=60, text_format=Found)
    assert parsed.output_parsed.n in (True, False)
    plain = ask(client, text={"format": {"type": "json_object"}}, max_output_tokens=200)
    assert plain.output_text.startswith("{")


# -- refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("previous_response_id", "resp_1"),
        ("conversation", "conv_1"),
        ("store", True),
        ("background", True),
        ("include", ["reasoning.encrypted_content"]),
        ("reasoning", {"effort": "high"}),
        ("truncation", "auto"),
        ("max_tool_calls", 3),
        ("prompt", {"id": "p"}),
        ("top_logprobs", 3),
        ("tools", [{"type": "web_search"}]),
        ("tool_choice", {"type": "function", "name": "gone"}),
        ("text", {"verbosity": "high"}),
        ("text", {"colour": "red"}),
        ("input", [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]),
        ("input", [{"type": "item_reference", "id": "x"}]),
        ("input", [{"type": "reasoning", "encrypted_content": "x", "summary": []}]),
        ("input", []),
        ("input", [3]),
        ("max_output_tokens", 0),
        ("stream_options", {"include_obfuscation": True}),
        ("max_tokens", 3),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(server, field, value):
    body = {"input": "Hello", field: value} | ({"stream": True} if field == "stream_options" else {})
    response = server.http.post("/v1/responses", json=body)
    assert response.status_code == 400, response.text
    assert error_of(response)["param"] == field


def test_a_kept_response_is_refused_with_what_to_do(client):
    with pytest.raises(openai.BadRequestError, match="keeps no responses: send the conversation as input"):
        ask(client, previous_response_id="resp_1")
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve("resp_1")


def test_every_field_of_the_client_is_known():
    known = {*FIELDS_OF_CALLERS, *ONLY_DEFAULTS, *REFUSED, *ResponseRequest.only_defaults, *ResponseRequest.refused}
    newest = {"access_programs", "background_options", "image"}  # unknown here: refused by name
    assert set(ResponseCreateParamsBase.__annotations__) - newest <= known | set(ResponseRequest.model_fields)


# -- an editor's agent ---------------------------------------------------------------------------------------------------


def streamed(server, body: dict) -> tuple[str, list[dict], str, dict]:
    """The text of a chat's stream, its calls put together as clients do it, why it ended, and the usage."""
    said, calls, reason, usage = "", {}, None, None
    with server.http.stream("POST", "/v1/chat/completions", json=body) as stream:
        data = [line.removeprefix("data: ") for line in stream.iter_lines() if line]
    assert data.pop() == "[DONE]"
    for chunk in map(json.loads, data):
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            reason = choice["finish_reason"] or reason
            said += choice["delta"].get("content") or ""
            for part in choice["delta"].get("tool_calls", ()):
                call = calls.setdefault(part["index"], {"id": part.get("id"), "name": "", "arguments": ""})
                for name in ("name", "arguments"):
                    call[name] += part["function"].get(name) or ""
    return said, [calls[index] for index in sorted(calls)], reason, usage


def test_an_editors_agent_calls_a_tool_and_goes_on(server):
    """The requests of Zed's agent, as its crates/open_ai writes them; Cline sends the like by the JavaScript client."""
    described = {name: TOOL[name] for name in ("name", "description", "parameters")}
    asked = {
        "model": "tiny",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Count"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_completion_tokens": 200,
        "temperature": 0,
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "tools": [{"type": "function", "function": described}],
        "prompt_cache_key": "thread-17",
    }
    text = f"Let me see. <tool_call>{json.dumps(CALL)}</tool_call>"
    said, (call,), reason, before = streamed(server, asked | writing(text)["extra_body"])
    assert (said.strip(), call["name"], json.loads(call["arguments"]), reason) == (
        "Let me see.",
        "count",
        {"n": 1},
        "tool_calls",
    )
    function = {"name": call["name"], "arguments": call["arguments"]}
    asked["messages"] += [
        {"role": "assistant", "content": None, "tool_calls": [{"id": call["id"], "type": "function", "function": function}]},
        {"role": "tool", "content": [{"type": "text", "text": "1"}], "tool_call_id": call["id"]},
    ]
    said, calls, reason, after = streamed(server, asked | {"max_completion_tokens": 6, "logit_bias": NO_END})
    assert (calls, reason) == ([], "length")
    assert said
    assert after["prompt_tokens"] > before["prompt_tokens"]


# -- reasoning in chats --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_has_reasoning_in_a_field_of_its_own(client, stream):
    text = "<think>\nTwo and two.\n</think>\n\nFour."
    given = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 120, "stream": stream}
    answer = client.chat.completions.create(**given, **writing(text))
    if stream:
        deltas = [chunk.choices[0].delta for chunk in answer]
        thought = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
        said = "".join(delta.content or "" for delta in deltas)
        assert sum(bool(getattr(delta, "reasoning_content", None)) for delta in deltas) > 3  # as it comes
    else:
        message = answer.choices[0].message
        thought, said = message.reasoning_content, message.content
    assert (thought, said) == ("Two and two.", "Four.")


def test_json_is_an_answer_and_not_reasoning(client):
    given = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 60, "temperature": 0}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    message = client.chat.completions.create(**given, response_format=form).choices[0].message
    assert json.loads(message.content)["n"] in (1, 2)
    assert not hasattr(message, "reasoning_content")


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("<think>a</think>b", ("a", "b")),
        ("<think>\n a <b> </c>\n</think>\n\n b </think> ", ("a <b> </c>", "b </think> ")),
        ("<think></think>b", ("", "b")),
        ("<think>a", ("a", "")),
        ("<think>a</thi", ("a</thi", "")),
    ],
)
@pytest.mark.parametrize("step", [1, 2, 5, 100])
def test_reasoning_in_pieces(text, parts, inside, step):
    reader = ReasoningReader(Thinking("<think>", "</think>", inside))
    text = text.removeprefix("<think>") if inside else text
    found = [part for i in range(0, len(text), step) for part in reader.feed(text[i : i + step])] + reader.finish()
    assert tuple("".join(t for kind, t in found if kind == of) for of in ("reasoning_content", "content")) == parts


@pytest.mark.parametrize("text", ["Four.", " Four <think>", "<thin", "\n\nFour"])
@pytest.mark.parametrize("step", [1, 3, 100])
def test_an_answer_without_reasoning_stays_as_it_is(text, step):
    reader = ReasoningReader(Thinking("<think>", "</think>"))
    found = [part for i in range(0, len(text), step) for part in reader.feed(text[i : i + step])] + reader.finish()
    assert {kind for kind, _ in found} == {"content"}
    assert "".join(part for _, part in found) == text


def test_an_empty_answer_is_an_empty_message():
    made = ResponseEvents(response_skeleton("tiny", {}), len)
    message = {"role": "assistant", "content": ""}
    answer = {"choices": [{"message": message, "finish_reason": "stop"}],
              "usage": {"prompt_tokens": 3, "completion_tokens": 0, "total_tokens": 3}}  # fmt: skip
    response = made.whole(answer)
    assert [item["type"] for item in response["output"]] == ["message"]
    assert response["status"] == "completed"
