"""What is given to create_chat_completion and embed: other shapes are named, before a template stumbles over them."""

from __future__ import annotations

import pytest
from helpers import survives

from first_cpp import SettingError


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ("Hello", r"messages='Hello' is not a list"),
        (None, "messages=None is not a list"),
        ({"role": "user", "content": "x"}, "is not a list"),
        (["Hello"], "message 0 is 'Hello', not an object"),
        ([{"content": "x"}], "message 0 has the role None"),
        ([{"role": "user", "content": "x"}, {"role": "assistant", "content": 5}], "message 1 has content of type int"),
    ],
    ids=str,
)
def test_messages_of_another_shape(tiny, load, messages, said):
    llm = load(tiny, chat_format="chatml")
    with pytest.raises(SettingError, match=said):
        llm.create_chat_completion(messages)
    with pytest.raises(SettingError, match=said):
        llm.create_chat_completion(messages=messages)


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
