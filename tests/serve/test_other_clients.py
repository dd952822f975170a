"""Clients that programs are built on, as registries have them today: JavaScript, LangChain, LlamaIndex, llm, Open WebUI."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent


@pytest.fixture
def server(embedding_server):
    return embedding_server


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """A folder with the openai client of the npm registry."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("needs node and npm")
    folder = tmp_path_factory.mktemp("node")
    shutil.copy(HERE / "clients.mjs", folder)
    done = subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund", "openai"], cwd=folder, check=False)
    if done.returncode:
        pytest.skip("the npm registry cannot be reached")
    return folder


@pytest.mark.slow
def test_the_javascript_client(server, node):
    command = ["node", "clients.mjs", f"{server.url}/v1", "tiny"]
    done = subprocess.run(command, cwd=node, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["models"] == ["tiny"]
    assert found["record"] > 5
    assert found["usage"]["prompt_tokens"] > 0
    assert found["streamed"].encode("ascii", "ignore") == found["text"].encode("ascii", "ignore")
    assert found["second"] == "chat.completion"
    assert found["call"]["n"] in (1, 2)
    assert found["response"].encode("ascii", "ignore") == found["text"].encode("ascii", "ignore")
    assert found["events"][0] == "response.created"
    assert found["events"][-1] in ("response.completed", "response.incomplete")
    assert found["responseCall"]["n"] in (1, 2)
    assert found["completion"] in ("length", "stop")
    assert found["embedding"] == 128
    assert found["error"] == [400, "n", True]


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """A folder with the clients of LangChain and LlamaIndex."""
    folder = tmp_path_factory.mktemp("packages")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q", "--target", str(folder)]
    done = subprocess.run([*pip, "langchain-openai", "llama-index-llms-openai-like"], check=False, capture_output=True)
    if done.returncode:
        pytest.skip("the package index cannot be reached")
    return folder


LANGCHAIN = """
import sys
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.tools import tool

url = sys.argv[1]
chat = ChatOpenAI(model="tiny", base_url=url, api_key="none", temperature=0, max_tokens=8, max_retries=0)
messages = [SystemMessage("Be brief."), HumanMessage("Hello")]
answer = chat.invoke(messages)
assert answer.usage_metadata["output_tokens"] > 0
assert chat.invoke([*messages, answer, HumanMessage("More")]).content is not None
streamed = [chunk for chunk in chat.stream(messages, stream_usage=True)]
assert streamed[-1].usage_metadata or any(chunk.usage_metadata for chunk in streamed)

@tool
def count(n: int) -> str:
    "Counts"
    return "x"

called = ChatOpenAI(model="tiny", base_url=url, api_key="none", temperature=0, max_tokens=64, max_retries=0)
found = called.bind_tools([count], tool_choice="any").invoke("Count")
assert found.tool_calls[0]["name"] == "count" or found.invalid_tool_calls
newer = ChatOpenAI(model="tiny", base_url=url, api_key="none", temperature=0, max_retries=0, max_tokens=16,
                   use_responses_api=True)
assert newer.invoke(messages).usage_metadata["output_tokens"] > 0
assert sum(1 for chunk in newer.stream(messages) if chunk.content) > 3
embed = OpenAIEmbeddings(model="tiny", base_url=url, api_key="none", check_embedding_ctx_length=False, max_retries=0)
assert len(embed.embed_documents(["one", "two"])) == 2
print("fine")
"""

LLAMA_INDEX = """
import sys
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

llm = OpenAILike(model="tiny", api_base=sys.argv[1], api_key="none", is_chat_model=True, max_tokens=8, context_window=512,
                 max_retries=0)
answer = llm.chat([ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content="Hello")])
assert answer.raw.usage.total_tokens > 0
assert list(llm.stream_chat([ChatMessage(role="user", content="Hello")]))
plain = OpenAILike(model="tiny", api_base=sys.argv[1], api_key="none", is_chat_model=False, max_tokens=8, context_window=512,
                   max_retries=0)
assert plain.complete("Once").raw.choices
print("fine")
"""


@pytest.mark.slow
@pytest.mark.parametrize("code", [LANGCHAIN, LLAMA_INDEX], ids=["langchain", "llama-index"])
def test_clients_of_frameworks(server, packages, code):
    done = subprocess.run(
        [sys.executable, "-c", code, f"{server.url}/v1"],
        env={**os.environ, "PYTHONPATH": str(packages)}, capture_output=True, text=True, check=False, timeout=180,
    )  # fmt: skip
    assert done.stdout == "fine\n", done.stderr[-3000:]


# -- llm, whose file of OpenAI-compatible models names the server ----------------------------------------------------------


@pytest.mark.slow
def test_llm_talks_to_the_server(server, tmp_path):
    pytest.importorskip("llm")
    models = tmp_path / "io.datasette.llm"
    models.mkdir()
    line = f"- model_id: ours\n  model_name: tiny\n  api_base: {server.url}/v1\n"
    (models / "extra-openai-models.yaml").write_text(line)
    env = {**os.environ, "LLM_USER_PATH": str(models), "OPENAI_API_KEY": "none"}
    command = [sys.executable, "-m", "llm", "-m", "ours", "Hello", "-o", "max_tokens", "6", "-o", "temperature", "0"]
    said = set()
    for more in ([], ["--no-stream"]):
        done = subprocess.run([*command, *more], env=env, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        said.add(done.stdout.encode("ascii", "ignore"))
    assert len(said) == 1
    assert said.pop().strip()


# -- Open WebUI: what its server sends, read in backend/open_webui/routers/openai.py --------------------------------------

HEADERS = {"Content-Type": "application/json", "X-OpenWebUI-User-Name": "a", "X-OpenWebUI-User-Id": "1"}


def test_open_webui(server):
    models = server.http.get("/v1/models", headers=HEADERS).json()
    (name,) = [model["id"] for model in models["data"]]  # and `name`, which it adds itself
    history = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": [{"type": "text", "text": "More", "cache_control": {"type": "ephemeral"}}]},
    ]
    chat = {
        "stream": True,
        "model": name,
        "messages": history,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 6,
        "seed": 3,
        "stop": ["User:"],
        "frequency_penalty": 0.1,
        "logit_bias": {"5": -1},
    }
    with server.http.stream("POST", "/v1/chat/completions", json=chat, headers=HEADERS) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        data = [line.removeprefix("data: ") for line in stream.iter_lines() if line]
    assert data[-1] == "[DONE]"
    assert json.loads(data[-2])["usage"]["total_tokens"] > 0
    assert json.loads(data[0])["choices"][0]["delta"]["role"] == "assistant"
    title = {"model": name, "messages": [{"role": "user", "content": "A title, please"}], "stream": False, "max_tokens": 5}
    answer = server.http.post("/v1/chat/completions", json=title, headers=HEADERS).json()
    assert isinstance(answer["choices"][0]["message"]["content"], str)
    embedded = server.http.post("/v1/embeddings", json={"input": ["one", "two"], "model": name}, headers=HEADERS).json()
    assert [len(one["embedding"]) for one in embedded["data"]] == [128, 128]
