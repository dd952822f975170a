"""Greedy answers, chat prompts and teacher forcing: against llama_cpp's own ways to the same."""

from __future__ import annotations

import time

import llama_cpp
import numpy as np
import pytest
from helpers import tokens

from first_cpp import Llama
from first_cpp.errors import ContextFull
from first_cpp.runtime.chat_prompt import chat_prompt
from first_cpp.runtime.greedy import TimedAnswer, answer_timed, context_size, timed_tokens
from first_cpp.runtime.teacher_forcing import fidelity, follow, kl, log_probabilities


def test_tpot_is_the_mean_and_the_median_has_its_own_name():
    answer = TimedAnswer([1, 2, 3, 4], 0.5, [0.1, 0.1, 0.7], ended=False)
    assert (answer.tpot, answer.median_step) == (pytest.approx(0.3), 0.1)
    assert (TimedAnswer([], 0.0, [], True).tpot, TimedAnswer([1], 0.1, [], True).median_step) == (0, 0)


def test_an_answer_is_generates(tiny, load, monkeypatch):
    stock = load(tiny, llama_cpp.Llama)
    prompt = tokens(12)
    reference = stock.generate(prompt, temp=0.0)
    expected = [next(reference) for _ in range(6)]
    reference.close()
    monkeypatch.setattr(llama_cpp, "llama_vocab_is_eog", lambda vocabulary, token: False)
    answer = answer_timed(load(tiny), prompt, 6)
    assert answer.tokens == expected
    assert len(answer.steps) == 5
    assert not answer.ended
    end = expected[3]
    before = expected.index(end)
    monkeypatch.setattr(llama_cpp, "llama_vocab_is_eog", lambda vocabulary, token: token == end)
    ended = answer_timed(stock, prompt, 6)
    assert (ended.tokens, len(ended.steps), ended.ended) == (expected[:before], max(0, before - 1), True)
    assert answer_timed(stock, prompt, 6, ignore_end=True).tokens == expected


def test_the_context_ends_an_answer_and_a_prompt_that_fills_it_is_refused(tiny, load):
    llm = load(tiny, n_ctx=32)
    n_ctx = llm.n_ctx()
    answer = answer_timed(llm, tokens(n_ctx - 4), 50, ignore_end=True)
    assert (len(answer.tokens), answer.ended) == (3, False)
    with pytest.raises(ContextFull, match=f"the prompt has {n_ctx - 1} tokens, the context {n_ctx}"):
        answer_timed(llm, tokens(n_ctx - 1), 5)


def test_stock_records_no_more_tokens_than_it_was_asked_for(tiny, load):
    """llama.cpp rounds 40 up to 256, and stock llama_cpp's own count of the context follows."""
    stock = load(tiny, llama_cpp.Llama, n_ctx=40)
    assert (stock.n_ctx(), context_size(stock)) == (256, 40)
    assert len(answer_timed(stock, tokens(36), 50, ignore_end=True).tokens) == 3
    with pytest.raises(ContextFull, match="the prompt has 60 tokens, the context 40"):
        answer_timed(stock, tokens(60), 5)
    assert context_size(load(tiny, n_ctx=40)) == 256


def test_the_consumers_time_does_not_count(tiny, load):
    stream = timed_tokens(load(tiny), tokens(4))
    next(stream)
    time.sleep(0.3)
    assert next(stream)[1] < 0.3
    stream.close()


def test_following_its_own_answer_a_model_chooses_it(tiny, load):
    llm, prompt = load(tiny, skip=[1, 4]), tokens(10)
    answer = answer_timed(llm, prompt, 8, ignore_end=True).tokens
    own = follow(llm, prompt, answer)
    assert own.shape == (9, llm.n_vocab())
    assert np.exp(own).sum(axis=1) == pytest.approx(np.ones(9))
    assert fidelity(own, answer) == 1
    llm.skip = None
    dense = follow(llm, prompt, answer)
    assert kl(own, own) == pytest.approx(np.zeros(9))
    assert kl(dense, own).mean() > 0
    assert fidelity(dense, [(token + 1) % 100 for token in dense[:8].argmax(axis=1)]) == 0


def test_following_is_stocks_evaluation(tiny, load):
    """The rows are those of a stock model that evaluates the same tokens one by one."""
    prompt, answer = tokens(10), tokens(4, seed=3)
    found = follow(load(tiny), prompt, answer)
    stock = load(tiny, llama_cpp.Llama)
    stock.eval(prompt)
    rows = [log_probabilities(stock)]
    for token in answer:
        stock.eval([token])
        rows.append(log_probabilities(stock))
    assert np.abs(found - np.stack(rows)).max() < 1e-4


@pytest.mark.smollm2
def test_a_chat_prompt_is_create_chat_completions(smollm2, load, monkeypatch):
    llm = load(smollm2, Llama)
    given = []
    choice = {"text": "", "logprobs": None, "finish_reason": "stop"}
    completion = {"id": "", "created": 0, "model": "", "choices": [choice], "usage": {}}
    monkeypatch.setattr(llm, "create_completion", lambda prompt, **kwargs: given.append(prompt) or completion)
    llm.create_chat_completion([{"role": "user", "content": "Who wound the clock?"}])
    assert chat_prompt(llm, "Who wound the clock?") == given[0]
