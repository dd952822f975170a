"""Training for the weights that will run: rounded as llama.cpp rounds them, LoRA and all."""

from __future__ import annotations

import argparse

import gguf
import numpy as np
import pytest
import reference
import torch
from peft import LoraConfig, inject_adapter_in_model
from training import examples, make_routed

from convert.__main__ import main
from first_cpp import _ext
from first_cpp.gguf.synthetic import SHAPES
from first_cpp.train import command as train
from first_cpp.train.model import add_lora, decoder_layers
from first_cpp.train.result import save_result
from first_cpp.train.rounding import KINDS, Rounding, rounded
from first_cpp.train.settings import Settings
from first_cpp.train.trainer import Trainer
from first_cpp.train.validation import validate


@pytest.mark.parametrize("kind", KINDS)
def test_rounds_as_llama_cpp_does(kind):
    rng = np.random.default_rng(0)
    size = (8, 4 * 32)
    rows = np.concatenate(
        [
            rng.standard_normal((200, size[1]), np.float32),
            *(np.full((1, size[1]), x, np.float32) for x in (0.0, 0.3, -0.3)),
            *(rng.standard_normal(size).astype(np.float32) * x for x in (1e-7, 3e4)),  # steps that float16 hardly holds
        ]
    )
    raw = np.frombuffer(_ext.quantize(kind.lower(), rows), np.uint8).reshape(len(rows), -1)
    wanted = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind])
    np.testing.assert_array_equal(rounded(torch.from_numpy(rows), kind).numpy(), wanted)


def test_the_command_takes_every_type_that_is_rounded():
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    assert next(action.choices for action in parser._actions if action.dest == "quantize") == list(KINDS)


def lora_trainer(out, rank=4, **settings):
    """A trainer of a tiny model with LoRA."""
    out.mkdir(exist_ok=True)
    hf = reference.make_model(SHAPES["tiny"], seed=2)
    torch.manual_seed(1)
    lora = add_lora(hf, decoder_layers(hf), rank, 2 * rank)
    values = {"batch_size": 4, "epochs": 1.0, "lr": 1e-2, **settings}
    return Trainer(make_routed(hf), lora, examples(40), Settings(**values), str(out))


@pytest.mark.parametrize("kind", ["Q4_0", pytest.param("Q5_1", marks=pytest.mark.slow)])
def test_what_is_trained_is_what_the_merged_file_holds(tmp_path, kind):
    run = lora_trainer(tmp_path / "run", quantize=kind, average=0.5)
    base = str(tmp_path / "base.gguf")
    reference.write_gguf(base, reference.make_model(SHAPES["tiny"], seed=2), SHAPES["tiny"])
    run.run([], quiet=True)
    save_result(run, {}, None)
    out = str(tmp_path / "merged.gguf")
    assert main(["--routers", run.out, "--model", base, "--merge", "--quantize", kind, "--out", out, "--quiet"]) == 0
    held = {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in gguf.GGUFReader(out).tensors}
    names = {
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    for i, layer in enumerate(decoder_layers(run.lora)):
        for name, called in names.items():
            module = layer.get_submodule(name)
            trained = (module.base_layer.weight + module.get_delta_weight("default")).detach().numpy()
            differs = np.abs(trained - held[f"blk.{i}.{called}.weight"]) > 1e-5
            assert differs.mean() < 1e-3  # a sum in another order can fall on the other side of a border


@pytest.mark.slow  # trains two models
def test_training_for_rounded_weights_is_better_once_they_are(tmp_path):
    """The loss of the rounded model, trained with rounding and without."""
    losses = {}
    for kind in ("Q4_0", ""):
        run = lora_trainer(tmp_path / f"run{kind}", quantize=kind, epochs=4.0, max_share=0.0, lr=2e-3)
        run.run([], quiet=True)
        Rounding(run.lora, "" if kind else "Q4_0").apply()  # what was trained with rounding is rounded already
        found, _ = validate(run.objective, examples(40), 8, run.to_device, run.processes)
        losses[kind] = found["mean"][0.0]
    assert losses["Q4_0"] < losses[""] - 0.05


def test_a_resumed_run_ends_as_an_unbroken_one(tmp_path):
    whole, part = (lora_trainer(tmp_path / name, quantize="Q4_0") for name in ("whole", "part"))
    whole.run([], quiet=True)
    part.run([], quiet=True, stop_after=4)
    again = lora_trainer(tmp_path / "part", quantize="Q4_0")
    again.resume()
    again.run([], quiet=True)
    for one, two in zip(whole.parameters, again.parameters, strict=True):
        assert torch.equal(one, two)


def test_rows_that_are_no_whole_blocks_stay():
    hf = torch.nn.Module()
    hf.one, hf.two = torch.nn.Linear(48, 8), torch.nn.Linear(64, 8)
    lora = inject_adapter_in_model(LoraConfig(r=2, target_modules=["one", "two"]), hf)
    before = {name: module.base_layer.weight.detach().clone() for name, module in lora.named_children()}
    Rounding(lora, "Q4_0").apply()
    assert torch.equal(lora.one.base_layer.weight, before["one"])
    assert torch.equal(lora.two.base_layer.weight, rounded(before["two"], "Q4_0"))
