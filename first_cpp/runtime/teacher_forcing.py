"""Next-token distributions along an answer that is given: what KL and fidelity are taken from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

LogProbabilities = npt.NDArray[np.float64]


def follow(llm: llama_cpp.Llama, prompt: Sequence[int], answer: Sequence[int]) -> LogProbabilities:
    """Decode `answer` after a prompt, as the model decodes its own: with the layers skipped that the prompt chose.

    Returns log probabilities before each token of the answer and after the last, float64 [1 + n, n_vocab].

    >>> from first_cpp import Llama
    >>> llm = Llama("model.gguf", n_ctx=256, verbose=False)
    >>> follow(llm, llm.tokenize(b"Once upon"), [5, 6, 7]).shape == (4, llm.n_vocab())
    True
    >>> llm.close()
    """
    return np.stack(list(_followed(llm, prompt, answer)))


def token_log_probabilities(
    llm: llama_cpp.Llama, prompt: Sequence[int], answer: Sequence[int]
) -> tuple[LogProbabilities, npt.NDArray[np.bool_]]:
    """The log probability of each token of an answer that is decoded as in `follow`, float64 [n], and whether it is the first
    choice there, bool [n].

    >>> from first_cpp import Llama
    >>> llm = Llama("model.gguf", n_ctx=256, verbose=False)
    >>> values, first = token_log_probabilities(llm, llm.tokenize(b"Once upon"), [5, 6, 7])
    >>> values.shape, bool((values < 0).all())
    ((3,), True)
    >>> llm.close()
    """
    rows = zip(_followed(llm, prompt, answer[:-1]), answer, strict=bool(answer))
    found = [(row[token], row.argmax() == token) for row, token in rows]
    return np.array([value for value, _ in found]), np.array([first for _, first in found], bool)


def _followed(llm: llama_cpp.Llama, prompt: Sequence[int], answer: Sequence[int]) -> Iterator[LogProbabilities]:
    tokens = llm.generate(list(prompt), temp=0.0, repeat_penalty=1.0)
    try:
        next(tokens)
        yield log_probabilities(llm)
        for token in answer:
            llm.eval([token])  # amid the answer: decoded as the answer is
            yield log_probabilities(llm)
    finally:
        tokens.close()


def log_probabilities(llm: llama_cpp.Llama) -> LogProbabilities:
    """Of the next token, by the logits of the last one evaluated: float64 [n_vocab]."""
    row = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(llm.ctx, -1), shape=(llm.n_vocab(),)).astype(np.float64)
    shifted = row - row.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


def kl(of: LogProbabilities, to: LogProbabilities) -> npt.NDArray[np.float64]:
    """KL divergence in nats at each position, from `of` to `to` [n, n_vocab]: float64 [n].

    >>> import numpy as np
    >>> kl(np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])).round(3).tolist()
    [0.144]
    """
    return np.asarray((np.exp(of) * (of - to)).sum(axis=1))


def fidelity(dense: npt.NDArray[np.floating[Any]], answer: Sequence[int]) -> float:
    """Share of an answer's positions at which the dense model's first choice is the token that the answer has there.

    dense: the dense model's log probabilities, or logits, before each token of the answer, [at least n, n_vocab]. 1 for an
    empty answer.

    >>> import numpy as np
    >>> fidelity(np.log([[0.7, 0.3], [0.4, 0.6]]), [0, 0])
    0.5
    """
    return float(np.mean(dense[: len(answer)].argmax(axis=1) == np.asarray(answer))) if len(answer) else 1.0
