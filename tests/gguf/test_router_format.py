"""Routers as values, in safetensors and in GGUF metadata: what is written is what is read."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from helpers import greedy, tokens
from routers_files import random_routers
from safetensors import safe_open

from first_cpp import Routers, load_routers
from first_cpp.errors import MissingFileError, RouterError
from first_cpp.gguf.embed import embed, write_sidecar
from first_cpp.gguf.model_file import ModelFile
from first_cpp.gguf.router_format import read_safetensors, set_record, trained_set, write_safetensors
from first_cpp.gguf.routers import Base
from first_cpp.runtime.block_influence import bias_of, block_influence, influence_routers


@pytest.fixture
def routers(tiny) -> Routers:
    rng = np.random.default_rng(3)
    weight, bias = rng.normal(0, 0.3, (6, 128)).astype(np.float32), rng.normal(0, 0.1, 6).astype(np.float32)
    skippable = (False, *(True,) * 5)
    return Routers(ModelFile.open(tiny).base, weight, bias, 1e-6, skippable, 0.25, "a test", {"data": "none", "n": "7"})


def same(one: Routers, other: Routers) -> bool:
    arrays = all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("weight", "bias"))
    rest = ("base", "skippable", "skip", "train")
    return arrays and all(getattr(one, name) == getattr(other, name) for name in rest)


def test_through_safetensors(routers, tmp_path):
    path = str(tmp_path / "r.safetensors")
    write_safetensors(path, routers)
    found = read_safetensors(path, routers.base, 0.5)
    assert same(found, routers)
    assert (found.norm_eps, found.writer[:9]) == (1e-6, "first_cpp")
    assert read_safetensors(path, routers.base, 0.5, skip=0.5).skip == 0.5


@pytest.mark.parametrize("sidecar", [False, True])
def test_through_a_gguf(routers, tiny, tmp_path, sidecar):
    out = tmp_path / "out.gguf"
    if sidecar:
        write_sidecar(routers, tiny, out)
    else:
        embed(routers, tiny, out, quiet=True)
    assert same(load_routers(str(out)), routers)


def test_a_file_and_its_routers_make_the_same_model(routers, tiny, tmp_path, load):
    """Given as a value or by a file: the same side file, byte for byte."""
    path, one, two = (tmp_path / name for name in ("r.safetensors", "one.gguf", "two.gguf"))
    write_safetensors(str(path), routers)
    write_sidecar(path, tiny, one)
    write_sidecar(routers, tiny, two)
    assert one.read_bytes() == two.read_bytes()
    llm = load(tiny, routers=one)
    greedy(llm, tokens(9), 2)
    assert len(llm.routing.skipped) == 2
    assert 0 not in llm.routing.skipped


def test_values_that_do_not_fit_are_refused(routers, tiny, tmp_path):
    out = tmp_path / "out.gguf"
    other = dataclasses.replace(routers, base=dataclasses.replace(routers.base, fingerprint="0" * 64))
    cases = (
        (other, {}, "the norm weights differ"),
        (dataclasses.replace(routers, skip=1.5), {}, "skip is 1.5"),
        (routers, {"skip": 0.99}, "all 6 layers"),
        (dataclasses.replace(routers, bias=np.full(6, np.nan, np.float32)), {}, "bias of layer 0 is not finite"),
        (dataclasses.replace(routers, bias=np.zeros(7, np.float32)), {}, r"bias has shape \[7\], this model needs \[6\]"),
        (dataclasses.replace(routers, skippable=(True,)), {}, r"skippable has shape \[1\]"),
    )
    for bad, settings, said in cases:
        for write in (embed, write_sidecar):
            with pytest.raises(RouterError, match=said):
                write(bad, tiny, out, **settings)
    with pytest.raises(RouterError, match="not finite"):
        write_safetensors(str(tmp_path / "r"), cases[3][0])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_that_of_a_run(routers, tmp_path):
    write_safetensors(str(tmp_path), routers)
    assert (tmp_path / "routers.safetensors").exists()
    assert same(read_safetensors(str(tmp_path), routers.base, 0.5), routers)
    with pytest.raises(MissingFileError, match="router file does not exist"):
        read_safetensors(str(tmp_path / "none"), routers.base, 0.5)


def test_a_base_that_is_not_known_yet(routers, tmp_path):
    """Training knows no GGUF: the file fits whichever has these sizes."""
    path = str(tmp_path / "r.safetensors")
    write_safetensors(path, dataclasses.replace(routers, base=Base("", 6, 128, "")))
    with safe_open(path, "numpy") as file:
        assert "base.fingerprint" not in file.metadata()
    assert same(read_safetensors(path, routers.base, 0.5), routers)


@pytest.mark.parametrize("text", ["ä" * 3000, "a\0b", "a path that is not UTF-8: \udcff"])
@pytest.mark.parametrize("through_safetensors", [True, False])
def test_long_records_are_cut_to_what_a_reader_takes(routers, tiny, tmp_path, text, through_safetensors):
    path, out = str(tmp_path / "r.safetensors"), tmp_path / "out.gguf"
    made = dataclasses.replace(routers, train={"command": text})
    write_safetensors(path, made)
    write_sidecar(path if through_safetensors else made, tiny, out)
    found = load_routers(str(out)).train["command"]
    assert len(found.encode()) <= 4096
    assert "\0" not in found
    assert found[0] == text[0]


# -- the fixed set a LoRA was trained for -----------------------------------------------------------------------------


def test_a_fixed_set_is_read_as_it_was_written(routers, tmp_path):
    for kind, order, seed in (("search", [5, 2, 0, 1, 3, 4], 3), ("even", [], 0), ("random", [], 9)):
        path = str(tmp_path / f"{kind}.safetensors")
        write_safetensors(path, dataclasses.replace(routers, train={"method": "x"} | set_record(kind, order, seed)))
        found = read_safetensors(path, routers.base, 0.5)
        assert trained_set(found, kind, 6, path) == (order, seed)
        assert trained_set(found, "last", 6, path) is None
    assert trained_set(routers, "even", 6, "f") is None
    assert trained_set(None, "even", 6, "f") is None


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ({"layers": "search", "order": "1,x"}, "not whole numbers"),
        ({"layers": "search", "order": "0,1,2,3,4,5", "seed": "s"}, "not whole numbers"),
        ({"layers": "search"}, "order is missing, expected each of 6 layers once"),
        ({"layers": "search", "order": "0,1,2"}, "order is 0,1,2, expected each of 6 layers once"),
        ({"layers": "search", "order": "0,1,2,3,4,4"}, "each of 6 layers once"),
        ({"layers": "search", "order": "0,1,2,3,4,6"}, "each of 6 layers once"),
    ],
)
def test_fixed_sets_that_are_none(routers, train, said):
    with pytest.raises(RouterError, match=f"^f: .*{said}"):
        trained_set(dataclasses.replace(routers, train=train), "search", 6, "f")


# -- block influence as a value ---------------------------------------------------------------------------------------


def test_influence_routers_are_routers_of_this_model(tiny, tmp_path, load):
    llm = load(tiny)
    routers = influence_routers(llm, ["some text", "and more of it"], skip=0.5, source="two texts")
    influence, n_tokens = block_influence(llm, ["some text", "and more of it"])
    assert routers.base == ModelFile.open(tiny).base
    np.testing.assert_array_equal(routers.bias, bias_of(influence))
    assert not routers.weight.any()
    assert routers.train["data"] == f"two texts: 2 prompts, {n_tokens} tokens"
    write_sidecar(routers, tiny, tmp_path / "side.gguf")
    other = load(tiny, routers=tmp_path / "side.gguf")
    greedy(other, tokens(20), 2)
    assert other.routing.skipped == tuple(sorted(np.argsort(routers.bias)[:3].tolist()))


def test_random_routers_file_is_the_tests_own(tmp_path):
    """The files of other tests, written by safetensors itself, are read too: the writer is not its own oracle."""
    path = random_routers(str(tmp_path / "r.safetensors"))
    found = read_safetensors(path, Base("llama", 6, 128, "f"), 0.5)
    assert (found.skip, found.norm_eps, found.skippable) == (0.34, 1e-5, (True,) * 6)
