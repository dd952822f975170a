"""Answers as OpenAI's /v1/responses gives them: items of reasoning, text and calls, whole or as a stream of events."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

LAST_EVENTS = ("response.completed", "response.incomplete")


def response_skeleton(model: str, echoed: dict[str, Any]) -> dict[str, Any]:
    """A response that has begun. echoed: the settings of its request, as OpenAI's responses repeat them."""
    return {
        "id": f"resp_{uuid.uuid4().hex}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "model": model,
        "output": [],
        "previous_response_id": None,
        "store": False,
        "truncation": "disabled",
        "usage": None,
        **echoed,
    }


class ResponseEvents:
    """Makes a response of the chunks of a chat answer. count: tokens of a text.

    >>> made = ResponseEvents(response_skeleton("tiny", {}), len)
    >>> chunk = {"choices": [{"delta": {"content": "Hi"}, "finish_reason": "stop"}]}
    >>> [event["type"] for event in made.events(iter([chunk]))][2:5]
    ['response.output_item.added', 'response.content_part.added', 'response.output_text.delta']
    """

    def __init__(self, response: dict[str, Any], count: Callable[[str], int]) -> None:
        self._response = response
        self._count = count
        self._output: list[dict[str, Any]] = response["output"]
        self._open: str | None = None  # the type of the last item, while it is not done
        self._n_events = 0

    def whole(self, answer: dict[str, Any]) -> dict[str, Any]:
        """The response of a whole chat answer."""
        choice = answer["choices"][0]
        calls = [{"index": i, **call} for i, call in enumerate(choice["message"].get("tool_calls") or ())]
        delta = {**choice["message"], "tool_calls": calls}
        chunk = {"choices": [{"delta": delta, "finish_reason": choice["finish_reason"]}], "usage": answer["usage"]}
        for _ in self.events(iter([chunk])):
            pass
        return self._response

    def events(self, chunks: Iterator[dict[str, Any] | None]) -> Iterator[dict[str, Any] | None]:
        """The events of a stream, None while there is nothing to say."""
        for kind in ("response.created", "response.in_progress"):
            yield self._event(kind, response={**self._response, "output": []})
        reason, usage = "stop", None
        for chunk in chunks:
            said = False
            if chunk is not None:
                usage = chunk.get("usage") or usage
                for choice in chunk["choices"]:
                    reason = choice["finish_reason"] or reason
                    for event in self._delta(choice["delta"]):
                        said = True
                        yield event
            if not said:
                yield None
        yield from self._end(reason, usage)

    def _end(self, reason: str, usage: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
        cut_off = reason == "length"
        if not self._output:
            yield from self._text("message", "")
        yield from self._done("incomplete" if cut_off else "completed")
        self._response["status"] = "incomplete" if cut_off else "completed"
        self._response["incomplete_details"] = {"reason": "max_output_tokens"} if cut_off else None
        self._response["usage"] = self._usage(usage) if usage else None
        yield self._event(f"response.{self._response['status']}", response=self._response)

    def _usage(self, usage: dict[str, Any]) -> dict[str, Any]:
        thought = [part["text"] for item in self._output if item["type"] == "reasoning" for part in item["content"]]
        return {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": sum(map(self._count, thought))},
            "total_tokens": usage["total_tokens"],
        }

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        self._n_events += 1
        return {"type": kind, "sequence_number": self._n_events - 1, **fields}

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._output[-1]["id"], "output_index": len(self._output) - 1}

    # -- items -----------------------------------------------------------------------------------------------------------

    def _delta(self, delta: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if text := delta.get("reasoning_content"):
            yield from self._text("reasoning", text)
        if text := delta.get("content"):
            yield from self._text("message", text)
        for call in delta.get("tool_calls") or ():
            yield from self._call(call)

    def _text(self, kind: str, text: str) -> Iterator[dict[str, Any]]:
        """More text of a message, or of reasoning."""
        part, event = _PARTS[kind]
        if self._open != kind:
            head = {"id": f"{_PREFIX[kind]}_{uuid.uuid4().hex}", "type": kind, "status": "in_progress", "content": []}
            own: dict[str, Any] = {"role": "assistant"} if kind == "message" else {"summary": []}
            yield from self._begin(head | own)
            content: dict[str, Any] = {"type": part, "text": ""}
            if kind == "message":
                content |= {"annotations": [], "logprobs": []}
            self._output[-1]["content"].append(content)
            yield self._event("response.content_part.added", **self._place(), content_index=0, part={**content})
        if text:
            self._output[-1]["content"][0]["text"] += text
            yield self._event(f"{event}.delta", **self._place(), content_index=0, delta=text, **_LOGPROBS[kind])

    def _call(self, call: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """A call begins where it has an id; else these are more of its arguments."""
        if "id" in call:
            head = {"id": f"fc_{uuid.uuid4().hex}", "type": "function_call", "status": "in_progress", "arguments": ""}
            yield from self._begin(head | {"call_id": call["id"], "name": call["function"]["name"]})
        if arguments := call["function"].get("arguments"):
            self._output[-1]["arguments"] += arguments
            yield self._event("response.function_call_arguments.delta", **self._place(), delta=arguments)

    def _begin(self, item: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield from self._done("completed")
        self._open = item["type"]
        self._output.append(item)
        shown = {**item, "content": []} if "content" in item else {**item}
        yield self._event("response.output_item.added", output_index=len(self._output) - 1, item=shown)

    def _done(self, status: str) -> Iterator[dict[str, Any]]:
        """End the item that is open."""
        if self._open is None:
            return
        item, place = self._output[-1], self._place()
        if self._open == "function_call":
            yield self._event("response.function_call_arguments.done", **place, name=item["name"], arguments=item["arguments"])
        else:
            part, event = item["content"][0], _PARTS[self._open][1]
            yield self._event(f"{event}.done", **place, content_index=0, text=part["text"], **_LOGPROBS[self._open])
            yield self._event("response.content_part.done", **place, content_index=0, part={**part})
        item["status"] = status
        self._open = None
        yield self._event("response.output_item.done", output_index=place["output_index"], item={**item})


_PARTS = {  # the type of an item's content, and of the events about it
    "message": ("output_text", "response.output_text"),
    "reasoning": ("reasoning_text", "response.reasoning_text"),
}
_PREFIX = {"message": "msg", "reasoning": "rs"}
_LOGPROBS: dict[str, dict[str, list[Any]]] = {"message": {"logprobs": []}, "reasoning": {}}  # that events of text must have
