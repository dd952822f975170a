"""Several conversations in memory: what a prompt finds, that it is right, and how much is kept."""

from __future__ import annotations

import llama_cpp
import numpy as np
import pytest
from helpers import greedy, logits, tokens
from routers_files import routed_model

from first_cpp import SettingError

MORE = tokens(12, seed=9)
CLOSE = 2e-3


@pytest.fixture(scope="module")
def routed(tiny, models):
    return routed_model(tiny, models, seed=31)


def read_by(llm, prompt):
    """How many tokens a prompt evaluates, and the logits after it."""
    read = []
    evaluate = llm._read.run
    llm._read.run = lambda batch, *rest, **more: (read.append(len(batch)), evaluate(batch, *rest, **more))
    try:
        answer = llm.generate(prompt, temp=0.0)
        next(answer)
        row = logits(llm)[0]
        answer.close()
    finally:
        llm._read.run = evaluate
    return sum(read), row


SETTINGS = {
    "share": {"skip": 0.34},
    "dense": {"skip": None},
    "released": {"skip": 0.34, "release_kv": True},
    "routed prefill": {"skip": 0.34, "prefill": "routed", "route_tokens": 16},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("n_chats", [2, 4])
def test_alternating_chats_read_only_what_is_new(routed, load, settings, n_chats):
    llm = load(routed, cache_bytes=1 << 26, **settings)
    chats = [tokens(60, seed=100 + chat) for chat in range(n_chats)]
    for chat in chats:
        chat.extend(greedy(llm, chat, 20))
        assert llm.catch_up()
    for chat in chats:
        n_read, row = read_by(llm, chat + MORE)
        assert n_read == 1 + len(MORE)
        fresh = load(routed, **settings)
        np.testing.assert_allclose(row, read_by(fresh, chat + MORE)[1], rtol=0, atol=CLOSE)
        assert llm.routing.skipped == fresh.routing.skipped
        fresh.close()
    assert llm.conversations.hits == n_chats
    assert llm.conversations.hit_tokens == n_chats * (60 + 20 - 1)


def test_without_it_each_turn_is_read_from_its_beginning(routed, load):
    llm = load(routed, skip=0.34)
    assert llm.conversations is None
    first = tokens(60, seed=100)
    first += greedy(llm, first, 20)
    greedy(llm, tokens(60, seed=101), 20)
    assert read_by(llm, first + MORE)[0] == len(first) + len(MORE)


def test_what_was_not_read_again_is_not_taken(routed, load):
    """Without an idle pass, the answer lacks layers: the prompt alone is taken."""
    llm = load(routed, skip=0.34, cache_bytes=1 << 26)
    first = tokens(60, seed=100)
    conversation = first + greedy(llm, first, 20)
    greedy(llm, tokens(60, seed=101), 20)
    n_read, row = read_by(llm, conversation + MORE)
    assert n_read == 20 + len(MORE)
    np.testing.assert_allclose(row, read_by(load(routed, skip=0.34), conversation + MORE)[1], rtol=0, atol=CLOSE)


def test_the_least_recently_used_goes_first(routed, load):
    llm = load(routed, skip=0.34, cache_bytes=1 << 26)
    greedy(llm, tokens(60, seed=100), 4)
    greedy(llm, tokens(60, seed=101), 4)
    one = llm.conversations.n_bytes
    llm = load(routed, skip=0.34, cache_bytes=2 * one + one // 2)
    chats = [tokens(60, seed=100 + chat) for chat in range(4)]
    for chat in chats:
        greedy(llm, chat, 4)
    assert len(llm.conversations) == 2  # 1 and 2; 3 is the model's own
    assert read_by(llm, chats[0] + MORE)[0] == 60 + len(MORE)
    assert read_by(llm, chats[3] + MORE)[0] == len(MORE)
    assert llm.conversations.n_bytes <= llm.conversations.most_bytes


def test_a_state_larger_than_the_cache_is_not_kept(routed, load):
    llm = load(routed, skip=0.34, cache_bytes=100)
    for seed in (1, 2):
        greedy(llm, tokens(60, seed=seed), 4)
    assert len(llm.conversations) == 0


@pytest.mark.slow
def test_memory_is_flat_over_many_requests(routed, load):
    """1,000 prompts of new and old conversations: what is kept stays within its bound, and so does the process."""
    llm = load(routed, skip=0.34, cache_bytes=1 << 21, n_ctx=256)

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    after = []
    for i in range(1000):
        greedy(llm, tokens(40, seed=i % 7 if i % 3 else i), 2)
        assert llm.conversations.n_bytes <= 1 << 21
        if i in (300, 999):
            after.append(resident())
    assert after[1] - after[0] < 4 << 20
    assert llm.conversations.hits > 10


def test_begins_alike_and_goes_on_otherwise(routed, load):
    """A shared beginning is taken for a new conversation, and the old one stays."""
    llm = load(routed, skip=0.34, cache_bytes=1 << 26)
    system = tokens(60, seed=7)
    first = system + tokens(40, seed=8)
    greedy(llm, first, 4)
    greedy(llm, tokens(60, seed=101), 4)
    assert read_by(llm, system + MORE)[0] == len(MORE)
    assert read_by(llm, first + MORE)[0] == len(MORE)


def test_stocks_own_cache_works_too(routed, load):
    llm = load(routed, skip=0.34)
    llm.set_cache(llama_cpp.LlamaRAMCache(1 << 28))
    first = llm.create_completion("Hello there, how are you today?", max_tokens=8, temperature=0)
    llm.create_completion("Quite another prompt, longer than that", max_tokens=8, temperature=0)
    again = llm.create_completion("Hello there, how are you today?", max_tokens=8, temperature=0)
    assert first["choices"] == again["choices"]


@pytest.mark.parametrize("value", [-1, 1.5, True, "1"])
def test_bytes_that_are_none(routed, load, value):
    with pytest.raises(SettingError, match="cache_bytes"):
        load(routed, cache_bytes=value)


def test_all_logits_are_those_of_the_conversation(routed, load):
    llm = load(routed, cache_bytes=1 << 26, logits_all=True)
    chats = [tokens(60, seed=200), tokens(70, seed=201)]
    for chat in chats:
        greedy(llm, chat, 1)
    greedy(llm, chats[0] + MORE, 1)
    assert llm.conversations.hits == 1
    found = llm.scores[:60].copy()
    assert llm.conversations.n_bytes > 60 * llm.n_vocab() * 4
    fresh = load(routed, logits_all=True)
    greedy(fresh, chats[0] + MORE, 1)
    np.testing.assert_allclose(found, fresh.scores[:60], rtol=0, atol=CLOSE)


def test_all_logits_count_as_memory(routed, load):
    prompts = [tokens(120, seed=seed) for seed in range(2)]
    plain = load(routed, cache_bytes=1 << 26)
    for prompt in prompts:
        greedy(plain, prompt, 1)
    room = plain.conversations.n_bytes + 1000
    llm = load(routed, cache_bytes=room, logits_all=True)
    for prompt in prompts:
        greedy(llm, prompt, 1)
    assert llm.conversations.n_bytes == 0  # of 120 tokens' logits, 4 bytes each of the vocabulary


def test_the_same_prompt_again_is_answered_by_its_own_logits(tiny, load):
    llm, fresh = load(tiny, skip=None, cache_bytes=1 << 26), load(tiny, skip=None)
    one, other = tokens(60, seed=7), tokens(50, seed=8)
    first = greedy(llm, one, 1)
    assert greedy(llm, other, 1) != first
    assert greedy(llm, one, 1) == first == greedy(fresh, one, 1)
    assert llm.conversations.hits == 1
