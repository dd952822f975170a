"""kv="keep": layers left out still write their KV. Oracle: a file in which those layers add nothing, run by stock llama_cpp."""

from __future__ import annotations

import ctypes
import pickle
import shutil

import llama_cpp
import numpy as np
import pytest
from gguf import GGUFReader
from helpers import greedy, logits, run_tokens, tokens
from routers_files import routed_model

from first_cpp import SettingError

PROMPT, ANSWER, MORE = tokens(40, seed=1), tokens(6, seed=2), tokens(9, seed=3)


@pytest.fixture(scope="module")
def routed(tiny, models):
    return routed_model(tiny, models, seed=11)


def without_effect(model, out, layers):
    """A copy of `model` in which `layers` add nothing to the residual stream, and write their KV."""
    shutil.copy(model, out)
    for tensor in GGUFReader(out, "r+").tensors:
        if any(tensor.name == f"blk.{layer}.{part}.weight" for layer in layers for part in ("attn_output", "ffn_down")):
            tensor.data[:] = 0
    return str(out)


def cells(llm, layer, positions):
    """The K rows of a layer at these positions, float16."""
    found = next(t for t in llm.kv_cache if t.layer == layer and t.name.startswith("cache_k"))
    rows = np.frombuffer((ctypes.c_char * found.n_bytes).from_address(found.address), np.float16).reshape(llm.n_ctx(), -1)
    return rows[positions]


@pytest.mark.parametrize("layers", [[0], [2, 3], [5], [0, 1, 4]], ids=str)
@pytest.mark.parametrize("context", [{}, {"flash_attn": True, "n_ubatch": 16}], ids=["plain", "flash"])
def test_the_kv_is_that_of_layers_without_effect(tiny, load, tmp_path, layers, context):
    stand_in = load(without_effect(tiny, tmp_path / "m.gguf", layers), llama_cpp.Llama, **context)
    stock, llm = load(tiny, llama_cpp.Llama, **context), load(tiny, kv="keep", **context)
    with llm.skipping(layers):
        np.testing.assert_array_equal(run_tokens(llm, PROMPT, ANSWER), run_tokens(stand_in, PROMPT, ANSWER))
    stock.load_state(stand_in.save_state())
    for each in (stock, llm):  # all layers again, on top of that KV
        each.eval(MORE)
    np.testing.assert_array_equal(logits(llm), logits(stock))


def test_dropped_kv_is_read_again_and_kept_kv_is_not(tiny, load, monkeypatch):
    for kv, again in (("keep", 0), ("drop", len(ANSWER))):
        llm = load(tiny, kv=kv)
        llm.eval(PROMPT)
        with llm.skipping([2]):
            for token in ANSWER:
                llm.eval([token])
        decoded = []
        monkeypatch.setattr(llm._layers, "check", lambda: None)
        decode = llm._ctx.decode
        monkeypatch.setattr(
            llm._ctx, "decode", lambda batch, decode=decode, decoded=decoded: (decoded.append(batch.n_tokens()), decode(batch))
        )
        llm.eval(MORE)
        assert sum(decoded) == len(MORE) + again
        assert np.any(cells(llm, 2, np.arange(40, 46))), "after either, the rows are there"


def test_rows_are_written_only_when_kept(tiny, load):
    for kv in ("keep", "drop"):
        llm = load(tiny, kv=kv, skip=[2])
        greedy(llm, PROMPT, 6)
        assert np.any(cells(llm, 2, np.arange(40, 44))) == (kv == "keep")
        assert np.all(np.any(cells(llm, 1, np.arange(40, 44)), axis=1))


@pytest.mark.parametrize("skip", [0.5, [0, 5]], ids=str)
def test_answers_do_not_depend_on_it(routed, load, skip):
    keep, drop = load(routed, skip=skip, kv="keep"), load(routed, skip=skip)
    first = greedy(keep, PROMPT, 12)
    assert first == greedy(drop, PROMPT, 12)
    assert keep.routing.skipped == drop.routing.skipped != ()
    np.testing.assert_array_equal(logits(keep), logits(drop))
    # a second turn reads the answer again either way: it was made without those layers
    assert greedy(keep, PROMPT + first + MORE, 8) == greedy(drop, PROMPT + first + MORE, 8)
    np.testing.assert_array_equal(logits(keep), logits(drop))


def test_is_pickled_with_the_model(tiny, load):
    copy = pickle.loads(pickle.dumps(load(tiny, kv="keep")))
    assert copy.__getstate__()["kv"] == "keep"
    copy.close()


@pytest.mark.parametrize(("settings", "says"), [({"kv": "kept"}, "'kept'"), ({"kv": "keep", "release_kv": True}, "choose one")])
def test_settings_that_are_none(tiny, load, settings, says):
    with pytest.raises(SettingError, match=says):
        load(tiny, **settings)
