"""A second turn is what a fresh model gives for the same whole prompt, after every kind of first turn."""

from __future__ import annotations

import ctypes

import llama_cpp
import numpy as np
import pytest
from helpers import greedy, logits, tokens
from routers_files import budget_routers, routed_model

from first_cpp import BusyError, LogitsError, RoutingError

PROMPT, MORE = tokens(60, seed=1), tokens(25, seed=2)
CLOSE = 0.03  # logits, against a spread of about 1
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


class Answer(list):
    """Greedy tokens, equal up to a near tie: there the rounding of kernels, another on every CPU, decides."""

    __hash__ = None

    margins: tuple[float, ...]

    def __eq__(self, other):
        first = next((i for i, (a, b) in enumerate(zip(self, other, strict=True)) if a != b), None)
        return first is None or self.margins[first] < 2 * CLOSE


def margin(llm) -> float:
    second, best = np.sort(logits(llm)[0])[-2:]
    return float(best - second)


def second_turn(llm, prompt):
    """Logits after the prompt, the greedy answer, and what was decided; llm.reused: positions that were not read again."""
    generator = llm.generate(prompt, temp=0.0)
    evaluate = llm._read.evaluate

    def first_evaluate(batch, *rest):
        llm.reused, llm._read.evaluate = len(prompt) - len(batch), evaluate
        evaluate(batch, *rest)

    llm._read.evaluate = first_evaluate
    first = next(generator)
    row = logits(llm)[0]
    answer, margins = Answer([first]), [margin(llm)]
    for _ in range(11):
        answer.append(next(generator))
        margins.append(margin(llm))
    answer.margins = tuple(margins)
    generator.close()
    return row, answer, llm.routing.skipped


@pytest.mark.parametrize("skip", SETTINGS, ids=str)
@pytest.mark.parametrize("first_turn", FIRST_TURNS)
@pytest.mark.parametrize("context", [{}, {"flash_attn": True, "n_ubatch": 16}], ids=["plain", "flash"])
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


@pytest.mark.parametrize("skip", ["auto", 0.5])
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


def test_continuing_reads_the_answer_again(routed, load):
    """generate(reset=False) appends to what is there; the answer so far is read with all layers first."""
    used, fresh = load(routed, skip=[1, 4]), load(routed, skip=[1, 4])
    first = greedy(used, PROMPT, 10)[:9]  # the tenth was sampled and not evaluated
    assert greedy(used, MORE, 8, reset=False) == greedy(fresh, PROMPT + first + MORE, 8)


def test_eval_after_an_answer_reads_it_again(routed, load):
    used, fresh = load(routed, skip=[1, 4]), load(routed, skip=None)
    found = greedy(used, PROMPT, 10)[:9]
    used.eval(MORE)
    fresh.eval(PROMPT + found + MORE)
    assert used.n_tokens == fresh.n_tokens == 94
    np.testing.assert_allclose(logits(used)[0], logits(fresh)[0], rtol=0, atol=CLOSE)


def test_prefix_reuse_stops_where_layers_were_left_out(routed, load, monkeypatch):
    llm = load(routed, skip=[2])
    answer = greedy(llm, PROMPT, 20)
    evaluated = []
    base_eval = llama_cpp.Llama.eval
    monkeypatch.setattr(llama_cpp.Llama, "eval", lambda self, t: (evaluated.append(list(t)), base_eval(self, t))[1])
    greedy(llm, PROMPT + answer + MORE, 1)
    assert evaluated[0] == answer + MORE  # the prompt is reused, the answer is read in full


def test_reused_prefix_still_counts_in_the_scores(routed, load):
    used, fresh = load(routed, skip=0.5), load(routed, skip=0.5)
    greedy(used, PROMPT, 3)
    greedy(used, PROMPT + MORE, 1)
    greedy(fresh, PROMPT + MORE, 1)
    assert used.routing.prompt_tokens == 85
    np.testing.assert_allclose(used.routing.keep, fresh.routing.keep, rtol=0, atol=1e-5)


def poison(llm, layers, positions):
    """NaN into the K and V rows of `layers` at `positions` (F32 cache, flash attention: one row a position)."""
    for tensor in llm.kv_cache:
        if tensor.layer in layers:
            width = tensor.n_bytes // 4 // llm._ctx.n_ctx()
            rows = np.ctypeslib.as_array((ctypes.c_float * (tensor.n_bytes // 4)).from_address(tensor.address))
            rows = rows.reshape(-1, width)
            assert rows[:60].any(), "the prompt's rows are there"
            assert not rows[positions].any(), "no KV row was written for a layer left out"
            rows[positions] = np.nan


@pytest.mark.parametrize("skip", [0.5, [1, 4], [0], [5]], ids=str)
def test_stale_kv_is_never_read(routed, load, skip):
    context = {"flash_attn": True, "type_k": 0, "type_v": 0}
    used, fresh = load(routed, skip=skip, **context), load(routed, skip=skip, **context)
    answer = greedy(used, PROMPT, 20)
    poison(used, used.routing.skipped, np.arange(60, 79))
    row, second, _ = second_turn(used, PROMPT + answer + MORE)
    fresh_row, fresh_second, _ = second_turn(fresh, PROMPT + answer + MORE)
    assert np.isfinite(row).all()
    assert second == fresh_second
    np.testing.assert_allclose(row, fresh_row, rtol=0, atol=CLOSE)


def test_poison_would_show(routed, load):
    """The test above can fail: told that all rows are whole, the model reads the NaN."""
    llm = load(routed, skip=[1, 4], flash_attn=True, type_k=0, type_v=0)
    answer = greedy(llm, PROMPT, 20)
    poison(llm, (1, 4), np.arange(60, 79))
    llm._read.kv.truncate(0)
    llm._read.kv.append(llm.n_tokens, frozenset())
    with pytest.raises(LogitsError):
        second_turn(llm, PROMPT + answer + MORE)
    assert not np.isfinite(logits(llm)[0]).all()


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


def test_released_kv_is_read_again(routed, load):
    used, fresh = load(routed, skip=[1, 4], release_kv=True), load(routed, skip=[1, 4])
    answer = greedy(used, PROMPT, 20)
    assert answer == greedy(fresh, PROMPT, 20)
    assert used.routing.kv_bytes_released > 0
    fresh.reset()
    assert second_turn(used, PROMPT + answer + MORE)[1] == second_turn(fresh, PROMPT + answer + MORE)[1]


def test_released_kv_is_no_kv_evaluated_without_those_layers(routed, load):
    used, fresh = load(routed, skip=[0, 5], release_kv=True), load(routed, skip=None)
    greedy(used, PROMPT, 1)
    found = []
    for llm in (used, fresh):
        with llm.skipping([0, 5]):
            found.append(greedy(llm, PROMPT + MORE, 8))
    assert found[0] == found[1]


# -- answers that end in other ways ----------------------------------------------------------------------------------


def test_reset_and_load_state_end_an_answer_that_is_suspended(routed, load):
    """Else a later eval would be taken for its decoding, and lose layers."""
    dense = load(routed, skip=None)
    dense.eval(MORE)
    empty = load(routed, skip=None).save_state()
    for end in (lambda llm: llm.reset(), lambda llm: llm.load_state(empty), lambda llm: llm.hidden_states([5, 6])):
        llm = load(routed, skip=[1, 4])
        suspended = llm.generate(PROMPT, temp=0.0)
        next(suspended)
        end(llm)
        llm.eval(MORE)
        np.testing.assert_array_equal(logits(llm), logits(dense))
        with pytest.raises(BusyError):
            next(suspended)


def test_interrupt_right_after_a_decode(routed, load, monkeypatch):
    """Ctrl-C lands after llama_decode: the logits are those of a token that does not count."""
    llm = load(routed, skip=[1, 4])
    generator = llm.generate(PROMPT, temp=0.0)
    next(generator)
    decode = llm._ctx.decode

    def interrupted(batch):
        decode(batch)
        raise KeyboardInterrupt

    monkeypatch.setattr(llm._ctx, "decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(generator)
    monkeypatch.undo()
    assert greedy(llm, PROMPT, 6) == greedy(load(routed, skip=[1, 4]), PROMPT, 6)


def test_failed_eval_then_the_same_prompt(routed, load, monkeypatch):
    llm = load(routed, skip=[1, 4], n_ctx=256, n_batch=64)
    greedy(llm, PROMPT, 1)
    monkeypatch.setattr(llm, "_n_ctx", 512)  # else eval would see that there is no room
    with pytest.raises(RuntimeError):
        llm.eval(tokens(300))
    monkeypatch.undo()
    assert greedy(llm, PROMPT, 6) == greedy(load(routed, skip=[1, 4]), PROMPT, 6)


def test_context_that_is_no_multiple_of_256(routed, load):
    """llama.cpp rounds n_ctx=100 up; tokens beyond the hundredth can be read again too."""
    llm, fresh = load(routed, skip=None, n_ctx=100), load(routed, skip=None, n_ctx=256)
    llm.eval(PROMPT)
    with llm.skipping([2]):
        for token in tokens(60, seed=6):
            llm.eval([token])
    llm.eval(MORE)
    fresh.eval([*PROMPT, *tokens(60, seed=6), *MORE])
    assert llm.n_tokens == fresh.n_tokens == 145
    np.testing.assert_allclose(logits(llm), logits(fresh), rtol=0, atol=CLOSE)


# -- images: positions that came without eval ------------------------------------------------------------------------


def decode_image(llm, at, n=16, seed=3):
    """What a multimodal handler does: decode by its own means, put no token into input_ids, set n_tokens."""
    llm._ctx.kv_cache_seq_rm(-1, at, -1)
    llm._batch.set_batch(tokens(n, seed=seed), at, False)
    llm._ctx.decode(llm._batch)
    llm.input_ids[at : at + n] = -1
    llm.n_tokens = at + n


def test_the_text_around_an_image_decides(routed, load):
    """The "image" here is text that came another way, so that a plain prompt has the same KV and the scores to compare with."""
    llm, plain = load(routed, skip=0.5), load(routed, skip=0.5)
    llm.eval(MORE[:5])
    llm._batch.set_batch(PROMPT, 5, False)
    llm._ctx.decode(llm._batch)
    llm.input_ids[5:65], llm.n_tokens = -1, 65
    llm.eval(MORE[5:])
    answer = greedy(llm, llm.input_ids[: llm.n_tokens].tolist(), 6)  # as a handler asks, with nothing left to evaluate
    greedy(plain, MORE[:5] + PROMPT + MORE[5:], 1)
    scores = plain._read._scores.scores()
    text = np.concatenate([scores[:5], scores[65:85]]).mean(axis=0)
    np.testing.assert_allclose(llm.routing.keep, text, rtol=0, atol=1e-3)
    assert set(llm.routing.skipped) == set(np.argsort(text, kind="stable")[:3].tolist())
    assert llm.routing.prompt_tokens == 85
    fixed = load(routed, skip=list(llm.routing.skipped))
    for part in (MORE[:5], PROMPT, MORE[5:-1]):
        fixed.eval(part)
    assert answer == greedy(fixed, MORE[-1:], 6, reset=False)


def test_an_image_alone_is_answered_dense(routed, load):
    llm, dense = load(routed, skip=0.5), load(routed, skip=None)
    for each in (llm, dense):
        decode_image(each, 0)
        each._ctx.kv_cache_seq_rm(-1, 15, -1)
        each._batch.set_batch([5], 15, True)
        each._ctx.decode(each._batch)
        each._requires_eval = False
    prompt = llm.input_ids[:16].tolist()
    assert greedy(llm, prompt, 6) == greedy(dense, prompt, 6)
    assert llm.routing.skipped == ()
    assert "without scores" in llm.routing.why


def test_an_earlier_prompt_has_no_part_in_an_images_answer(routed, load):
    used, fresh = load(routed, skip=0.5), load(routed, skip=0.5)
    greedy(used, PROMPT, 4)
    for llm in (used, fresh):
        llm.reset()
        decode_image(llm, 0)
    assert greedy(used, MORE, 6, reset=False) == greedy(fresh, MORE, 6, reset=False)
    assert used.routing == fresh.routing
    assert len(used.routing.skipped) == 3
    greedy(used, PROMPT, 2)
    assert used.routing.prompt_tokens == 60  # the next prompt has no image


def test_images_survive_a_saved_state_and_do_not_outlive_it(routed, load):
    llm, other = load(routed, skip=0.5), load(routed, skip=0.5)
    greedy(llm, PROMPT, 2)
    text = llm.save_state()
    llm.reset()
    decode_image(llm, 0)
    image = llm.save_state()
    other.load_state(image)
    assert greedy(other, MORE, 6, reset=False) == greedy(llm, MORE, 6, reset=False)
    llm.load_state(text)
    greedy(llm, PROMPT + MORE, 2)
    assert len(llm.routing.skipped) == 3


def test_images_are_never_read_again_as_tokens(routed, load):
    llm = load(routed, skip=None)
    llm.eval(PROMPT)
    decode_image(llm, 60)
    llm.eval(MORE)
    with llm.skipping([2]), pytest.raises(RoutingError, match="images"):
        greedy(llm, llm.input_ids[: llm.n_tokens].tolist(), 2)
    greedy(llm, PROMPT, 2)


def test_sliding_window_is_read_again_from_the_beginning(routed, load, monkeypatch):
    """Its cache has dropped cells that the prompt's last positions need."""
    llm = load(routed, skip=[1, 4])
    answer = greedy(llm, PROMPT, 20)
    monkeypatch.setattr(llama_cpp, "llama_memory_seq_pos_min", lambda memory, seq: 30)
    _, second, _ = second_turn(llm, PROMPT + answer + MORE)
    assert llm.reused == 0
    monkeypatch.undo()
    assert second == second_turn(load(routed, skip=[1, 4]), PROMPT + answer + MORE)[1]


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
