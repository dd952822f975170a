"""What is left out is exactly what was asked: bit for bit the file that llama.cpp's quantizer pruned."""

from __future__ import annotations

import itertools
import random

import llama_cpp
import numpy as np
import pytest
from helpers import run_tokens, tokens

from first_cpp import SkipError
from first_cpp.gguf.pruned import write_pruned

PROMPT, ANSWER = tokens(37), tokens(12, seed=1)

CONTEXTS = {
    "plain": {},
    "flash": {"flash_attn": True},
    "flash-q8-kv": {"flash_attn": True, "type_k": llama_cpp.GGML_TYPE_Q8_0, "type_v": llama_cpp.GGML_TYPE_Q8_0},
    "q8-k": {"type_k": llama_cpp.GGML_TYPE_Q8_0},
    "small-ubatch": {"n_batch": 16, "n_ubatch": 5},
    "all-outputs": {"logits_all": True},
}


def random_sets(n_layer: int, n: int, seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    sets = [[0], [n_layer - 1], [0, n_layer - 1], list(range(1, n_layer)), list(range(n_layer - 1))]
    while len(sets) < n:
        sets.append(sorted(rng.sample(range(n_layer), rng.randint(1, n_layer - 1))))
    return sets


SETS_OF_6 = [
    one if i < 7 else pytest.param(one, marks=pytest.mark.slow)  # the first and last layers, and two random ones
    for i, one in enumerate(random_sets(6, 14, seed=3))
]


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("layers", SETS_OF_6, ids=str)
def test_bit_identical_to_pruned_file(tiny, models, load, context, layers):
    pruned = models / f"tiny-without-{'-'.join(map(str, layers))}.gguf"
    if not pruned.exists():
        write_pruned(tiny, str(pruned), layers)
    expected = run_tokens(load(pruned, llama_cpp.Llama, **CONTEXTS[context]), PROMPT, ANSWER)
    llm = load(tiny, **CONTEXTS[context])
    with llm.skipping(layers):
        found = run_tokens(llm, PROMPT, ANSWER)
    # A model's last layer works on the output rows alone. Where it is left out, the layer before, last in the pruned
    # file, still works on all rows here: the same sums, in a kernel for another batch size that rounds differently.
    rounds = 5 in layers and context != "all-outputs"
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=2e-5 if rounds else 0)
    np.testing.assert_array_equal(found[1:], expected[1:])


def test_leaving_out_changes_the_answer(tiny, load):
    llm = load(tiny)
    dense = run_tokens(llm, PROMPT, ANSWER)
    llm.reset()
    with llm.skipping([2]):
        assert not np.array_equal(run_tokens(llm, PROMPT, ANSWER), dense)
    llm.reset()
    np.testing.assert_array_equal(run_tokens(llm, PROMPT, ANSWER), dense)


def test_set_changes_with_every_answer_on_reused_and_rebuilt_graphs(tiny, models, load):
    """300 tokens; the KV view grows past 256, so that llama.cpp rebuilds graphs amid the run as well as reusing them."""
    llm = load(tiny, n_ctx=1024)
    n = 0
    for seed, layers in enumerate(itertools.islice(itertools.cycle([[1], [0, 5], [2, 3, 4], [5]]), 6)):
        pruned = models / f"tiny-turns-{'-'.join(map(str, layers))}.gguf"
        if not pruned.exists():
            write_pruned(tiny, str(pruned), layers)
        prompt, answer = tokens(230 + 11 * seed, seed=seed), tokens(50, seed=100 + seed)
        expected = run_tokens(load(pruned, llama_cpp.Llama, n_ctx=1024), prompt, answer)
        llm.reset()
        with llm.skipping(layers):
            found = run_tokens(llm, prompt, answer)
        np.testing.assert_array_equal(found[1:], expected[1:])
        n += len(answer)
    assert n == 300


def test_two_models_do_not_meet(tiny, load):
    first, second = load(tiny), load(tiny)
    dense = run_tokens(second, PROMPT, ANSWER)
    second.reset()
    with first.skipping([1, 2]):
        first.eval(PROMPT)
        np.testing.assert_array_equal(run_tokens(second, PROMPT, ANSWER), dense)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([6], "layer 6"),
        ([-1], "layer -1"),
        ([1, 1], "more than once"),
        (range(6), "all 6"),
        (["a"], "'a'"),
        ([1.0], "1.0"),
        ([True], "True"),
    ],
)
def test_impossible_sets_are_refused(tiny, load, layers, said):
    llm = load(tiny)
    with pytest.raises(SkipError, match=said), llm.skipping(layers):
        pass


SETS_OF_30 = [
    one if i in (2, 5) else pytest.param(one, marks=pytest.mark.slow)  # both ends, and a random one
    for i, one in enumerate(random_sets(30, 7, seed=5))
]


@pytest.mark.smollm2
@pytest.mark.parametrize("layers", SETS_OF_30, ids=str)
def test_smollm2_bit_identical_to_pruned_file(smollm2, tmp_path, load, layers):
    pruned = tmp_path / "pruned.gguf"
    write_pruned(smollm2, str(pruned), layers)
    stock = load(pruned, llama_cpp.Llama, logits_all=True)
    prompt = stock.tokenize(b"Layers that a prompt can do without need not be computed for its answer.")
    expected = run_tokens(stock, prompt, prompt[:6])
    llm = load(smollm2, logits_all=True)
    with llm.skipping(layers):
        np.testing.assert_array_equal(run_tokens(llm, prompt, prompt[:6]), expected)
