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
    ],
)
def test_configurations(write, config, said):
    with pytest.raises(LoraError, match=said):
        read(write(config))


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
