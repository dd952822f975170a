"""What callers of llama_cpp.Llama give and do that it takes another way than they mean, or not at all."""

from __future__ import annotations

import dataclasses

import llama_cpp
import numpy as np
import pytest
from helpers import greedy, logits, survives, tokens
from routers_files import routed_model

from first_cpp import Llama, SettingError, StateError
from first_cpp.gguf.synthetic import SHAPES, write_random

PROMPT = [1, 50, 60, 70]


@pytest.fixture(scope="module")
def routed(tiny, models):
    return routed_model(tiny, models, seed=53)


def only(*allowed):
    """A processor that leaves these tokens alone, alike."""

    def process(ids, scores):
        scores[:] = -1e9
        scores[list(allowed)] = 1
        return scores

    return process


def text(answer):
    return answer["choices"][0]["text"]


def test_a_bias_beside_logits_processors(load, tiny):
    """Stock llama_cpp drops both, and puts the bias into the caller's list."""
    llm, a, b = load(tiny), ord("a") + 3, ord("b") + 3
    processors = llama_cpp.LogitsProcessorList([only(a, b)])
    for biased, expected in ((a, "aaaa"), (b, "bbbb")):
        ask = {"max_tokens": 4, "temperature": 0, "logits_processor": processors}
        assert text(llm(PROMPT, logit_bias={str(biased): 2.5}, **ask)) == expected
        assert text(llm(PROMPT, logit_bias={biased: -2.5}, **ask)) == ("bbbb" if expected == "aaaa" else "aaaa")
    assert len(processors) == 1


@pytest.mark.parametrize("bias", [float("nan"), float("inf"), 1e39])
def test_a_bias_that_is_no_number_is_named(load, tiny, bias):
    llm = load(tiny)
    with pytest.raises(SettingError, match="for token 99"):
        llm(PROMPT, logit_bias={99: bias}, max_tokens=2)
    assert llm(PROMPT, logit_bias={99: float("-inf")}, max_tokens=2)["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize("kind", [tuple, np.array, set])
def test_stops_that_are_no_list(load, tiny, kind):
    """Stock llama_cpp ignores them, and goes on to max_tokens."""
    llm = load(tiny, chat_format="chatml")
    ask = {"max_tokens": 40, "temperature": 0}
    stop = text(llm(PROMPT, **ask))[3:5]
    expected = llm(PROMPT, stop=[stop], **ask)
    assert expected["choices"][0]["finish_reason"] == "stop"
    given = kind([stop]) if kind is not set else {stop}
    found = llm(PROMPT, stop=given, **ask)
    assert (found["choices"], found["usage"]) == (expected["choices"], expected["usage"])
    assert [*llm(PROMPT, stop=given, stream=True, **ask)][-1]["choices"][0]["finish_reason"] == "stop"
    messages = [{"role": "user", "content": "Hi"}]
    in_chat = [llm.create_chat_completion(messages, stop=one, **ask)["choices"] for one in ([stop], given)]
    assert in_chat[0] == in_chat[1]


@pytest.mark.parametrize("kind", [tuple, np.array])
def test_a_prompt_in_tokens_that_is_no_list(load, tiny, kind):
    llm = load(tiny)
    ask = {"max_tokens": 6, "temperature": 0}
    assert text(llm(kind(PROMPT), **ask)) == text(llm(PROMPT, **ask))


def test_echo_of_tokens_is_refused_before_it_is_answered(load, tiny):
    llm = load(tiny)
    with pytest.raises(SettingError, match="echo=True needs the prompt as a text"):
        llm(PROMPT, echo=True, max_tokens=4)
    assert llm.n_tokens == 0


@pytest.mark.parametrize("logits_all", [False, True])
def test_stopping_criteria_see_the_logits_of_the_last_token(load, tiny, logits_all):
    """Stock llama_cpp hands them the logits of the first position, or memory that nothing wrote."""
    llm = load(tiny, logits_all=logits_all)
    seen = []

    def criterion(ids, scores):
        seen.append(int(scores.argmax()))
        return len(seen) == 8

    criteria = llama_cpp.StoppingCriteriaList([criterion])
    answer = list(llm.generate(PROMPT, temp=0.0, stopping_criteria=criteria))
    assert seen == greedy(load(tiny), PROMPT, 8)
    assert answer == seen[:7]
    first, seen[:] = [*seen], []
    llm(PROMPT, max_tokens=7, temperature=0, stopping_criteria=criteria)
    assert seen[:7] == first[:7]


def test_a_sampler_that_failed_is_not_used_again(load, tiny):
    """Stock llama_cpp keeps it for all further calls of sample()."""
    llm = load(tiny)
    llm.eval(PROMPT)

    def fails(ids, scores):
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        llm.sample(logits_processor=llama_cpp.LogitsProcessorList([fails]))
    assert llm.sample(temp=0.0) == greedy(load(tiny), PROMPT, 1)[0]


def _loaded(llm):
    llm.eval(PROMPT)
    state = llm.save_state()
    llm.reset()
    llm.eval(tokens(9, seed=8))
    llm.load_state(state)


def _lowered(llm):
    llm.eval([*PROMPT, *tokens(9, seed=8)])
    llm.n_tokens = len(PROMPT)


@pytest.mark.parametrize("go_back", [_loaded, _lowered])
@pytest.mark.parametrize("skip", [None, "auto"])
def test_what_is_sampled_after_going_back_is_of_the_last_token(load, routed, go_back, skip):
    """Stock llama_cpp samples from the logits of what was evaluated last."""
    expected = greedy(load(routed, skip=skip), PROMPT, 4)

    def gone_back():
        llm = load(routed, skip=skip)
        go_back(llm)
        return llm

    assert gone_back().sample(temp=0.0) == expected[0]
    assert greedy(gone_back(), PROMPT, 4) == expected
    answer = gone_back().generate([], reset=False, temp=0.0)
    assert [next(answer) for _ in range(4)] == expected


def test_a_state_of_another_n_batch(load, tiny):
    """Stock llama_cpp keeps n_batch rows of logits that nobody wrote, and takes no other number of them."""
    prompt = tokens(150)
    one, other, stock = (load(tiny, cls, n_batch=n) for cls, n in ((Llama, 64), (Llama, 256), (llama_cpp.Llama, 512)))
    one.eval(prompt)
    state = one.save_state()
    assert state.scores.nbytes <= one.n_vocab() * 4
    expected = greedy(load(tiny), prompt, 6)
    for llm in (other, stock):
        llm.load_state(state)
        assert greedy(llm, prompt, 6) == expected
    assert other.scores.shape == (256, other.n_vocab())


def test_a_state_without_logits_and_a_model_that_keeps_them(load, tiny):
    llm, keeping = load(tiny), load(tiny, logits_all=True)
    for prompt in (PROMPT[:1], PROMPT):
        llm.reset()
        llm.eval(prompt)
        with pytest.raises(StateError, match="logits_all"):
            keeping.load_state(llm.save_state())
    keeping.eval(PROMPT)
    row, state = logits(keeping)[0], keeping.save_state()
    keeping.reset()
    keeping.load_state(state)
    assert np.array_equal(keeping.scores[len(PROMPT) - 1], row)
    llm.load_state(state)
    assert llm.n_tokens == len(PROMPT)


@pytest.mark.parametrize("settings", ["type_k=12", "type_k=99", "type_v=8", 'type_k="q8_0"', "type_v=True", "type_k=-1"])
def test_cache_types_that_llama_cpp_does_not_survive(tiny, settings):
    """Stock llama_cpp dies of most of them."""
    done = survives(
        f"""
        from first_cpp import Llama, SettingError
        try:
            Llama({tiny!r}, verbose=False, {settings})
        except SettingError as error:
            assert "type_" in str(error), error
        else:
            raise SystemExit("taken")
        """
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["pooling_type", "attention_type", "rope_scaling_type"])
@pytest.mark.parametrize("value", [99, -2, "mean"])
def test_choices_that_llama_cpp_does_not_have(tiny, load, name, value):
    """Stock llama_cpp dies of an unknown pooling, and takes other numbers for something else."""
    with pytest.raises(SettingError, match=f"{name}={value!r} is not a whole number from -1 to"):
        load(tiny, **{name: value})


@pytest.mark.parametrize("settings", [{"type_k": 8}, {"type_k": 2, "flash_attn": True}, {"type_v": 8, "flash_attn": True}])
def test_cache_types_whose_blocks_do_not_fit_into_heads(models, load, settings):
    """Stock llama_cpp dies of the first, and says that it failed to create a context with the others."""
    path = models / "heads-of-24.gguf"
    write_random(path, dataclasses.replace(SHAPES["tiny"], n_embd=96, head_dim=24))
    with pytest.raises(SettingError, match="needs heads of a multiple of 32; this model has 24"):
        load(path, **settings)
    assert len(greedy(load(path, type_k=30, flash_attn=True), PROMPT, 3)) == 3


@pytest.mark.parametrize("kind", [iter, tuple, np.array])
def test_texts_to_embed_that_are_no_list(load, tiny, kind):
    llm = load(tiny, embedding=True, pooling_type=llama_cpp.LLAMA_POOLING_TYPE_MEAN)
    texts = ["Once upon", "a time"]
    assert llm.embed(kind(texts)) == llm.embed(texts)
    with pytest.raises(SettingError, match="not 5"):
        llm.embed(["Once", 5])
