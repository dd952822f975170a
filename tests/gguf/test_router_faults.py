"""Malformed routers are refused with key, expected and found, and never kill the process.

Every case is a file read by `Llama(model, routers=FILE)` in one process of its own; a case that killed it, and those after
it, have no result and fail.
"""

from __future__ import annotations

import json
import pathlib
import struct
import subprocess
import sys

import pytest
from helpers import greedy, tokens
from raw_gguf import BOOL, F32, F64, I32, STR, U8, U32, U64, array, gguf_bytes, scalar, text
from routers_files import routed_model

from first_cpp import Llama, ModelFileError, RouterError, SkipError
from first_cpp._ext import GgufFile
from first_cpp.gguf.model_file import ModelFile


def good(model: str) -> dict[str, bytes]:
    return {
        "general.architecture": scalar(STR, b"llama"),
        "general.type": scalar(STR, b"adapter"),
        "first.version": scalar(U32, 1),
        "first.writer": scalar(STR, b"a test"),
        "first.base.architecture": scalar(STR, b"llama"),
        "first.base.n_layer": scalar(U32, 6),
        "first.base.n_embd": scalar(U32, 128),
        "first.base.fingerprint": scalar(STR, ModelFile.open(model).fingerprint.encode()),
        "first.router.weight": array(F32, [0.01] * 768),
        "first.router.bias": array(F32, [0.1 * i for i in range(6)]),
        "first.router.norm_eps": scalar(F32, 1e-5),
        "first.router.skippable": array(BOOL, [True] * 6),
        "first.policy.skip": scalar(F32, 0.34),
    }


W, B, SK, NORM = "first.router.weight", "first.router.bias", "first.router.skippable", "first.router.norm_eps"
FINGER, SKIP = "first.base.fingerprint", "first.policy.skip"
NAN, INF = float("nan"), float("inf")

# name: (changed key -> value or None to leave it out, what the error says)
CHANGES = {
    "2 newer version": ({"first.version": scalar(U32, 3)}, "first.version is 3, this first_cpp reads 1 to 2"),
    "2 version 0": ({"first.version": scalar(U32, 0)}, "first.version is 0"),
    "2 no version": ({"first.version": None}, "first.version is missing"),
    "3 weight too short": ({W: array(F32, [0.0] * 767)}, f"{W} has 767 elements, expected 768"),
    "3 weight with a bias in it": ({W: array(F32, [0.0] * 774)}, "774 elements"),
    "3 bias too short": ({B: array(F32, [0.0] * 5)}, f"{B} has 5 elements, expected 6"),
    "4 weight u8": ({W: array(U8, [0] * 768)}, f"{W} is arr[u8], expected arr[f32]"),
    "4 weight f64": ({W: array(F64, [0.0] * 768)}, "arr[f64]"),
    "4 weight i32": ({W: array(I32, [0] * 768)}, "arr[i32]"),
    "4 weight of strings": ({W: array(STR, [b"a"] * 768)}, "arr[str]"),
    "4 skippable u8": ({SK: array(U8, [1] * 6)}, f"{SK} is arr[u8], expected arr[bool]"),
    "4 version u64": ({"first.version": scalar(U64, 1)}, "first.version is u64, expected u32"),
    "4 eps f64": ({NORM: scalar(F64, 1e-5)}, "f64, expected f32"),
    "5 scalar for array": ({W: scalar(F32, 1.0)}, f"{W} is f32, expected arr[f32]"),
    "5 text for array": ({W: scalar(STR, b"x")}, f"{W} is str, expected arr[f32]"),
    "5 array for scalar": ({NORM: array(F32, [1e-5])}, f"{NORM} is arr[f32], expected f32"),
    "5 array for text": ({FINGER: array(STR, [b"x"])}, f"{FINGER} is arr[str], expected str"),
    "5 number for text": ({"first.writer": scalar(U32, 3)}, "first.writer is u32, expected str"),
    "6 NaN weight": ({W: array(F32, [0.0] * 300 + [NAN] + [0.0] * 467)}, "weight of layer 2 is not finite"),
    "6 NaN bias": ({B: array(F32, [0, 0, 0, 0, NAN, 0])}, "bias of layer 4 is not finite"),
    "7 Inf weight": ({W: array(F32, [INF] + [0.0] * 767)}, "weight of layer 0 is not finite"),
    "7 overflowing weight": ({W: array(F32, [1e38] * 768)}, "overflows"),
    "7 overflowing bias": ({B: array(F32, [3e38] * 6)}, "overflows"),
    "8 other layer count": (
        {
            "first.base.n_layer": scalar(U32, 5),
            W: array(F32, [0.0] * 640),
            B: array(F32, [0.0] * 5),
            SK: array(BOOL, [True] * 5),
        },
        "first.base.n_layer is 5, this model's is 6",
    ),
    "9 other embedding size": (
        {"first.base.n_embd": scalar(U32, 64), W: array(F32, [0.0] * 384)},
        "first.base.n_embd is 64, this model's is 128",
    ),
    "10 other base model": ({FINGER: scalar(STR, b"0" * 64)}, "other model"),
    "10 other architecture": ({"first.base.architecture": scalar(STR, b"qwen2")}, "first.base.architecture is qwen2"),
    "13 recommended share negative": ({SKIP: scalar(F32, -0.1)}, f"{SKIP} is -0.1"),
    "13 recommended share above 1": ({SKIP: scalar(F32, 1.5)}, f"{SKIP} is 1.5"),
    "13 recommended share NaN": ({SKIP: scalar(F32, NAN)}, f"{SKIP} is nan"),
    "13 recommended share missing": ({SKIP: None}, f"{SKIP} is missing, expected f32"),
    "14 recommended share skips all": ({SKIP: scalar(F32, 0.99)}, "all 6 layers"),
    "17 n_layer 2^31": ({"first.base.n_layer": scalar(U32, 1 << 31)}, "expected 1 to 4096"),
    "17 n_embd 2^32-1": ({"first.base.n_embd": scalar(U32, 0xFFFFFFFF)}, "expected 1 to"),
    "17 n_layer 0": ({"first.base.n_layer": scalar(U32, 0)}, "expected 1 to 4096"),
    "17 array of 2^40": ({W: array(F32, [0.0] * 4, 1 << 40)}, "truncated or malformed"),
    "17 array of 2^62": ({W: array(F32, [0.0] * 4, 1 << 62)}, "truncated or malformed"),
    "18 empty weight": ({W: array(F32, [])}, "has 0 elements, expected 768"),
    "18 nothing skippable": ({SK: array(BOOL, [False] * 6)}, "marks no layer"),
    "20 text not UTF-8": ({"first.writer": scalar(STR, b"\xff\xfe")}, "first.writer is not UTF-8"),
    "20 training record not UTF-8": ({"first.train.data": scalar(STR, b"\xff")}, "first.train.data is not UTF-8"),
    "21 text of 1 MB": ({"first.writer": scalar(STR, b"x" * 1_000_000)}, "1000000 bytes, expected at most 4096"),
    "22 NUL in text": ({"first.writer": scalar(STR, b"first\0cpp")}, "NUL byte at 5"),
    "22 NUL in the architecture": ({"first.base.architecture": scalar(STR, b"llama\0x")}, "NUL byte"),
    "27 norm_eps 0": ({NORM: scalar(F32, 0.0)}, f"{NORM} is 0.0"),
    "27 norm_eps negative": ({NORM: scalar(F32, -1.0)}, f"{NORM} is -1.0"),
    "27 norm_eps Inf": ({NORM: scalar(F32, INF)}, f"{NORM} is inf"),
}


def cases(model: str) -> dict[str, tuple[bytes, str]]:
    """Name: file content, what the error says."""
    found = {}
    for name, (changes, said) in CHANGES.items():
        pairs = {**good(model), **changes}
        found[name] = (gguf_bytes([(k, v) for k, v in pairs.items() if v is not None]), said)
    pairs = list(good(model).items())
    whole = gguf_bytes(pairs)
    lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    found |= {
        "1 no routers": (gguf_bytes(pairs[:2]), "no routers in"),
        "19 duplicate key": (gguf_bytes([*pairs, pairs[8]]), "truncated or malformed"),
        "23 GGUF version 1": (gguf_bytes(pairs, version=1), "GGUF version 1"),
        "23 GGUF version 99": (gguf_bytes(pairs, version=99), "GGUF version 99"),
        "23 big-endian": (b"GGUF" + struct.pack(">I", 3) + whole[8:], "big-endian"),
        "25 wrong magic": (b"GGML" + whole[4:], "not a GGUF file"),
        "25 empty": (b"", "is empty"),
        "26 pickle": (b"\x80\x04K\x01.", "not a GGUF file"),
        "26 zip": (b"PK\x03\x04" + b"\0" * 60, "not a GGUF file"),
        "29 n_kv 2^40": (gguf_bytes(pairs, n_kv=1 << 40), "declares 1099511627776 metadata keys, expected at most 4096"),
        "30 Git LFS pointer": (lfs, "Git LFS pointer"),
        "30 web page": (b"<!DOCTYPE html><title>404</title>", "web page"),
        "34 array of 2^63": (gguf_bytes([*pairs, ("x", array(U8, [0], 1 << 63))]), "truncated or malformed"),
    }
    for n in range(0, len(whole), 211):  # 25, 29: cut anywhere
        found[f"29 cut at {n}"] = (whole[:n], "")
    return found


@pytest.fixture(scope="module")
def results(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    paths = {}
    for i, (name, (content, _)) in enumerate(cases(tiny).items()):
        paths[name] = str(folder / f"{i}.gguf")
        (folder / f"{i}.gguf").write_bytes(content)
    code = f"""
import json, sys
from first_cpp import Llama
from first_cpp.errors import FirstCppError
for name, path in json.load(sys.stdin).items():
    try:
        Llama({tiny!r}, routers=path, verbose=False, n_ctx=64).close()
        said = "loaded"
    except FirstCppError as error:
        said = f"{{type(error).__name__}}: {{error}}"
    print(json.dumps([name, said]), flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code], input=json.dumps(paths), capture_output=True, text=True, check=False)
    return dict(json.loads(line) for line in done.stdout.splitlines()), done.stderr, paths


def names() -> list[str]:
    # fmt: off
    fixed = [
        "1 no routers", "19 duplicate key", "23 GGUF version 1", "23 GGUF version 99", "23 big-endian", "25 wrong magic",
        "25 empty", "26 pickle", "26 zip", "29 n_kv 2^40", "30 Git LFS pointer", "30 web page", "34 array of 2^63",
    ]
    # fmt: on
    return [*CHANGES, *fixed]


@pytest.mark.parametrize("name", names())
def test_refused_with_key_expected_and_found(results, tiny, name):
    found, stderr, paths = results
    assert name in found, f"the process died: {stderr[-2000:]}"
    assert found[name] != "loaded"
    assert cases(tiny)[name][1] in found[name]
    assert paths[name] in found[name]  # the file is named


def test_cut_anywhere(results, tiny):
    found, stderr, _ = results
    cut = [name for name in cases(tiny) if "cut at" in name]
    assert len(cut) > 10
    for name in cut:
        assert name in found, stderr[-2000:]
        assert found[name] != "loaded"


def test_the_unchanged_file_loads(tiny, tmp_path, load):
    """Else the cases above would prove nothing."""
    path = tmp_path / "good.gguf"
    path.write_bytes(gguf_bytes(list(good(tiny).items())))
    llm = load(tiny, routers=path)
    greedy(llm, tokens(9), 2)
    assert len(llm.routing.skipped) == 2


def test_row_1_model_without_routers(tiny, load):
    llm = load(tiny)
    assert llm.routers is None
    with pytest.raises(SkipError, match=r"none in .*tiny"):
        Llama(tiny, skip=0.2, verbose=False)


def test_row_20_model_text_that_is_not_utf8(tiny, tmp_path):
    path = tmp_path / "bad.gguf"
    file = GgufFile(tiny)
    content = file.metadata().replace(b"random weights (6 layers)", b"random weights \xff\xfe layers)")
    path.write_bytes(content + pathlib.Path(tiny).read_bytes()[file.data_offset :])
    with pytest.raises(ValueError, match=r"general\.name is not UTF-8"):
        Llama(str(path), verbose=False)


def test_row_20_key_that_is_not_utf8(tiny, tmp_path):
    path = tmp_path / "bad.gguf"
    file = GgufFile(tiny)
    content = file.metadata().replace(b"general.name", b"general.n\xff\xfee")
    path.write_bytes(content + pathlib.Path(tiny).read_bytes()[file.data_offset :])
    with pytest.raises(ValueError, match=r"bad\.gguf: a key or tensor name is not UTF-8"):
        Llama(str(path), verbose=False)
    with pytest.raises(ValueError, match="not UTF-8; llama"):
        Llama(b"caf\xe9.gguf", verbose=False)


def test_row_24_part_of_a_split_model(tiny, tmp_path):
    file = GgufFile(tiny)
    data = pathlib.Path(tiny).read_bytes()[file.data_offset :]
    pairs = text(b"split.no") + struct.pack("<IH", 2, 1)
    content = file.metadata()
    (n_kv,) = struct.unpack_from("<Q", content, 16)
    path = tmp_path / "m-00002-of-00003.gguf"
    body = content[:16] + struct.pack("<Q", n_kv + 1) + pairs + content[24:]
    path.write_bytes(body + b"\0" * (-len(body) % 32) + data)
    with pytest.raises(ValueError, match=r"part 2 of a split model.*m-00001-of-00003.gguf"):
        Llama(str(path), verbose=False)


def test_row_25_missing_side_file(tiny):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.gguf"):
        Llama(tiny, routers="nowhere.gguf", verbose=False)


@pytest.mark.parametrize("routers", ["smollm2-135m-instruct", "run"])
def test_what_convert_makes_a_side_file_of(tiny, tmp_path, monkeypatch, routers):
    """The name of a bundled adapter, and a run's folder: the error says how a file is made."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    with pytest.raises(RouterError, match=f"python -m convert --routers {routers} --model MODEL.gguf --sidecar"):
        Llama(tiny, routers=routers, verbose=False)


def test_a_side_file_is_no_model(tiny, tmp_path):
    side = routed_model(tiny, tmp_path, seed=1, sidecar=True)
    with pytest.raises(ModelFileError, match="not a model: give it beside one"):
        Llama(side, verbose=False)


def test_row_33_output_is_a_new_file(tiny, tmp_path):
    """convert never edits in place: a model that is mapped while it is replaced goes on with the old one."""
    path = routed_model(tiny, tmp_path, seed=1)
    llm = Llama(path, verbose=False)
    before = greedy(llm, tokens(20), 8)
    routed_model(tiny, tmp_path, seed=1)
    llm.reset()
    assert greedy(llm, tokens(20), 8) == before
    llm.close()


def test_routers_of_another_model_in_the_model_file(tiny, tiny_q8, tmp_path):
    """Embedded for one model, copied by hand into another of the same shape: the norm weights tell."""
    from first_cpp.gguf.synthetic import SHAPES, write_random

    other = str(tmp_path / "other.gguf")
    write_random(other, SHAPES["tiny"], seed=9)
    with pytest.raises(RouterError, match=r"another model.*norm weights differ"):
        Llama(other, routers=routed_model(tiny, tmp_path, sidecar=True), verbose=False)
