"""A second turn is what a fresh model gives for the same whole prompt, after every kind of first turn."""

from __future__ import annotations

import llama_cpp
import numpy as np
import pytest
from helpers import greedy, logits, tokens
from routers_files import budget_routers, routed_model
from second_turn import CLOSE, MORE, PROMPT, second_turn

SETTINGS = ["auto", 0.5, [1, 4], [0, 5], None]


@pytest.fixture(scope="module")
def routed(tiny, models):
    return routed_model(tiny, models, seed=11)


def plain(llm):
    return greedy(llm, PROMPT, 20)


def abandoned(llm):
    generator = llm.generate(PROMPT, temp=0.0)
    return [next(generator) for _ in range(9)]  # never closed


def one_token(llm):
    return greedy(llm, PROMPT, 1)


def with_exception(llm):
    def criteria(ids, scores):
        if len(ids) > 66:
            raise KeyError("from a stopping criterion")
        return False

    found = []
    with pytest.raises(KeyError):
        found.extend(llm.generate(PROMPT, temp=0.0, stopping_criteria=criteria))
    return llm.input_ids[60 : llm.n_tokens].tolist()


def saved_and_loaded(llm):
    found = greedy(llm, PROMPT, 20)
    state = llm.save_state()
    greedy(llm, tokens(40, seed=9), 12)
    llm.load_state(state)
    return found


def reset_between(llm):
    found = greedy(llm, PROMPT, 20)
    llm.reset()
    return found


def cached(llm):
    llm.set_cache(llama_cpp.LlamaRAMCache())
    found = greedy(llm, PROMPT, 20)
    llm.cache[PROMPT + found] = llm.save_state()
    llm.reset()
    llm.load_state(llm.cache[PROMPT + found])
    return found


FIRST_TURNS = [plain, abandoned, one_token, with_exception, saved_and_loaded, reset_between, cached]


FLASH = {"flash_attn": True, "n_ubatch": 16}
CASES = [  # with flash attention a first turn of each kind, and each setting
    pytest.param(first, skip, context, id=f"{'flash' if context else 'plain'}-{first.__name__}-{skip}",
                 marks=[pytest.mark.slow] if context and first is not plain and skip != 0.5 else [])
    for context in ({}, FLASH) for first in FIRST_TURNS for skip in SETTINGS
]  # fmt: skip


@pytest.mark.parametrize(("first_turn", "skip", "context"), CASES)
def test_second_turn_is_a_fresh_model(routed, load, first_turn, skip, context):
    used, fresh = load(routed, skip=skip, **context), load(routed, skip=skip, **context)
    prompt = PROMPT + first_turn(used) + MORE
    row, answer, skipped = second_turn(used, prompt)
    fresh_row, fresh_answer, fresh_skipped = second_turn(fresh, prompt)
    assert skipped == fresh_skipped
    assert answer == fresh_answer
    assert used.reused == (0 if first_turn is reset_between else 60 if skip is not None else used.reused)
    stock = load(routed, llama_cpp.Llama, **context)
    np.testing.assert_array_equal(row, stock_row(stock, prompt, used.reused))
    np.testing.assert_allclose(row, fresh_row, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("skip", ["auto", pytest.param(0.5, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["sets", "layers"])
@pytest.mark.parametrize("first_turn", FIRST_TURNS)
def test_second_turn_of_a_budget(tiny, load, first_turn, kind, skip):
    """What cost probes read of a reused prefix counts as what routers read does."""
    routers = budget_routers(tiny, kind, tolerance=1.0, scale=0.02)
    used, fresh = load(tiny, routers=routers, skip=skip), load(tiny, routers=routers, skip=skip)
    prompt = PROMPT + first_turn(used) + MORE
    row, answer, skipped = second_turn(used, prompt)
    fresh_row, fresh_answer, fresh_skipped = second_turn(fresh, prompt)
    assert skipped == fresh_skipped != ()
    assert answer == fresh_answer
    assert used.reused == (0 if first_turn is reset_between else 60)
    if skip == "auto":
        assert used.routing.cost == pytest.approx(fresh.routing.cost, rel=1e-3)
    np.testing.assert_allclose(row, fresh_row, rtol=0, atol=CLOSE)


def test_a_state_of_other_probes_is_read_again(tiny, load):
    """What it saved is of no use to them: another length even."""
    used = load(tiny, routers=budget_routers(tiny, tolerance=1.0))
    greedy(used, PROMPT, 5)
    other = load(tiny, routers=budget_routers(tiny, "layers", tolerance=1.0))
    other.load_state(used.save_state())
    fresh = load(tiny, routers=budget_routers(tiny, "layers", tolerance=1.0))
    assert greedy(other, PROMPT + MORE, 4) == greedy(fresh, PROMPT + MORE, 4)
    assert other.routing == fresh.routing


def stock_row(stock, prompt, reused):
    """Stock llama_cpp.Llama's logits after a first turn of PROMPT and token by token, then the rest at once."""
    first = [prompt[: min(60, reused)], *([token] for token in prompt[60:reused]), prompt[reused:]]
    for batch in first:
        stock.eval(batch)
    return logits(stock)[0]


def test_stock_differs_from_itself_as_much(routed, load):
    """Kernels round by batch size, so a stock second turn is not a stock fresh model either: CLOSE is that distance."""
    distances = []
    for context in ({}, {"flash_attn": True, "n_ubatch": 16}, {"flash_attn": True, "type_k": 0, "type_v": 0}):
        used, fresh = (load(routed, llama_cpp.Llama, **context) for _ in range(2))
        prompt = tokens(105, seed=4)
        fresh.eval(prompt)
        distances.append(np.abs(stock_row(used, prompt, 79) - logits(fresh)[0]).max())
    assert CLOSE / 10 < max(distances) < CLOSE


def test_dial_turned_between_answers(routed, load):
    llm = load(routed, skip=None)
    transcript = list(PROMPT)
    for turn, skip in enumerate([0.5, None, [3], "auto", 0.34, 0]):
        llm.skip = skip
        row, answer, skipped = second_turn(llm, transcript)
        fresh = load(routed, skip=skip)
        fresh_row, fresh_answer, fresh_skipped = second_turn(fresh, transcript)
        assert (answer, skipped) == (fresh_answer, fresh_skipped)
        np.testing.assert_allclose(row, fresh_row, rtol=0, atol=CLOSE)
        transcript += [*answer, *tokens(7, seed=turn)]


def test_state_of_stock_llama_is_read_again_for_scores(routed, load):
    stock, llm, fresh = load(routed, llama_cpp.Llama), load(routed, skip=0.5), load(routed, skip=0.5)
    stock.eval(PROMPT)
    llm.load_state(stock.save_state())
    assert second_turn(llm, PROMPT + MORE)[1:] == second_turn(fresh, PROMPT + MORE)[1:]


def test_disk_cache_keeps_what_is_known(routed, load, tmp_path):
    llm = load(routed, skip=[1, 4])
    llm.set_cache(llama_cpp.LlamaDiskCache(str(tmp_path)))
    text = "the prompt of a cached answer"
    first = llm(text, max_tokens=8, temperature=0)["choices"][0]["text"]
    llm.reset()
    second = llm(text + first, max_tokens=8, temperature=0)["choices"][0]["text"]
    assert second == load(routed, skip=[1, 4])(text + first, max_tokens=8, temperature=0)["choices"][0]["text"]


@pytest.mark.parametrize("skip", [None, [1, 4]], ids=str)
def test_after_a_reset_an_answer_is_a_fresh_models_bit_for_bit(tiny_q8, load, skip):
    """A prefix that is reused was read in other batches, and llama.cpp's kernels round by the size of a batch."""
    fresh, llm = load(tiny_q8, skip=skip), load(tiny_q8, skip=skip)
    expected = greedy(fresh, PROMPT + MORE, 6)
    greedy(llm, PROMPT, 9)
    for _ in range(2):
        greedy(llm, PROMPT + MORE, 6)
        np.testing.assert_allclose(logits(llm), logits(fresh), rtol=0, atol=CLOSE)
    llm.reset()
    assert greedy(llm, PROMPT + MORE, 6) == expected
    np.testing.assert_array_equal(logits(llm), logits(fresh))
