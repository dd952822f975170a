"""The text of a streamed answer: none of it is lost where a character lies in several tokens.

The base class decodes token by token where logprobs are asked for, and what it held back as the beginning of a stop; pieces
of a character are nothing then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any


def before_stop(text: str, stop: str | Sequence[str] | None) -> str:
    """The text up to the stop that comes first.

    >>> before_stop("one. two", ["two", ". "])
    'one'
    """
    ends = [text.find(one) for one in ([stop] if isinstance(stop, str) else stop or ())]
    return text[: min((end for end in ends if end >= 0), default=None)]


class StreamedText:
    """Puts the text into a stream's chunks. text_of: of the first tokens of the answer, so many, or of all there are.

    >>> streamed = StreamedText(lambda n: "é"[: n // 2] if n is not None else "é", None)
    >>> chunk = {"choices": [{"text": "", "logprobs": {"tokens": [""]}, "finish_reason": None}]}
    >>> [made["choices"][0]["text"] for _ in range(2) for made in streamed.completed(chunk)]
    ['', 'é']
    """

    def __init__(self, text_of: Callable[[int | None], str], stop: str | Sequence[str] | None) -> None:
        self._text_of, self._stop = text_of, stop
        self._sent = ""
        self._n_tokens = 0  # of chunks with logprobs, which have one each

    def completed(self, chunk: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The chunk with its text; before the last one, which has none, a chunk with all that is missing."""
        choice, made = chunk["choices"][0], self._text_of(None)
        whole, text = before_stop(made, self._stop), choice["text"]
        if whole.startswith(self._sent):
            text = self._next(choice, whole)[len(self._sent) :]
        if choice["logprobs"] and len(whole) < len(made) and len(self._text_of(self._n_tokens - 1)) >= len(whole):
            choice = {**choice, "logprobs": None}  # of a stop, which is no part of the answer
        self._sent += text
        if choice["finish_reason"] is None:
            yield {**chunk, "choices": [{**choice, "text": text}]}
            return
        if text:
            yield {**chunk, "choices": [{**choice, "text": text, "finish_reason": None}]}
        yield {**chunk, "choices": [{**choice, "text": ""}]}

    def _next(self, choice: dict[str, Any], whole: str) -> str:
        """All that is to be sent by now."""
        if choice["finish_reason"] is not None:
            return whole
        if choice["logprobs"] is None:
            sent = self._sent + choice["text"]
            return sent if whole.startswith(sent) else self._sent
        self._n_tokens += 1
        known = self._text_of(self._n_tokens)
        return known if whole.startswith(known) else whole
