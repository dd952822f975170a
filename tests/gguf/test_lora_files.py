"""A LoRA folder that is broken ends in an error that names the file, before anything is written."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from first_cpp.errors import MissingFileError
from first_cpp.gguf.lora import LoraError, read_lora

KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"


@pytest.fixture
def write(tmp_path):
    """Write an adapter of the given configuration and shapes; the folder."""

    def _write(config: object = None, a=(2, 8), b=(8, 2)) -> str:
        config = {"r": 2, "lora_alpha": 4} if config is None else config
        text = config if isinstance(config, bytes) else json.dumps(config).encode()
        (tmp_path / "adapter_config.json").write_bytes(text)
        tensors = {KEY.format("A"): np.ones(a, np.float32), KEY.format("B"): np.ones(b, np.float32)}
        save_file(tensors, tmp_path / "adapter_model.safetensors")
        return str(tmp_path)

    return _write


def read(folder: str):
    return read_lora(folder, "llama", 1, 2, 1)


def test_a_good_one(write):
    (pair,) = read(write())
    assert (pair.name, pair.scale, pair.b.shape) == ("blk.0.attn_q.weight", 2.0, (8, 2))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (b"\xff", "is not JSON"),
        (b"{", "is not JSON"),
        ([], "not a JSON object"),
        ({"r": 2}, "lora_alpha .* None"),
        ({"lora_alpha": 2}, "r .* None"),
        ({"r": 0, "lora_alpha": 4}, "r .* 0"),
        ({"r": "2", "lora_alpha": 4}, "r .* '2'"),
        ({"r": True, "lora_alpha": 4}, "r .* True"),
        ({"r": 2, "lora_alpha": float("nan")}, "lora_alpha .* nan"),
        ({"r": 2, "lora_alpha": 4, "use_dora": True}, "use_dora"),
        ({"r": 2, "lora_alpha": 4, "bias": "all"}, "bias='all'"),
        ({"r": 2, "lora_alpha": 4, "modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\]"),
        ({"r": 2, "lora_alpha": 4, "layer_replication": [[0, 2]]}, "layer_replication"),
        ({"r": 2, "lora_alpha": 4, "alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
        ({"r": 2, "lora_alpha": 4, "peft_type": "ADALORA"}, "peft_type='ADALORA'"),
        ({"r": 2, "lora_alpha": 4, "init_lora_weights": "pissa_niter_4"}, "pissa_niter_4.*path_initial_model"),
        ({"r": 2, "lora_alpha": 4, "init_lora_weights": "olora"}, "olora.*changed the base"),
        ({"r": 4, "lora_alpha": 4}, "has rank 2, adapter_config.json says 4"),
        ({"r": 2, "lora_alpha": 4, "rank_pattern": {"q_proj": 8}}, r"says 8 \(r, rank_pattern\)"),
        ({"r": 2, "lora_alpha": 4, "rank_pattern": 8}, "rank_pattern is 8, expected an object"),
        ({"r": 2, "lora_alpha": 4, "alpha_pattern": {"q_proj": "x"}}, "alpha_pattern in .* is 'x'"),
        ({"r": 2, "lora_alpha": 4, "alpha_pattern": {"(": 8}}, "no regular expression"),
    ],
)
def test_configurations(write, config, said):
    with pytest.raises(LoraError, match=said):
        read(write(config))


@pytest.mark.parametrize(
    ("patterns", "scale"),
    [
        ({}, 2.0),
        ({"use_rslora": True}, 4 / 2**0.5),
        ({"alpha_pattern": {"q_proj": 6}}, 3.0),
        ({"alpha_pattern": {"proj": 6}}, 2.0),  # no part of a name
        ({"alpha_pattern": {r"layers\.0\..*q_proj": 6, "q_proj": 8}}, 3.0),  # the first one counts
        ({"r": 8, "rank_pattern": {"self_attn.q_proj": 2}}, 2.0),
    ],
    ids=str,
)
def test_patterns_give_modules_a_rank_and_alpha_of_their_own(write, patterns, scale):
    (pair,) = read(write({"r": 2, "lora_alpha": 4, **patterns}))
    assert pair.scale == pytest.approx(scale)


def test_weights_in_bf16(write, tmp_path):
    """As most trainers save them; NumPy has no such type."""
    import torch
    from safetensors import torch as torch_files

    folder = write()
    a, b = torch.linspace(-3, 3, 16).view(2, 8).bfloat16(), torch.linspace(-1, 1, 16).view(8, 2).bfloat16()
    torch_files.save_file({KEY.format("A"): a, KEY.format("B"): b}, tmp_path / "adapter_model.safetensors")
    (pair,) = read(folder)
    np.testing.assert_array_equal(pair.a, a.float().numpy())
    assert sorted(pair.b.ravel()) == sorted(b.float().numpy().ravel())


def test_weights_that_are_not_finite(write, tmp_path):
    folder = write()
    tensors = {KEY.format("A"): np.ones((2, 8), np.float32), KEY.format("B"): np.full((8, 2), np.nan, np.float32)}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(LoraError, match=r"layers\.0\.self_attn\.q_proj\.lora_A\.weight or its lora_B .* not finite"):
        read(folder)


def test_weights_of_another_type(write, tmp_path):
    folder = write()
    save_file({KEY.format("A"): np.ones((2, 8), np.int32)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(LoraError, match="of type I32, expected F64, F32, F16, BF16"):
        read(folder)


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [((2, 8), (8, 3), "no pair"), ((16,), (8, 2), "no pair"), ((0, 8), (8, 0), "no pair"), ((2, 8), (6, 2), "6 rows")],
)
def test_shapes(write, a, b, said):
    with pytest.raises(LoraError, match=said):
        read(write(a=a, b=b))


def test_weights_that_are_no_safetensors(write, tmp_path):
    folder = write()
    (tmp_path / "adapter_model.safetensors").write_bytes(b"x" * 40)
    with pytest.raises(LoraError, match="not a readable safetensors"):
        read(folder)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(MissingFileError, match="adapter_model"):
        read(folder)
