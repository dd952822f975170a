"""What llama.cpp would end the process over is refused when a file is opened: key, value and what is allowed are named."""

from __future__ import annotations

import copy
import os
import pathlib
import time

import pytest
from architectures.shapes import ARCHITECTURES, hyperparameters
from gguf_parts import ARR, BOOL, F32, STR, U32, Parts, Value, take_apart
from helpers import greedy, tokens
from raw_gguf import gguf_bytes, scalar, with_metadata
from routers_files import random_routers

from convert.__main__ import main as convert
from first_cpp import Llama
from first_cpp.cli.main import main
from first_cpp.errors import ModelFileError, SettingError
from first_cpp.gguf.model_file import ModelFile
from first_cpp.gguf.printable import printable

LATENT = {"attention.key_length_mla": 48, "attention.kv_lora_rank": 64, "rope.dimension_count": 16}
NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def parts(tiny) -> Parts:
    return take_apart(pathlib.Path(tiny).read_bytes())


def test_a_file_taken_apart_is_the_same_file(tiny, parts, tmp_path):
    """Else the changes of the fuzzer and of these tests would be others than they say."""
    assert parts.dump() == pathlib.Path(tiny).read_bytes()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"llama__block_count": 0}, "block_count is 0, expected 1 to 512"),
        ({"llama__block_count": 65536}, "block_count is 65536, expected 1 to 512"),
        ({"llama__embedding_length": 0}, "embedding_length is 0, expected 1 to 1048576"),
        ({"llama__context_length": 0}, "context_length is 0, expected 1 to"),
        ({"llama__context_length": 2**31}, "context_length is 2147483648, expected 1 to"),
        ({"llama__attention__head_count": 65536}, "attention.head_count is 65536, expected 0 to"),
        ({"llama__attention__head_count": 0}, "attention.head_count is 0, expected 1 or more"),
        ({"llama__attention__key_length": 0}, "attention.key_length is 0, expected 1 to 65536"),
        ({"llama__attention__layer_norm_rms_epsilon": -1e-5}, "epsilon is -.*, expected a number from 0 to 1"),
        ({"llama__attention__layer_norm_rms_epsilon": NAN}, "epsilon is nan, expected a number from 0 to 1"),
        ({"llama__attention__layer_norm_rms_epsilon": INF}, "epsilon is inf, expected a number from 0 to 1"),
        ({"llama__expert_count": 65536, "llama__expert_used_count": 2}, "expert_count is 65536, expected 0 to"),
        ({"llama__expert_count": 4}, "expert_used_count is 0, expected 1 to 4"),
        ({"llama__expert_used_count": 4}, "expert_used_count is 4, expected 0, as expert_count is"),
        ({"llama__expert_count": 4, "llama__expert_used_count": 5}, "expert_used_count is 5, expected 1 to 4"),
        ({"llama__expert_group_count": 1}, "expert_group_count is 1, expected less than expert_count, which is 0"),
        ({"llama__nextn_predict_layers": 6}, "nextn_predict_layers is 6, expected less than block_count, which is 6"),
        ({"llama__rope__scaling__type": "\x1b[2J"}, r"rope.scaling.type is '\\x1b\[2J', expected one of none, linear"),
        ({"tokenizer__ggml__model": None}, "tokenizer.ggml.model is missing: without a vocabulary"),
        ({"tokenizer__ggml__model": "no_vocab"}, "tokenizer.ggml.model is 'no_vocab'"),
        ({"tokenizer__ggml__model": 3}, "tokenizer.ggml.model is u32: without a vocabulary"),
        ({"tokenizer__ggml__tokens": None}, "tokenizer.ggml.tokens is missing: without a vocabulary"),
        ({"tokenizer__ggml__tokens": "x"}, r"tokenizer.ggml.tokens is str, expected arr\[str\]"),
    ],
    ids=str,
)
def test_refused_when_it_is_opened(tiny, tmp_path, changes, said):
    path = with_metadata(tiny, tmp_path / "m.gguf", **changes)
    with pytest.raises(ModelFileError, match=f"{path}: .*{said}"):
        Llama(path, n_ctx=64, verbose=False)


@pytest.mark.parametrize(
    ("architecture", "changes", "said"),
    [
        ("qwen2", {"rope.dimension_count": 16}, "rope.dimension_count is 16, expected 32, as attention.key_length is"),
        ("qwen2", {"attention.key_length": 16}, "attention.key_length is 16, expected 32, as attention.value_length is"),
        ("gemma3", {"rope.dimension_count": 0}, "rope.dimension_count is 0, expected an even number from 2 to 32"),
        ("gemma3", {"rope.dimension_count": 5}, "rope.dimension_count is 5, expected an even number from 2 to 32"),
        ("gemma3", {"rope.dimension_count": 34}, "rope.dimension_count is 34, expected an even number from 2 to 32"),
        ("gemma3", {"attention.sliding_window": 8, "attention.sliding_window_pattern": 1}, "some layer has a window"),
        ("glm4moe", {"expert_gating_func": 5}, "expert_gating_func is 5, expected 0 to 4"),
        (
            "deepseek2",
            LATENT,
            "attention.head_count_kv is 2, expected 1",
        ),
        (
            "deepseek2",
            LATENT | {"attention.head_count_kv": 1},
            "attention.key_length is missing, expected 80: the latent's",
        ),
        ("gpt-oss", {"attention.value_length": 3}, "attention.key_length is 32, expected 3, as attention.value_length is"),
    ],
)
def test_numbers_that_one_architecture_does_not_take(parts, tmp_path, architecture, changes, said):
    """No model of it is made: what the file says is enough to refuse it."""
    path = tmp_path / "m.gguf"
    pairs = {key.replace("llama.", f"{architecture}."): value for key, value in parts.pairs.items()}
    for name in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
        pairs.pop(f"{architecture}.{name}")
    pairs["general.architecture"] = Value(STR, architecture.encode())
    path.write_bytes(Parts(pairs, parts.tensors).dump())
    assert ModelFile.open(path).architecture == architecture
    pairs |= {f"{architecture}.{name}": Value(U32, value) for name, value in changes.items()}
    path.write_bytes(Parts(pairs, parts.tensors).dump())
    with pytest.raises(ModelFileError, match=said):
        ModelFile.open(path)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_a_model_of_every_architecture_says_is_allowed(parts, tmp_path, architecture):
    """The hyper-parameters of the tiny models that llama.cpp runs (tests/architectures)."""
    path = tmp_path / "m.gguf"
    pairs = {"general.architecture": Value(STR, architecture.encode())}
    for key, value in hyperparameters(architecture).items():
        kinds = {bool: BOOL, int: U32, float: F32}
        pairs[key] = Value(ARR, value, kinds[type(value[0])]) if isinstance(value, list) else Value(kinds[type(value)], value)
    path.write_bytes(Parts(pairs, parts.tensors).dump())
    assert ModelFile.open(path).n_layer == pairs[f"{architecture}.block_count"].value


def vocabulary(parts: Parts, **changes: Value) -> bytes:
    pairs = parts.pairs | {f"tokenizer.ggml.{name}": value for name, value in changes.items()}
    return Parts(pairs, parts.tensors).dump()


def test_vocabularies(parts, tmp_path):
    good = parts.pairs["tokenizer.ggml.tokens"].value
    twice, red = [*good[:-1], good[300]], [*good[:-2], b"\x1b[31m", b"\x1b[31m"]
    cases = (
        ({"tokens": Value(ARR, twice, STR)}, r"the same token twice: 'w41' is number 300 and number 319"),
        ({"tokens": Value(ARR, red, STR)}, r"the same token twice: '\\x1b\[31m' is number 318 and number 319"),
        ({"model": Value(STR, b"bert")}, "byte tokens, which a tokenizer of the kind 'bert'"),
    )
    path = tmp_path / "m.gguf"
    for changes, said in cases:
        path.write_bytes(vocabulary(parts, **changes))
        with pytest.raises(ModelFileError, match=said):
            Llama(str(path), n_ctx=64, verbose=False)


def test_a_vocabulary_that_cannot_spell_every_text(parts, tmp_path, load, tiny):
    """llama.cpp ends the process for a text that it cannot spell; the others are answered as by the whole vocabulary."""
    path = tmp_path / "m.gguf"
    good = parts.pairs["tokenizer.ggml.tokens"].value
    at = good.index(b"<0x7E>")
    types = parts.pairs["tokenizer.ggml.token_type"]
    fewer, kinds = [*good[:at], b"no", *good[at + 1 :]], [*types.value[:at], 1, *types.value[at + 1 :]]
    path.write_bytes(vocabulary(parts, tokens=Value(ARR, fewer, STR), token_type=Value(ARR, kinds, types.of)))
    llm, whole = load(path), load(tiny)
    for ask in (lambda text: llm.tokenize(text.encode()), llm.create_completion, llm.embed):
        with pytest.raises(SettingError, match="cannot spell '~'"):
            ask("about ~3")
    assert llm.tokenize("Größe 東京 \n".encode()) == whole.tokenize("Größe 東京 \n".encode())
    assert (
        llm.create_completion("Hi", max_tokens=4, temperature=0)["choices"]
        == (whole.create_completion("Hi", max_tokens=4, temperature=0)["choices"])
    )


def test_a_text_of_unknown_tokens_is_an_error(parts, tmp_path, load):
    """A vocabulary that knows nothing of a text, and has no token for that: llama.cpp's tokenizer gives -1."""
    path = tmp_path / "m.gguf"
    path.write_bytes(vocabulary(parts, model=Value(STR, b"rwkv")))
    with pytest.raises(SettingError, match="-1 is not a token of this model: 0 to"):
        load(path).create_completion("Hi", max_tokens=1)


def test_empty_tokens_are_no_equal_tokens(parts, tmp_path, load, tiny):
    """llama.cpp gives each a name of its own."""
    path = tmp_path / "m.gguf"
    good = parts.pairs["tokenizer.ggml.tokens"].value
    path.write_bytes(vocabulary(parts, tokens=Value(ARR, [*good[:-3], b"", b"", b""], STR)))
    assert greedy(load(path), tokens(9), 4) == greedy(load(tiny), tokens(9), 4)


@pytest.mark.parametrize(
    ("name", "kind", "size", "said"),
    [
        ("blk.0.attn_norm.weight", 24, 1, "i8"),
        ("blk.0.attn_norm.weight", 1, 2, "f16, expected f32"),
        ("output_norm.weight", 28, 8, "f64"),
    ],
)
def test_tensors_that_no_operation_takes(parts, tmp_path, name, kind, size, said):
    path, tensors = tmp_path / "m.gguf", copy.deepcopy(parts.tensors)
    (tensor,) = (tensor for tensor in tensors if tensor.name.decode() == name)
    tensor.kind, tensor.data = kind, bytes(tensor.dims[0] * size)
    path.write_bytes(Parts(parts.pairs, tensors).dump())
    with pytest.raises(ModelFileError, match=f"tensor {name} is {said}"):
        ModelFile.open(path)


# -- files that are none ----------------------------------------------------------------------------------------------


@pytest.mark.timed
@pytest.mark.parametrize("kind", ["pipe", "device", "socket"])
def test_no_regular_file_is_waited_for(tiny, tmp_path, capsys, kind):
    import socket

    path, endpoint = str(tmp_path / kind), socket.socket(socket.AF_UNIX)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        endpoint.bind(path)
    else:
        path = "/dev/zero"
    started = time.monotonic()
    for settings in ({"model_path": path}, {"model_path": tiny, "routers": path}, {"model_path": tiny, "lora_path": path}):
        with pytest.raises(ModelFileError, match=f"{path} is a {kind}, not a regular file"):
            Llama(n_ctx=64, verbose=False, **settings)
    out, routers = str(tmp_path / "out.gguf"), random_routers(str(tmp_path / "r.safetensors"))
    assert main(["inspect", path]) == 2
    assert convert(["--routers", routers, "--model", path, "--out", out]) == 2
    assert convert(["--routers", path, "--model", tiny, "--out", out]) == 2
    assert capsys.readouterr().err.count("regular file") == 3
    assert time.monotonic() - started < 5
    endpoint.close()


@pytest.mark.timed
@pytest.mark.parametrize("count", [4097, 20_000, 300_000])
def test_thousands_of_metadata_keys_are_a_quick_error(tmp_path, count):
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes([(f"key.{i}", scalar(U32, i)) for i in range(count)]))
    started = time.monotonic()
    with pytest.raises(ModelFileError, match=f"declares {count} metadata keys, expected at most 4096"):
        ModelFile.open(path)
    assert time.monotonic() - started < 0.1


@pytest.mark.timed
def test_as_many_keys_as_are_allowed_are_quick_too(tiny, tmp_path):
    path = with_metadata(tiny, tmp_path / "m.gguf", **{f"key__{i}": i for i in range(4000)})
    started = time.monotonic()
    assert ModelFile.open(path).n_layer == 6
    assert time.monotonic() - started < 2


# -- text of a file, shown --------------------------------------------------------------------------------------------

NASTY = "\x1b]0;title\x07\x1b[2Jgone\r\u202egpj\x9b31m"


def test_what_is_printable_stays():
    text = "Ein Satz, 東京, 😀, e\u0301, a b"
    assert printable(text) == text
    assert printable("") == ""


def test_escape_sequences_of_a_file_are_not_printed_raw(tiny, tmp_path, capsys):
    routers = random_routers(str(tmp_path / "r.safetensors"), **{"train.data": NASTY})
    side, other = str(tmp_path / "side.gguf"), str(tmp_path / "other.gguf")
    assert convert(["--routers", routers, "--model", tiny, "--sidecar", "--out", side]) == 0
    assert main(["inspect", side]) == 0
    with_metadata(side, other, first__base__architecture=NASTY, first__base__fingerprint=NASTY, first__writer=NASTY)
    assert main(["inspect", other]) == 0
    with pytest.raises(ValueError, match="made for another model") as error:
        Llama(tiny, routers=other, n_ctx=64, verbose=False)
    said = capsys.readouterr()
    shown = said.out + said.err + str(error.value)
    assert r"\x1b]0;title\x07\x1b[2Jgone\r\u202egpj\x9b31m" in shown
    assert not [c for c in shown if c in NASTY and not c.isprintable()]
