"""`first-cpp demo`: what it shows, how wide it is, and what it says on a busy machine."""

from __future__ import annotations

import dataclasses
import os
import re

import pytest
from routers_files import budget_routers, routed_model

from first_cpp.cli import demo
from first_cpp.cli.demo import FULL, SKIPPING, Result, summary
from first_cpp.cli.main import main
from first_cpp.gguf.embed import embed
from first_cpp.runtime.interleaved import busy_by


def result(full, skipping, fidelity=0.9):
    return Result("sleep", 8, 30, fidelity, {FULL: full, SKIPPING: skipping})


def test_a_busy_machine_is_named_and_no_speed_up_invented():
    """One process that got its turn late made this 811.88x."""
    calm = result([0.010] * 64, [0.008] * 64)
    assert calm.speed_up == pytest.approx(1.25)
    steps = [0.01, 0.01, 0.2, 0.3] * 16
    busy = result(steps, [0.008] * 64)
    assert busy_by(busy.steps) > 1
    assert busy.speed_up is None
    shown = "\n".join(summary([busy, busy], "a model", "a machine"))
    assert "The machine is busy" in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert not re.search(r"\d\.\d\dx", shown)
    shown = "\n".join(summary([calm, busy], "a model", "a machine"))
    assert "1.25x" in shown
    assert "The machine is busy" not in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_steps_that_a_few_interruptions_slow_count_as_calm():
    assert busy_by({"a": [0.01] * 60 + [0.5] * 4}) == 0


def test_a_narrow_terminal_breaks_no_word(tiny, capsys, monkeypatch):
    monkeypatch.setattr(demo, "columns", lambda _stream: 40)
    assert main(["demo", "-m", tiny, "--skip", "0.34", "-n", "4", "-t", "1"]) == 0
    prompts = capsys.readouterr().out.split("\n== ")[1:4]
    asked = [one.split("\n-- full")[0].splitlines()[1:] for one in prompts]
    assert max(len(line) for lines in asked for line in lines) <= 40
    assert [" ".join(lines).split() for lines in asked] == [text.split() for text in demo.EVERYDAY.values()]


def test_a_model_without_routers_gets_input_blind_ones(tiny, capsys):
    assert main(["demo", "-m", tiny, "--skip", "0.34", "-n", "4", "-t", "1"]) == 0
    out = capsys.readouterr().out
    assert "This model has no routers" in out
    assert out.count("-- full model ###### 6 layers") == out.count("4 layers") == 3
    assert out.count("2 of 6") == 3
    made = f"{os.path.basename(tiny).removesuffix('.gguf')}-first.gguf"
    following = [f"  first-cpp calibrate -m {tiny} --out {made}", f"  first-cpp chat -m {made}"]
    assert out.splitlines()[-3:] == ["next:", *following]


def test_what_comes_next_is_with_the_model_that_was_shown(tiny, tmp_path, capsys):
    routed = routed_model(tiny, tmp_path, seed=5)
    assert main(["demo", "-m", routed, "-n", "4", "-t", "1"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-3:] == ["next:", f"  first-cpp chat -m {routed}", f"  first-cpp bench -m {routed}"]


def test_a_calibrated_model_skips_by_its_tolerance(tiny, tmp_path, capsys):
    """Though such a file recommends no share for all prompts alike."""
    model = str(tmp_path / "calibrated.gguf")
    embed(dataclasses.replace(budget_routers(tiny, tolerance=50.0), skip=0.0), tiny, model, quiet=True)
    assert main(["demo", "-m", model, "-n", "4", "-t", "1"]) == 0
    assert capsys.readouterr().out.count("4 of 6") == 3


def test_skipping_nothing_is_refused(tiny, capsys):
    assert main(["demo", "-m", tiny, "--skip", "none"]) == 2
    assert "--skip none skips nothing" in capsys.readouterr().err


@pytest.mark.smollm2
@pytest.mark.slow
def test_fidelity_is_what_the_full_model_would_have_chosen(smollm2, capsys, monkeypatch):
    """The whole demo, in 80 columns; its fidelity is counted again by stock's logits at once."""
    import llama_cpp
    import numpy as np

    answers, results = [], []
    stream, shown = demo._stream, demo.summary
    monkeypatch.setattr(demo, "_stream", lambda *a: answers.append((a[1], stream(*a))) or answers[-1][1])
    monkeypatch.setattr(demo, "summary", lambda found, *a: results.extend(found) or shown(found, *a))
    assert main(["demo", "-m", smollm2, "--skip", "0.2", "-n", "24"]) == 0
    assert max(map(len, capsys.readouterr().out.partition("next:")[0].splitlines())) <= 80
    stock = llama_cpp.Llama(smollm2, n_ctx=512, logits_all=True, verbose=False)
    for result, (prompt, answer) in zip(results, answers[1::2], strict=True):
        stock.reset()
        stock.eval([*prompt, *answer])
        choices = stock.scores[len(prompt) : len(prompt) + len(answer) - 1].argmax(axis=1)  # the prompt itself is read dense
        assert result.fidelity == pytest.approx(np.mean(choices == answer[1:]), abs=1.5 / len(answer))  # near ties round
    stock.close()
