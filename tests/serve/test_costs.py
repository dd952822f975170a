"""Requests that are cheap to send and would cost much: each is refused, or answered while /health and SIGTERM stay quick."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import threading
import time

import httpx
import pytest
from routers_files import routed_model
from server import NO_END, chat, error_of, serving

CHAT, TEXT, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
QUICK = 1.0  # seconds


@pytest.fixture(scope="module")
def routed(tiny, models):
    return routed_model(tiny, models, seed=93)


@pytest.fixture(scope="module")
def server(routed):
    with serving(routed, "--chat-format", "chatml", "--alias", "tiny", "-c", 1024) as started:
        yield started


def peak_memory(server) -> float:
    """MB that the process had in use at most."""
    with open(f"/proc/{server.process.pid}/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmHWM"))


class HealthWatch(threading.Thread):
    """Asks for /health again and again; `longest` is how long one took at most."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url, self.longest, self.stopped = url, 0.0, threading.Event()

    def run(self) -> None:
        with httpx.Client(base_url=self.url, timeout=60) as http:
            while not self.stopped.is_set():
                began = time.monotonic()
                http.get("/health")
                self.longest = max(self.longest, time.monotonic() - began)
                time.sleep(0.02)


@contextlib.contextmanager
def watched(server):
    watch = HealthWatch(server.url)
    watch.start()
    try:
        yield watch
    finally:
        watch.stopped.set()
        watch.join()


MESSAGES = ('{"messages":[' + ",".join(['{"role":"user","content":"a"}'] * 30000) + "]}").encode()
TINY = ('{"messages":[' + ",".join(["{}"] * 300000) + "]}").encode()
COSTLY = {
    "30,000 messages": (CHAT, MESSAGES),
    "300,000 messages that are none": (CHAT, TINY),
    "a list as long as the body": (CHAT, b'{"messages":[' + b"1," * 500000 + b"1]}"),
    "20,000 layers to skip": (CHAT, json.dumps(chat(skip=list(range(20000)))).encode()),
    "20,000 layers of numbers that are none": (TEXT, json.dumps({"prompt": "x", "skip": [0.5] * 200000}).encode()),
    "100,000 stops": (TEXT, json.dumps({"prompt": "x", "stop": ["a"] * 100000}).encode()),
    "100,000 stops of another type": (TEXT, json.dumps({"prompt": "x", "stop": [1] * 100000}).encode()),
    "a stop of 900 KB": (TEXT, json.dumps({"prompt": "x", "stop": "a" * 900000}).encode()),
    "80,000 biases": (TEXT, json.dumps({"prompt": "x", "logit_bias": {str(i): 1 for i in range(80000)}}).encode()),
    "80,000 fields": (TEXT, json.dumps({f"f{i}": 1 for i in range(80000)}).encode()),
    "a long name of a field": (TEXT, json.dumps({"a" * 900000: 1}).encode()),
    "a long model": (TEXT, json.dumps({"prompt": "x", "model": "a\n" * 300000}).encode()),
    "a long role": (CHAT, json.dumps({"messages": [{"role": "a" * 900000, "content": "x"}]}).encode()),
    "20,000 tools": (CHAT, json.dumps(chat(tools=[{"type": "function"}] * 20000)).encode()),
    "a text of 1 MB": (CHAT, json.dumps(chat("word " * 200000)).encode()),
    "a prompt of 1 MB": (TEXT, json.dumps({"prompt": "ab" * 500000}).encode()),
    "500,000 tokens": (TEXT, json.dumps({"prompt": [5] * 300000}).encode()),
    "100,000 prompts": (TEXT, json.dumps({"prompt": ["a"] * 100000}).encode()),
    "deep brackets": (TEXT, b'{"prompt":' + b"[" * 500000),
    "a number of 900,000 digits": (TEXT, b'{"prompt":"x","seed":' + b"9" * 900000 + b"}"),
    "400,000 text parts": (CHAT, b'{"messages":[{"role":"user","content":[' + b"{}," * 300000 + b"{}]}]}"),
    "a text of 1 MB to tokenise": ("/extras/tokenize", json.dumps({"input": "word " * 200000}).encode()),
    "many tokens to detokenize": ("/extras/detokenize", json.dumps({"tokens": [-1] * 200000}).encode()),
    "many texts to embed": (EMBED, json.dumps({"input": ["a"] * 100000}).encode()),
}


@pytest.mark.parametrize("kind", COSTLY)
def test_a_costly_request_is_refused_and_health_stays_quick(server, kind):
    path, body = COSTLY[kind]
    before = peak_memory(server)
    with watched(server) as watch:
        began = time.monotonic()
        refused = server.http.post(path, content=body, headers={"Content-Type": "application/json"})
        took = time.monotonic() - began
    assert 400 <= refused.status_code < 500, refused.text[:200]
    assert len(error_of(refused)["message"]) < 1000
    assert took < 2
    assert watch.longest < QUICK
    assert peak_memory(server) - before < 150


@pytest.mark.parametrize("kind", ["text", "tokens"])
def test_long_texts_are_tokenised_outside_the_event_loop(server, kind):
    path, body = {
        "text": ("/extras/tokenize", {"input": "a" * 16000}),
        "tokens": ("/extras/detokenize", {"tokens": [5] * 300000}),
    }[kind]
    with watched(server) as watch:
        assert server.http.post(path, json=body).status_code == 200
    assert watch.longest < QUICK


def test_many_costly_requests_at_once(server):
    def ask():
        with contextlib.suppress(httpx.HTTPError):
            httpx.post(server.url + CHAT, content=MESSAGES, headers={"Content-Type": "application/json"}, timeout=30)

    threads = [threading.Thread(target=ask) for _ in range(16)]
    with watched(server) as watch:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert watch.longest < QUICK


@pytest.mark.parametrize("delay", [pytest.param(0.02, marks=pytest.mark.slow), 0.15])
def test_sigterm_while_a_long_prompt_is_prepared(routed, delay):
    """Nothing is freed that a thread still uses: three long prompts, and the process ends with 0."""
    body = json.dumps({"prompt": "ab " * 320000}).encode()
    with serving(routed, "-c", 512) as server:
        threads = [threading.Thread(target=_post, args=(server.url + TEXT, body)) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(delay)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 0
        assert time.monotonic() - began < 3
        for thread in threads:
            thread.join()
        assert "Traceback" not in server.process.stderr.read()


def _post(url: str, body: bytes) -> None:
    with contextlib.suppress(httpx.HTTPError):
        httpx.post(url, content=body, timeout=20)


@pytest.mark.timed
def test_embeddings_end_with_their_client(embedding_server):
    texts = ["word " * 60] * 1000
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(embedding_server.url + EMBED, json={"input": texts}, timeout=1.5)
    assert embedding_server.wait_for(answering=False, timeout=3) < 2


# -- connections -------------------------------------------------------------------------------------------------------


def connect(server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)))


@pytest.mark.slow
def test_500_idle_connections_with_few_descriptors(routed, monkeypatch):
    """With 256 open files: the oldest idle ones make room, and the log stays short."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256)); "
        "from first_cpp.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    with serving(routed, "-c", 256, code=code) as server:
        idle = [connect(server) for _ in range(500)]
        with watched(server) as watch:
            time.sleep(1)
        assert watch.longest < QUICK
        assert server.health()["status"] == "ok"
        for one in idle:
            one.close()
        assert server.stop() == 0
        assert len(server.errors) < 2000


@pytest.mark.timed
def test_headers_that_never_end(routed, monkeypatch):
    """Too many bytes are a 400 at once; too slow ones end with their connection."""
    with serving(routed, "-c", 256, code=_short_deadline()) as server:
        large = connect(server)
        large.settimeout(10)
        with contextlib.suppress(ConnectionError):
            for _ in range(200):
                large.sendall(b"GET / HTTP/1.1\r\n" if not _ else b"X-A: " + b"a" * 1000 + b"\r\n")
        with contextlib.suppress(ConnectionError):
            assert large.recv(100).startswith(b"HTTP/1.1 400")
        slow, silent = connect(server), connect(server)
        began = time.monotonic()
        slow.settimeout(10)
        silent.settimeout(10)
        with contextlib.suppress(ConnectionError):
            slow.sendall(b"GET /health HTTP/1.1\r\n")
            while time.monotonic() < began + 5:
                slow.sendall(b"X: y\r\n")
                time.sleep(0.2)
        assert time.monotonic() - began < 4
        with contextlib.suppress(ConnectionError):
            assert silent.recv(10) == b""
        assert server.health()["status"] == "ok"


def _short_deadline() -> str:
    return (
        "import sys; from first_cpp.serve import connections; connections.REQUEST_SECONDS = 1.0; "
        "from first_cpp.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )


@pytest.mark.slow
def test_a_connection_that_is_used_is_kept(routed):
    """The deadline is for requests, not for answers: a stream lasts longer, and so does a connection between requests."""
    with serving(routed, "-c", 2048, "--chat-format", "chatml", code=_short_deadline()) as server:
        body = chat(stream=True, max_tokens=200, logit_bias=NO_END)
        with httpx.stream("POST", server.url + CHAT, json=body, timeout=60) as stream:
            lines = []
            for line in stream.iter_lines():
                lines.append(line)
                if len(lines) < 30:
                    time.sleep(0.05)
        assert lines[-2] == "data: [DONE]"
        with httpx.Client(base_url=server.url) as http:
            for _ in range(3):
                assert http.get("/health").status_code == 200
                time.sleep(0.4)


# -- the log -----------------------------------------------------------------------------------------------------------


def test_clients_text_cannot_forge_a_line_of_the_log(routed):
    with serving(routed, "-c", 256, "--chat-format", "chatml", "--verbose") as server:
        forged = "x\nERROR: forged\x1b[2J\r"
        server.http.post(CHAT, json={"messages": [{"role": forged, "content": forged}], "model": forged})
        server.http.get("/%0aERROR:%20forged%1b", headers={"X-Name": "a"})
        server.http.get("/v1/models/a%0aERROR: forged")
        server.stop()
        assert "\x1b" not in server.errors
        assert not [line for line in server.errors.splitlines() if line.startswith("ERROR: forged")]
        assert "/v1/models/" in server.errors  # requests are logged


def test_an_exceptions_text_is_one_line_of_the_log():
    import logging

    from first_cpp.serve.log import OneLineFormatter, one_line

    try:
        raise RuntimeError("a\nERROR: forged\x1b[2J")
    except RuntimeError as error:
        record = logging.LogRecord(
            "x", logging.ERROR, "", 0, "failed %s", ("b\nc",), (RuntimeError, error, error.__traceback__)
        )
    text = OneLineFormatter().format(record)
    assert text.splitlines()[0] == "ERROR: failed b\\nc"
    assert text.splitlines()[-1] == "RuntimeError: a\\nERROR: forged\\x1b[2J"
    assert len(one_line("a" * 10000)) < 2100
    assert os
