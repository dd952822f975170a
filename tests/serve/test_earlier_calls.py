"""Calls in the messages of a request, as the chat templates of different families take their arguments."""

from __future__ import annotations

import json

import pytest
from raw_gguf import with_metadata
from server import serving

from first_cpp.serve.prepare import prepare_chat
from first_cpp.serve.requests import ChatRequest, parse_request
from first_cpp.serve.served_model import ServedModel

ARGUMENTS = '{"city": "Łódź", "days": 2}'
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}
ASKED = [
    {"role": "user", "content": "Rain?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "no"},
]
TURN = "{% for m in messages %}{{ m.content }}|{% for c in m.tool_calls or [] %}"
END = "{% endfor %}{% endfor %}assistant:"
TEMPLATES = {  # how each writes the call
    "Qwen 2.5, Hermes": ('{"arguments": {{ c.function.arguments | tojson }}}', f'{{"arguments": {ARGUMENTS}}}'),
    "Mistral": ("{{ c.function | tojson }}", f'{{"name": "weather", "arguments": {ARGUMENTS}}}'),
    "GLM": ("{% for k, v in c.function.arguments.items() %}{{ k }}={{ v }};{% endfor %}", "city=Łódź;days=2;"),
    "DeepSeek": ("{{ 'json\\n' + c.function.arguments + '\\n' }}", f"json\n{ARGUMENTS}\n"),
    "Qwen 3": (
        "{% set a = c.function.arguments %}{% if a is string %}{{ a }}{% else %}{{ a | tojson }}{% endif %}",
        ARGUMENTS,
    ),
    "without arguments": ("{{ c.function.name }}", "weather"),
}


def prompt_of(llm, messages: list[dict]) -> str:
    served = ServedModel(llm, "tiny", None, 1.0, llm.n_ctx())
    job = prepare_chat(served, parse_request(ChatRequest, json.dumps({"messages": messages, "max_tokens": 1}).encode()))
    job.make()
    return llm.detokenize(llm.input_ids[: llm.n_tokens].tolist(), special=True).decode("utf-8", "replace").replace("▁", " ")


@pytest.mark.parametrize("family", TEMPLATES)
def test_a_call_is_written_as_its_template_was_made_for(tiny, models, load, family):
    written, expected = TEMPLATES[family]
    file = with_metadata(
        tiny, models / f"calls-{len(family)}-{len(written)}.gguf", tokenizer__chat_template=TURN + written + END
    )
    found = prompt_of(load(str(file), n_ctx=512), ASKED)
    assert f"|{expected}no|" in found


@pytest.mark.parametrize("arguments", ["", "not JSON", "[1]", "[" * 100_000])
def test_arguments_that_are_no_object_stay_text(tiny, models, load, arguments):
    call = {**CALL, "function": {"name": "weather", "arguments": arguments}}
    template = TURN + "{{ c.function.name }}{{ c.function.arguments | tojson | length }}" + END
    file = with_metadata(tiny, models / "calls-text.gguf", tokenizer__chat_template=template)
    assert f"weather{len(json.dumps(arguments))}no|" in prompt_of(
        load(str(file), n_ctx=512), [ASKED[0], {**ASKED[1], "tool_calls": [call]}, ASKED[2]]
    )


def test_over_http_the_answer_comes(tiny, models):
    file = with_metadata(tiny, models / "calls-http.gguf", tokenizer__chat_template=TURN + TEMPLATES["GLM"][0] + END)
    with serving(str(file), "-c", 512) as server:
        body = {"messages": ASKED, "max_tokens": 2, "temperature": 0}
        answer = server.http.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
