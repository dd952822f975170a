"""python -m convert: tensor bytes untouched, refusals before work, never half a file."""

from __future__ import annotations

import errno
import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import gguf
import llama_cpp
import numpy as np
import pytest
from helpers import greedy, tensor_hashes, tokens
from routers_files import budget_routers, random_routers, routed_model
from safetensors import safe_open
from safetensors.numpy import save_file

from convert.__main__ import main
from first_cpp import load_routers
from first_cpp._ext import GgufFile
from first_cpp.errors import MissingFileError
from first_cpp.gguf import embed as embedding
from first_cpp.gguf.bundled import find_demo_model
from first_cpp.gguf.new_file import OutputError, check_output
from first_cpp.gguf.router_format import write_safetensors


@pytest.fixture
def routers(tmp_path):
    return random_routers(str(tmp_path / "routers.safetensors"))


@pytest.mark.parametrize("base", ["tiny", "tiny_q8"])
def test_embeds_and_leaves_tensors_untouched(base, routers, tmp_path, request, load):
    base, out = request.getfixturevalue(base), tmp_path / "out.gguf"
    assert main(["--routers", routers, "--model", base, "--out", str(out), "--quiet"]) == 0
    assert tensor_hashes(out) == tensor_hashes(base)
    before, after = GgufFile(base), GgufFile(str(out))
    assert [k for k in after.keys() if not k.startswith("first.")] == before.keys()
    for key in before.keys():
        assert before.kind(key) == after.kind(key)
        assert np.array_equal(before.get(key), after.get(key))
    # what goes in comes out
    found = load_routers(str(out))
    with safe_open(routers, framework="numpy") as file:
        np.testing.assert_array_equal(found.weight, file.get_tensor("weight"))
        np.testing.assert_array_equal(found.bias, file.get_tensor("bias"))
    assert (found.skip, found.norm_eps) == (pytest.approx(0.34), pytest.approx(1e-5))
    # stock llama.cpp runs the file, and another reader understands it
    prompt = tokens(9)
    assert greedy(load(out, llama_cpp.Llama), prompt, 5) == greedy(load(base, llama_cpp.Llama), prompt, 5)
    fields = gguf.GGUFReader(out).fields
    np.testing.assert_array_equal(fields["first.router.bias"].contents(), found.bias)


def test_it_says_what_it_wrote_and_what_comes_next(tiny, routers, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(tiny, "model.gguf")
    words = ["--routers", routers, "--model", "model.gguf"]
    size = os.path.getsize(tiny) / 1e6
    assert main([*words, "--out", "out.gguf"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"out.gguf: {size:.1f} MB, F32 (the base has {size:.1f} MB)",
        'routers for 6 layers; skip="auto" skips 34% of them',
        "next:",
        "  first-cpp inspect out.gguf",
        "  first-cpp chat -m out.gguf",
    ]
    assert main([*words, "--sidecar", "--out", "side.gguf", "--skip", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"side.gguf: {os.path.getsize('side.gguf') / 1e3:.1f} kB"
    assert "they recommend no skipping by themselves" in lines[1]
    assert lines[-1] == "  first-cpp chat -m model.gguf --routers side.gguf --skip 0.25"
    (tmp_path / "texts.txt").write_text("Once upon a time\n" * 2)
    words = ["--block-influence", "--model", "model.gguf", "--text", "texts.txt", "--out", "influence.safetensors"]
    assert main(words) == 0
    following = capsys.readouterr().out.splitlines()[-1]
    assert main([*shlex.split(following)[3:], "--quiet"]) == 0  # the command that it says is next
    assert load_routers("model-first.gguf").base.n_layer == 6
    assert capsys.readouterr().out == ""


def test_base_with_empty_array_and_other_alignment(tmp_path, routers, load):
    path, out = tmp_path / "aligned.gguf", tmp_path / "out.gguf"
    file = gguf.GGUFWriter(path, "llama")
    file.add_custom_alignment(128)
    file.add_block_count(6)
    file.add_embedding_length(128)
    for i in range(3):
        file.add_tensor(f"blk.{i}.attn_norm.weight", np.random.rand(7 + i).astype(np.float32))
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    embedding.embed(routers, str(path), str(out), quiet=True)
    assert GgufFile(str(out)).alignment == 128
    assert tensor_hashes(out) == tensor_hashes(path)


def test_sidecar_equals_embedded(tiny, tmp_path, load):
    embedded, side = routed_model(tiny, tmp_path, seed=5), routed_model(tiny, tmp_path, seed=5, sidecar=True)
    one, two = load(embedded), load(tiny, routers=side)
    prompt = tokens(30)
    assert greedy(one, prompt, 12) == greedy(two, prompt, 12)
    assert one.routing == two.routing
    assert os.path.getsize(side) < 10_000
    assert GgufFile(side).get("general.type") == b"adapter"


def test_sidecar_fits_another_quantisation(tiny, tmp_path, load):
    """The same norms, other matrices: row 11 of the faults."""
    quantised = str(tmp_path / "q8.gguf")
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0
    assert llama_cpp.llama_model_quantize(tiny.encode(), quantised.encode(), params) == 0
    llm = load(quantised, routers=routed_model(tiny, tmp_path, sidecar=True), skip=0.5)
    greedy(llm, tokens(9), 2)
    assert len(llm.routing.skipped) == 3


def test_existing_output_is_refused_without_force(tiny, routers, tmp_path, capsys):
    out = tmp_path / "out.gguf"
    out.write_bytes(b"mine")
    arguments = ["--routers", routers, "--model", tiny, "--out", str(out), "--quiet"]
    assert main(arguments) == 2
    assert "--force" in capsys.readouterr().err
    assert out.read_bytes() == b"mine"
    assert main([*arguments, "--force"]) == 0


@pytest.mark.parametrize("alias", ["same", "hard", "soft"])
def test_output_that_is_the_input_is_refused(tiny, routers, tmp_path, capsys, alias):
    base = tmp_path / "base.gguf"
    shutil.copy(tiny, base)
    out = base if alias == "same" else tmp_path / "link.gguf"
    if alias == "hard":
        os.link(base, out)
    if alias == "soft":
        out.symlink_to(base)
    before = base.read_bytes()
    assert main(["--routers", routers, "--model", str(base), "--out", str(out), "--force", "--quiet"]) == 2
    assert "is the input" in capsys.readouterr().err
    assert base.read_bytes() == before


def test_other_parts_and_routers_in_a_folder_are_inputs_too(tiny, routers, tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(routers, folder / "routers.safetensors")
    out = str(folder / "routers.safetensors")
    assert main(["--routers", str(folder), "--model", tiny, "--out", out, "--force", "--quiet"]) == 2
    assert "is the input" in capsys.readouterr().err
    with pytest.raises(OutputError, match="is the input"):
        check_output(tiny, ["missing", tiny], True, 1)


@pytest.mark.parametrize("padding", range(0, 256, 8))
def test_every_header_length_is_a_safetensors_file(tiny, tmp_path, padding):
    """One in 32 begins with the byte that a pickle begins with: it is the header's length."""
    routers = random_routers(str(tmp_path / "r.safetensors"), note="x" * padding)
    assert main(["--routers", routers, "--model", tiny, "--out", str(tmp_path / "o.gguf"), "--sidecar"]) == 0


@pytest.mark.parametrize("value", ["x" * 4097, "a\0b"], ids=["long", "NUL"])
def test_records_that_no_reader_would_take_are_refused(tiny, tmp_path, capsys, value):
    routers = random_routers(str(tmp_path / "r.safetensors"), **{"train.log": value})
    assert main(["--routers", routers, "--model", tiny, "--out", str(tmp_path / "o.gguf"), "--sidecar"]) == 2
    assert "train.log" in capsys.readouterr().err


def test_missing_and_read_only_folders(tiny, routers, tmp_path, capsys, monkeypatch):
    assert main(["--routers", routers, "--model", tiny, "--out", str(tmp_path / "no" / "out.gguf")]) == 2
    assert "does not exist" in capsys.readouterr().err
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    assert main(["--routers", routers, "--model", tiny, "--out", str(tmp_path / "out.gguf")]) == 2
    assert "not writable" in capsys.readouterr().err


def test_too_little_space_is_said_before_the_work(tiny, routers, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 5, 5))
    assert main(["--routers", routers, "--model", tiny, "--out", str(tmp_path / "out.gguf")]) == 2
    assert f"needs {os.path.getsize(tiny)} bytes" in capsys.readouterr().err


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("existed", [False, True])
def test_nothing_is_left_of_an_interrupted_run(tiny, routers, tmp_path, monkeypatch, error, existed):
    out = tmp_path / "out.gguf"
    if existed:
        out.write_bytes(b"mine")

    def copy(source, target, *rest):
        target.write(source.read(100))
        raise error

    monkeypatch.setattr(embedding, "_copy", copy)
    code = main(["--routers", routers, "--model", tiny, "--out", str(out), "--quiet", "--force"])
    assert code == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["routers.safetensors", *(["out.gguf"] if existed else [])])
    assert not existed or out.read_bytes() == b"mine"


def test_real_disk_full(tiny, routers, tmp_path):
    """/dev/full refuses every write."""
    with pytest.raises(OSError, match="No space"), open("/dev/full", "wb", buffering=0) as full, open(tiny, "rb") as source:
        embedding._copy(source, full, lambda _what, _more: None)


def test_a_share_asked_for_is_what_cost_probes_skip_on_average(tiny, tmp_path, capsys):
    routers, out = str(tmp_path / "sets.safetensors"), str(tmp_path / "out.gguf")
    write_safetensors(routers, budget_routers(tiny))
    words = ["--routers", routers, "--model", tiny, "--out", out, "--force"]
    for share, said in (("0.2", 'skip="auto" skips 20% of them'), ("0", "they recommend no skipping by themselves")):
        assert main([*words, "--skip", share]) == 0
        assert said in capsys.readouterr().out
        cost = load_routers(out).cost
        assert cost.mean_share(cost.tolerance) == pytest.approx(float(share))
    assert main([*words, "--skip", "0.5"]) == 2
    assert "no tolerance that skips 0.5 of the layers on average, at most 0.4" in capsys.readouterr().err


def test_routers_in_the_base_are_replaced_only_when_asked(tiny, tmp_path, capsys):
    base = routed_model(tiny, tmp_path, seed=1)
    routers = random_routers(str(tmp_path / "new.safetensors"), seed=2, **{"train.data": "other"})
    out = str(tmp_path / "out.gguf")
    assert main(["--routers", routers, "--model", base, "--out", out, "--quiet"]) == 2
    assert "--replace" in capsys.readouterr().err
    assert main(["--routers", routers, "--model", base, "--out", out, "--quiet", "--replace", "--skip", "0.5"]) == 0
    found = load_routers(out)
    assert (found.skip, found.train) == (0.5, {"data": "other"})
    assert tensor_hashes(out) == tensor_hashes(tiny)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weight": np.zeros((5, 128), np.float32)}, r"shape \[5, 128\].*\[6, 128\]"),
        ({"weight": np.zeros((6, 64), np.float32)}, r"\[6, 64\].*\[6, 128\]"),
        ({"weight": np.zeros((6, 128), np.int32)}, "int32, expected float32"),
        ({"weight": np.full((6, 128), np.nan, np.float32)}, "weight of layer 0 is not finite"),
        ({"bias": np.full(6, np.inf, np.float32)}, "bias of layer 0 is not finite"),
        ({"weight": np.full((6, 128), 1e38, np.float32)}, "overflows"),
        ({"bias": np.zeros(7, np.float32)}, r"\[7\].*\[6\]"),
        ({"bias": None}, "'bias' is missing"),
        ({"norm_eps": "nothing"}, "norm_eps is 'nothing'"),
        ({"norm_eps": "0"}, "norm_eps is 0.0"),
        ({"skip": "1.5"}, "skip is 1.5"),
        ({"skippable": "[true]"}, "list of 6 bools"),
        ({"skippable": "[false, false, false, false, false, false]"}, "marks no layer"),
        ({"base.fingerprint": "0" * 64}, "another model"),
    ],
    ids=str,
)
def test_routers_that_do_not_fit(tiny, tmp_path, capsys, change, said):
    tensors = {"weight": np.zeros((6, 128), np.float32), "bias": np.zeros(6, np.float32)}
    metadata = {"norm_eps": "1e-5"}
    for key, value in change.items():
        if value is None:
            del tensors[key]
        elif isinstance(value, str):
            metadata[key] = value
        else:
            tensors[key] = value
    path, out = tmp_path / "bad.safetensors", tmp_path / "out.gguf"
    save_file(tensors, path, metadata=metadata)
    assert main(["--routers", str(path), "--model", tiny, "--out", str(out), "--quiet"]) == 2
    assert pytest.importorskip("re").search(said, capsys.readouterr().err)
    assert not out.exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"PK\x03\x04zip", "pickle"), (b"\x80\x04K\x01.", "pickle"), (b"{}", "safetensors"), (b"", "safetensors"),
     (b"\xff" * 100, "safetensors")],
)  # fmt: skip
def test_files_that_are_no_safetensors(tiny, tmp_path, capsys, content, said):
    path = tmp_path / "routers.pt"
    path.write_bytes(content)
    assert main(["--routers", str(path), "--model", tiny, "--out", str(tmp_path / "o.gguf")]) == 2
    assert said in capsys.readouterr().err


def test_missing_files(tiny, tmp_path, capsys):
    assert main(["--routers", "none.safetensors", "--model", tiny, "--out", str(tmp_path / "o")]) == 2
    assert main(["--routers", "none.safetensors", "--model", "none.gguf", "--out", str(tmp_path / "o")]) == 2
    assert main(["--block-influence", "--model", tiny, "--text", "none.txt", "--out", str(tmp_path / "o")]) == 2
    assert capsys.readouterr().err.count("error: ") == 3


@pytest.mark.parametrize("arguments", [["--block-influence"], ["--routers", "r", "--text", "t"],
                                       ["--block-influence", "--text", "t", "--sidecar"]])  # fmt: skip
def test_options_that_do_not_go_together(tiny, tmp_path, arguments):
    assert main([*arguments, "--model", tiny, "--out", str(tmp_path / "o")]) == 2


# -- killed --------------------------------------------------------------------------------------------------------


@pytest.mark.smollm2
def test_killed_at_any_time_leaves_no_file_under_the_final_name(tmp_path):
    try:
        base = find_demo_model()
    except MissingFileError:
        pytest.skip("needs the demo extra")
    routers = random_routers(str(tmp_path / "r.safetensors"), 30, 576)
    out = tmp_path / "out.gguf"
    code = f"import sys; sys.argv[1:] = ['--routers', {routers!r}, '--model', {base!r}, '--out', {str(out)!r}, '--quiet']\n"
    code += (
        "import first_cpp.gguf.embed, os\nold = os.replace\nos.replace = lambda *a: (print('written', flush=True), input())\n"
    )
    code += "from convert.__main__ import main; main()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdout.readline()
    process.kill()
    process.wait()
    assert not out.exists()
    assert [p.name for p in pathlib.Path(tmp_path).iterdir() if p.name.endswith(".part")]


@pytest.mark.parametrize("n_layer", [0, 4097, 2**32 - 1])
def test_layer_counts_that_no_model_has(tiny, routers, tmp_path, capsys, n_layer):
    """Else the names of so many layers' tensors would be made, gigabytes of them."""
    file, data = GgufFile(tiny), pathlib.Path(tiny).read_bytes()
    data = data[file.data_offset :]
    file.set_u32("llama.block_count", n_layer)
    base = tmp_path / "base.gguf"
    base.write_bytes(file.metadata() + data)
    assert main(["--routers", routers, "--model", str(base), "--out", str(tmp_path / "out.gguf"), "--quiet"]) == 2
    assert f"llama.block_count is {n_layer}, expected 1 to 512" in capsys.readouterr().err
