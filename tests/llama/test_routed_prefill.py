"""prefill="routed": the first tokens decide, the rest of the prompt is read without the layers left out."""

from __future__ import annotations

import pickle

import llama_cpp
import numpy as np
import pytest
from helpers import greedy, logits, tokens
from routers_files import routed_model
from second_turn import CLOSE

from first_cpp import SettingError

PROMPT, MORE = tokens(60, seed=1), tokens(25, seed=2)


@pytest.fixture(scope="module")
def routed(tiny, models):
    return routed_model(tiny, models, seed=31)


def evaluated(monkeypatch):
    """The sizes of the batches evaluated from now on."""
    sizes = []
    base = llama_cpp.Llama.eval
    monkeypatch.setattr(llama_cpp.Llama, "eval", lambda self, t: (sizes.append(len(t)), base(self, t))[1])
    return sizes


@pytest.mark.parametrize("skip", [0.34, 0.5, [0, 5], [2]], ids=str)
@pytest.mark.parametrize("context", [{}, {"n_ubatch": 16, "n_batch": 32}], ids=["plain", "small batches"])
def test_it_is_the_first_tokens_dense_and_the_rest_without(routed, load, skip, context):
    llm, by_hand = load(routed, skip=skip, prefill="routed", route_tokens=16, **context), load(routed, skip=None, **context)
    answer = llm.generate(PROMPT, temp=0.0)
    first = next(answer)
    row = logits(llm)
    found = [first, *(next(answer) for _ in range(9))]
    left_out = llm.routing.skipped
    assert llm.routing.prompt_tokens == 16
    by_hand.eval(PROMPT[:16])
    with by_hand.skipping(left_out):
        by_hand.eval(PROMPT[16:])
        np.testing.assert_array_equal(row, logits(by_hand))
        for token in found[:-1]:
            assert int(logits(by_hand).argmax()) == token
            by_hand.eval([token])


def test_the_first_tokens_alone_decide(routed, load):
    whole, part = load(routed, skip=0.34), load(routed, skip=0.34, prefill="routed", route_tokens=16)
    greedy(whole, PROMPT[:16], 1)
    greedy(part, PROMPT, 1)
    np.testing.assert_allclose(part.routing.keep, whole.routing.keep, rtol=0, atol=1e-5)
    assert part.routing.skipped == whole.routing.skipped


def test_all_of_the_prompt_is_kv_in_use(routed, load):
    part, whole = load(routed, skip=0.34, prefill="routed", route_tokens=16), load(routed, skip=0.34)
    for llm in (part, whole):
        greedy(llm, PROMPT, 1)
    assert part.routing.kv_bytes_used == whole.routing.kv_bytes_used > 0


def test_a_short_prompt_is_read_with_all_layers(routed, load):
    short = PROMPT[:10]
    llm = load(routed, skip=0.34, prefill="routed", route_tokens=16)
    assert greedy(llm, short, 12) == greedy(load(routed, skip=0.34), short, 12)
    assert llm.routing.prompt_tokens == 10


def test_one_micro_batch_decides_by_default(routed, load):
    llm = load(routed, skip=0.34, prefill="routed", n_ubatch=32)
    greedy(llm, PROMPT, 1)
    assert llm.routing.prompt_tokens == 32


@pytest.mark.parametrize("skip", [0.34, [1, 4], None], ids=str)
@pytest.mark.parametrize("release_kv", [False, True])
def test_second_turn_is_a_fresh_model(routed, load, skip, release_kv):
    settings = {"skip": skip, "prefill": "routed", "route_tokens": 16, "release_kv": release_kv}
    used, fresh = load(routed, **settings), load(routed, **settings)
    prompt = PROMPT + greedy(used, PROMPT, 20) + MORE
    answers = [llm.generate(prompt, temp=0.0) for llm in (used, fresh)]
    tokens_of = [[next(answer)] for answer in answers]
    np.testing.assert_allclose(logits(used), logits(fresh), rtol=0, atol=CLOSE)
    for found, answer in zip(tokens_of, answers, strict=True):
        found += [next(answer) for _ in range(9)]
    assert tokens_of[0] == tokens_of[1]
    assert used.routing.skipped == fresh.routing.skipped


def test_the_next_turn_reads_only_what_is_new(routed, load, monkeypatch):
    llm = load(routed, skip=0.34, prefill="routed", route_tokens=16)
    prompt = PROMPT + greedy(llm, PROMPT, 20)[:-1] + MORE  # the last token was sampled, not evaluated
    sizes = evaluated(monkeypatch)
    greedy(llm, prompt, 1)
    assert sizes == [len(MORE)]


def test_another_share_reads_from_where_the_layers_differ(routed, load, monkeypatch):
    llm = load(routed, skip=0.34, prefill="routed", route_tokens=16)
    prompt = PROMPT + greedy(llm, PROMPT, 20)[:-1] + MORE
    llm.skip = 0.5
    sizes = evaluated(monkeypatch)
    answer = greedy(llm, prompt, 8)
    assert sizes[0] == len(prompt) - 16
    assert answer == greedy(load(routed, skip=0.5, prefill="routed", route_tokens=16), prompt, 8)


def test_settings_survive_pickling(routed, load):
    again = pickle.loads(pickle.dumps(load(routed, skip=0.34, prefill="routed", route_tokens=16)))
    try:
        greedy(again, PROMPT, 1)
        assert again.routing.prompt_tokens == 16
    finally:
        again.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prefill": "fast"}, "'fast' is not"),
        ({"prefill": None}, "None is not"),
        ({"prefill": "routed", "route_tokens": 0}, "1 or more"),
        ({"prefill": "routed", "route_tokens": 2.5}, "1 or more"),
        ({"prefill": "routed", "route_tokens": True}, "1 or more"),
        ({"route_tokens": 64}, 'needs prefill="routed"'),
    ],
)
def test_settings_that_are_none(routed, load, settings, message):
    with pytest.raises(SettingError, match=message):
        load(routed, **settings)
