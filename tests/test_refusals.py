"""Input that nothing else here brings: each is refused, and told what is wrong with it."""

from __future__ import annotations

import json
import re
import shutil

import llama_cpp
import numpy as np
import pytest
import reference
import torch
from helpers import greedy, tokens
from routers_files import random_routers, routed_model
from safetensors.numpy import load_file, save_file

from convert import embed, merge
from convert.__main__ import main
from first_cpp import RoutingError, SkipError
from first_cpp.choice import choose
from first_cpp.cli import main as first_cpp_main
from first_cpp.grammar import MAX_BYTES, check_grammar
from first_cpp.layers import Layers
from first_cpp.measuring import plot, report
from first_cpp.model_file import normal_path, open_model
from first_cpp.options import number
from first_cpp.pruned import write_pruned
from first_cpp.synthetic import SHAPES
from first_cpp.training.model import add_lora, decoder_layers


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A base GGUF and a training run's folder for it."""
    folder = tmp_path_factory.mktemp("refused")
    hf = reference.make_model(SHAPES["tiny"], seed=6)
    base = str(folder / "base.gguf")
    reference.write_gguf(base, hf, SHAPES["tiny"])
    add_lora(hf, decoder_layers(hf), 2, 4).save_pretrained(folder / "run" / "adapter")
    random_routers(str(folder / "run" / "routers.safetensors"))
    return folder / "run", base


def refused(capsys, *arguments):
    """What `python -m convert` says as it refuses."""
    assert main([*map(str, arguments), "--quiet"]) == 2
    return capsys.readouterr().err


# -- convert -------------------------------------------------------------------------------------------------------


def changed_adapter(run, tmp_path, change):
    """A copy of the run whose adapter's tensors went through `change`."""
    folder = tmp_path / "changed"
    shutil.copytree(run, folder)
    path = str(folder / "adapter" / "adapter_model.safetensors")
    found = load_file(path)
    change(found)
    save_file(found, path)
    return folder


A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
B = A.replace("lora_A", "lora_B")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.update(other=np.zeros(2, np.float32)), "tensor other is not a LoRA weight"),
        (lambda t: t.pop(B), "has no lora_B"),
        (lambda t: t.update({A.replace("q_proj", "odd"): t.pop(A), B.replace("q_proj", "odd"): t.pop(B)}), "has no place in"),
        (lambda t: t.clear(), "no LoRA weights"),
        (lambda t: t.update({A: np.zeros((2, 64), np.float32)}), "of shape [64, 128]"),
    ],
)
def test_adapters_that_do_not_fit(run, tmp_path, capsys, change, said):
    folder, base = run
    changed, out = changed_adapter(folder, tmp_path, change), tmp_path / "out.gguf"
    assert said in refused(capsys, "--routers", changed, "--model", base, "--merge", "--out", out)
    assert not out.exists()


def test_bases_that_cannot_be_merged(run, tmp_path, capsys, monkeypatch):
    folder, base = run
    command = ["--routers", folder, "--model", base, "--out", tmp_path / "out.gguf"]
    monkeypatch.setattr(merge, "open_model", lambda path: open_model(path) * 2)
    assert "is split in 2 files" in refused(capsys, *command, "--merge")
    monkeypatch.setattr(embed, "open_model", lambda path: open_model(path) * 2)
    assert "is split in 2 files" in refused(capsys, *command)
    monkeypatch.undo()
    monkeypatch.setattr("convert.lora.PERMUTED", set())
    assert "the order of q and k rows in llama models is not known" in refused(capsys, *command, "--merge")
    monkeypatch.undo()
    monkeypatch.setattr(merge, "MAX_HEADS", 1)
    assert "expected one number of heads for all layers" in refused(capsys, *command, "--merge")
    monkeypatch.undo()
    monkeypatch.setattr(llama_cpp, "llama_model_quantize", lambda *_: 1)
    assert main([*map(str, command), "--merge", "--quantize", "Q4_0", "--quiet"]) == 2
    assert "llama.cpp could not quantise" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_no_base(run, tmp_path, capsys):
    folder, base = run
    routers, out = folder / "routers.safetensors", tmp_path / "out.gguf"
    side = str(tmp_path / "side.gguf")
    assert main(["--routers", str(routers), "--model", base, "--sidecar", "--out", side]) == 0
    assert "block_count is missing, expected u32" in refused(
        capsys, "--routers", routers, "--model", side, "--out", out, "--replace"
    )
    assert "is a folder" in refused(capsys, "--routers", routers, "--model", base, "--out", tmp_path)
    bad = random_routers(str(tmp_path / "bad.safetensors"), skippable="[true")
    assert "metadata skippable is '[true', expected a JSON list of 6 bools" in refused(
        capsys, "--routers", bad, "--model", base, "--out", out
    )


# -- a model's answers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grammar", "said"),
    [
        ('root ::= "' + "a" * MAX_BYTES + '"', "at most"),
        ('root ::= "a\0"', "holds a NUL character"),
        ("root ::= <[2]>", "ends an answer"),
        ('root ::= "a"{3,2}', "ends below its beginning"),
        (r'root ::= "\x00"', "is none: allowed are 1 to 10FFFF"),
    ],
)
def test_grammars(tiny, load, grammar, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        check_grammar(load(tiny), grammar)


def test_layers_of_graphs_that_do_not_fit(tiny, load, monkeypatch):
    llm = load(tiny)
    llm._layers.trouble = ("", "", "its KV", "", "", "")
    with pytest.raises(SkipError, match="layer 2 of this model cannot be left out: its KV"):
        llm.skip = [1, 2]
    monkeypatch.setattr(Layers, "readable", False)
    with pytest.raises(RoutingError, match="does not name them all"):
        llm.hidden_states([1, 2])
    llm._layers.trouble = ("odd graph",) * 6
    assert choose((1, 2), None, llm._layers, 3, None).why == "dense: odd graph"


def test_a_graph_that_could_not_be_patched_is_told(tiny, load, monkeypatch):
    llm = load(tiny, skip=[1])
    monkeypatch.setattr(Layers, "_fate", lambda *_: (_ for _ in ()).throw(RuntimeError("odd")))
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
    assert report._sql([]) == ""


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
