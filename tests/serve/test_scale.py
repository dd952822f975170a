"""examples/scale: servers behind nginx keep their conversations, and what the dashboard asks for is in /metrics."""

from __future__ import annotations

import contextlib
import json
import pathlib
import re
import shutil
import socket
import subprocess
import time
import types
from collections.abc import Callable

import httpx
import pytest
from hosting import hosting
from openai import OpenAI
from server import chat, serving

from first_cpp.runtime.answer import Timing
from first_cpp.serve.request_queue import RequestQueue
from first_cpp.serve.served_model import ServedModel

SCALE = pathlib.Path(__file__).parents[2] / "examples" / "scale"
CONFIG = (SCALE / "nginx.conf").read_text()


# -- nginx ---------------------------------------------------------------------------------------------------------------


def parsed(text: str) -> list:
    """nginx's grammar: directives that end with ; and blocks in braces, as nested lists. Raises ValueError."""
    words = re.findall(r'"[^"]*"|[{};]|[^\s{};"]+', re.sub(r"#.*", "", text))
    stack: list[list] = [[]]
    line: list[str] = []
    for word in words:
        if word == ";":
            if not line:
                raise ValueError("a directive without words")
            stack[-1].append(line)
            line = []
        elif word == "{":
            stack.append([])
            stack[-2].append([*line, stack[-1]])
            line = []
        elif word == "}":
            if line or len(stack) == 1:
                raise ValueError(f"unfinished: {line}")
            stack.pop()
        else:
            line.append(word)
    if line or len(stack) != 1:
        raise ValueError(f"unfinished: {line}")
    return stack[0]


def test_the_configuration_is_whole():
    (http,) = [block[-1] for block in parsed(CONFIG) if block[0] == "http"]
    (upstream,) = [block for block in http if block[0] == "upstream"]
    assert ["hash", "$conversation", "consistent"] in upstream[-1]
    assert sum(line[0] == "server" for line in upstream[-1]) == 2
    (server,) = [block[-1] for block in http if block[0] == "server"]
    (location,) = [block[-1] for block in server if block[0] == "location"]
    assert ["proxy_pass", f"http://{upstream[1]}"] in location
    assert ["proxy_buffering", "off"] in location
    with pytest.raises(ValueError, match="unfinished"):
        parsed(CONFIG.replace("proxy_buffering off;", "proxy_buffering off"[:-1] + "} {"))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def nginx(folder: pathlib.Path, ports: list[int]):
    """The example as it is, but for its ports."""
    port = free_port()
    text = CONFIG.replace("127.0.0.1:8080", f"127.0.0.1:{port}")
    for number, one in enumerate(ports):
        text = text.replace(f"127.0.0.1:{8081 + number}", f"127.0.0.1:{one}")
    (folder / "nginx.conf").write_text(text)
    process = subprocess.Popen(["nginx", "-p", str(folder), "-c", "nginx.conf"], stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.communicate(timeout=20)


@pytest.fixture(scope="module")
def scene(tiny, tmp_path_factory):
    if shutil.which("nginx") is None:
        pytest.skip("needs nginx (Debian: apt install nginx-light)")
    options = ("--alias", "tiny", "--chat-format", "chatml", "-c", 512)
    with serving(tiny, *options) as one, serving(tiny, *options) as two:
        ports = [int(server.url.rsplit(":", 1)[1]) for server in (one, two)]
        with nginx(tmp_path_factory.mktemp("nginx"), ports) as url:
            yield url, one, two


def asked(server) -> float:
    return server.metric("first_cpp_requests_total", route="/v1/chat/completions", status="200")


def wait_until(so: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def client(url: str, session: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60, default_headers={"X-Session-Id": session})


def test_conversations_stay_with_their_server_and_spread_over_both(scene):
    url, one, two = scene
    begun = asked(one), asked(two)
    for number in range(12):
        before = asked(one), asked(two)
        total = sum(before) + 2
        for _ in range(2):
            client(url, f"chat-{number}").chat.completions.create(model="tiny", **chat("Hello", max_tokens=2))
        for _ in range(500):  # a request is counted after its client has the answer
            if asked(one) + asked(two) >= total:
                break
            time.sleep(0.02)
        assert sorted([asked(one) - before[0], asked(two) - before[1]]) == [0, 2]
    assert asked(one) > begun[0]
    assert asked(two) > begun[1]


def test_streams_come_as_they_are_made(scene):
    url, *_ = scene
    body = chat("Hello", max_tokens=300, stream=True, logit_bias={"2": -100})
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as stream:
        times = [time.monotonic() for line in stream.iter_lines() if line.startswith("data: {")]
    assert len(times) > 100
    assert times[len(times) // 2] - times[0] > 0.2 * (times[-1] - times[0])  # not all at once in the end


def test_when_a_server_goes_the_other_answers(scene):
    """The last test of the two servers: one of them ends."""
    url, one, two = scene
    sessions, before = [f"chat-{number}" for number in range(6)], asked(two)
    one.stop()
    for session in sessions:
        answer = client(url, session).chat.completions.create(model="tiny", **chat("Hello", max_tokens=2))
        assert answer.usage.completion_tokens > 0
    wait_until(lambda: asked(two) == before + len(sessions))


# -- Prometheus and the dashboard ------------------------------------------------------------------------------------------


def test_the_dashboard_asks_for_what_the_server_counts(load, tiny):
    worker = hosting(ServedModel(load(tiny), "tiny", None, 1.0, 512), RequestQueue(1))
    worker.metrics.request("/v1/chat/completions", 200)
    text = worker.metrics.text().decode()
    worker.close()
    there = set(re.findall(r"^(first_cpp_\w+?)(?:\{| )", text, re.MULTILINE))
    panels = json.loads((SCALE / "dashboard.json").read_text())["panels"]
    expressions = " ".join(target["expr"] for panel in panels for target in panel["targets"])
    asked_for = set(re.findall(r"first_cpp_\w+", expressions))
    assert asked_for - there == set()
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(places)


def test_prometheus_scrapes_the_servers_of_the_example():
    yaml = pytest.importorskip("yaml")
    (job,) = yaml.safe_load((SCALE / "prometheus.yml").read_text())["scrape_configs"]
    assert job["static_configs"][0]["targets"] == ["127.0.0.1:8081", "127.0.0.1:8082"]


def test_an_answer_is_seen_in_the_metrics(load, tiny):
    """So that the names above are of figures that move."""
    worker = hosting(ServedModel(load(tiny), "tiny", None, 1.0, 512), RequestQueue(1))
    routing = types.SimpleNamespace(prompt_tokens=7, skipped=(1, 2))
    worker.metrics.answer(routing, Timing())
    text = worker.metrics.text().decode()
    worker.close()
    assert "first_cpp_prompt_tokens_total 7.0" in text
    assert "first_cpp_layers_skipped_sum 2.0" in text
