"""Many clients at once: nothing is lost, nothing is mixed up, and memory stays where it was."""

from __future__ import annotations

import json
import random
import threading
from collections import Counter

import httpx
import pytest
from routers_files import routed_model
from server import NO_END, chat, serving

N_CLIENTS, N_REQUESTS = 8, 200
ROUTE = "/v1/chat/completions"
KINDS = ["plain", "stream", "plain", "stream", "gone", "bad", "gone while waiting"]
SKIPS = ["auto", 0, 0.5, [1, 4]]
BAD = [
    b"{",
    b'{"messages": 1}',
    b'{"messages": [{"role": "user", "content": "x"}], "skip": 2}',
    b'{"messages": [{"role": "user", "content": "x"}], "model": "gpt"}',
    b'{"messages": [{"role": "user", "content": "x"}], "grammar": "("}',
]


@pytest.fixture(scope="module")
def routed(tiny, models):
    return routed_model(tiny, models, seed=51)


def body_of(number: int) -> dict:
    words = random.Random(number).choices(["alpha", "beta", "gamma", "delta", "epsilon"], k=3 + number % 9)
    return chat(f"{' '.join(words)} {number}", max_tokens=5 + number % 20, skip=SKIPS[number % len(SKIPS)])


def expected_answers(llm, numbers) -> dict[int, tuple]:
    """What the same prompts give alone: text, and skipped layers."""
    answers = {}
    for number in numbers:
        body = body_of(number)
        llm.skip = body.pop("skip")
        llm.reset()
        text = llm.create_chat_completion(**body, repeat_penalty=1.1)["choices"][0]["message"]["content"]
        answers[number] = text, list(llm.routing.skipped)
    return answers


class Client(threading.Thread):
    """Sends requests one after the other and keeps what comes of each."""

    def __init__(self, url: str, numbers: list[int]) -> None:
        super().__init__()
        self.url = url + ROUTE
        self.numbers = numbers
        self.came: dict[int, tuple] = {}

    def run(self) -> None:
        with httpx.Client(timeout=120) as http:
            for number in self.numbers:
                self.came[number] = self.ask(http, number, KINDS[number % len(KINDS)])

    def ask(self, http: httpx.Client, number: int, kind: str) -> tuple:
        body = body_of(number)
        if kind == "bad":
            return kind, http.post(
                self.url, content=BAD[number % len(BAD)], headers={"Content-Type": "application/json"}
            ).status_code
        if kind == "gone":
            endless = {**body, "max_tokens": None, "stream": True, "logit_bias": NO_END}
            with http.stream("POST", self.url, json=endless) as stream:
                lines = stream.iter_lines()
                return kind, [next(lines) for _ in range(1 + number % 5)] != []
        if kind == "gone while waiting":
            try:
                http.post(self.url, json={**body, "max_tokens": None, "logit_bias": NO_END}, timeout=0.01 * (1 + number % 9))
            except httpx.TimeoutException:
                return kind, True
            return kind, False
        if kind == "plain":
            answer = http.post(self.url, json=body).json()
            return kind, answer["choices"][0]["message"]["content"], answer["first_cpp"]["skipped_layers"]
        with http.stream("POST", self.url, json={**body, "stream": True}) as stream:
            data = [line[6:] for line in stream.iter_lines() if line.startswith("data: ")]
        assert data.pop() == "[DONE]"
        chunks = [json.loads(chunk) for chunk in data]
        text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
        return kind, text, chunks[-1]["first_cpp"]["skipped_layers"]


def run_clients(url: str, numbers: range) -> dict[int, tuple]:
    clients = [Client(url, list(numbers)[i::N_CLIENTS]) for i in range(N_CLIENTS)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    return {number: came for client in clients for number, came in client.came.items()}


def resident(pid: int) -> float:
    """MB of memory that a process has in use."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * 4096 / 1e6


def only_ascii(text: str) -> str:
    return text.encode("ascii", "ignore").decode()


@pytest.mark.slow
def test_many_clients(routed, load):
    numbers = range(N_REQUESTS)
    expected = expected_answers(load(routed, chat_format="chatml", n_ctx=1024), numbers)
    with serving(routed, "--chat-format", "chatml", "-c", 1024) as server:
        run_clients(server.url, range(1000, 1000 + N_REQUESTS))
        server.wait_for(answering=False)
        before = resident(server.process.pid)
        counted = Counter({s: server.metric("first_cpp_requests_total", route=ROUTE, status=s) for s in ("200", "400", "404")})
        came = run_clients(server.url, numbers)
        server.wait_for(answering=False)
        after = resident(server.process.pid)

        assert sorted(came) == list(numbers)  # nothing lost
        for number, (kind, *what) in came.items():
            if kind in ("plain", "stream"):
                text, skipped = expected[number]
                assert (only_ascii(what[0]), what[1]) == (only_ascii(text), skipped), number  # nothing mixed up
            elif kind == "bad":
                assert what == [404 if b"gpt" in BAD[number % len(BAD)] else 400], number
            else:
                assert what == [True], number
        kinds = Counter(kind for kind, *_ in came.values())
        statuses = Counter(what[0] for kind, *what in came.values() if kind == "bad")
        assert server.metric("first_cpp_requests_total", route=ROUTE, status="200") - counted["200"] == (
            kinds["plain"] + kinds["stream"] + kinds["gone"]
        )
        for status in (400, 404):
            found = server.metric("first_cpp_requests_total", route=ROUTE, status=str(status)) - counted[str(status)]
            assert found == statuses[status]
        assert server.metric("first_cpp_queue_length") == 0
        print(f"resident memory {before:.1f} MB before, {after:.1f} MB after")
        assert after - before < 4, f"{before:.1f} MB before, {after:.1f} MB after"
        assert server.stop() == 0
