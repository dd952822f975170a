"""`first-cpp calibrate` as a whole, on tiny models."""

from __future__ import annotations

import os
import re
import shutil

import pytest
from calibrating import IDLE, calibrate
from helpers import tensor_hashes, twins
from routers_files import routed_model

from first_cpp import Llama, load_routers
from first_cpp.calibrate.calibration import Calibration
from first_cpp.cli.main import main
from first_cpp.gguf.synthetic import SHAPES, write_random
from first_cpp.streams.engine import Engine


@pytest.mark.timed
def test_layers_that_do_nothing_are_found_and_recommended(idle, prompts, tmp_path, load, capsys):
    out = tmp_path / "first.gguf"
    assert calibrate(idle, prompts, out, "--fidelity", "0.9") == 0
    found = Calibration.load(str(tmp_path / "first.calibration.safetensors"))
    assert set(found.order[:2]) == IDLE
    assert found.share == pytest.approx(2 / 6)
    assert found.sets[0].layers == (found.order[0],)
    assert found.weight.shape == (len(found.sets), len(found.read), 128)
    assert found.origin["seconds"] < 60
    assert found.origin["evaluated_tokens"] > 60 * 8  # each level on each answer, if it is not shorter
    routers = load_routers(str(out))
    assert (routers.kind, routers.skip, routers.cost.order) == ("sets", pytest.approx(2 / 6), found.order)
    assert (routers.cost.read, routers.cost.tolerance) == (found.read, pytest.approx(found.tolerance))
    assert len(routers.cost.table) == len(found.table) > 0
    assert tensor_hashes(out) == tensor_hashes(idle)
    llm = load(out)
    llm.create_completion("Hello", max_tokens=4)
    assert set(llm.routing.skipped) >= IDLE  # as many as the prompt can spare
    assert 0 < llm.routing.cost <= found.tolerance * 1.001
    llm.skip = 2 / 6
    llm.create_completion("Hello", max_tokens=4)
    assert set(llm.routing.skipped) == IDLE
    text = capsys.readouterr().out
    assert text.splitlines()[-3:] == ["next:", f"  first-cpp chat -m {out}", f"  first-cpp serve -m {out}"]
    assert "At fidelity 0.9 this model skips" in text
    for system in ("dense", "influence", "even", "searched", "budget", "oracle", "recommended"):
        assert f"| {system} " in text
    assert not os.path.exists(tmp_path / "first.calibration.state")
    assert (tmp_path / "first.calibration.png").read_bytes().startswith(b"\x89PNG")


def test_a_model_that_can_spare_nothing_says_so(tiny, prompts, tmp_path, load, capsys):
    """Every layer of a random model counts: nothing is recommended, and a side file skips nothing."""
    out = tmp_path / "side.gguf"
    assert calibrate(tiny, prompts, out, "--sidecar", "--fidelity", "0.999", quiet=False) == 0
    said = capsys.readouterr()
    assert re.search(r"plan: \d+ prompts, or as many as about 30 minutes allow, 16 at least;", " ".join(said.err.split()))
    assert "This model cannot spare layers at fidelity 0.999" in said.out
    assert "n_ctx" not in said.err  # llama.cpp's warning about a vocabulary without its model
    assert load_routers(str(out)).skip == 0
    assert out.stat().st_size < 1 << 16
    llm = load(tiny, routers=str(out))
    llm.create_completion("Hello", max_tokens=4)
    assert llm.routing.skipped == ()


def test_a_type_that_is_slow_in_batches_is_measured_on_a_copy(models, prompts, tmp_path, monkeypatch):
    """In Q8_0, beside the output, gone afterwards; the speed is the model's own."""
    path = models / "tiny-q5_0.gguf"
    write_random(path, SHAPES["tiny"], "q5_0")
    opened = []

    class Watched(Engine):
        def __init__(self, path, *args, **kwargs):
            opened.append(path)
            super().__init__(path, *args, **kwargs)

    monkeypatch.setattr("first_cpp.streams.engine.Engine", Watched)
    monkeypatch.setattr("first_cpp.calibrate.workers.Engine", Watched)
    assert calibrate(str(path), prompts, tmp_path / "x.gguf") == 0
    copy = str(tmp_path / "x.calibration.gguf")
    assert opened == [copy, str(path)]
    assert not os.path.exists(copy)


def test_a_state_of_a_model_merged_anew_is_not_used(prompts, tmp_path, monkeypatch, capsys):
    """Its norms and its size are those of the merge before it, whose answers and costs the state holds."""
    monkeypatch.setattr(
        "first_cpp.calibrate.procedure.Procedure.search", lambda _self: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    merged = tmp_path / "merged.gguf"
    for model in twins(tmp_path):
        shutil.copy(model, merged)
        capsys.readouterr()
        assert calibrate(str(merged), prompts, tmp_path / "x.gguf", quiet=False) == 130
    assert "is of another model" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--out", "{tmp}/none/x.gguf"], "does not exist"),
        (["--out", "{model}"], "is the input"),
        (["--out", "{tmp}/x\udcff.gguf"], "is not UTF-8"),
        (["-m", "{tmp}/no.gguf"], "does not exist"),
        (["--prompts", "{tmp}/no.txt"], "does not exist"),
        (["-m", "{routed}"], "--replace"),
        (["--fidelity", "2"], "0.5 to 0.9999"),
        (["--minutes", "0"], "0.1 or more"),
        (["-t", "2", "--processes", "3"], "--processes is 3, allowed: 1 to 2"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_measured(idle, prompts, tmp_path, more, said, capsys, monkeypatch):
    names = {"tmp": tmp_path, "model": idle, "routed": routed_model(idle, tmp_path)}
    monkeypatch.setattr(Llama, "__init__", None)
    argv = ["calibrate", "-m", idle, "--prompts", prompts, "--out", str(tmp_path / "x.gguf")]
    try:
        code = main([*argv, *(word.format(**names) for word in more)])
    except SystemExit as error:
        code = error.code
    assert code == 2
    assert said in capsys.readouterr().err


def test_too_few_prompts_are_refused(idle, tmp_path, capsys):
    path = tmp_path / "few.txt"
    path.write_text("one\ntwo\n")
    assert calibrate(idle, str(path), tmp_path / "x.gguf") == 2
    assert "at least 16 are needed" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.smollm2
def test_smollm2_in_two_minutes(smollm2, tmp_path, capsys):
    """The built-in prompts, as many as the time allows: searched layers cost no more than evenly spaced ones."""
    out = tmp_path / "smollm2.gguf"
    assert main(["calibrate", "-m", smollm2, "--out", str(out), "--sidecar", "--minutes", "2", "--quiet"]) == 0
    found = Calibration.load(str(tmp_path / "smollm2.calibration.safetensors"))
    assert not set(found.order[:3]) & {0, 1, 28, 29}
    lines = capsys.readouterr().out.splitlines()
    table = [line.split("|") for line in lines if re.match(r"\| \d", line)]
    kl = {(cells[1].strip(), cells[2].strip()): float(cells[3]) for cells in table}
    both = [level for level, system in kl if system == "searched" and (level, "even") in kl]
    assert both, table  # how many levels there are depends on the machine's speed
    searched, even = (sum(kl[level, system] for level in both) for system in ("searched", "even"))
    assert searched <= 1.1 * even  # few prompts are kept out in two minutes, and one layer may be the same in both
