"""Requests of the OpenAI protocol, for tests of several files."""

from __future__ import annotations

from server import error_of

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
USER = [{"role": "user", "content": "Hello"}]


def ask(client, **more):
    return client.chat.completions.create(**{"model": "tiny", "messages": USER, "max_tokens": 4, "temperature": 0, **more})


def refusal(server, path=CHAT, **body) -> dict:
    given = {"messages": USER} if path == CHAT else {}
    response = server.http.post(path, json={**given, **body})
    assert response.status_code == 400, response.text
    return error_of(response)
