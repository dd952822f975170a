"""Prompts, probes and budgets, without a model."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from first_cpp.calibrate import probes
from first_cpp.calibrate.budget import Outcomes, at_mean, holding_level, holding_tolerance, within
from first_cpp.calibrate.calibration import Calibration
from first_cpp.calibrate.groups import groups_of, k_means
from first_cpp.calibrate.probes import LEAST_COST, fit, interpolate, interpolated, monotone
from first_cpp.calibrate.prompts import Prompt, in_turns, is_kept_out, read_prompts
from first_cpp.cli.jsonl import DataError
from first_cpp.errors import MissingFileError, RouterError
from first_cpp.gguf.cost_probes import LayerSet, TolerancePoint
from first_cpp.gguf.routers import Base
from first_cpp.runtime.predicted_cost import Prediction

# -- prompts ------------------------------------------------------------------------------------------------------------


def test_the_built_in_prompts():
    prompts = read_prompts()
    assert 280 <= len(prompts) <= 340
    assert len({prompt.text for prompt in prompts}) == len(prompts)
    tasks = Counter(prompt.task for prompt in prompts)
    assert len(tasks) >= 15
    assert min(tasks.values()) >= 5
    assert sum(any(ord(sign) > 0x2FF for sign in prompt.text) for prompt in prompts) >= 4  # other scripts


def test_prompts_from_text_and_json_lines(tmp_path):
    text = tmp_path / "mine.txt"
    text.write_text("\ufeffone\n\n  two  \none\n", encoding="utf-8")
    assert read_prompts(str(text)) == [Prompt("one"), Prompt("two")]
    lines = tmp_path / "mine.jsonl"
    lines.write_text('{"prompt": "one"}\n{"prompt": "two\\nlines", "task": "t", "response": "x"}\n')
    assert read_prompts(str(lines)) == [Prompt("one"), Prompt("two\nlines", "t")]


@pytest.mark.parametrize(
    ("name", "content", "error", "said"),
    [
        ("p.jsonl", b'{"prompt": "a"}\n{"text": "b"}\n', DataError, "p.jsonl:2: prompt is missing"),
        ("p.jsonl", b"hello\n", DataError, "p.jsonl:1: not JSON"),
        ("p.txt", b"\n \n", DataError, "no prompts"),
        ("p.txt", b"\xff\xfe\x00", DataError, "not UTF-8"),
        ("p.txt", None, MissingFileError, "does not exist"),
    ],
)
def test_prompts_that_cannot_be_used(tmp_path, name, content, error, said):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=said):
        read_prompts(str(tmp_path / name))


def test_every_beginning_has_every_task_in_its_part():
    prompts = [Prompt(f"{task}{i}", task) for task, n in (("a", 40), ("b", 20), ("c", 4)) for i in range(n)]
    found = in_turns(prompts, 0)
    assert sorted(map(str, found)) == sorted(map(str, prompts))
    assert found == in_turns(prompts, 0) != in_turns(prompts, 1)
    for n in (16, 32, 48):
        tasks = Counter(prompt.task for prompt in found[:n])
        assert [tasks[task] for task in "abc"] == pytest.approx([40 * n / 64, 20 * n / 64, 4 * n / 64], abs=1.01)
    kept = [prompt.task for prompt, out in zip(found, is_kept_out(found), strict=True) if out]
    assert Counter(kept) == {"a": 10, "b": 5, "c": 1}


# -- probes ---------------------------------------------------------------------------------------------------------------


def test_about_a_quarter_of_the_first_prompts_is_kept_out_however_few():
    """Short times measure the first ones alone, and the verdict rests on those kept out."""
    kept = is_kept_out(in_turns(read_prompts(), 0))
    for n in range(16, len(kept) + 1):
        assert n / 8 <= sum(kept[:n]) <= 3 * n / 8


def made_prompts(n, seed=0, noise=0.1):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(n, 5, 12)).astype(np.float32)
    weight = np.random.default_rng(99).normal(size=(12, 3))
    log_cost = hidden[:, 3] @ weight * 0.4 + [-3, -2, -1] + rng.normal(0, noise, (n, 3))
    return hidden, np.exp(log_cost)


def test_leave_one_out_is_what_leaving_one_out_gives():
    """The closed form, against fitting without each prompt in turn, at a penalty that is held."""
    hidden, costs = made_prompts(23)
    x, y = hidden[:, 2].astype(np.float64), np.log(costs)
    penalty = 0.7

    def predicted(i):
        rest = np.arange(len(x)) != i
        mean, target = x[rest].mean(0), y[rest].mean(0)
        a = (x[rest] - mean).T @ (x[rest] - mean) + penalty * np.eye(12)
        return (x[i] - mean) @ np.linalg.solve(a, (x[rest] - mean).T @ (y[rest] - target)) + target

    expected = np.mean([(predicted(i) - y[i]) ** 2 for i in range(len(x))])
    centred = x - x.mean(0)
    values, vectors = np.linalg.eigh(centred @ centred.T)
    probes_penalties, probes.PENALTIES = probes.PENALTIES, (penalty,)
    try:
        ((found, at),) = probes._left_out(vectors, np.maximum(values, 0), y - y.mean(0), 1.0)
    finally:
        probes.PENALTIES = probes_penalties
    assert at == penalty
    assert found == pytest.approx(expected, rel=1e-6)


def test_probes_find_the_layer_and_predict_new_prompts():
    found = fit(*made_prompts(120), range(5))
    assert 3 in found.read
    assert found.r2 > 0.9
    hidden, costs = made_prompts(200, seed=1)
    left = np.log(costs) - found.log_cost(hidden)
    assert (left**2).mean() < 0.1 * np.log(costs).var()


def test_probes_without_anything_to_find_predict_the_mean():
    """Noise has no share of the variance: the prediction keeps near the mean, and r2 says so."""
    hidden, _ = made_prompts(80)
    costs = np.exp(np.random.default_rng(5).normal(-2, 1, (80, 3)))
    found = fit(hidden, costs, range(5))
    assert found.r2 < 0.1
    assert found.log_cost(hidden).std() < 0.5
    np.testing.assert_allclose(found.log_cost(hidden).mean(0), np.log(costs).mean(0), atol=0.1)


def test_costs_of_nothing_are_floored():
    hidden, costs = made_prompts(30)
    costs[:, 0] = 0
    assert fit(hidden, costs, range(5)).log_cost(hidden)[:, 0].mean() == pytest.approx(np.log(LEAST_COST))


def test_levels_between_are_interpolated():
    found = fit(*made_prompts(40), range(5))
    hidden, _ = made_prompts(7, seed=2)
    coarse, fine = found.log_cost(hidden), interpolate(found, (1, 3, 6), range(1, 7)).log_cost(hidden)
    np.testing.assert_allclose(fine[:, [0, 2, 5]], coarse, atol=1e-5)
    np.testing.assert_allclose(fine[:, 1], (coarse[:, 0] + coarse[:, 1]) / 2, atol=1e-5)
    np.testing.assert_allclose(interpolated(coarse, (1, 3, 6), range(1, 7)), fine, atol=1e-5)


def test_no_level_is_cheaper_than_a_smaller_one():
    assert monotone(np.array([[1.0, 0.5, 2.0], [0.0, 1.0, 0.9]])).tolist() == [[1.0, 1.0, 2.0], [0.0, 1.0, 1.0]]


# -- budgets --------------------------------------------------------------------------------------------------------------

COST = np.array([[0.1, 0.2, 0.4], [0.3, 0.5, 0.9], [0.05, 0.06, 0.07]])
REAL = Outcomes(
    (0, 1, 2, 3),
    np.array([[0, 0.1, 0.2, 0.4], [0, 0.3, 0.5, 0.9], [0, 0.05, 0.06, 0.07]]),
    np.array([[1, 0.9, 0.8, 0.7], [1, 0.6, 0.5, 0.4], [1, 1, 1, 0.9]]),
    np.ones((3, 4)),
)


def test_each_prompt_skips_layers_that_cost_no_more_than_the_tolerance():
    assert within(COST, REAL.levels, 0.0).tolist() == [0, 0, 0]
    assert within(COST, REAL.levels, 0.15).tolist() == [2, 0, 3]
    layers, kl, fidelity, _ = REAL.of(within(COST, REAL.levels, 0.15))
    assert (layers, kl, fidelity) == pytest.approx((5 / 3, 0.27 / 3, 2.7 / 3))


def test_the_choice_is_the_one_of_a_model_that_runs():
    costs = np.maximum.accumulate(np.random.default_rng(0).uniform(0, 1, (200, 4)), axis=1)
    for tolerance in (0.05, 0.15, 0.3):
        found = within(costs, (0, 1, 2, 4, 7), tolerance)
        for row, index in zip(costs, found, strict=True):
            one = Prediction((1, 2, 4, 7), tuple(row.tolist()), (0, 1, 2, 3)).within(tolerance)
            assert (0 if one is None else one + 1) == index


def test_no_choice_of_levels_costs_less_at_the_same_mean():
    rng = np.random.default_rng(0)
    costs = np.cumsum(rng.uniform(0, 1, (4, 3)), axis=1)
    every = [np.array(one) for one in itertools.product(range(4), repeat=4)]
    padded = np.hstack([np.zeros((4, 1)), costs])
    for mean in (0.5, 1, 1.5, 2, 2.5):
        chosen = at_mean(costs, (0, 1, 2, 3), mean)
        least = min(padded[np.arange(4), one].sum() for one in every if one.sum() >= chosen.sum())
        assert padded[np.arange(4), chosen].sum() == pytest.approx(least)


def test_a_budget_at_a_mean():
    for mean in (0.5, 1, 1.5, 2, 3):
        chosen = at_mean(COST, REAL.levels, mean)
        assert chosen.mean() <= mean
    assert at_mean(COST, REAL.levels, 1).tolist() == [0, 0, 3]
    assert at_mean(COST, REAL.levels, 0.5).tolist() == [0, 0, 0]
    assert at_mean(COST, REAL.levels, 3).tolist() == [3, 3, 3]


def test_what_holds_for_prompts_kept_out_holds_for_new_ones():
    """Over many draws of prompts the mean fidelity of new ones is the target, and no more is given away."""
    rng = np.random.default_rng(0)

    def draw(n):
        hardness = rng.uniform(0, 1, n)
        levels = np.arange(1, 6)
        fidelity = 1 - np.clip(hardness[:, None] * levels / 10 + rng.normal(0, 0.02, (n, 5)), 0, 1)
        cost = hardness[:, None] * levels * np.exp(rng.normal(0, 0.3, (n, 1)))
        return cost, Outcomes((0, 1, 2, 3, 4, 5), np.zeros((n, 6)), np.hstack([np.ones((n, 1)), fidelity]), np.zeros((n, 6)))

    new, skipped = [], []
    for _ in range(300):
        cost, real = draw(60)
        tolerance = holding_tolerance(cost, real, 0.9)
        cost, real = draw(50)
        chosen = within(cost, real.levels, tolerance)
        new.append(real.fidelity[np.arange(50), chosen].mean())
        skipped.append(chosen.mean())
    assert np.mean(new) == pytest.approx(0.9, abs=0.01)
    assert np.mean(skipped) > 1


def test_a_share_for_all_holds_or_is_nothing():
    n = 200
    real = Outcomes((0, 1, 2), np.zeros((n, 3)), np.tile([1, 0.97, 0.9], (n, 1)), np.zeros((n, 3)))
    assert [holding_level(real, target) for target in (0.99, 0.95, 0.8)] == [0, 1, 2]
    assert holding_tolerance(np.ones((n, 2)), real, 0.99) == 0


def test_a_few_prompts_that_can_spare_layers_make_a_tolerance():
    """One layer for all would lose too much; the quarter of prompts that loses little has it, and the others none."""
    cost = np.repeat([[0.01], [0.5]], [10, 30], axis=0)
    fidelity = np.hstack([np.ones((40, 1)), np.repeat([[0.9], [0.6]], [10, 30], axis=0)])
    real = Outcomes((0, 1), np.zeros((40, 2)), fidelity, np.zeros((40, 2)))
    assert holding_level(real, 0.95) == 0
    assert holding_tolerance(cost, real, 0.95) == pytest.approx(0.01)  # 0.975 of all


# -- groups ---------------------------------------------------------------------------------------------------------------


def test_groups_are_tasks_where_these_are_few_and_clusters_elsewhere():
    read = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    read[20:] += 8
    assert groups_of(["b", "a"] * 20, read).tolist() == [1, 0] * 20
    for tasks in ([""] * 40, [f"t{i}" for i in range(40)], ["a"] * 39 + [""]):
        labels = groups_of(tasks, read)
        assert not set(labels[:20]) & set(labels[20:])


def test_clusters_are_what_is_near():
    centres = np.array([[0, 0], [10, 0], [0, 10]], np.float32)
    points = np.repeat(centres, 15, axis=0) + np.random.default_rng(1).normal(0, 1, (45, 2)).astype(np.float32)
    labels = k_means(points, 3)
    assert [len(set(labels[i : i + 15])) for i in (0, 15, 30)] == [1, 1, 1]
    assert len(set(labels)) == 3
    assert k_means(np.zeros((5, 2), np.float32), 3).tolist() == [0] * 5


# -- the result -----------------------------------------------------------------------------------------------------------


def test_a_calibration_is_read_as_it_was_written(tmp_path):
    rng = np.random.default_rng(0)
    one = Calibration(
        base=Base("llama", 4, 8, "f" * 64),
        sets=(LayerSet(1, (2,)), LayerSet(2, (1, 2))),
        read=(0, 3),
        weight=rng.normal(size=(2, 2, 8)).astype(np.float32),
        bias=rng.normal(size=2).astype(np.float32),
        norm_eps=1e-6,
        order=(2, 1, 3, 0),
        skippable=(True, True, True, False),
        fidelity=0.95,
        tolerance=0.123,
        share=0.25,
        margin=0.5,
        table=(TolerancePoint(0.1, 0.2, 0.05, 0.97),),
        origin={"source": "mine.txt", "levels_measured": [1, 2]},
    )
    one.save(str(tmp_path / "c.safetensors"))
    found = Calibration.load(str(tmp_path / "c.safetensors"))
    np.testing.assert_array_equal(found.weight, one.weight)
    np.testing.assert_array_equal(found.bias, one.bias)
    plain = {name: value for name, value in vars(one).items() if name not in ("weight", "bias")}
    assert {name: getattr(found, name) for name in plain} == plain


def test_another_file_is_no_calibration(tmp_path):
    from safetensors.numpy import save_file

    path = str(tmp_path / "c.safetensors")
    save_file({"weight": np.zeros(3, np.float32)}, path, metadata={"schema": "7", "calibration": json.dumps({})})
    with pytest.raises(RouterError, match="no calibration of schema 1"):
        Calibration.load(path)


# -- what it says -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "speed_up", "said"),
    [
        (3.0, 1.12, "skips 10% of its layers on average, 1.12 times as fast (byte limit 1.13)."),
        (3.0, None, "on average, at most 1.13 times as fast (this machine is too busy to measure it)."),
        (0.6, 0.99, "skips 2% of its layers on average, which gains no speed worth the name."),
        (0.0, 1.0, "cannot spare layers at fidelity 0.95: with one of 30 skipped, 0.900 is left, 1.03 times as fast"),
    ],
)
@pytest.mark.parametrize("kept_out", [19, 20])
def test_the_sentence_says_what_is_gained(layers, speed_up, said, kept_out):
    from first_cpp.calibrate.findings import sentence

    one = SimpleNamespace(system="searched", layers=1.0, fidelity=0.9, speed_up=1.03, byte_limit=1.04)
    last = SimpleNamespace(system="budget", layers=layers, speed_up=speed_up, byte_limit=1.13)
    calibration = SimpleNamespace(fidelity=0.95, base=SimpleNamespace(n_layer=30))
    found = sentence(SimpleNamespace(rows=[one, last], calibration=calibration, n_kept_out=kept_out))
    assert said in found
    assert ("That rests on 19 prompts: with more --minutes" in found) == (kept_out < 20)


def test_the_table_fits_a_terminal_and_says_where_the_machine_was_busy(monkeypatch):
    from first_cpp.calibrate import show
    from first_cpp.calibrate.findings import Row

    rows = [Row("budget, one set", 12.5, 1.234, 0.951, 12345.67, None, 1.25), Row("dense", 0.0, 0.0, 1.0, 1.5, 1.0, 1.0)]
    lines = show.table(SimpleNamespace(rows=rows)).splitlines()
    assert max(map(len, lines)) <= 80
    assert [cell.strip() for cell in lines[2].split("|")][1:-1] == [
        "12.5",
        "budget, one set",
        "1.234",
        "0.951",
        "12345.67",
        "busy",
        "1.25",
    ]
    monkeypatch.setattr(show.shutil, "get_terminal_size", lambda: SimpleNamespace(columns=30))
    text = "Written: some-folder/model-first.calibration.safetensors, another"
    assert show.wrapped(text) == text
    monkeypatch.setattr(show.sys, "stdout", SimpleNamespace(isatty=lambda: True))
    assert show.wrapped(text).splitlines() == ["Written:", "some-folder/model-first.calibration.safetensors,", "another"]


def test_no_speed_is_told_of_a_busy_machine():
    from first_cpp.calibrate.findings import Speed

    chosen = np.array([0, 2])
    assert Speed(np.array([4.0, 3.0, 2.0]), np.array([4.0, 3.0, 2.0])).of(chosen) == pytest.approx((4 / 3, 4 / 3))
    assert Speed(None, np.array([4.0, 3.0, 2.0])).of(chosen) == (None, pytest.approx(4 / 3))
