"""From a training run to GGUF: the LoRA folded in, or beside, gives what peft gives."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import shutil

import llama_cpp
import numpy as np
import pytest
import reference
import torch
from helpers import greedy, logits, tokens
from routers_files import random_routers
from safetensors.numpy import load_file, save_file

from convert.__main__ import main
from first_cpp import RouterError
from first_cpp._ext import GgufFile
from first_cpp.gguf import merge as merging
from first_cpp.gguf.bundled import FOLDER, bundled_adapters, find_adapter
from first_cpp.gguf.lora import rope_order
from first_cpp.gguf.model_file import ModelFile, open_gguf
from first_cpp.gguf.synthetic import SHAPES
from first_cpp.train.model import add_lora, decoder_layers

F32_KV = {"type_k": 0, "type_v": 0}
PROMPT = tokens(30, seed=3)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A base GGUF, a run folder with routers and a LoRA that matters, and the logits of peft's own model."""
    folder = tmp_path_factory.mktemp("run")
    hf = reference.make_model(SHAPES["tiny"], seed=6)
    base = str(folder / "base.gguf")
    reference.write_gguf(base, hf, SHAPES["tiny"])
    torch.manual_seed(1)
    lora = add_lora(hf, decoder_layers(hf), 4, 8)
    for name, parameter in lora.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    lora.save_pretrained(folder / "run" / "adapter")
    random_routers(str(folder / "run" / "routers.safetensors"))
    with torch.no_grad():
        expected = lora(torch.tensor([PROMPT])).logits[0, -1].numpy()
    return str(folder / "run"), base, expected


def last_logits(llm):
    llm.eval(PROMPT)
    return logits(llm)[0]


def test_merged_is_the_merged_hugging_face_model(run, tmp_path, load):
    folder, base, expected = run
    out = str(tmp_path / "merged.gguf")
    assert main(["--routers", folder, "--model", base, "--merge", "--out", out, "--quiet"]) == 0
    llm = load(out, **F32_KV)
    found = last_logits(llm)
    assert np.abs(found - expected).max() / np.abs(expected).max() < 1e-4
    assert np.abs(last_logits(load(base, **F32_KV)) - expected).max() > 0.1  # the LoRA matters
    greedy(llm, PROMPT, 2)
    assert len(llm.routing.skipped) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["merged.gguf"]


@pytest.mark.parametrize(("kind", "close"), [("Q8_0", 0.2), ("F16", 0.02)])
def test_merged_and_requantised(run, tmp_path, load, kind, close):
    folder, base, expected = run
    out = str(tmp_path / "merged.gguf")
    assert main(["--routers", folder, "--model", base, "--merge", "--quantize", kind, "--out", out, "--quiet"]) == 0
    assert np.abs(last_logits(load(out)) - expected).max() < close


def test_sidecar_carries_both_parts(run, tmp_path, load):
    """Its LoRA through llama.cpp's own loader; F16 rounds."""
    folder, base, expected = run
    out = str(tmp_path / "side.gguf")
    assert main(["--routers", folder, "--model", base, "--sidecar", "--out", out]) == 0
    llm = load(base, routers=out, **F32_KV)
    np.testing.assert_allclose(last_logits(llm), expected, rtol=0, atol=5e-3)
    greedy(llm, PROMPT, 2)
    assert len(llm.routing.skipped) == 2
    again = pickle.loads(pickle.dumps(llm))
    np.testing.assert_array_equal(last_logits(again), last_logits(load(base, routers=out, **F32_KV)))
    again.close()
    with pytest.raises(RouterError, match="LoRA of its own"):
        load(base, routers=out, lora_path=out)


def test_other_tensors_keep_their_bytes(run, tmp_path):
    from helpers import tensor_hashes

    folder, base, _ = run
    out = str(tmp_path / "merged.gguf")
    assert main(["--routers", folder, "--model", base, "--merge", "--out", out, "--quiet"]) == 0
    before, after = tensor_hashes(base), tensor_hashes(out)
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name] != after[name]}
    assert len(changed) == 6 * 7
    assert all("attn_" in name or "ffn_" in name for name in changed)
    assert not any("norm" in name for name in changed)


def test_quantised_base_is_dequantised(run, tmp_path, load):
    import llama_cpp

    folder, base, expected = run
    small, out = str(tmp_path / "q8.gguf"), str(tmp_path / "merged.gguf")
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0
    assert llama_cpp.llama_model_quantize(base.encode(), small.encode(), params) == 0
    assert main(["--routers", folder, "--model", small, "--merge", "--out", out, "--quiet"]) == 0
    assert np.abs(last_logits(load(out)) - expected).max() < 0.2


def test_rope_order_is_the_reference_s():
    rows = np.arange(4 * 8 * 3, dtype=np.float32).reshape(32, 3)
    assert rope_order(rows, 4)[:4, 0].tolist() == [0, 12, 3, 15]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--merge", "--quantize", "Q3_7"], "Q3_7 is not a type"),
        (["--merge", "--quantize", "IQ2_XS"], "IQ2_XS needs an importance matrix; give another type"),
        (["--quantize", "Q4_0"], "goes with --merge"),
        (["--merge", "--sidecar"], "choose one"),
    ],
)
def test_options_that_cannot_be(run, tmp_path, capsys, arguments, said):
    folder, base, _ = run
    assert main(["--routers", folder, "--model", base, "--out", str(tmp_path / "o.gguf"), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_merge_has_a_plan_and_one_bar_over_all_of_it(run, tmp_path, capsys, monkeypatch):
    folder, base, _ = run
    shown, ends = [], []

    @contextlib.contextmanager
    def bar(total, quiet):
        assert not quiet
        ends.append(total)
        yield lambda what, more: shown.append((what, more))

    monkeypatch.setattr(merging, "file_progress", bar)
    out = str(tmp_path / "merged.gguf")
    assert main(["--routers", folder, "--model", base, "--merge", "--quantize", "Q8_0", "--out", out]) == 0
    plan = " ".join(capsys.readouterr().err.split())
    assert re.search(rf"fold the LoRA of {folder} into {base}, then quantise as Q8_0; .* needs [\d.]+ MB more", plan)
    assert list(dict.fromkeys(what for what, _ in shown)) == ["folding the LoRA in", "quantising as Q8_0", "copying tensors"]
    assert ends == [pytest.approx(sum(more for _, more in shown), rel=0.05)]
    assert all(more >= 0 for _, more in shown)


def test_routers_that_do_not_fit_are_refused_before_anything_is_folded(run, tmp_path, capsys, monkeypatch):
    folder, base, _ = run
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    random_routers(str(copy / "routers.safetensors"), n_layer=5)
    monkeypatch.setattr(merging, "write_merged", lambda *_: pytest.fail("the LoRA was folded in"))
    assert "this model needs [6, 128]" in refused(
        capsys, "--routers", copy, "--model", base, "--merge", "--out", tmp_path / "out.gguf"
    )


def test_an_adapter_of_several_ranks_and_alphas(tmp_path, load):
    """peft is the oracle: merged, and in a side file, for which llama.cpp knows one alpha for all."""
    from peft import LoraConfig, get_peft_model

    hf = reference.make_model(SHAPES["tiny"], seed=6)
    base = str(tmp_path / "base.gguf")
    reference.write_gguf(base, hf, SHAPES["tiny"])
    torch.manual_seed(1)
    patterns = {
        "rank_pattern": {"q_proj": 8, r"layers\.2\.mlp\.down_proj": 2},
        "alpha_pattern": {"v_proj": 32, "mlp.up_proj": 1},
    }
    modules = ["q_proj", "v_proj", "up_proj", "down_proj"]
    lora = get_peft_model(hf, LoraConfig(r=4, lora_alpha=8, target_modules=modules, use_rslora=True, **patterns))
    for name, parameter in lora.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    lora.eval().save_pretrained(tmp_path / "run" / "adapter")
    random_routers(str(tmp_path / "run" / "routers.safetensors"))
    with torch.no_grad():
        expected = lora(torch.tensor([PROMPT])).logits[0, -1].numpy()
    command = ["--routers", str(tmp_path / "run"), "--model", base, "--quiet", "--out"]
    merged, side = str(tmp_path / "merged.gguf"), str(tmp_path / "side.gguf")
    assert main([*command, merged, "--merge"]) == 0
    np.testing.assert_allclose(last_logits(load(merged, **F32_KV)), expected, rtol=0, atol=1e-3)
    assert main([*command, side, "--sidecar"]) == 0
    np.testing.assert_allclose(last_logits(load(base, routers=side, **F32_KV)), expected, rtol=0, atol=2e-2)


@pytest.mark.parametrize("how", ["--merge", "--sidecar"])
def test_a_lora_for_tensors_that_the_model_lacks(run, tmp_path, capsys, how):
    """Of lm_head, where the model's output is its embedding; a side file of it could not be loaded."""
    folder, base, _ = run

    def change(t):
        t.update({"base_model.model.lm_head.lora_A.weight": np.zeros((4, 128), np.float32)})
        t.update({"base_model.model.lm_head.lora_B.weight": np.zeros((300, 4), np.float32)})

    out = tmp_path / "out.gguf"
    said = refused(capsys, "--routers", changed_adapter(folder, tmp_path, change), "--model", base, how, "--out", out)
    assert "the LoRA changes output.weight of shape [128, 300]" in said
    assert "has [128, 320]" in said
    assert not out.exists()


@pytest.mark.parametrize("change", [{"use_dora": True}, {"bias": "all"}, {"init_lora_weights": "pissa"}], ids=str)
def test_loras_that_cannot_be_folded_in(run, tmp_path, capsys, change):
    import shutil

    folder, base, _ = run
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    path = copy / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert main(["--routers", str(copy), "--model", base, "--merge", "--out", str(tmp_path / "o.gguf")]) == 2
    assert next(iter(change)) in capsys.readouterr().err


def test_run_without_an_adapter(run, tmp_path, capsys):
    _, base, _ = run
    assert main(["--routers", str(tmp_path / "run"), "--model", base, "--merge", "--out", str(tmp_path / "o.gguf")]) == 2
    assert f"there is no folder {tmp_path / 'run'}" in capsys.readouterr().err
    (tmp_path / "run").mkdir()
    assert main(["--routers", str(tmp_path / "run"), "--model", base, "--merge", "--out", str(tmp_path / "o.gguf")]) == 2
    assert "adapter_config.json is missing" in capsys.readouterr().err


@pytest.mark.smollm2
@pytest.mark.parametrize(
    ("name", "facts"),
    [("smollm2-135m-instruct", ("CC BY-SA 4.0", "routed@0.25")), ("smollm2-135m-everyday", ("MIT", "budget@0.25"))],
)
@pytest.mark.slow
def test_bundled_adapters_fit_the_demo_model(smollm2, tmp_path, load, name, facts):
    """Each merges by its name, is trained (prompts differ in their layers), small, and says where it comes from."""
    out = str(tmp_path / "first.gguf")
    assert main(["--routers", name, "--model", smollm2, "--merge", "--quantize", "Q4_0", "--out", out, "--quiet"]) == 0
    llm = load(out, n_ctx=256)
    chosen = set()
    for text in (
        "Question: Who wrote it?",
        "Write a one-sentence summary (TLDR) of this abstract:\nWe train routers.",
        "2 + 2 =",
    ):
        llm.create_chat_completion([{"role": "user", "content": text}], max_tokens=2)
        chosen.add(llm.routing.skipped)
    assert len(chosen) > 1
    if llm.routers.cost is None:
        assert {len(layers) for layers in chosen} == {8}
    else:  # a budget: whole sets of the file's, or nothing
        assert chosen <= {(), *(tuple(sorted(one.layers)) for one in llm.routers.cost.sets)}
    folder = find_adapter(name)
    files = {name: os.path.getsize(os.path.join(where, name)) for where, _, names in os.walk(folder) for name in names}
    assert sum(files.values()) <= 12_000_000
    with open(os.path.join(folder, "README.md"), encoding="utf-8") as file:
        card = file.read()
    for fact in (*facts, "Apache-2.0", "first-cpp train", "seed", "first-cpp eval"):
        assert fact in card


def test_names_of_adapters_are_no_paths(tmp_path, monkeypatch):
    """A file of the same name comes first; another name is a path that does not exist."""
    name = bundled_adapters()[0]
    assert find_adapter(name) == os.path.join(FOLDER, name)
    assert find_adapter("other") == "other"
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    assert find_adapter(name) == name


# -- what cannot be merged -----------------------------------------------------------------------------------------


def refused(capsys, *arguments):
    """What `python -m convert` says as it refuses."""
    assert main([*map(str, arguments), "--quiet"]) == 2
    return capsys.readouterr().err


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
        (lambda t: t.update({A: np.zeros((4, 64), np.float32)}), "of shape [64, 128]"),
    ],
)
def test_adapters_that_do_not_fit(run, tmp_path, capsys, change, said):
    folder, base, _ = run
    changed, out = changed_adapter(folder, tmp_path, change), tmp_path / "out.gguf"
    assert said in refused(capsys, "--routers", changed, "--model", base, "--merge", "--out", out)
    assert not out.exists()


def split_in_two(path: str) -> ModelFile:
    return ModelFile(path, {path: open_gguf(path), f"{path}-2": open_gguf(path)})


def test_bases_that_cannot_be_merged(run, tmp_path, capsys, monkeypatch):
    folder, base, _ = run
    command = ["--routers", folder, "--model", base, "--out", tmp_path / "out.gguf"]
    monkeypatch.setattr(ModelFile, "open", split_in_two)
    assert "is split in 2 files" in refused(capsys, *command, "--merge")
    assert "is split in 2 files" in refused(capsys, *command)
    monkeypatch.undo()
    monkeypatch.setattr("first_cpp.gguf.lora.PERMUTED", set())
    assert "the order of q and k rows in llama models is not known" in refused(capsys, *command, "--merge")
    monkeypatch.undo()
    monkeypatch.setattr("first_cpp.gguf.lora.MAX_HEADS", 1)
    assert "expected one number of heads for all layers" in refused(capsys, *command, "--merge")
    monkeypatch.undo()
    monkeypatch.setattr(llama_cpp, "llama_model_quantize", lambda *_: 1)
    assert main([*map(str, command), "--merge", "--quantize", "Q4_0", "--quiet"]) == 2
    assert "llama.cpp could not quantise" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_no_base(run, tmp_path, capsys):
    folder, base, _ = run
    routers, out = os.path.join(folder, "routers.safetensors"), tmp_path / "out.gguf"
    side = str(tmp_path / "side.gguf")
    assert main(["--routers", routers, "--model", base, "--sidecar", "--out", side]) == 0
    replace = ["--routers", routers, "--out", out, "--replace", "--model"]
    assert "is an adapter (routers, a LoRA), not a model" in refused(capsys, *replace, side)
    empty = GgufFile()
    empty.set_str("general.architecture", "llama")
    (tmp_path / "empty.gguf").write_bytes(empty.metadata())
    assert "block_count is missing, expected u32" in refused(capsys, *replace, tmp_path / "empty.gguf")
    assert "is a folder" in refused(capsys, "--routers", routers, "--model", base, "--out", tmp_path)
    bad = random_routers(str(tmp_path / "bad.safetensors"), skippable="[true")
    assert "metadata skippable is '[true', expected a JSON list of 6 bools" in refused(
        capsys, "--routers", bad, "--model", base, "--out", out
    )
