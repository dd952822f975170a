"""What bench measures on: models of random weights, the bytes that a step reads, a filled KV cache, turns."""

from __future__ import annotations

import ctypes

import llama_cpp
import numpy as np
import pytest
from helpers import tokens

from first_cpp._ext import GgufFile
from first_cpp.bench.depth import filled_state
from first_cpp.gguf.byte_limit import byte_limit, kv_reads, weight_reads
from first_cpp.gguf.pruned import write_pruned
from first_cpp.gguf.quantise import quiet_llama_cpp
from first_cpp.gguf.synthetic import FILE_TYPES, SHAPES, Shape, SyntheticError, write_random
from first_cpp.runtime.interleaved import call_times, decode_times, ratio

# -- synthetic models ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file_type", FILE_TYPES)
def test_every_file_type_loads(load, tmp_path, file_type):
    path = tmp_path / "model.gguf"
    write_random(path, Shape(2, 512, 4, 2, 512, 320, architecture="qwen3", head_dim=64), file_type)
    llm = load(path, skip=[0])
    llm.eval(tokens(8))
    assert np.isfinite(llama_cpp.llama_get_logits_ith(llm.ctx, -1)[:320]).all()


MIXED = [  # all but one type of one shape are slow
    pytest.param(kind, *shape, marks=[pytest.mark.slow] if (kind, *shape) != ("q4_k_m", False, 2) else [])
    for kind in sorted(set(FILE_TYPES) - {"f32", "f16", "bf16"})
    for shape in ((False, 2), (True, 2), (True, 1))
]


@pytest.mark.parametrize(("file_type", "tied", "n_head_kv"), MIXED)
def test_types_are_mixed_as_llama_cpps_quantizer_mixes_them(tmp_path, file_type, tied, n_head_kv):
    shape = Shape(16, 256, 4, n_head_kv, 512, 320, tied=tied)
    ours, full, theirs = (str(tmp_path / name) for name in ("ours.gguf", "full.gguf", "theirs.gguf"))
    write_random(ours, shape, file_type)
    write_random(full, shape, "f16")
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{file_type.upper()}")
    with quiet_llama_cpp():
        assert llama_cpp.llama_model_quantize(full.encode(), theirs.encode(), ctypes.byref(params)) == 0
    types = [{t.name: t.type for t in GgufFile(path).tensors() if len(t.shape) > 1} for path in (ours, theirs)]
    assert types[0] == types[1]


def test_unknown_file_type(tmp_path):
    with pytest.raises(SyntheticError, match="'q9_9' cannot be written; allowed: f32"):
        write_random(tmp_path / "x.gguf", SHAPES["tiny"], "q9_9")


# -- the limit -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
def test_bytes_read_are_those_of_the_tensors(tmp_path, load, tied):
    path, pruned = tmp_path / "m.gguf", tmp_path / "p.gguf"
    shape = Shape(4, 512, 4, 2, 512, 1024, tied=tied)
    write_random(path, shape, "q8_0")
    reads = weight_reads(str(path))
    sizes = {tensor.name: tensor.n_bytes for tensor in GgufFile(str(path)).tensors()}
    lookup = 0 if tied else sizes["token_embd.weight"]
    assert reads.weights() == sum(sizes.values()) - lookup
    write_pruned(str(path), str(pruned), [1, 2])
    assert reads.weights([1, 2]) == sum(tensor.n_bytes for tensor in GgufFile(str(pruned)).tensors()) - lookup
    llm = load(path, n_ctx=1024)
    cell = 2 * 2 * 128 * 2  # k and v, heads, values, f16
    assert kv_reads(llm.kv_cache, 1024, 0) == 4 * 256 * cell
    assert kv_reads(llm.kv_cache, 1024, 300, [0]) == 3 * 512 * cell
    expected = (reads.weights() + 4 * 512 * cell) / (reads.weights([0]) + 3 * 512 * cell)
    assert byte_limit(reads, llm.kv_cache, 1024, 300, [0]) == pytest.approx(expected)


def test_of_experts_only_those_in_use_are_read(tmp_path):
    import gguf

    path = tmp_path / "moe.gguf"
    writer = gguf.GGUFWriter(str(path), "qwen3moe")
    writer.add_block_count(1)
    writer.add_expert_count(8)
    writer.add_expert_used_count(2)
    writer.add_tensor("blk.0.ffn_up_exps.weight", np.zeros((8, 32, 32), np.float32))
    writer.add_tensor("blk.0.attn_q.weight", np.zeros((32, 32), np.float32))
    writer.add_tensor("output.weight", np.zeros((64, 32), np.float32))
    writer.add_tensor("token_embd.weight", np.zeros((64, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    reads = weight_reads(str(path))
    assert (reads.layers, reads.rest) == ((2 * 4096 + 4096,), 64 * 32 * 4)


# -- depth, turns --------------------------------------------------------------------------------------------------


def test_a_filled_state_has_values_in_every_cell(tiny, load):
    held = tokens(300)
    settings = {"n_ctx": 512, "n_threads": 2, "verbose": False}
    state = filled_state(tiny, lambda n_vocab: held, settings)
    llm = load(tiny, skip=[2])
    llm.load_state(state)
    assert llm.n_tokens == 300
    for tensor in llm.kv_cache:
        cells = np.frombuffer(ctypes.string_at(tensor.address, tensor.n_bytes), np.float16)
        assert np.isfinite(cells).all()
        assert np.count_nonzero(cells) >= 300 * 64 * 0.99
    stock = load(tiny, llama_cpp.Llama)
    stock.load_state(state)
    answer = stock.generate([*held, 5], temp=0.0)
    next(answer)
    assert stock.n_tokens == 301


def test_turns_are_shared_out_evenly(tiny, load):
    models = {"a": load(tiny, llama_cpp.Llama), "b": load(tiny)}
    times = decode_times(models, tokens(8), 5)
    assert {name: len(steps) for name, steps in times.items()} == {"a": 5, "b": 5}
    called = []
    times = call_times(models, called.append, 4)
    assert [called.count(llm) for llm in models.values()] == [4, 4]
    assert ratio({"a": [2.0, 4.0, 9.0], "b": [1.0, 1.0, 3.0]}, "a", "b") == 3
