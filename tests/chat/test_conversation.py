"""A conversation: whose turn it is, and files of it."""

from __future__ import annotations

import os

import pytest

from first_cpp.chat.conversation import Conversation
from first_cpp.errors import OptionError


def test_system_message_stands_first():
    talk = Conversation()
    talk.ask("a")
    talk.system = "s"
    assert [m["role"] for m in talk.messages] == ["system", "user"]
    talk.system = None
    assert [m["role"] for m in talk.messages] == ["user"]


def test_last_question():
    talk = Conversation("s")
    assert talk.last_question() == []
    talk.ask("a")
    talk.answer("b")
    assert [m["content"] for m in talk.last_question()] == ["s", "a"]
    talk.take_back()  # the last is an answer: nothing to take back
    assert len(talk.messages) == 3


def test_saving_where_one_cannot_write_loses_nothing(tmp_path):
    path = tmp_path / "talk.json"
    talk = Conversation("s")
    talk.save(str(path))
    with pytest.raises(OSError, match="nowhere"):
        talk.save(str(tmp_path / "nowhere" / "talk.json"))
    talk.messages.append({"role": "user", "content": {1, 2}})  # JSON cannot hold a set
    with pytest.raises(TypeError):
        talk.save(str(path))
    again = Conversation()
    again.load(str(path))
    assert again.system == "s"
    assert os.listdir(tmp_path) == ["talk.json"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"messages": 3}', '{"messages": [{"role": "user"}]}', '{"messages": [3]}'])
def test_files_that_are_no_conversation(tmp_path, text):
    path = tmp_path / "talk.json"
    path.write_text(text)
    with pytest.raises(OptionError, match="is not a saved conversation"):
        Conversation().load(str(path))
