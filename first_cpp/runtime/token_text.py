"""The text of tokens: llama_cpp.Llama asks for that of the whole answer again with every token.

Each token is looked up once, and of a text that has grown only the tokens that are new.
"""

from __future__ import annotations

import codecs
import ctypes
from collections.abc import Sequence

import llama_cpp

_LONG = 64
"""Tokens of a text that is worth keeping, to go on from."""


def without_broken(text: bytes) -> bytes:
    r"""The text without bytes that are part of no character; the beginning of one, at its end, stays.

    >>> without_broken(b"a\x80b\xc3")
    b'ab\xc3'
    """
    try:
        text.decode("utf-8")
        return text
    except UnicodeDecodeError:
        decoder = codecs.getincrementaldecoder("utf-8")("ignore")
        return decoder.decode(text).encode("utf-8") + decoder.getstate()[0]


class TokenText:
    """Tokens to bytes as `llama_cpp.LlamaTokenizer` does it, pieces of more than 32 bytes included (it drops those)."""

    def __init__(self, llm: llama_cpp.Llama) -> None:
        self._vocab = llama_cpp.llama_model_get_vocab(llm.model)
        self._n_vocab = llm.n_vocab()
        self._bos = llm.token_bos()
        self._known: dict[int, bytes] = {}
        self._known_special: dict[int, bytes] = {}
        self._tokens: list[int] = []
        """Of the last long text, without control tokens; and their bytes."""
        self._joined = b""

    def text(self, tokens: Sequence[int], special: bool) -> bytes:
        """The bytes of `tokens`; control tokens show with `special` only. Raises ValueError for a number that is no token."""
        long = not special and len(tokens) >= _LONG
        text = self._grown_text(list(tokens)) if long else self._joined_text(tokens, special)
        # SentencePiece puts a space before the first word
        return text[1:] if text[:1] == b" " and tokens[0] == self._bos else text

    def _grown_text(self, tokens: list[int]) -> bytes:
        """Of many tokens: most often those of the last call, and one more."""
        n = len(self._tokens)
        if tokens[:n] == self._tokens:
            new = tokens[n:]
            self._joined += self._joined_text(new, False)
            self._tokens += new
            return self._joined
        text = self._joined_text(tokens, False)
        if tokens != self._tokens[: len(tokens)]:  # else the longer one goes on
            self._tokens, self._joined = tokens, text
        return text

    def _joined_text(self, tokens: Sequence[int], special: bool) -> bytes:
        known = self._known_special if special else self._known
        try:
            return b"".join([known[token] for token in tokens])
        except KeyError:
            for token in tokens:
                known[token] = self._piece(token, special)
            return b"".join([known[token] for token in tokens])

    def _piece(self, token: int, special: bool) -> bytes:
        if not 0 <= token < self._n_vocab:
            raise ValueError(f"{token} is no token of this model: 0 to {self._n_vocab - 1}")  # llama.cpp would abort
        size = 32
        while True:
            buffer = ctypes.create_string_buffer(size)
            n = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, size, 0, special)
            if n >= 0:
                return buffer.raw[:n]
            size = -n
