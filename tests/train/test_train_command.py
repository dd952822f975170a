"""`first-cpp train`: its options, what it refuses before expensive work, what a run leaves behind."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import shlex
import shutil
import sys
import types

import pytest
import torch
from helpers import greedy, tokens
from routers_files import routed_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from training import examples, lora_trainer, trainer

from convert.__main__ import setup_arg_parser as convert_parser
from first_cpp.cli.main import main, setup_arg_parser
from first_cpp.gguf.embed import write_sidecar
from first_cpp.train import command, run_plan
from first_cpp.train.result import run_record, save_result
from first_cpp.train.run_setup import settings_of
from first_cpp.train.settings import Settings
from first_cpp.train.training_options import add_arguments


@pytest.mark.usefixtures("tiny_hf")
def test_layers_as_given(tmp_path, capsys):
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "a b c", "response": "b c"}\n' * 4)
    arguments = ["train", "--model", "./m", "--data", str(data), "--out", str(tmp_path / "run"), "--rank", "2", "--quiet"]
    for layers, said in (
        ("4,6", "layer 6 does not exist"),
        ("4,1", "--layers names 2 of 6 layers: --max-share is 0.5, allowed: up to 0.333"),
    ):
        assert main([*arguments, "--layers", layers]) == 2
        assert said in capsys.readouterr().err
    for layers in ("4,4", "4;1", "some"):
        with pytest.raises(SystemExit):
            main([*arguments, "--layers", layers])
        assert "no list of layers" in capsys.readouterr().err
    assert main([*arguments, "--layers", "4,1,3"]) == 0
    with safe_open(tmp_path / "run" / "routers.safetensors", "numpy") as file:
        assert file.metadata()["train.order"] == "4,1,3,0,2,5"
        assert file.metadata()["train.layers"] == "given"
    record = json.loads((tmp_path / "run" / "train.json").read_text())
    assert "the layers '4,1,3' for all prompts" in record["method"]


@pytest.mark.usefixtures("tiny_hf")
def test_nothing_is_trained_in_no_epochs(tmp_path):
    """What is left is the mean of the runs that it starts from."""
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "a b c", "response": "b c"}\n' * 4)
    a, b, mean = (str(tmp_path / name) for name in ("a", "b", "mean"))
    arguments = ["train", "--model", "./m", "--data", str(data), "--valid", str(data), "--rank", "2", "--lr", "0.1", "--quiet"]
    for out, more in ((a, ["--start", "influence"]), (b, ["--init", a]), (mean, ["--init", a, b, "--epochs", "0"])):
        assert main([*arguments, "--out", out, *more]) == 0
    weights = [load_file(os.path.join(run, "adapter", "adapter_model.safetensors")) for run in (a, b, mean)]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    for name, found in weights[2].items():
        torch.testing.assert_close(found, (weights[0][name] + weights[1][name]) / 2)
    record = json.loads((tmp_path / "mean" / "train.json").read_text())
    assert (record["steps"], record["updates"]) == (0, 0)
    assert 0 < record["valid_loss"]["mean"]["0.25"] < 100


@pytest.mark.usefixtures("tiny_hf")
def test_a_teacher_is_matched_in_place_of_the_answers(tmp_path, capsys):
    """A run that starts from its teacher has nothing to learn, but what rounding or skipping layers costs."""
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "a b c", "response": "b c"}\n' * 4)
    arguments = ["train", "--model", "./m", "--data", str(data), "--rank", "2", "--precision", "float32", "--quiet", "--out"]
    first = str(tmp_path / "first")
    assert main([*arguments, first, "--start", "influence", "--lr", "0.1"]) == 0
    losses = {}
    for name, more in (("same", ["--max-share", "0"]), ("rounded", ["--max-share", "0", "--quantize", "Q4_0"]), ("fewer", [])):
        assert main([*arguments, str(tmp_path / name), "--init", first, "--teacher", first, "--stop-after", "1", *more]) == 0
        losses[name] = float((tmp_path / name / "log.csv").read_text().splitlines()[1].split(",")[1])
    assert abs(losses["same"]) < 1e-5
    assert losses["rounded"] > 1e-4
    assert losses["fewer"] > 1e-4
    for rows, said in ((None, "there is no peft adapter"), (7, "is of another model")):
        other = tmp_path / f"other{rows}"
        if rows:
            shutil.copytree(first, other)
            path = str(other / "adapter" / "adapter_model.safetensors")
            save_file({name: tensor[:rows] for name, tensor in load_file(path).items()}, path)
        assert main([*arguments, str(tmp_path / "refused"), "--init", first, "--teacher", str(other)]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "refused").exists()


@pytest.mark.usefixtures("tiny_hf")
def test_orders_are_searched_on_data_of_their_own(tmp_path, capsys):
    data, unseen = tmp_path / "data.jsonl", tmp_path / "unseen.jsonl"
    data.write_text('{"task": "x", "prompt": "a b c", "response": "b c"}\n' * 4)
    unseen.write_text("".join(f'{{"task": "{task}", "prompt": "a bb c", "response": "ccc b"}}\n' for task in "yz"))
    arguments = ["train", "--model", "./m", "--data", str(data), "--rank", "2", "--quiet", "--epochs", "0"]
    assert main([*arguments, "--out", str(tmp_path / "run"), "--search-data", str(unseen)]) == 0
    record = json.loads((tmp_path / "run" / "train.json").read_text())
    assert sorted(record["orders"]) == ["y", "z"]
    assert main([*arguments, "--out", str(tmp_path / "other"), "--search-data", str(tmp_path / "none.jsonl")]) == 2
    assert "none.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "skip", "order"),
    [
        ({}, 0.25, None),
        ({"max_share": 0.0}, 0.0, None),
        ({"layers": "random", "seed": 3}, 0.0, ""),
        ({"layers": "search"}, 0.0, "5,2,0,1,3,4"),
    ],
    ids=str,
)
def test_what_a_run_leaves_behind(tmp_path, settings, skip, order):
    """Where routers did not learn nothing is skipped unasked, and a fixed set is named, for eval to compare."""
    run = lora_trainer(tmp_path, Settings(**settings), examples(4))
    run.objective.order = [5, 2, 0, 1, 3, 4] if order else []
    save_result(run, {"command": "first-cpp train --data " + "ä" * 5000}, None)
    with safe_open(tmp_path / "routers.safetensors", "numpy") as file:
        metadata = file.metadata()
    assert float(metadata["skip"]) == skip
    assert len(metadata["train.command"].encode()) <= 4096
    assert metadata["train.command"].endswith("ä...")
    assert metadata.get("train.layers") == settings.get("layers")
    assert metadata.get("train.order", "") == (order or "")
    assert (metadata["train.seed"] == str(run.settings.seed)) if order is not None else ("train.seed" not in metadata)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(config["target_modules"]) != []


def test_a_run_without_lora_leaves_no_adapter(tmp_path):
    run = trainer(tmp_path, "run")
    save_result(run, {}, None)
    assert sorted(os.listdir(run.out)) == ["layers.png", "routers.safetensors", "train.json"]


@pytest.mark.usefixtures("tiny_hf")
def test_a_plan_before_and_the_next_commands_after(tmp_path, capsys):
    data, out = tmp_path / "data.jsonl", str(tmp_path / "run")
    data.write_text("".join(f'{{"task": "{task}", "prompt": "a b c", "response": "b c"}}\n' for task in "xxxxyy"))
    words = ["train", "--model", "m.gguf", "--data", str(data), "--valid", str(data), "--out", out, "--rank", "2"]
    words += ["--batch-size", "2", "--quantize", "Q4_0"]
    assert main([*words, "--stop-after", "2"]) == 0
    part = capsys.readouterr()
    plan = [line for line in part.err.splitlines() if line.startswith(("plan:", "      "))]
    assert plan[:3] == [
        "plan: 6 examples (x 4, y 2)",
        "      3 steps of 2, 3 updates each",
        "      first a search for 3 orders of the layers",
    ]
    assert re.fullmatch(r"      about \d+ seconds?; a checkpoint every 5 minutes", plan[3])
    named = re.sub(r"\s+", " ", " ".join(plan[4:-1]))
    assert re.search(r"order of the layers \d+ seconds?, .*steps \d+ seconds?, validation \d+ seconds?$", named)
    assert max(map(len, plan)) <= 80
    assert "step 2 of 3; the same command with --resume goes on" in part.out
    assert main([*words, "--resume"]) == 0
    whole = capsys.readouterr()
    assert "1 step of 2, 3 updates each, from step 2" in whole.err
    assert "search" not in whole.err
    first, losses, *following = whole.out.splitlines()
    assert first.startswith(f"{out}: routers.safetensors, adapter/")
    assert re.fullmatch(r"validation loss by skip share: 0: \d+\.\d+, 0\.1: .*", losses)
    assert following == [
        "next:",
        f"  python -m convert --routers {out} --model m.gguf --merge --quantize Q4_0 --out m-first.gguf",
        "  first-cpp eval --model m-first.gguf --base m.gguf --data test.jsonl --out report",
    ]
    convert_parser().parse_args(shlex.split(following[1])[3:])
    setup_arg_parser().parse_args(shlex.split(following[2])[1:])


@pytest.mark.parametrize(
    ("more", "lora", "how"),
    [
        ([], True, "--merge --quantize Q8_0"),  # as the model came
        (["--quantize", "Q4_0"], True, "--merge --quantize Q4_0"),  # as it was trained for
        (["--rank", "0"], False, ""),
    ],
    ids=["own type", "trained type", "routers alone"],
)
def test_the_next_commands_are_those_of_the_run(tiny_q8, tmp_path, more, lora, how):
    model = tmp_path / "my model.gguf"
    shutil.copy(tiny_q8, model)
    args = setup_arg_parser().parse_args(["train", "--model", str(model), "--data", "d", "--out", "my run", *more])
    files = ["--routers", "my run", "--model", str(model), *how.split(), "--out", "my model-first.gguf"]
    evaluated = ["--model", "my model-first.gguf", "--base", str(model), "--data", "test.jsonl", "--out", "report"]
    wanted = [["python", "-m", "convert", *files], ["first-cpp", "eval", *evaluated]]
    run = types.SimpleNamespace(lora_weights=[1] * lora, step=1, n_steps=1)
    first, head, *lines = run_plan.ending(args, run, {}, 1.0).splitlines()
    assert ("adapter/" in first) == lora
    assert head == "next:"
    assert [shlex.split(line) for line in lines] == wanted


def test_routers_of_a_file_that_has_some_are_to_be_replaced(tiny, tmp_path):
    """Without the option convert refuses; a merge puts the new ones there anyhow."""
    model = routed_model(tiny, tmp_path, seed=3)
    args = setup_arg_parser().parse_args(["train", "--model", model, "--data", "d", "--out", "run", "--rank", "0"])
    first, *_ = run_plan.following(args, lora=False)
    assert "--replace" in first
    first, *_ = run_plan.following(args, lora=True)
    assert "--replace" not in first


def test_the_command_on_record_can_be_typed_again(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["first-cpp", "train", "--out", "my run"])
    args = setup_arg_parser().parse_args(["train", "--model", "m.gguf", "--data", "d", "--out", "my run"])
    assert shlex.split(run_record(args, trainer(tmp_path, "run"), {})["command"]) == sys.argv


@pytest.mark.slow
@pytest.mark.smollm2
def test_command_from_gguf_to_an_answer(smollm2, tmp_path, load, capsys):
    data, run, side = tmp_path / "data.jsonl", tmp_path / "run", str(tmp_path / "side.gguf")
    records = [{"task": f"t{i % 2}", "prompt": f"Say the number {i}.", "response": f"The number is {i}."} for i in range(8)]
    data.write_text("\n".join(map(json.dumps, records)))
    arguments = ["train", "--model", smollm2, "--data", str(data), "--valid", str(data), "--out", str(run), "--rank", "4",
                 "--batch-size", "4", "--quiet"]  # fmt: skip
    assert main(arguments) == 0, capsys.readouterr().err
    assert {p.name for p in run.iterdir()} >= {"routers.safetensors", "adapter", "train.json", "log.csv", "layers.png"}
    assert load_file(run / "routers.safetensors")["weight"].shape == (30, 576)
    record = json.loads((run / "train.json").read_text())
    assert set(record["valid_loss"]) == {"mean", "t0", "t1"}
    assert set(record["valid_loss"]["mean"]) == {"0.0", "0.1", "0.25", "0.4"}
    write_sidecar(str(run), smollm2, side)
    llm = load(smollm2, routers=side)
    greedy(llm, tokens(20), 2)
    assert len(llm.routing.skipped) == 8
    assert main(arguments) == 2
    assert "holds a run already" in capsys.readouterr().err


OTHER_VALUES = {
    "epochs": 2.5,
    "batch_size": 3,
    "accumulate": 2,
    "part_tokens": 77,
    "lr": 0.5,
    "router_lr": 0.25,
    "average": 0.125,
    "recipe": "two-step",
    "layers": "even",
    "max_share": 0.375,
    "passes": 4,
    "distill": 0.5,
    "teacher": "some",
    "router_part": 0.625,
    "alpha": 0.875,
    "regulariser": 0.0625,
    "precision": "bf16",
    "quantize": "Q5_0",
    "seed": 9,
}


def test_every_setting_has_its_option():
    """Its default is the setting's, and its value becomes the setting's, alone."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    required = ["--model", "./m", "--data", "d", "--out", "o", "--precision", "float32"]
    assert settings_of(parser.parse_args(required)) == Settings()
    assert {field.name for field in dataclasses.fields(Settings)} == {*OTHER_VALUES, "warmup"}
    for name, value in OTHER_VALUES.items():
        args = parser.parse_args([*required, f"--{name.replace('_', '-')}", str(value)])
        before = vars(args).copy()
        assert settings_of(args) == dataclasses.replace(Settings(), **{name: value})
        assert vars(args) == before


def test_help_fits_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    parser = argparse.ArgumentParser(prog="first-cpp train", description=command.__doc__)
    add_arguments(parser)
    lines = parser.format_help().splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 96  # two screens
    titles = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert titles[1:5] == ["model:", "data:", "LoRA:", "layers to skip:"]  # after "options:", of every command
