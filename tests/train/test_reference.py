"""Against PyTorch: a prompt that runs all layers and an answer that skips some, and the routers' scores."""

from __future__ import annotations

import functools

import llama_cpp
import numpy as np
import pytest
import reference
from helpers import greedy, logits, run_tokens, tokens
from routers_files import routed_model

from first_cpp.gguf.router_format import load_routers
from first_cpp.gguf.synthetic import SHAPES

PROMPT, ANSWER = tokens(41, seed=7), tokens(10, seed=8)


@pytest.fixture
def load(load):
    """With an F32 KV cache: the default F16 rounds."""
    return functools.partial(load, type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32)


@pytest.fixture(scope="module")
def hf():
    return reference.make_model(SHAPES["tiny"])


@pytest.fixture(scope="module")
def gguf(hf, models):
    path = str(models / "reference.gguf")
    reference.write_gguf(path, hf, SHAPES["tiny"])
    return path


def test_dense_is_the_same_model(hf, gguf, load):
    np.testing.assert_allclose(
        run_tokens(load(gguf), PROMPT, ANSWER), reference.run(hf, PROMPT, ANSWER, set()), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("layers", [[0], [5], [1, 2], [0, 2, 4], [0, 1, 2, 3, 4], [1, 2, 3, 4, 5]], ids=str)
def test_prefill_whole_decode_skipping_layers(hf, gguf, load, layers):
    llm = load(gguf)
    llm.eval(PROMPT)
    rows = [logits(llm)[0]]
    with llm.skipping(layers):
        # the prompt has been read with all layers: its KV rows serve every later set
        for token in ANSWER:
            llm.eval([token])
            rows.append(logits(llm)[0])
    expected = reference.run(hf, PROMPT, ANSWER, set(layers))
    np.testing.assert_allclose(np.stack(rows), expected, rtol=0, atol=1e-4)
    assert np.abs(expected[1:] - reference.run(hf, PROMPT, ANSWER, set())[1:]).max() > 0.1  # the layers matter


@pytest.mark.parametrize("layers", [[0], [1, 4], [2, 3, 5]], ids=str)
def test_greedy_tokens_equal(hf, gguf, load, layers):
    found = greedy(load(gguf, skip=layers), PROMPT, 24)
    expected = reference.run(hf, PROMPT, found[:-1], set(layers))
    assert expected.argmax(axis=1).tolist() == found


@pytest.mark.parametrize(("n_batch", "n_ubatch"), [(1, 1), (7, 7), (64, 64), (512, 512), (512, 7), (64, 1)])
def test_router_scores_whatever_the_batches(hf, gguf, models, load, n_batch, n_ubatch):
    prompt = tokens(150, seed=5)
    routed = routed_model(gguf, models, seed=3)
    llm = load(routed, n_batch=n_batch, n_ubatch=n_ubatch)
    greedy(llm, prompt, 2)
    routers = load_routers(routed)
    expected = reference.keep_scores(hf, prompt, routers.weight, routers.bias, routers.norm_eps)
    np.testing.assert_allclose(llm.routing.keep, expected, rtol=0, atol=2e-5)
    assert llm.routing.prompt_tokens == 150
    assert llm.routing.skipped == tuple(sorted(np.argsort(expected)[:2].tolist()))
    assert np.ptp(expected) > 0.1  # the routers tell layers apart


def test_scores_depend_on_the_prompt(gguf, models, load):
    llm = load(routed_model(gguf, models, seed=3))
    sets = set()
    for seed in range(8):
        greedy(llm, tokens(30, seed=seed), 1)
        sets.add(llm.routing.skipped)
    assert len(sets) > 1
