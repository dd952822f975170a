"""The text of tokens is the base class's."""

from __future__ import annotations

import llama_cpp
import pytest

from first_cpp import ClosedError


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
