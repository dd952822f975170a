"""`python -m convert --block-influence`: routers that skip the layers of the least influence."""

from __future__ import annotations

import shlex

import numpy as np
import pytest
from helpers import greedy, tokens
from routers_files import routed_model
from safetensors import safe_open

from convert.__main__ import main
from first_cpp import load_routers
from first_cpp.runtime.block_influence import bias_of


def test_block_influence_is_the_pytorch_one(models, tmp_path, load):
    import reference
    import torch

    from first_cpp.gguf.synthetic import SHAPES

    hf = reference.make_model(SHAPES["tiny"], seed=4)
    base = str(models / "influence.gguf")
    reference.write_gguf(base, hf, SHAPES["tiny"])
    text, out = tmp_path / "text.txt", tmp_path / "routers.safetensors"
    prompts = ["one prompt of some length", "", "another, rather longer prompt that has more tokens"]
    text.write_text("\n".join(prompts))
    assert main(["--block-influence", "--model", base, "--text", str(text), "--out", str(out), "--quiet"]) == 0
    llm = load(base)
    sums, n = np.zeros(6), 0
    for prompt in filter(None, prompts):
        ids = torch.tensor([llm.tokenize(prompt.encode())])
        states, hooks = [], []
        with torch.no_grad():
            for layer in hf.model.layers:
                hooks.append(layer.register_forward_hook(lambda _, given, out, kept=states: kept.append((given[0], out))))
            hf(ids)
        for hook in hooks:
            hook.remove()
        sums += [float((1 - torch.cosine_similarity(i[0], o[0] if o.dim() == 3 else o, dim=-1)).sum()) for i, o in states]
        n += ids.shape[1]
    with safe_open(out, framework="numpy") as file:
        np.testing.assert_allclose(file.get_tensor("bias"), bias_of(sums / n), rtol=0, atol=2e-3)
        assert not file.get_tensor("weight").any()
        assert file.metadata()["train.data"] == f"text.txt: 2 prompts, {n} tokens"


def test_influence_leaves_out_the_least_influential_layers(tiny, tmp_path, load):
    text, routers, side = tmp_path / "t.txt", str(tmp_path / "r.safetensors"), str(tmp_path / "side.gguf")
    text.write_text("some text to measure on\n")
    assert main(["--block-influence", "--model", tiny, "--text", str(text), "--out", routers, "--quiet", "--skip", "0.3"]) == 0
    assert main(["--routers", routers, "--model", tiny, "--sidecar", "--out", side]) == 0
    found = load_routers(side)
    assert (found.skip, found.base.n_layer) == (pytest.approx(0.3), 6)
    llm = load(tiny, routers=side)
    greedy(llm, tokens(20), 2)
    assert llm.routing.skipped == tuple(sorted(np.argsort(found.bias)[:2].tolist()))


def test_what_comes_next_replaces_routers_that_are_there(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = routed_model(tiny, tmp_path, seed=3)
    (tmp_path / "t.txt").write_text("some text to measure on\n")
    words = ["--block-influence", "--text", "t.txt"]
    assert main([*words, "--model", model, "--out", "r.safetensors"]) == 0
    following = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert main([*following[following.index("--routers") :], "--force"]) == 0
    assert main([*words, "--model", tiny, "--out", "s.safetensors"]) == 0
    assert "--replace" not in capsys.readouterr().out


def test_empty_text_is_refused(tiny, tmp_path, capsys):
    text = tmp_path / "t.txt"
    text.write_text("\n \n")
    assert main(["--block-influence", "--model", tiny, "--text", str(text), "--out", str(tmp_path / "r")]) == 2
    assert "no prompts" in capsys.readouterr().err
    text.write_bytes(b"\xff\xfe")
    assert main(["--block-influence", "--model", tiny, "--text", str(text), "--out", str(tmp_path / "r")]) == 2
