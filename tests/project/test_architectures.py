"""Skipping layers is exact on every architecture that llama.cpp runs; the table of them is docs/reference/architectures.md."""

from __future__ import annotations

import pathlib
import re
import sys
from collections import Counter

import llama_cpp
import numpy as np
import pytest
from architectures.check import PROMPT, check
from architectures.document import document
from architectures.run import run
from architectures.shapes import ARCHITECTURES
from architectures.write import write_tiny
from helpers import greedy, logits, tokens

COMMON = (
    "llama qwen2 qwen3 qwen3moe qwen35 gemma2 gemma3 phi3 granite olmo2 smollm3 gpt-oss lfm2 falcon-h1 mamba2 deepseek2 "
    "starcoder2 gpt2"
)


@pytest.mark.parametrize("architecture", COMMON.split())
def test_exact_without_layers(architecture, tmp_path):
    result = check(architecture, tmp_path)
    assert (result.outcome, result.why) == ("exact", "")
    assert result.skippable == result.n_layer


@pytest.mark.parametrize("architecture", ["qwen", "bailingmoe3", "granitehybrid", "graniteswitch"])
def test_an_input_that_its_memory_does_not_outlast(architecture, tmp_path):
    """ggml gives the layer's output, or a node that still runs, a part of the memory of the layer's input."""
    result = check(architecture, tmp_path)
    assert (result.outcome, result.skippable) == ("exact", result.n_layer)


def test_scales_beside_the_layer(tmp_path, monkeypatch):
    """NVFP4 files have a scale for every expert's matrix, which is repeated beside the layer: not computed from its input."""
    monkeypatch.setattr("architectures.write.is_absent", lambda *_: False)
    result = check("qwen3moe", tmp_path)
    assert (result.outcome, result.skippable) == ("exact", result.n_layer)


def test_layers_that_begin_a_residual_stay(tmp_path):
    """Kimi K3 banks the residual every few layers and begins another: what leaves such a layer is no sum with its input."""
    result = check("kimi-k3", tmp_path)
    assert (result.outcome, result.skippable, result.n_layer) == ("exact", 4, 6)
    assert re.search("layer 0: .*layer 3: ", result.why)


@pytest.mark.parametrize(("architecture", "memory"), [("mamba2", "recurrent"), ("lfm2", "hybrid")])
def test_second_turn_on_a_recurrent_state(architecture, memory, tmp_path, load):
    """What the first answer left of the state, without some layers, is not in the way of the next prompt."""
    model = tmp_path / "model.gguf"
    write_tiny(model, architecture)
    llm, fresh = (load(model, skip=[1, 2], n_threads=1, n_threads_batch=1) for _ in range(2))
    assert {"recurrent": llm._is_recurrent, "hybrid": llm._is_hybrid}[memory]
    turn = [*PROMPT, *greedy(llm, PROMPT, 6), *tokens(9, seed=5)]
    assert greedy(llm, turn, 6) == greedy(fresh, turn, 6)
    np.testing.assert_array_equal(logits(llm), logits(fresh))


@pytest.mark.parametrize("settings", [{}, {"swa_full": True}, {"flash_attn": True, "n_ubatch": 16}], ids=str)
@pytest.mark.parametrize("architecture", ["gemma3", "gpt-oss"])
def test_second_turn_of_sliding_windows(architecture, settings, tmp_path, load):
    """Windows of 8 tokens, and prompts far longer: cells that a second turn needs may be gone, and are read again."""
    model = tmp_path / "model.gguf"
    write_tiny(model, architecture)
    prompt = tokens(60, seed=4)
    llm, fresh = (load(model, skip=[1, 2], **settings) for _ in range(2))
    turn = [*prompt, *greedy(llm, prompt, 12), *tokens(30, seed=5)]
    for each in (llm, fresh):
        made = each.generate(turn, temp=0.0)
        next(made)
        made.close()
    assert llm.routing.skipped == fresh.routing.skipped == (1, 2)
    np.testing.assert_allclose(logits(llm), logits(fresh), rtol=0, atol=0.01 * np.abs(logits(fresh)).max())


def test_a_crash_is_one_result():
    """llama.cpp ends the process of a model that does not suit it; the run goes on and says what ended it."""
    crash = "import os; os.write(2, b'/src/ggml.c:7: GGML_ASSERT(false) failed'); os.abort()"
    crashed, unsuited = run(["llama", "clip"], command=[sys.executable, "-c", crash])
    assert (crashed.outcome, crashed.why) == ("wrong", "ggml.c:7: GGML_ASSERT(false) failed")
    assert unsuited.outcome == "not run"


def test_table_names_every_architecture_once_and_counts_them():
    page = (pathlib.Path(__file__).parents[2] / "docs" / "reference" / "architectures.md").read_text()
    rows = re.findall(r"^\| (\S+) \| (exact|dense|not run) \|", page, re.MULTILINE)
    assert tuple(name for name, _ in rows) == ARCHITECTURES
    assert f"llama-cpp-python {llama_cpp.__version__}" in page
    for outcome, n in Counter(outcome for _, outcome in rows).items():
        assert f"{n} {outcome}" in page.split("\n\n")[1]


@pytest.mark.slow
def test_every_architecture():
    results = list(run(ARCHITECTURES))
    wrong = {result.architecture: result.why for result in results if result.outcome == "wrong"}
    assert not wrong, document(results)
    assert sum(result.outcome == "exact" for result in results) >= 110
