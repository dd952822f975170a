"""`train --sets`: each prompt trains with the set that inference would choose for it, at the mean share that was drawn."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import reference
import torch
from helpers import greedy, tokens
from routers_files import SETS, budget_routers, routed_model
from training import Words, examples, trainer

from first_cpp.cli.main import main
from first_cpp.errors import OptionError, RouterError
from first_cpp.gguf.embed import write_sidecar
from first_cpp.gguf.merge import merge
from first_cpp.gguf.model_file import ModelFile
from first_cpp.gguf.router_format import load_routers, read_safetensors
from first_cpp.gguf.synthetic import SHAPES
from first_cpp.train.batch import collate
from first_cpp.train.examples import Example
from first_cpp.train.prompt_costs import with_predictions
from first_cpp.train.run_setup import start_budget
from first_cpp.train.set_budget import SetBudget, read_sets


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The tiny model of the trainer, as a GGUF."""
    path = str(tmp_path_factory.mktemp("model") / "model.gguf")
    reference.write_gguf(path, reference.make_model(SHAPES["tiny"], seed=2), SHAPES["tiny"])
    return path


@pytest.fixture
def routers(model):
    return budget_routers(model, margin=0.02, tolerance=0.05)


def prompts(n):
    return [Example(f"t{i % 2}", tokens(5 + i % 17, seed=i), tokens(4, seed=500 + i)) for i in range(n)]


def predicted(run, routers, group):
    return with_predictions(run.routed, routers.cost, group, 64, run.to_device)


@pytest.mark.parametrize(("read", "last"), [((1, 4), ()), ((1,), (4,)), ((), (2, 5))])
def test_a_prompt_trains_with_the_set_that_llama_skips(tmp_path, model, load, read, last):
    """The oracle is decoding: what `Llama` skips of the same prompts at the same tolerance."""
    run, routers = trainer(tmp_path, "run"), budget_routers(model, margin=0.02, tolerance=0.05, read=read, last=last)
    budget, group = SetBudget(routers), predicted(run, routers, prompts(24))
    budget.learn(group)
    llm = load(model, routers=routers, skip="auto", tolerance=0.05, type_k=0, type_v=0)
    seen = set()
    for share in (0.1, 0.25, 0.45):
        llm.tolerance = budget.tolerance(share)
        found = budget.skipped_layers([one.prediction for one in group], share)
        for example, row in zip(group, found, strict=True):
            greedy(llm, example.prompt, 2)
            assert tuple(row.nonzero().flatten().tolist()) == llm.routing.skipped
            seen.add(llm.routing.skipped)
    assert len(seen) > 2  # more than one set, and nothing skipped for some or another level


def test_the_mean_share_is_the_one_drawn(tmp_path, routers):
    run = trainer(tmp_path, "run")
    budget, group = SetBudget(routers), predicted(run, routers, prompts(60))
    budget.learn(group)
    predictions = [one.prediction for one in group]
    assert not budget.skipped_layers(predictions, 0.0).any()
    for share in (0.05, 0.2, 0.4, 0.6):
        assert float(budget.skipped_layers(predictions, share).float().mean()) == pytest.approx(share, abs=4 / 60 / 6 + 1e-6)
    assert float(budget.skipped_layers(predictions, 0.99).float().mean()) == pytest.approx(budget.most)


def test_a_batch_skips_row_by_row_and_teaches_the_lora_no_router(tmp_path, routers):
    run = trainer(tmp_path, "run", max_share=0.6, layers="sets")
    valid = start_budget(run, SetBudget(routers), examples(6))
    assert all(one.prediction is not None for one in (*valid, *run.examples))
    prefilled = run.routed.prefill(collate(run.examples[:8]))
    chosen = run.objective.chosen_layers(prefilled, 0.3)
    allowed = {(), *(one.layers for one in SETS)}
    assert {tuple(row.nonzero().flatten().tolist()) for row in chosen} <= allowed
    assert len({tuple(row.tolist()) for row in chosen}) > 1
    before = [p.detach().clone() for p in run.routed.bank.parameters()]
    losses = run.run(valid, quiet=True)
    assert all(torch.equal(one, two) for one, two in zip(before, run.routed.bank.parameters(), strict=True))
    assert list(losses["mean"]) == [0.0, 0.1, 0.25, 0.4]


@pytest.mark.parametrize("last", [(), (3,)])
def test_predictions_are_of_the_examples_whatever_their_lengths(tmp_path, model, last):
    routers = budget_routers(model, last=last)
    run, group = trainer(tmp_path, "run"), prompts(9)
    together = predicted(run, routers, group)
    for example, one in zip(group, together, strict=True):
        assert dataclasses.replace(one, prediction=None) == example
        (alone,) = predicted(run, routers, [example])
        np.testing.assert_allclose(one.prediction.costs, alone.prediction.costs, rtol=1e-4)


def test_files_without_sets_or_of_another_model_are_refused(tmp_path, tiny, model, routers):
    side, base = str(tmp_path / "side.gguf"), ModelFile.open(model).base
    write_sidecar(routers, model, side)
    assert read_sets(side, base, 6, 128).cost.levels == (1, 2, 4)
    with pytest.raises(OptionError, match="the model has 8"):
        read_sets(side, None, 8, 128)
    with pytest.raises(OptionError, match="for 128 values in a hidden state, the model has 64"):  # of a folder, not a GGUF
        read_sets(side, None, 6, 64)
    with pytest.raises(RouterError, match="another model"):
        read_sets(side, ModelFile.open(tiny).base, 6, 128)
    with pytest.raises(OptionError, match="has no sets of layers"):
        read_sets(routed_model(tiny, tmp_path, sidecar=True), None, 6, 128)


@pytest.fixture
def tiny_hf(monkeypatch):
    monkeypatch.setattr(
        "first_cpp.train.run_setup.load_model", lambda _path: (reference.make_model(SHAPES["tiny"], seed=2), Words())
    )


@pytest.mark.usefixtures("tiny_hf")
def test_from_a_calibrated_file_to_a_model_that_skips_its_sets(tmp_path, model, routers, load, capsys):
    data, out, side, merged = (str(tmp_path / name) for name in ("data.jsonl", "run", "side.gguf", "merged.gguf"))
    with open(data, "w") as file:
        file.writelines(f'{{"prompt": "{"word " * (1 + i % 9)}", "response": "a b"}}\n' for i in range(12))
    write_sidecar(routers, model, side)
    words = ["train", "--model", model, "--data", data, "--out", out, "--rank", "2", "--quiet", "--sets", side]
    assert main([*words, "--valid", data, "--stop-after", "1"]) == 0, capsys.readouterr().err
    assert main([*words, "--resume"]) == 0, capsys.readouterr().err
    merges, calibrates, _ = capsys.readouterr().out.splitlines()[-3:]
    assert merges.endswith("--merge --out merged.gguf")
    assert calibrates == f"  first-cpp calibrate -m merged.gguf --sets {side} --replace --out model-first.gguf"
    left = read_safetensors(out, ModelFile.open(model).base, 1e-5)
    assert (left.kind, left.cost.sets, left.skip) == ("sets", routers.cost.sets, pytest.approx(routers.skip))
    assert "sets of side.gguf" in left.train["method"]
    merge(out, model, merged, quiet=True)
    llm = load(merged, skip="auto", tolerance=1e6)
    greedy(llm, tokens(9), 2)
    assert len(llm.routing.skipped) == 4
    assert load_routers(merged).cost.tolerance == pytest.approx(0.05)
    on = [*words[:6], str(tmp_path / "on"), *words[7:], "--init", out]  # with more prompts, or another seed
    assert main([*on, "--stop-after", "1"]) == 0, capsys.readouterr().err
    on[6] = str(tmp_path / "without")
    assert main([word for word in on if word not in ("--sets", side)]) == 2
    assert "add --sets FILE" in capsys.readouterr().err
    fewer = {"sets": SETS[1:], "weight": routers.cost.weight[1:], "bias": routers.cost.bias[1:]}
    write_sidecar(budget_routers(model, **fewer), model, str(tmp_path / "other.gguf"))
    words[-1] = str(tmp_path / "other.gguf")
    assert main([*words, "--resume"]) == 2
    assert "made with other settings: sets" in capsys.readouterr().err
