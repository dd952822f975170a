"""The validation loss, by task and skip share."""

from __future__ import annotations

import json

import pytest
import torch
from training import examples, make_routed, trainer

from first_cpp.train.examples import Example
from first_cpp.train.objective import Objective
from first_cpp.train.processes import Processes
from first_cpp.train.settings import Settings
from first_cpp.train.validation import prompt_scores, validate


def test_validation_while_training(tmp_path):
    run = trainer(tmp_path, "valid")
    found = run.run(examples(6), validate_every=4)
    rows = [json.loads(line) for line in (tmp_path / "valid" / "valid.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [4, 8, 10]
    assert rows[-1]["loss"]["mean"] == {str(share): loss for share, loss in found["mean"].items()}


def test_validation_is_by_task_and_share(hf):
    objective = Objective(make_routed(hf), Settings(), 1)
    group = [Example(f"t{i % 2}", e.prompt, e.response) for i, e in enumerate(examples(7))]
    found, scores = validate(objective, group, 3, lambda batch: batch, Processes())
    assert set(found) == {"mean", "t0", "t1"}
    for share in (0.0, 0.1, 0.25, 0.4):
        assert found["mean"][share] == pytest.approx((found["t0"][share] + found["t1"][share]) / 2)
    alone, _ = validate(objective, group[1::2], 1, lambda batch: batch, Processes())
    assert alone["t1"] == pytest.approx(found["t1"], abs=1e-4)
    assert found["mean"][0.4] != found["mean"][0.0]
    assert {task: len(keep) for task, keep in scores.items()} == {"t0": 4, "t1": 3}
    torch.testing.assert_close(
        scores["t1"].sort(0)[0],
        prompt_scores(objective.routed, group[1::2], 2, lambda batch: batch)["t1"].sort(0)[0],
    )


def test_a_dense_run_is_validated_dense(hf):
    found, _ = validate(Objective(make_routed(hf), Settings(max_share=0), 1), examples(3), 3, lambda batch: batch, Processes())
    assert list(found["mean"]) == [0.0]
