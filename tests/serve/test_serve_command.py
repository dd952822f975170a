"""The command `first-cpp serve`: its options, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import openai
import pytest
from routers_files import routed_model
from server import NO_END, chat, error_of, serving

from first_cpp.cli.main import main


@pytest.fixture(scope="module")
def routed(tiny, models):
    return routed_model(tiny, models, seed=31)


# -- its end -------------------------------------------------------------------------------------------------------------


def test_sigterm_finishes_what_is_being_answered(routed):
    with serving(routed, "--chat-format", "chatml", "-c", 1024) as server:
        body = chat(stream=True, max_tokens=250, logit_bias=NO_END)
        with httpx.stream("POST", server.url + "/v1/chat/completions", json=body, timeout=60) as stream:
            lines = stream.iter_lines()
            next(lines)
            waiting = []
            thread = threading.Thread(target=lambda: waiting.append(httpx.post(server.url + "/v1/completions", json={})))
            thread.start()
            server.wait_for(queue=1)
            server.process.terminate()
            thread.join()
            refused = httpx.post(server.url + "/v1/chat/completions", json=chat())
            for response in (refused, waiting[0]):
                assert (response.status_code, error_of(response)["code"]) == (503, "server_stopping")
            assert httpx.get(server.url + "/health").status_code == 503
            said = [line for line in lines if line]
        assert said[-1] == "data: [DONE]"
        assert json.loads(said[-2][6:])["choices"][0]["finish_reason"] == "length"
        assert server.stop() == 0


@pytest.mark.timed
@pytest.mark.parametrize("stream", [True, False])
def test_sigterm_ends_an_answer_after_the_grace(routed, stream):
    with serving(routed, "--chat-format", "chatml", "-c", 32000, "--grace", 0.2) as server:
        started = time.monotonic()
        thread = threading.Thread(target=lambda: (server.wait_for(answering=True), server.process.terminate()))
        thread.start()
        ask = chat(max_tokens=None, stream=stream, logit_bias=NO_END)
        with pytest.raises(openai.APIError, match="the server is stopping") as ended:
            list(server.client().chat.completions.create(model="routed-31", **ask))
        assert getattr(ended.value, "status_code", 503) == 503
        thread.join()
        assert server.stop() == 0
        assert time.monotonic() - started < 8


def test_interrupt_is_exit_code_130(routed):
    with serving(routed, "-c", 256) as server:
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(10) == 130


# -- the command ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "0.0.0.0"], r"--host 0\.0\.0\.0 .*--api-key .*--allow-open"),
        (["--host", "example.org"], "--api-key"),
        (["--api-key", ""], "must not be empty"),
        (["--skip", "1.5"], "below 1"),
        (["--skip", "some"], "auto"),
        (["--skip", "0.5", "--max-skip", "0.4"], r"--skip 0\.5 is above --max-skip 0\.4"),
        (["--skip", "0,1,2", "--max-skip", "0.4"], r"above the maximum of this server, 0\.4"),
        (["--max-skip", "0.2"], r"skip='auto', a share of 0\.34, is above"),
        (["--ctx", "64", "--max-prompt", "65"], "--max-prompt 65 is above --ctx 64"),
        (["--cors", "example.org"], "an origin is like"),
        (["--chat-format", "chatmll"], "did you mean 'chatml'"),
        (["-m", "none.gguf"], "does not exist"),
    ],
    ids=str,
)
def test_options_that_cannot_be_used(routed, capsys, monkeypatch, options, said):
    monkeypatch.delenv("FIRST_CPP_API_KEY", raising=False)
    assert main(["serve", "-m", routed, "--port", "0", *options]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert re.search(said, lines[0])


@pytest.mark.parametrize(
    "options", [["--port", "x"], ["--queue", "-1"], ["--max-skip", "2"], ["--ctx", "0"], ["--grace", "nan"]]
)
def test_options_that_are_no_numbers(options, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["serve", *options])
    assert stop.value.code == 2
    assert "is not a" in capsys.readouterr().err


def test_port_that_is_taken(routed, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert main(["serve", "-m", routed, "--port", str(other.getsockname()[1])]) == 1
    assert "cannot listen on 127.0.0.1 port" in capsys.readouterr().err


def test_key_from_the_environment(routed):
    with serving(routed, "--host", "0.0.0.0", "-c", 256, key="k", env={**os.environ, "FIRST_CPP_API_KEY": "k"}) as server:
        assert httpx.get(server.url + "/v1/models").status_code == 401
        assert server.http.get("/v1/models").status_code == 200


def test_missing_extra_names_the_remedy(routed):
    code = f"""
import sys
sys.modules["fastapi"] = None
from first_cpp.cli.main import main
sys.exit(main(["serve", "-m", {routed!r}]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert 'pip install "first-cpp[server]"' in done.stderr
