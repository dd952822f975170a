"""What several tests do with a model."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import textwrap

import llama_cpp
import numpy as np

from first_cpp._ext import GgufFile
from first_cpp.gguf.synthetic import SHAPES, tensor_shapes, write_model


def logits(llm: llama_cpp.Llama, n_rows: int = 1) -> np.ndarray:
    """The last `n_rows` rows of logits, float32 [n_rows, n_vocab]."""
    first = [llama_cpp.llama_get_logits_ith(llm.ctx, -n_rows + i) for i in range(n_rows)]
    return np.stack([np.ctypeslib.as_array(row, shape=(llm.n_vocab(),)).copy() for row in first])


def greedy(llm: llama_cpp.Llama, prompt: list[int], n_tokens: int, **kwargs) -> list[int]:
    """The first `n_tokens` tokens of the greedy answer to `prompt`."""
    generator = llm.generate(prompt, temp=0.0, repeat_penalty=1.0, **kwargs)
    tokens = [next(generator) for _ in range(n_tokens)]
    generator.close()
    return tokens


def run_tokens(llm: llama_cpp.Llama, prompt: list[int], answer: list[int]) -> np.ndarray:
    """Evaluate a prompt, then an answer token by token; the logits after each, [1 + len(answer), n_vocab]."""
    llm.eval(prompt)
    rows = [logits(llm)]
    for token in answer:
        llm.eval([token])
        rows.append(logits(llm))
    return np.concatenate(rows)


def tokens(n: int, seed: int = 0, n_vocab: int = 320) -> list[int]:
    """`n` random tokens, no control tokens."""
    return np.random.default_rng(seed).integers(3, n_vocab, n).tolist()


def survives(code: str) -> subprocess.CompletedProcess:
    """Run Python code in a process of its own; it may fail, it must not die of a signal."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode >= 0, done.stderr
    return done


def tensor_hashes(path) -> dict:
    """Name -> type, shape and SHA-256 of the bytes of each tensor of a GGUF."""
    file = GgufFile(str(path))
    with open(path, "rb") as stream:
        found = {}
        for tensor in file.tensors():
            stream.seek(tensor.offset)
            found[tensor.name] = (tensor.type, tensor.shape, hashlib.sha256(stream.read(tensor.n_bytes)).hexdigest())
    return found


def twins(folder):
    """Two models as merges of two LoRAs leave them: norms and sizes are the same, other weights are not."""
    for seed in (1, 2):
        rng = np.random.default_rng(seed)
        tensors = (
            (name, dims, (np.ones(dims) if len(dims) == 1 else rng.normal(0, 0.1, dims)).astype(np.float32))
            for name, dims in tensor_shapes(SHAPES["tiny"])
        )
        write_model(folder / f"twin-{seed}.gguf", SHAPES["tiny"], tensors)
        yield str(folder / f"twin-{seed}.gguf")
