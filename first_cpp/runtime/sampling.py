"""Sampling with llama.cpp's samplers, from where its exceptions are caught (cpp_ext/sampler.cpp), under a mask of tokens."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import llama_cpp
import numpy as np
import numpy.typing as npt
from llama_cpp import _internals

from .. import _ext
from ..errors import GrammarError, LogitsError


class TokenMask(Protocol):
    """Which tokens an answer can go on with: a JSON schema (json_mask.py) or a grammar (grammar.py)."""

    def mask(self) -> npt.NDArray[np.uint32]:
        """A bit per token, lowest first, set where the token is allowed."""
        ...

    def accept(self, token: int) -> None:
        """The answer went on with `token`."""
        ...

    def close(self) -> None: ...


def _address(name: str) -> int:
    function = getattr(llama_cpp.llama_cpp._lib, name)
    return int(ctypes.cast(function, ctypes.c_void_p).value or 0)


class Sampler(_internals.LlamaSampler):  # type: ignore[misc]
    """A chain of llama_cpp's samplers, in their order; the mask comes where llama_cpp has its grammar."""

    def __init__(self, chain: _internals.LlamaSampler, n_vocab: int, mask: TokenMask | None, raised: Errors) -> None:
        self._chain = chain  # owns what is sampled with
        self.sampler = chain.sampler
        self.custom_samplers = chain.custom_samplers
        self._token_mask = mask
        self._raised = raised
        self._address = int(ctypes.cast(chain.sampler, ctypes.c_void_p).value or 0)
        self._n_before = len(chain.custom_samplers) + 1  # logits processors and penalties
        self._step = _ext.Sampler(
            _address("llama_get_logits_ith"),
            _address("llama_sampler_chain_n"),
            _address("llama_sampler_chain_get"),
            _address("llama_sampler_apply"),
            _address("llama_sampler_accept"),
            n_vocab,
        )

    def sample(self, ctx: Any, idx: int = -1) -> int:
        """The next token, accepted. Raises GrammarError where none is allowed, LogitsError for NaN, what a processor raised."""
        masked = None if self._token_mask is None else self._token_mask.mask()
        token = self._step.sample(self._address, ctx.ctx, idx, self._n_before, masked)
        self._raised.check()
        if token < 0:
            raise _error(token, masked)
        if self._token_mask is not None:
            self._token_mask.accept(token)
        return token

    def close(self) -> None:
        if self._token_mask is not None:
            self._token_mask.close()
        self.sampler = None
        self._chain.close()


def _error(failure: int, masked: object) -> Exception:
    if failure == _ext.Sampler.NOT_FINITE:
        return LogitsError("the model computed logits that are no numbers (NaN or infinite)")
    if failure == _ext.Sampler.NO_TOKEN:
        if masked is None:
            return LogitsError("no token has a finite logit")
        return GrammarError("no token of this model's vocabulary can go on by the grammar or JSON schema")
    return RuntimeError(f"llama.cpp selected no token ({failure})")


class Errors:
    """What logits processors raise: llama.cpp calls them, and an exception would be printed and lost."""

    def __init__(self) -> None:
        self._first: BaseException | None = None

    def guard(self, processors: Iterable[Callable[..., Any]]) -> llama_cpp.LogitsProcessorList:
        """The same processors; after one has failed the others no longer run."""
        return llama_cpp.LogitsProcessorList([self._guarded(processor) for processor in processors])

    def _guarded(self, processor: Callable[..., Any]) -> Callable[..., Any]:
        def call(tokens: Any, logits: Any) -> Any:
            if self._first is None:
                try:
                    return processor(tokens, logits)
                except BaseException as error:
                    self._first = error
            return logits

        return call

    def check(self) -> None:
        error, self._first = self._first, None
        if error is not None:
            raise error
