"""Texts that are too long for a context are known by their beginning, and others are never taken for such."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from first_cpp import ContextFull, Llama
from first_cpp.runtime.long_text import SLICE, least_tokens

PARTS = ["word ", "ab", " ", "\n", "😀", "é", "=" * 90, "<s>", "</s>", "a" * 500, "東京", "x" * 4000]


@pytest.fixture(scope="module")
def llm(tiny):
    model = Llama(tiny, verbose=False, n_ctx=512, n_threads=1, chat_format="chatml")
    yield model
    model.close()


TEXTS = st.lists(st.tuples(st.sampled_from(PARTS), st.integers(1, 400)), min_size=1, max_size=12)


@settings(max_examples=8, deadline=None)
@given(TEXTS, st.integers(1, 40_000))
def test_never_more_tokens_than_there_are(llm, parts, most):
    check_least_tokens(llm, parts, most)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(TEXTS, st.integers(1, 40_000))
def test_never_more_tokens_than_there_are_at_length(llm, parts, most):
    check_least_tokens(llm, parts, most)


def check_least_tokens(llm, parts, most):
    text = "".join(part * count for part, count in parts).encode()[: 4 * SLICE]
    found = least_tokens(lambda part: llm.tokenize(part, special=True), text, most)
    assert found <= len(llm.tokenize(text, special=True))


def test_never_more_tokens_than_there_are_with_a_larger_vocabulary(smollm2):
    llm = Llama(smollm2, verbose=False, vocab_only=True)
    for part in PARTS:
        text = (part * (3 * SLICE // len(part.encode()))).encode()
        assert least_tokens(lambda one: llm.tokenize(one, special=True), text, 10) <= len(llm.tokenize(text, special=True))


@pytest.mark.timed
@pytest.mark.parametrize("text", ["word " * 1_000_000, "😀" * 1_000_000, " " * 5_000_000], ids=["words", "emoji", "spaces"])
def test_a_prompt_of_megabytes_is_a_quick_error(llm, text):
    """llama.cpp's SentencePiece takes a time that grows with the square of the text: 131 KB take seconds."""
    began = time.perf_counter()
    with pytest.raises(ContextFull, match="or more"):
        llm.create_completion(text, max_tokens=1)
    with pytest.raises(ContextFull, match="or more"):
        llm.create_chat_completion([{"role": "user", "content": text}], max_tokens=1)
    assert time.perf_counter() - began < 2
    assert llm.create_completion("Hi", max_tokens=1)["usage"]["completion_tokens"] == 1


def test_a_long_text_can_be_tokenised(llm):
    """Counting tokens is not prompting: any length is allowed."""
    assert len(llm.tokenize(b"ab" * 10_000)) > 10_000
