"""Every kind of GGUF value comes through the bindings as it was stored."""

from __future__ import annotations

import numpy as np
import pytest
from raw_gguf import array, gguf_bytes, scalar

from first_cpp._ext import GgufFile

# type number, struct character, name, numpy type, values at both ends
KINDS = [
    (0, "B", "u8", np.uint8, [0, 255]),
    (1, "b", "i8", np.int8, [-128, 127]),
    (2, "H", "u16", np.uint16, [0, 65535]),
    (3, "h", "i16", np.int16, [-32768, 32767]),
    (4, "I", "u32", np.uint32, [0, 2**32 - 1]),
    (5, "i", "i32", np.int32, [-(2**31), 2**31 - 1]),
    (6, "f", "f32", np.float32, [0.5, -1e30]),
    (7, "?", "bool", np.int8, [True, False]),
    (10, "Q", "u64", np.uint64, [0, 2**64 - 1]),
    (11, "q", "i64", np.int64, [-(2**63), 2**63 - 1]),
    (12, "d", "f64", np.float64, [0.5, -1e300]),
]


@pytest.fixture
def pack(monkeypatch):
    monkeypatch.setattr("raw_gguf.PACK", {number: character for number, character, *_ in KINDS})


@pytest.mark.parametrize(("number", "name", "dtype", "values"), [(n, *rest) for n, _, *rest in KINDS])
def test_values(pack, tmp_path, number, name, dtype, values):
    path = tmp_path / "values.gguf"
    pairs = [(f"scalar{i}", scalar(number, value)) for i, value in enumerate(values)]
    path.write_bytes(gguf_bytes([*pairs, ("array", array(number, values)), ("empty", array(number, []))]))
    file = GgufFile(str(path))
    for i, value in enumerate(values):
        assert file.kind(f"scalar{i}") == name
        assert file.count(f"scalar{i}") == 1
        assert type(file.get(f"scalar{i}")) is type(value)
        assert file.get(f"scalar{i}") == dtype(value) if name == "f32" else file.get(f"scalar{i}") == value
    assert file.kind("array") == f"arr[{name}]"
    assert (file.count("array"), file.count("empty")) == (len(values), 0)
    assert file.get("array").dtype == dtype
    assert file.get("array").tolist() == [dtype(value).item() for value in values]
    assert len(file.get("empty")) == 0


def test_texts(tmp_path):
    path = tmp_path / "texts.gguf"
    path.write_bytes(
        gguf_bytes([("one", scalar(8, b"a\xff")), ("all", array(8, [b"", b"b", b"\xff"])), ("none", array(8, []))])
    )
    file = GgufFile(str(path))
    assert (file.kind("one"), file.get("one")) == ("str", b"a\xff")
    assert (file.kind("all"), file.get("all")) == ("arr[str]", [b"", b"b", b"\xff"])
    assert file.get("none") == []


def test_keys_that_are_not_there(tmp_path):
    file = GgufFile()
    assert (file.keys(), file.tensors(), file.kind("no"), file.remove("no")) == ([], [], "", False)
    for ask in (file.get, file.count, file.set_tensor_f32):
        with pytest.raises(KeyError, match="no"):
            ask("no")


def test_tensors_that_cannot_be_added():
    file = GgufFile()
    file.add_tensor_f16("a", 4, 2)
    for name, n_in, n_out in (("a", 4, 2), ("x" * 64, 4, 2), ("b", 0, 2), ("b", 4, -1)):
        with pytest.raises(ValueError, match="a tensor needs"):
            file.add_tensor_f16(name, n_in, n_out)


def test_the_version_of_the_format(tiny):
    assert GgufFile(tiny).version == 3
