"""A `first-cpp serve` process for tests."""

from __future__ import annotations

import contextlib
import re
import select
import signal
import subprocess
import sys
import time

import httpx
from openai import OpenAI

NO_END = {str(token): -100.0 for token in (2, *range(3 + 128, 3 + 256))}
"""A logit_bias that keeps the tiny model from ending its answer, and to ASCII: llama_cpp holds back what is no UTF-8."""


class Server:
    """Started on a free port; `url` is where."""

    def __init__(
        self,
        model: str,
        *options: object,
        key: str | None = None,
        env: dict[str, str] | None = None,
        code: str | None = None,
    ) -> None:
        """code: Python that runs the command line in sys.argv[1:], instead of the module."""
        start = ["-m", "first_cpp"] if code is None else ["-c", code]
        command = [sys.executable, *start, "serve", "-m", model, "--port", "0", "-t", "2", *map(str, options)]
        self.errors = ""
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
        if not select.select([self.process.stdout], [], [], 60)[0]:
            self.process.kill()
        self.greeting = self.process.stdout.readline()
        found = re.match(r"http://[^ ]+", self.greeting)
        assert found, self.process.communicate()[1]
        self.url = found[0]
        self.key = key
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.http = httpx.Client(base_url=self.url, timeout=60, headers=headers)

    def client(self, key: str | None = None) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=key or self.key or "none", max_retries=0, timeout=60)

    def health(self) -> dict:
        return self.http.get("/health").json()

    def wait_for(self, timeout: float = 10.0, **state: object) -> float:
        """Seconds until /health tells `state`."""
        start = time.monotonic()
        while any(self.health()[name] != value for name, value in state.items()):
            assert time.monotonic() < start + timeout, (state, self.health())
            time.sleep(0.01)
        return time.monotonic() - start

    def metric(self, name: str, **labels: str) -> float:
        """The value of a metric, summed over its labels but for those given."""
        total = 0.0
        for line in self.http.get("/metrics").text.splitlines():
            found = re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line)
            if found and all(f'{key}="{value}"' in (found[1] or "") for key, value in labels.items()):
                total += float(found[2])
        return total

    def stop(self) -> int:
        """End it; returns its exit code."""
        self.http.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            _, errors = self.process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            _, errors = self.process.communicate()
        except ValueError:  # it was stopped before
            errors = ""
        self.errors += errors
        return self.process.returncode


@contextlib.contextmanager
def serving(model: str, *options: object, **kwargs):
    server = Server(model, *options, **kwargs)
    try:
        yield server
    finally:
        server.stop()


def chat(text: str = "Hello", **more: object) -> dict:
    """The body of a greedy chat request."""
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 12, "temperature": 0, **more}


def error_of(response: httpx.Response) -> dict:
    """The error object, of the shape that OpenAI clients read."""
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error
