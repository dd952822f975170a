"""Evaluations beside `Llama.eval`: straight through llama_decode, so that nothing of the model's record changes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import llama_cpp


@contextlib.contextmanager
def empty_memory(llm: llama_cpp.Llama) -> Iterator[None]:
    """The KV cache is empty inside, and empty afterwards."""
    # sequence 0: recurrent memories do not know -1 for all
    memory = llama_cpp.llama_get_memory(llm.ctx)
    llama_cpp.llama_memory_seq_rm(memory, 0, 0, -1)
    try:
        yield
    finally:
        llama_cpp.llama_memory_seq_rm(memory, 0, 0, -1)


def decode(llm: llama_cpp.Llama, tokens: Sequence[int], start: int = 0, all_outputs: bool = False) -> None:
    """Evaluate `tokens` at positions from `start` on; outputs are those of the last token, or of all.

    Raises RuntimeError where llama_decode fails.
    """
    batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
    try:
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, start + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = all_outputs or i == len(tokens) - 1
        if status := llama_cpp.llama_decode(llm.ctx, batch):
            raise RuntimeError(f"llama_decode returned {status}")
    finally:
        llama_cpp.llama_batch_free(batch)
