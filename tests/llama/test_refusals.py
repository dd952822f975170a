"""Input that nothing else here brings: each is refused, and told what is wrong with it."""

from __future__ import annotations

import json

import llama_cpp
import numpy as np
import pytest
import reference
import torch
from helpers import greedy, tokens
from routers_files import routed_model

from first_cpp import RoutingError, SkipError
from first_cpp.bench import formats, plot
from first_cpp.cli.main import main as first_cpp_main
from first_cpp.cli.options import number
from first_cpp.gguf.model_file import normal_path
from first_cpp.gguf.pruned import write_pruned
from first_cpp.gguf.synthetic import SHAPES
from first_cpp.runtime.choice import Setting, choose
from first_cpp.runtime.layers import Layers
from first_cpp.train.model import decoder_layers

# -- a model's answers ---------------------------------------------------------------------------------------------


def test_layers_of_graphs_that_do_not_fit(tiny, load, monkeypatch):
    llm = load(tiny)
    llm._layers.unskippable = ("", "", "its KV", "", "", "")
    with pytest.raises(SkipError, match="layer 2 of this model cannot be skipped: its KV"):
        llm.skip = [1, 2]
    monkeypatch.setattr(Layers, "readable", False)
    with pytest.raises(RoutingError, match="does not name them all"):
        llm.hidden_states([1, 2])
    llm._layers.unskippable = ("odd graph",) * 6
    assert choose(Setting((1, 2), 0.0), None, llm._layers, 3, None).why == "dense: odd graph"


def test_a_graph_that_could_not_be_patched_is_told(tiny, load, monkeypatch):
    llm = load(tiny, skip=[1])
    monkeypatch.setattr(Layers, "_action", lambda *_: (_ for _ in ()).throw(RuntimeError("odd")))
    with pytest.raises(RuntimeError, match="odd"):
        greedy(llm, tokens(5), 2)
    monkeypatch.undo()
    fresh = load(tiny, skip=[1])
    assert greedy(llm, tokens(5), 4) == greedy(fresh, tokens(5), 4)


def test_a_context_that_llama_cpp_rounds_up_keeps_all_logits(tiny, load):
    llm = load(tiny, n_ctx=100, logits_all=True)
    assert len(llm.scores) == len(llm.input_ids) == llm._n_ctx == 256
    llm.eval(tokens(120))
    assert np.abs(llm.scores[:120]).sum(axis=1).all()


def test_scores_of_other_routers_are_not_taken_over(tiny, models, load):
    one, other = load(routed_model(tiny, models, seed=31)), load(tiny)
    greedy(other, tokens(9), 2)
    one.load_state(other.save_state())  # routers here, none there
    fresh = load(routed_model(tiny, models, seed=31))
    prompt = tokens(9) + tokens(5, seed=8)
    assert greedy(one, prompt, 4) == greedy(fresh, prompt, 4)
    assert one.routing == fresh.routing


# -- options and reports -------------------------------------------------------------------------------------------


def test_numbers_and_paths():
    import argparse

    with pytest.raises(argparse.ArgumentTypeError, match="'x' is not a number of 0 to 1"):
        number(0, 1)("x")
    with pytest.raises(TypeError, match=r"a model path is str, bytes or .*, not int: 3"):
        normal_path(3)


def test_nothing_to_draw_or_to_write(tmp_path):
    with pytest.raises(ValueError, match="needs a decoding test"):
        plot.draw([], str(tmp_path / "plot.png"))
    assert formats._sql([]) == ""


def test_pruning_that_llama_cpp_refuses(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(llama_cpp, "llama_model_quantize", lambda *_: 1)
    with pytest.raises(RuntimeError, match="could not prune layers"):
        write_pruned(tiny, str(tmp_path / "out.gguf"), [1])


def test_evaluations_of_nothing_and_twice_the_same(tiny, models, tmp_path, capsys):
    routed, data, empty = routed_model(tiny, models, seed=33), tmp_path / "d.jsonl", tmp_path / "empty.jsonl"
    data.write_text(json.dumps({"task": "poem", "prompt": "a", "response": "b"}) + "\n")
    empty.touch()
    command = ["eval", "--model", routed, "--out", str(tmp_path / "report"), "--quiet", "--data"]
    assert first_cpp_main([*command, str(empty)]) == 2
    assert "no lines in" in capsys.readouterr().err
    assert first_cpp_main([*command, str(data), "--metric", "poem=summary", "--row", f"dense={routed}"]) == 2
    assert "there is a row of this name already" in capsys.readouterr().err


def test_models_without_a_list_of_layers():
    from first_cpp.errors import ModelFileError

    hf = reference.make_model(SHAPES["tiny"], seed=2)
    hf.model.layers = torch.nn.ModuleList(list(hf.model.layers)[:5])
    with pytest.raises(ModelFileError, match="has no list of 6 decoder layers"):
        decoder_layers(hf)
