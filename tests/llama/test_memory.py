"""KV memory: what is reported, and what the system gets back."""

from __future__ import annotations

import ctypes
import mmap
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from architectures.shapes import N_VOCAB
from architectures.write import write_tiny
from helpers import greedy, logits, tokens

from first_cpp import Llama
from first_cpp.gguf.synthetic import Shape, write_random

# 6 layers, and KV larger than all else: 8192 cells x 6 layers x (k and v) x 512 values x 2 bytes
WIDE_KV = Shape(n_layer=6, n_embd=512, n_head=8, n_head_kv=8, n_ff=256, n_vocab=320, n_ctx=8192)
N_CTX = 8192
PER_LAYER = N_CTX * 2 * 512 * 2

PAGES = pathlib.Path("/proc/self/pagemap")

pytestmark = pytest.mark.skipif(not PAGES.exists(), reason="reads /proc/self/pagemap")


@pytest.fixture(scope="module")
def wide(models):
    path = models / "wide.gguf"
    write_random(path, WIDE_KV, "q8_0")
    return str(path)


def resident(llm: Llama) -> int:
    """Bytes of the KV tensors that are in memory, page by page; the mapping that holds them may hold others' memory too."""
    total = 0
    with PAGES.open("rb", buffering=0) as file:
        for tensor in llm.kv_cache:
            first, end = tensor.address // mmap.PAGESIZE, -(-(tensor.address + tensor.n_bytes) // mmap.PAGESIZE)
            file.seek(8 * first)
            entries = np.frombuffer(file.read(8 * (end - first)), np.uint64)
            total += int((entries >> np.uint64(63)).sum()) * mmap.PAGESIZE  # the bit "present"
    return total


def test_released_layers_leave_memory(wide, load):
    llm = load(wide, skip=None, n_ctx=N_CTX, release_kv=True, flash_attn=True)
    greedy(llm, tokens(300), 1)
    with_all = resident(llm)
    llm.skip = [1, 3, 4]
    greedy(llm, tokens(300), 1)
    fallen = with_all - resident(llm)
    assert fallen == pytest.approx(3 * PER_LAYER, rel=0.01)
    assert llm.routing.kv_bytes_released == pytest.approx(fallen, rel=0.01)
    greedy(llm, tokens(300), 40)
    assert with_all - resident(llm) == pytest.approx(fallen, rel=0.01)  # decoding does not touch them


def test_routing_reports_kv_bytes(wide, load):
    llm = load(wide, skip=[1, 3, 4], n_ctx=N_CTX)
    greedy(llm, tokens(N_CTX // 16), 1)
    routing = llm.routing
    assert (routing.kv_bytes, routing.kv_bytes_used, routing.kv_bytes_released) == (6 * PER_LAYER, 6 * PER_LAYER // 16, 0)
    releasing = load(wide, skip=[1, 3, 4], n_ctx=N_CTX, release_kv=True)
    greedy(releasing, tokens(N_CTX // 16), 1)
    routing = releasing.routing
    assert (routing.kv_bytes, routing.kv_bytes_used) == (6 * PER_LAYER, 3 * PER_LAYER // 16)


def test_released_cells_hold_nothing(wide, load):
    llm = load(wide, skip=[2], release_kv=True, flash_attn=True)
    greedy(llm, tokens(200), 1)
    for tensor in llm.kv_cache:
        values = np.frombuffer(ctypes.string_at(tensor.address, tensor.n_bytes), np.uint8)[4096:-4096]  # whole pages go
        assert values.any() == (tensor.layer != 2)


def test_a_cache_that_another_layer_reads_stays(models, load):
    """Gemma 4: the last layers have no cache of their own."""
    path = models / "gemma4.gguf"
    write_tiny(path, "gemma4")
    rows = []
    for release_kv in (False, True):
        llm = load(path, skip=[1, 2, 3], n_ctx=4096, release_kv=release_kv)
        answer = llm.generate(tokens(300, seed=1, n_vocab=N_VOCAB), temp=0.0)
        next(answer)
        llm.eval([7])
        rows.append(logits(llm))
        answer.close()
    assert 0 < llm.routing.kv_bytes_released <= llm._layers.kv_bytes([1])  # whole pages go
    np.testing.assert_array_equal(*rows)


@pytest.mark.slow
def test_many_answers_with_release_keep_memory_flat(wide):
    code = f"""
        import resource
        from first_cpp import Llama
        llm = Llama({wide!r}, n_ctx=2048, release_kv=True, verbose=False, n_threads=2)
        sizes = []
        for i in range(60):
            llm.skip = [i % 6, (i + 3) % 6]
            llm(str(i) * 20, max_tokens=4, temperature=0)
            with open("/proc/self/statm") as file:
                sizes.append(int(file.read().split()[1]) * 4096)
        assert max(sizes[30:]) < max(sizes[5:30]) + 2_000_000, sizes
    """
    import textwrap

    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
