"""The plugin of the `llm` library, with a first_cpp object passed in and through its entry point."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from routers_files import routed_model

llm = pytest.importorskip("llm")
from first_cpp.llm_plugin import FirstCppModel  # noqa: E402


@pytest.fixture(scope="module")
def routed(tiny, models):
    return routed_model(tiny, models, seed=61)


def test_a_first_cpp_object_answers(routed, load):
    llama = load(routed, skip=0.34, chat_format="chatml")
    model = FirstCppModel("mine", llama)
    ask = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    expected = llama.create_chat_completion(ask, max_tokens=12, temperature=0, stream=True)
    expected_text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in expected)
    response = model.prompt("Hello", system="Be brief.", max_tokens=12, temperature=0)
    assert response.text() == expected_text
    assert len(response.response_json["skipped_layers"]) == 2
    assert response.response_json["ttft_ms"] > 0


def test_conversations_and_the_dial(routed, load):
    llama = load(routed, skip=0.34, chat_format="chatml", n_ctx=1024)
    conversation = FirstCppModel("mine", llama).conversation()
    first = conversation.prompt("Hello", max_tokens=8, temperature=0, skip="0.5").text()
    assert len(llama.routing.skipped) == 3
    second = conversation.prompt("And then?", max_tokens=8, temperature=0, skip="none")
    second.text()
    assert llama.routing.skipped == ()
    asked = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "And then?"},
    ]
    chunks = llama.create_chat_completion(asked, max_tokens=8, temperature=0, stream=True)
    assert second.text() == "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)


def test_a_prompts_own_skip_is_its_alone_and_the_system_message_stays(routed, load):
    llama = load(routed, skip=0.34, chat_format="chatml", n_ctx=1024)
    conversation = FirstCppModel("mine", llama).conversation()
    first = conversation.prompt("One", system="SYS", max_tokens=4, temperature=0, skip="0.5").text()
    second = conversation.prompt("Two", max_tokens=4, temperature=0)
    text = second.text()
    assert len(llama.routing.skipped) == 2
    messages = [
        {"role": "system", "content": "SYS"},
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "Two"},
    ]
    chunks = llama.create_chat_completion(messages, max_tokens=4, temperature=0, stream=True)
    assert text == "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)


@pytest.mark.slow
def test_the_command_finds_it(routed, tmp_path):
    environment = {**os.environ, "FIRST_CPP_MODEL": routed, "LLM_USER_PATH": str(tmp_path)}
    command = [
        sys.executable,
        "-m",
        "llm",
        "-m",
        "first-cpp",
        "Hello",
        "-o",
        "max_tokens",
        "4",
        "-o",
        "skip",
        "1,2",
        "--no-log",
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    listed = subprocess.run(
        [sys.executable, "-m", "llm", "models"], env=environment, capture_output=True, text=True, check=True
    )
    assert "first-cpp" in listed.stdout
