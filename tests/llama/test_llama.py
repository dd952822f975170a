"""first_cpp.Llama as a llama_cpp.Llama: the same answers without routing."""

from __future__ import annotations

import copy
import pathlib
import pickle

import llama_cpp
import numpy as np
import pytest
from helpers import greedy, logits, run_tokens, tokens
from routers_files import routed_model

from first_cpp import Llama

PROMPT = tokens(40, seed=3)


@pytest.fixture(scope="module")
def routed(tiny, models):
    return routed_model(tiny, models, seed=21)


@pytest.mark.parametrize("skip", [None, 0, 0.0, [], "auto"], ids=str)
@pytest.mark.parametrize("draft", [False, True], ids=["plain", "draft"])
def test_without_routing_the_output_is_the_bases(tiny, load, skip, draft):
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

    answers = []
    for cls, own in ((llama_cpp.Llama, {}), (Llama, {"skip": skip})):
        kwargs = {"draft_model": LlamaPromptLookupDecoding(num_pred_tokens=3)} if draft else {}
        llm = load(tiny, cls, **own, **kwargs)
        turns = [llm.create_completion("Once upon", max_tokens=30, temperature=t, seed=7)["choices"] for t in (0, 0.8)]
        turns += [llm.create_completion("Once upon a time", max_tokens=20, temperature=0)["choices"]]
        answers.append((turns, greedy(llm, PROMPT, 20), llm.n_tokens))
    assert answers[0] == answers[1]


def test_logits_without_routing_are_the_bases(tiny, load):
    expected = run_tokens(load(tiny, llama_cpp.Llama), PROMPT, PROMPT[:8])
    np.testing.assert_array_equal(run_tokens(load(tiny, skip=None), PROMPT, PROMPT[:8]), expected)


def test_chat_streams_what_it_answers(routed, load):
    llm = load(routed, skip=0.34, chat_format="chatml")
    ask = {"messages": [{"role": "user", "content": "Hello there"}], "max_tokens": 24, "temperature": 0}
    whole = llm.create_chat_completion(**ask)["choices"][0]["message"]["content"]
    chunks = [c["choices"][0]["delta"].get("content") or "" for c in llm.create_chat_completion(**ask, stream=True)]
    assert "".join(chunks) == whole
    assert len(llm.routing.skipped) == 2


def test_draft_model_gives_the_same_tokens(routed, load):
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

    prompt = tokens(12, seed=1) * 4
    plain = greedy(load(routed, skip=0.34), prompt, 30)
    drafted = load(routed, skip=0.34, draft_model=LlamaPromptLookupDecoding(num_pred_tokens=3))
    assert greedy(drafted, prompt, 30) == plain


def test_a_draft_model_cannot_come_later(tiny, load):
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

    llm = load(tiny)
    with pytest.raises(ValueError, match="to the constructor"):
        llm.draft_model = LlamaPromptLookupDecoding()  # llama.cpp would abort the process
    llm.draft_model = None
    assert greedy(llm, PROMPT, 4) == greedy(load(tiny), PROMPT, 4)
    with_all = load(tiny, logits_all=True)
    with_all.draft_model = LlamaPromptLookupDecoding(num_pred_tokens=3)
    assert greedy(with_all, PROMPT, 4) == greedy(llm, PROMPT, 4)


def test_prompt_whose_last_micro_batch_is_one_token_is_prefill(routed, load):
    """Phases, not batch sizes: 41 tokens in micro-batches of 8 end with one token, which runs all layers."""
    prompt = tokens(41, seed=2)
    llm, dense = load(routed, skip=[1, 2], n_ubatch=8, n_batch=8), load(routed, skip=None, n_ubatch=8, n_batch=8)
    next(llm.generate(prompt, temp=0.0))
    dense.eval(prompt)
    np.testing.assert_array_equal(logits(llm), logits(dense))
    assert llm._layers._hook.layers_skipped == 0


def test_layers_left_out_are_counted(routed, load):
    llm = load(routed, skip=[1, 2, 5])
    greedy(llm, PROMPT, 11)
    assert llm._layers._hook.layers_skipped == 10 * 3  # ten decoding steps after the prompt's own token


def test_embeddings_are_the_bases(routed, load):
    texts = ["one text", "and another"]
    expected = load(routed, llama_cpp.Llama, embedding=True, pooling_type=1).embed(texts)
    assert load(routed, embedding=True, pooling_type=1).embed(texts) == expected


def test_pickle_keeps_the_settings(routed, load, tmp_path):
    side = routed_model(routed_base(routed), tmp_path, seed=4, sidecar=True)
    llm = load(routed_base(routed), routers=side, skip=[1, 3], release_kv=True)
    again = pickle.loads(pickle.dumps(llm))
    try:
        assert (again.skip, again._arguments.routers, again._arguments.release_kv) == ((1, 3), side, True)
        assert greedy(again, PROMPT, 8) == greedy(llm, PROMPT, 8)
    finally:
        again.close()


def routed_base(routed):
    return str(pathlib.Path(routed).parent / "tiny.gguf")


def test_copying_is_not_sharing(routed, load):
    llm = load(routed, skip=[1])
    again = copy.copy(llm)
    assert again._ctx.ctx != llm._ctx.ctx
    again.close()
    assert greedy(llm, PROMPT, 3)


@pytest.mark.parametrize("skip", [None, [2, 3]], ids=str)
@pytest.mark.parametrize("sizes", [{"n_ubatch": 4}, {"n_batch": 4}, {"n_batch": 32}], ids=str)
def test_drafts_longer_than_a_batch_and_answers_beyond_one(tiny, load, skip, sizes):
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

    prompt = tokens(6, seed=1) * 6
    llm = load(tiny, skip=skip, draft_model=LlamaPromptLookupDecoding(num_pred_tokens=10), **sizes)
    assert greedy(llm, prompt, 30) == greedy(load(tiny, skip=skip), prompt, 30)
    assert llm.scores.shape == (512, llm.n_vocab())


def test_many_tokens_are_evaluated_amid_an_answer_that_keeps_all_logits(tiny, load):
    llm = load(tiny, skip=[2, 3], logits_all=True, n_ubatch=8)
    answer = llm.generate(PROMPT, temp=0.0)
    next(answer)
    llm.eval(tokens(30, seed=5))
    answer.close()
    assert llm.catch_up()
    assert llm.fidelity.positions == 30


def test_what_is_refused_amid_embedding_leaves_no_prefix_behind(tiny, load):
    llm = load(tiny, skip=None, embedding=True, n_batch=32, pooling_type=1)
    greedy(llm, PROMPT, 5)
    with pytest.raises(ValueError, match="exceed batch size"):
        llm.embed(["ab" * 9, "cd" * 9, "e" * 100], truncate=False)  # the first was read, in place of the prompt
    assert llm.n_tokens == 0
    assert greedy(llm, [*PROMPT, 5, 6], 5) == greedy(load(tiny, skip=None), [*PROMPT, 5, 6], 5)
