"""What is given to create_chat_completion and embed: other shapes are named, before a template stumbles over them."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import survives

from first_cpp import SettingError

USER = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ("Hello", r"messages='Hello' is not a list"),
        (None, "messages=None is not a list"),
        ({"role": "user", "content": "x"}, "is not a list"),
        (["Hello"], "message 0 is 'Hello', not an object"),
        ([{"content": "x"}], "message 0 has the role None"),
        ([{"role": "user", "content": "x"}, {"role": "assistant", "content": 5}], "message 1 has content of type int"),
        ([{"role": "user"}], r"message 0 \('user'\) has no content"),
        ([{"role": "user", "content": [5]}], "message 0 has the content part 5"),
        ([{"role": "user", "content": [{"text": "x"}]}], "message 0 has the content part"),
    ],
    ids=str,
)
def test_messages_of_another_shape(tiny, load, messages, said):
    llm = load(tiny, chat_format="chatml")
    with pytest.raises(SettingError, match=said):
        llm.create_chat_completion(messages)
    with pytest.raises(SettingError, match=said):
        llm.create_chat_completion(messages=messages)


WRONG = [
    ("temperature", "hot", "temperature='hot' is not a number"),
    ("temperature", None, "temperature=None is not a number"),
    ("top_k", "x", "top_k='x' is not a number"),
    ("top_p", [1], r"top_p=\[1\] is not a number"),
    ("seed", "x", "seed='x' is not a number"),
    ("repeat_penalty", None, "repeat_penalty=None is not a number"),
    ("max_tokens", "x", "max_tokens='x' is not a number of tokens"),
    ("stop", 5, "stop=5 is not a text"),
    ("stop", [5], r"stop=\[5\] is not a text"),
    ("stop", b"x", "stop=b'x' is not a text"),
    ("logit_bias", [1], "is not a bias by token"),
    ("logit_bias", {"x": 1}, "logit_bias: 'x' is not a token of this model: 0 to 319"),
    ("logit_bias", {999999: 1}, "logit_bias: 999999 is not a token"),
    ("logit_bias", {-5: 1.0}, "logit_bias: -5 is not a token"),
    ("logit_bias", {5: "x"}, "logit_bias: 'x' is not a number"),
    ("grammar", "root ::= [a]", "is not a LlamaGrammar; LlamaGrammar.from_string"),
    ("logits_processor", 5, "logits_processor=5 is not a list of functions"),
    ("logits_processor", [5], "is not a list of functions"),
]


@pytest.mark.parametrize(("name", "value", "said"), WRONG)
def test_arguments_of_another_type(tiny, load, name, value, said):
    llm = load(tiny, chat_format="chatml")
    for create in (lambda **more: llm.create_completion("Hi", **more), lambda **more: llm.create_chat_completion(USER, **more)):
        with pytest.raises(SettingError, match=said):
            create(max_tokens=2, **{name: value}) if name != "max_tokens" else create(max_tokens=value)
    assert llm.create_completion("Hi", max_tokens=2)["choices"]


@pytest.mark.parametrize("prompt", [5, None, b"Hi", ["a"], [1.5], {"a": 1}], ids=repr)
def test_a_prompt_of_another_type(tiny, load, prompt):
    with pytest.raises(SettingError, match=r"prompt=.* is not a text, or a list of tokens"):
        load(tiny).create_completion(prompt)


@pytest.mark.parametrize("tools", ["x", 5, [5]], ids=repr)
def test_tools_of_another_type(tiny, load, tools):
    with pytest.raises(SettingError, match="is not a list of objects"):
        load(tiny, chat_format="chatml").create_chat_completion(USER, tools=tools)


def test_arguments_as_callers_give_them(tiny, load):
    """numpy's numbers and arrays, tuples, and JSON's keys."""
    llm = load(tiny, chat_format="chatml")
    more = {
        "temperature": np.float32(0.5),
        "top_k": np.int64(4),
        "max_tokens": np.int32(2),
        "logit_bias": {"5": 1, 6: np.float64(2)},
    }
    assert llm.create_completion(np.array([5, 6, 7]).tolist(), stop=("x", "y"), **more)["choices"]
    assert llm.create_chat_completion(USER, stop=["x"], **more)["choices"]


def test_messages_that_are_fine(tiny, load):
    llm = load(tiny, chat_format="chatml")
    for content in ("x", None):
        assert llm.create_chat_completion([{"role": "user", "content": content}], max_tokens=2)["choices"]


@pytest.mark.parametrize("given", ["", [], ["a", ""]], ids=repr)
def test_empty_texts_are_not_embedded(tiny, given):
    """In a process of its own: stock llama_cpp breaks the heap, and dies later."""
    done = survives(f"""
        from first_cpp import Llama, SettingError
        llm = Llama({tiny!r}, embedding=True, pooling_type=1, n_ctx=256, verbose=False)
        try:
            llm.embed({given!r})
        except SettingError as error:
            print(error)
        assert len(llm.embed("one")) == 128
        llm.close()
    """)
    assert "empty" in done.stdout
    assert done.returncode == 0
