"""The text of tokens is the base class's."""

from __future__ import annotations

import random

import llama_cpp
import numpy as np
import pytest

from first_cpp import ClosedError
from first_cpp.runtime.token_text import TokenText


@pytest.mark.parametrize("special", [False, True])
def test_every_token_has_the_bases_text(smollm2, tiny, load, special):
    for path in (smollm2, tiny):
        base, ours = load(path, llama_cpp.Llama), load(path)
        for token in range(base.n_vocab()):
            expected = base.detokenize([token], special=special)
            assert ours.detokenize([token], special=special) == expected or len(ours.detokenize([token])) > 32


def test_a_text_is_its_tokens_text(smollm2, tiny, load):
    for path in (smollm2, tiny):
        base, ours = load(path, llama_cpp.Llama), load(path)
        for first in ([], [base.token_bos()]):
            found = first + base.tokenize(" Grüße, 世界! <|im_end|> text".encode(), add_bos=False, special=True)
            for special in (False, True):
                assert ours.detokenize(found, special=special) == base.detokenize(found, special=special)
        assert ours.detokenize([]) == b""


@pytest.mark.parametrize("token", [-1, 320, 10**9])
def test_numbers_that_are_no_token(tiny, load, token):
    with pytest.raises(ValueError, match="no token of this model: 0 to 319"):
        load(tiny).detokenize([5, token])


def test_a_closed_model_has_no_text(tiny, load):
    llm = load(tiny)
    llm.close()
    with pytest.raises(ClosedError):
        llm.detokenize([300])


def test_texts_that_grow_shrink_and_differ(tiny, load):
    llm, rng = load(tiny), random.Random(0)
    single = [llm.detokenize([token]) for token in range(llm.n_vocab())]
    made: list[int] = []
    for _ in range(300):
        kind = rng.random()
        if kind < 0.1:
            made = made[: rng.randrange(len(made) + 1)]
        elif kind < 0.15 and made:
            made[rng.randrange(len(made))] = rng.randrange(3, 320)
        made += [rng.randrange(3, 320) for _ in range(rng.randrange(9))]
        for asked in (made, made[: len(made) // 2], np.array(made, int)):
            assert llm.detokenize(asked) == b"".join(single[token] for token in asked)


@pytest.mark.parametrize("ask", [{}, {"stream": True}, {"stream": True, "stop": ["zz"]}], ids=str)
def test_a_long_answer_looks_up_no_token_again_and_again(tiny, load, monkeypatch, ask):
    """Stock llama_cpp, and what completes its streams, ask for the text of the whole answer with every token."""
    looked_up = []
    joined = TokenText._joined_text
    monkeypatch.setattr(
        TokenText, "_joined_text", lambda self, tokens, s: looked_up.append(len(tokens)) or joined(self, tokens, s)
    )
    llm = load(tiny, n_ctx=1024)
    answer = llm([1, 50], max_tokens=600, temperature=0, logit_bias={2: -100}, **ask)
    text = answer["choices"][0]["text"] if not ask else "".join(chunk["choices"][0]["text"] for chunk in answer)
    assert llm.timing.n_tokens >= 600
    assert len(text) > 100
    assert sum(looked_up) < 20 * 600  # half the square is 180,000


@pytest.mark.parametrize("stop", [None, ["zz"]])
def test_a_stream_goes_on_after_a_byte_that_is_no_text(tiny, load, stop):
    """Stock llama_cpp sends nothing more until the answer ends."""
    llm = load(tiny)
    expected = [byte + 3 for byte in b"ab\xa9w1" + "c漢d".encode()]  # a token for each byte
    script = iter(expected)

    def scripted(ids, scores):
        scores[:] = -1e9
        scores[next(script)] = 1
        return scores

    answer = llm([1, 50], max_tokens=len(expected), stop=stop, stream=True, logits_processor=[scripted])
    texts = [next(answer)["choices"][0]["text"] for _ in range(5)]
    assert "".join(texts) == "abw1"
    assert llm.timing.n_tokens == 5
    assert "".join(texts) + "".join(chunk["choices"][0]["text"] for chunk in answer) == "abw1c漢d"
