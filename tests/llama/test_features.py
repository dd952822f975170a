"""Features of llama.cpp with layers left out. Oracle: the file that llama.cpp's quantizer pruned, with the same feature."""

from __future__ import annotations

import ctypes

import gguf
import llama_cpp
import numpy as np
import pytest
from helpers import greedy, logits, run_tokens, tokens
from llama_cpp.llama_chat_format import Llava15ChatHandler
from routers_files import routed_model
from vision import N_IMAGE_TOKENS, image_url, write_clip

from first_cpp.gguf import synthetic
from first_cpp.gguf.pruned import write_pruned

PROMPT, ANSWER, MORE = tokens(37), tokens(8, seed=1), tokens(21, seed=2)
LEFT_OUT = [1, 4]
STAY = [0, 2, 3, 5]
TINY = synthetic.SHAPES["tiny"]

FLASH = {"flash_attn": True}
CACHE_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "IQ4_NL")


def ggml_type(name: str) -> int:
    return int(gguf.GGMLQuantizationType[name])


CONTEXTS = {
    **{f"k-{name}": {"type_k": ggml_type(name)} for name in CACHE_TYPES},
    **{f"kv-{name}": {"type_k": ggml_type(name), "type_v": ggml_type(name), **FLASH} for name in CACHE_TYPES},
    "v-F32": {"type_v": ggml_type("F32")},
    "v-BF16": {"type_v": ggml_type("BF16")},
    "k-Q8_0-v-Q4_0": {"type_k": ggml_type("Q8_0"), "type_v": ggml_type("Q4_0"), **FLASH},
    "n_ctx-100": {"n_ctx": 100},
    "n_ctx-300": {"n_ctx": 300, **FLASH},
    "ubatch-7-of-20": {"n_batch": 20, "n_ubatch": 7},
    "ubatch-1": {"n_batch": 16, "n_ubatch": 1},
    "rope-linear": {"rope_scaling_type": llama_cpp.LLAMA_ROPE_SCALING_TYPE_LINEAR, "rope_freq_scale": 0.5},
    "rope-yarn": {
        "rope_scaling_type": llama_cpp.LLAMA_ROPE_SCALING_TYPE_YARN,
        "rope_freq_scale": 0.25,
        "yarn_orig_ctx": 512,
        "n_ctx": 2048,
    },
    "rope-base": {"rope_freq_base": 500000.0},
    "no-offload": {"offload_kqv": False, "use_mmap": False},
    "one-thread": {"n_threads": 1, "n_threads_batch": 1},
}


@pytest.fixture(scope="module")
def pruned(tiny, models):
    path = models / "tiny-features.gguf"
    write_pruned(tiny, str(path), LEFT_OUT)
    return str(path)


@pytest.fixture(scope="module")
def routed(tiny, models):
    return routed_model(tiny, models, seed=11)


@pytest.mark.parametrize("context", CONTEXTS)
def test_contexts(tiny, routed, pruned, load, context):
    settings = CONTEXTS[context]
    expected = run_tokens(load(pruned, llama_cpp.Llama, **settings), PROMPT, ANSWER)
    llm = load(tiny, **settings)
    with llm.skipping(LEFT_OUT):
        np.testing.assert_array_equal(run_tokens(llm, PROMPT, ANSWER), expected)
    # and as it is used: the prompt dense and scored, the answer without what it chose, the next turn as from a fresh model
    used, fixed = load(routed, skip=0.34, **settings), load(routed, **settings)
    first = greedy(used, PROMPT, 8)
    fixed.skip = list(used.routing.skipped)
    assert len(used.routing.skipped) == 2
    assert greedy(fixed, PROMPT, 8) == first
    fresh = load(routed, skip=0.34, **settings)
    for llm in (used, fresh):
        next(llm.generate(PROMPT + first + MORE, temp=0.0))
    assert used.routing.skipped == fresh.routing.skipped
    coarse = "Q" in context  # what the prompt's rows were rounded to depends on how they were batched
    np.testing.assert_allclose(logits(used), logits(fresh), rtol=0, atol=0.6 if coarse else 0.03)


# -- the context, moved ----------------------------------------------------------------------------------------------


def shift(llm, start: int, n: int) -> None:
    """Drop `n` positions from `start` on and move the rest up, as llama.cpp's tools do when the context is full."""
    memory = llm._ctx.memory
    assert llama_cpp.llama_memory_seq_rm(memory, 0, start, start + n)
    llama_cpp.llama_memory_seq_add(memory, 0, start + n, -1, -n)
    llm.input_ids[start : llm.n_tokens - n] = llm.input_ids[start + n : llm.n_tokens]
    llm.n_tokens -= n


@pytest.mark.parametrize("settings", [{}, FLASH, {"n_ubatch": 8, **FLASH}], ids=["plain", "flash", "small ubatch"])
def test_context_shift(tiny, pruned, load, settings):
    stock, llm = load(pruned, llama_cpp.Llama, **settings), load(tiny, **settings)
    with llm.skipping(LEFT_OUT):
        for each in (stock, llm):
            each.eval(PROMPT)
            shift(each, 4, 11)
            each.eval(MORE)
        np.testing.assert_array_equal(logits(llm), logits(stock))
        np.testing.assert_array_equal(run_tokens(llm, [5], ANSWER), run_tokens(stock, [5], ANSWER))


# -- adapters --------------------------------------------------------------------------------------------------------


def set_control_vector(llm, vectors: np.ndarray) -> None:
    """Add `vectors`, float32 [n_layer - 1, n_embd], to what leaves the layers from 1 on."""
    data = np.ascontiguousarray(vectors, np.float32)
    pointer = data.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    assert llama_cpp.llama_set_adapter_cvec(llm.ctx, pointer, data.size, TINY.n_embd, 1, len(data)) == 0


def test_control_vectors(tiny, pruned, load):
    """A layer left out is left out with its control vector."""
    vectors = np.random.default_rng(4).normal(0, 0.5, (TINY.n_layer - 1, TINY.n_embd))
    stock, llm = load(pruned, llama_cpp.Llama), load(tiny)
    plain = run_tokens(stock, PROMPT, ANSWER)
    stock.reset()
    set_control_vector(stock, np.stack([vectors[layer - 1] for layer in STAY[1:]]))
    set_control_vector(llm, vectors)
    expected = run_tokens(stock, PROMPT, ANSWER)
    assert not np.array_equal(plain, expected)
    with llm.skipping(LEFT_OUT):
        np.testing.assert_array_equal(run_tokens(llm, PROMPT, ANSWER), expected)


def write_lora(path, layers: list[int], seed: int = 0) -> str:
    """A LoRA on q and the feed-forward block of a tiny model that has only these of the six layers."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 8.0)
    shapes = dict(synthetic.tensor_shapes(TINY))
    rng = np.random.default_rng(seed)
    for layer in range(TINY.n_layer):
        for part in ("attn_q", "ffn_down"):
            n_out, n_in = shapes[f"blk.{layer}.{part}.weight"]
            a, b = rng.normal(0, 0.3, (4, n_in)), rng.normal(0, 0.3, (n_out, 4))
            if layer in layers:
                name = f"blk.{layers.index(layer)}.{part}.weight"
                writer.add_tensor(f"{name}.lora_a", a.astype(np.float32))
                writer.add_tensor(f"{name}.lora_b", b.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


def test_lora(tiny, pruned, load, tmp_path):
    whole, part = write_lora(tmp_path / "whole.gguf", list(range(6))), write_lora(tmp_path / "part.gguf", STAY)
    expected = run_tokens(load(pruned, llama_cpp.Llama, lora_path=part), PROMPT, ANSWER)
    assert not np.array_equal(expected, run_tokens(load(pruned, llama_cpp.Llama), PROMPT, ANSWER))
    llm = load(tiny, lora_path=whole)
    with llm.skipping(LEFT_OUT):
        np.testing.assert_array_equal(run_tokens(llm, PROMPT, ANSWER), expected)


# -- files in parts --------------------------------------------------------------------------------------------------


def write_split(folder, shape: synthetic.Shape, file_type: str = "f32") -> list[str]:
    """The tiny model in parts of 20 tensors."""
    writer = gguf.GGUFWriter(str(folder / "tiny.gguf"), shape.architecture, split_max_tensors=20)
    synthetic._add_metadata(writer, shape)
    for name, dims, values in synthetic._random_tensors(shape, np.random.default_rng(0)):
        assert values is not None, dims
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(map(str, folder.glob("tiny-*.gguf")))


def test_split_files(tiny, routed, load, tmp_path):
    parts = write_split(tmp_path, TINY)
    assert len(parts) == 3
    np.testing.assert_array_equal(
        run_tokens(load(parts[0], llama_cpp.Llama), PROMPT, ANSWER), run_tokens(load(tiny, llama_cpp.Llama), PROMPT, ANSWER)
    )
    expected = load(routed, skip=0.5)
    answer = greedy(expected, PROMPT, 8)
    llm = load(parts[0], routers=routed, skip=0.5)
    assert greedy(llm, PROMPT, 8) == answer
    assert llm.routing == expected.routing


# -- images ----------------------------------------------------------------------------------------------------------


def ask(llm, *parts: str, stream: bool = False) -> str:
    """The greedy answer to texts and image URLs."""
    content = [
        {"type": "image_url", "image_url": {"url": part}} if part.startswith("data:") else {"type": "text", "text": part}
        for part in parts
    ]
    settings = {"max_tokens": 8, "temperature": 0, "stream": stream}
    answer = llm.create_chat_completion([{"role": "user", "content": content}], **settings)
    if not stream:
        return answer["choices"][0]["message"]["content"]
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in answer)


def test_multimodal_prompts(routed, tmp_path, load):
    """A real handler and llama.cpp's own vision code: images are read dense, the text around them is scored."""

    def seeing(cls=None, **settings):
        handler = Llava15ChatHandler(write_clip(tmp_path / "clip.gguf", TINY.n_embd), verbose=False)
        return load(routed, *([cls] if cls else []), chat_handler=handler, **settings)

    question = (image_url(1), "What is it?")
    stock, dense, llm = seeing(llama_cpp.Llama), seeing(skip=None), seeing(skip=0.5)
    assert ask(dense, *question) == ask(stock, *question)
    seen = logits(stock)
    np.testing.assert_array_equal(logits(dense), seen)
    ask(stock, image_url(2), "What is it?")
    assert np.abs(logits(stock) - seen).max() > 1e-3  # the image is looked at
    answer = ask(llm, *question)
    assert len(llm.routing.skipped) == 3
    assert llm.routing.prompt_tokens > N_IMAGE_TOKENS
    unscored = np.isnan(llm._read.scores(llm.routing.prompt_tokens)).any(axis=1)
    assert unscored.sum() == N_IMAGE_TOKENS
    fixed = seeing(skip=list(llm.routing.skipped))
    assert ask(fixed, *question) == answer
    # other prompts between, and the same again: nothing is left of them
    ask(llm, image_url(3), "And this?", image_url(4))
    text = llm.create_completion("plain text", max_tokens=8, temperature=0)["choices"][0]["text"]
    assert text == load(routed, skip=0.5).create_completion("plain text", max_tokens=8, temperature=0)["choices"][0]["text"]
    assert ask(llm, *question, stream=True) == answer
