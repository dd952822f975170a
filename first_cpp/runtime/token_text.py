"""The text of tokens, each token's looked up once: llama_cpp.Llama detokenises the whole answer again for every token."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import llama_cpp


class TokenText:
    """Tokens to bytes as `llama_cpp.LlamaTokenizer` does it, pieces of more than 32 bytes included (it drops those)."""

    def __init__(self, llm: llama_cpp.Llama) -> None:
        self._vocab = llama_cpp.llama_model_get_vocab(llm.model)
        self._n_vocab = llm.n_vocab()
        self._bos = llm.token_bos()
        self._known: dict[int, bytes] = {}
        self._known_special: dict[int, bytes] = {}

    def text(self, tokens: Sequence[int], special: bool) -> bytes:
        """The bytes of `tokens`; control tokens show with `special` only. Raises ValueError for a number that is no token."""
        known = self._known_special if special else self._known
        try:
            text = b"".join([known[token] for token in tokens])
        except KeyError:
            for token in tokens:
                known[token] = self._piece(token, special)
            text = b"".join([known[token] for token in tokens])
        # SentencePiece puts a space before the first word
        return text[1:] if text[:1] == b" " and tokens[0] == self._bos else text

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
