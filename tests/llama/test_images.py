"""Images: positions that came without eval."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import greedy, tokens
from routers_files import routed_model
from second_turn import MORE, PROMPT

from first_cpp import RoutingError


@pytest.fixture(scope="module")
def routed(tiny, models):
    return routed_model(tiny, models, seed=11)


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
