"""A Hugging Face hub on this machine: the two routes by which huggingface_hub lists a repository and takes files."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "a" * 40


class FakeHub(http.server.ThreadingHTTPServer):
    """repos: "org/name" to {file name: path}. requests: "METHOD path" of all that came."""

    def __init__(self, repos: dict[str, dict[str, str]]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos = repos
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def variables(self, home: Path) -> dict[str, str]:
        """The environment of a program that takes this one for the hub, with an empty cache under `home`."""
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "0"}


class _Handler(http.server.BaseHTTPRequestHandler):
    server: FakeHub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.server.requests.append(f"{self.command} {path}")
        for repo, files in self.server.repos.items():
            if path.startswith(f"api/models/{repo}"):
                return self._listing(path, files)
            if path.startswith(f"{repo}/resolve/"):
                return self._file(files.get(path.split("/", 4)[4]))
        return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _listing(self, path: str, files: dict[str, str]) -> None:
        listed = {"id": path.removeprefix("api/models/"), "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
        self._send(200, json.dumps(listed).encode(), {"Content-Type": "application/json"})

    def _file(self, file: str | None) -> None:
        if file is None:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        content = Path(file).read_bytes()
        self._send(200, content, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@contextlib.contextmanager
def fake_hub(repos: dict[str, dict[str, str]]) -> Iterator[FakeHub]:
    with FakeHub(repos) as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
