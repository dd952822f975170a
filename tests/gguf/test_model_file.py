"""What a model's file says of it: layers, width, parts, fingerprint; and what a token reads of its weights."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys

import llama_cpp
import pytest
from helpers import greedy, tokens
from raw_gguf import with_metadata
from routers_files import random_routers, routed_model

from convert.__main__ import main as convert
from first_cpp import load_routers
from first_cpp.cli.main import main
from first_cpp.errors import MissingFileError, ModelFileError
from first_cpp.gguf.byte_limit import weight_reads
from first_cpp.gguf.model_file import ModelFile


@pytest.fixture(scope="module")
def with_nextn(tiny, models) -> str:
    """The tiny model, whose file says that a seventh block predicts a further token. llama.cpp loads six layers."""
    return with_metadata(tiny, models / "nextn.gguf", llama__block_count=7, llama__nextn_predict_layers=1)


def test_what_a_file_says(tiny):
    model = ModelFile.open(pathlib.Path(tiny))
    assert (model.path, model.paths, model.architecture) == (tiny, (tiny,), "llama")
    assert (model.n_layer, model.n_embd, model.norm_eps) == (6, 128, pytest.approx(1e-5))
    assert (model.context_length, model.default_context) == (2048, 2048)
    assert len(model.fingerprint) == 64
    assert model.fingerprint is model.fingerprint  # found once
    assert len(list(model.tensors())) == len(model.first.tensors())


def test_a_long_context_is_not_taken_unasked(tiny, tmp_path):
    model = ModelFile.open(with_metadata(tiny, tmp_path / "m.gguf", llama__context_length=131072))
    assert (model.context_length, model.default_context) == (131072, 4096)


def shape_of(path: str) -> tuple[int, int]:
    model = ModelFile.open(path)
    return model.n_layer, model.n_embd


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"general__architecture": None}, "general.architecture is missing: not a model"),
        ({"llama__block_count": None}, "llama.block_count is missing, expected u32"),
        ({"llama__block_count": "six"}, "llama.block_count is str, expected u32"),
        ({"llama__nextn_predict_layers": 6}, "llama.nextn_predict_layers is 6, expected less than block_count, which is 6"),
        ({"llama__embedding_length": 1.0}, "llama.embedding_length is f32, expected u32"),
    ],
)
def test_what_a_file_does_not_say(tiny, tmp_path, changes, said):
    path = with_metadata(tiny, tmp_path / "m.gguf", **changes)
    with pytest.raises(ModelFileError, match=f"{path}: {said}"):
        shape_of(path)


def test_files_of_a_split_model(tiny, tmp_path):
    first, second = (str(tmp_path / f"m-0000{i}-of-00002.gguf") for i in (1, 2))
    for path in (first, second):
        shutil.copy(tiny, path)
    model = ModelFile.open(first)
    assert model.paths == (first, second)
    assert {path for path, _ in model.tensors()} == {first, second}
    pathlib.Path(second).unlink()
    with pytest.raises(MissingFileError, match="00002-of-00002"):
        ModelFile.open(first)


# -- next-token prediction: blocks that are no layers ---------------------------------------------------------------


def test_layers_are_llama_cpps(with_nextn, tiny, load):
    stock = load(with_nextn, llama_cpp.Llama)
    assert llama_cpp.llama_model_n_layer(stock.model) == ModelFile.open(with_nextn).n_layer == 6
    ours = load(with_nextn, skip=[2, 5])
    assert len(ours.unskippable) == 6
    assert greedy(ours, tokens(9), 6) == greedy(load(tiny, skip=[2, 5]), tokens(9), 6)


@pytest.mark.parametrize("sidecar", [False, True])
def test_routers_have_no_row_for_a_next_token_block(with_nextn, tmp_path, load, sidecar):
    out = tmp_path / "out.gguf"
    routers = random_routers(str(tmp_path / "r.safetensors"))
    arguments = ["--routers", routers, "--model", with_nextn, "--out", str(out), "--quiet"]
    assert convert(arguments + ["--sidecar"] * sidecar) == 0
    assert load_routers(str(out)).base.n_layer == 6
    llm = load(with_nextn, routers=out, skip=0.5) if sidecar else load(out, skip=0.5)
    greedy(llm, tokens(9), 2)
    assert len(llm.routing.skipped) == 3


def test_eval_counts_no_next_token_block(with_nextn, tmp_path):
    """The baseline "last" skips the last layers; with the seventh block among them there would be no such layer."""
    routed, data, out = routed_model(with_nextn, tmp_path), tmp_path / "data.jsonl", tmp_path / "report"
    data.write_text(json.dumps({"task": "qa", "prompt": "Who?", "response": "nobody"}) + "\n")
    arguments = ["--data", str(data), "--out", str(out), "--skip", "0.34", "--baselines", "last", "-n", "2", "--kl", "0"]
    assert main(["eval", "--model", routed, *arguments, "--draws", "10", "--quiet", "-t", "2", "-c", "256"]) == 0
    skipped = {row["row"]: row["share_skipped"] for row in json.loads((out / "report.json").read_text())["rows"]}
    assert skipped["last@0.34"] == skipped["routed@0.34"] == pytest.approx(2 / 6)


def test_a_token_reads_no_next_token_block(tiny, tmp_path):
    """A file in which one block more stands after the layers, as such files have it."""
    path = with_metadata(tiny, tmp_path / "m.gguf", llama__nextn_predict_layers=1)  # the sixth block is one now
    reads, before = weight_reads(path), weight_reads(tiny)
    assert reads.layers == before.layers[:5]
    assert reads.rest == before.rest


COUNT = """
import ctypes, os, pathlib, sys
import llama_cpp
from architectures import shapes, tensors, write
from first_cpp.errors import ModelFileError
from first_cpp.gguf.model_file import ModelFile

def count(architecture, path):
    values = shapes.hyperparameters(architecture) | {f"{architecture}.nextn_predict_layers": 1}
    write._write(path, architecture, values, {})
    found = {name: shape for name, shape in tensors.list_tensors(path).items() if not shapes.is_absent(architecture, name)}
    write._write(path, architecture, values, found)
    model = llama_cpp.llama_model_load_from_file(os.fsencode(path), llama_cpp.llama_model_default_params())
    if model:
        try:
            file = ModelFile.open(path)
            file.spelling()
            ours = file.n_layer
        except ModelFileError as error:
            ours = error
        print(architecture, ours, llama_cpp.llama_model_n_layer(model), flush=True)

quiet = llama_cpp.llama_log_callback(lambda *_: None)
llama_cpp.llama_log_set(quiet, None)
for architecture in shapes.ARCHITECTURES:
    if (child := os.fork()) == 0:  # some end the process, as what they read for a next-token block is not there
        try:
            count(architecture, pathlib.Path(sys.argv[1]) / f"{architecture}.gguf")
        except tensors.ModelRefused:
            pass
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.mark.slow  # a tiny model of every architecture
def test_layers_are_counted_as_llama_cpp_counts_them(tmp_path):
    here = pathlib.Path(__file__).parents[1]
    path = os.pathsep.join([str(here), str(here / "support"), str(here.parent)])
    environment = {**os.environ, "PYTHONPATH": path, "GGML_NO_BACKTRACE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", COUNT, str(tmp_path)], capture_output=True, text=True, check=True, env=environment
    )
    counts = [line.split() for line in done.stdout.splitlines()]
    assert len(counts) > 100
    assert [row for row in counts if row[1] != row[2]] == []
