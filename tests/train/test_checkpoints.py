"""Checkpoints and logs: a resumed run ends as an unbroken one, and a run that is another one's is refused."""

from __future__ import annotations

import json
import math
import pathlib
import signal

import pytest
import torch
from training import examples, lora_trainer, trainer

from first_cpp.train import trainer as training_loop
from first_cpp.train.checkpoint import steps_done
from first_cpp.train.interrupts import held_interrupts
from first_cpp.train.layer_orders import start_orders
from first_cpp.train.objective import Objective
from first_cpp.train.settings import Settings, TrainingError
from first_cpp.train.trainer import Trainer


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing stopped."""
    run = trainer(tmp_path_factory.mktemp("unbroken"), "whole")
    run.run([], quiet=True)
    return run


def test_resumed_run_ends_as_an_unbroken_one(whole, tmp_path, monkeypatch):
    broken = trainer(tmp_path, "broken")
    update = Trainer._update

    def dies(self):
        if self.step == 7:
            raise KeyboardInterrupt
        update(self)

    monkeypatch.setattr(Trainer, "_update", dies)
    with pytest.raises(KeyboardInterrupt):
        broken.run([], quiet=True)
    monkeypatch.undo()
    again = trainer(tmp_path, "broken")
    again.resume()
    assert again.step == 6
    again.run([], quiet=True)
    for one, two in zip(whole.parameters, again.parameters, strict=True):
        assert torch.equal(one, two)
    logs = [pathlib.Path(run.out, "log.csv").read_text().split() for run in (whole, again)]
    rows = [[line.split(",")[:3] for line in log] for log in logs]
    assert rows[0] == rows[1]


def test_a_run_that_stops_early_goes_on_as_an_unbroken_one(whole, tmp_path):
    part = trainer(tmp_path, "part")
    part.run([], quiet=True, stop_after=4)
    assert part.step == 4
    again = trainer(tmp_path, "part")
    again.resume()
    again.run([], quiet=True)
    assert again.step == whole.step
    for one, two in zip(whole.parameters, again.parameters, strict=True):
        assert torch.equal(one, two)


def test_resume_keeps_the_order_of_layers(tmp_path):
    run = trainer(tmp_path, "run", layers="search")
    start_orders(run, None, False)
    run.run([], quiet=True, stop_after=2)
    again = trainer(tmp_path, "run", layers="search")
    again.resume()
    assert again.objective.order == run.objective.order != []


def test_resume_of_another_run_is_refused(tmp_path):
    trainer(tmp_path, "a", epochs=0.5).run([], quiet=True)
    with pytest.raises(TrainingError, match="other settings: seed"):
        trainer(tmp_path, "a", epochs=0.5, seed=1).resume()
    with pytest.raises(TrainingError, match="no checkpoint"):
        trainer(tmp_path, "b").resume()
    with pytest.raises(TrainingError, match=r"other settings: layers that --layers names$"):
        trainer(tmp_path, "a", epochs=0.5, order=(3, 1, 0, 2, 4, 5)).resume()
    other = trainer(tmp_path, "a", epochs=0.5)
    other.routed.temperature = 0.2
    with pytest.raises(TrainingError, match=r"other settings: temperature$"):
        other.resume()
    other = trainer(tmp_path, "a", epochs=0.5)
    other.examples = other.examples[1:]
    with pytest.raises(TrainingError, match=r"other settings: examples$"):
        other.resume()
    other = trainer(tmp_path, "a", epochs=0.5)
    other.parameters.append(torch.zeros(3))
    with pytest.raises(TrainingError, match=r"other settings: rank or model$"):
        other.resume()
    with pytest.raises(TrainingError, match=r"other settings: weights of the model$"):  # of the same shape
        trainer(tmp_path, "a", epochs=0.5, model_seed=3).resume()


@pytest.mark.parametrize("settings", [{"quantize": "Q4_0"}, {"precision": "bf16"}])
def test_a_base_that_training_rounds_is_still_the_model_of_the_run(tmp_path, settings):
    values = Settings(batch_size=4, layers="even", **settings)
    lora_trainer(tmp_path, values, examples(8)).run([], quiet=True, stop_after=1)
    again = lora_trainer(tmp_path, values, examples(8))
    again.resume()
    assert again.step == 1


def test_a_checkpoint_of_before_there_was_a_record_of_the_weights_is_taken(tmp_path):
    first = trainer(tmp_path, "a", epochs=0.5)
    del first._depends_on["weights of the model"]
    first.run([], quiet=True)
    again = trainer(tmp_path, "a", epochs=0.5)
    again.resume()
    assert again.step == first.step


def test_logs_hold_one_run(tmp_path):
    """Neither what was written after the checkpoint, nor what a run that left none wrote."""
    valid = examples(4, seed=70)
    run = trainer(tmp_path, "run", epochs=0.5)
    run.run(valid, validate_every=2, quiet=True)
    path = tmp_path / "run" / "valid.jsonl"
    whole = [line["step"] for line in map(json.loads, path.read_text().splitlines())]
    assert whole == [2, 4, 5]
    run.step = 3
    run.save()
    log = tmp_path / "run" / "log.csv"
    logged = log.read_bytes().splitlines(keepends=True)
    assert len(logged) == 1 + 5
    log.write_bytes(b"".join([*logged, b"1"]))  # of a row 10, killed
    again = trainer(tmp_path, "run", epochs=0.5)
    again.resume()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [2]
    assert log.read_bytes().splitlines(keepends=True) == logged[:4]
    log.write_bytes(b"step,lo")  # killed amid the very first
    again.resume()
    again.log.add_step(4, 1.0, 0.5, 2.0)
    assert log.read_bytes().splitlines(keepends=True) == [logged[0], b"4,1.000000,0.5000,2.0\r\n"]
    again.log.start()
    assert not path.exists()
    assert not log.exists()


def test_nan_loss_stops_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    run = trainer(tmp_path, "nan")
    passes = Objective.passes
    nan = (torch.tensor(math.nan), 0.0)
    monkeypatch.setattr(Objective, "passes", lambda *a: iter([nan]) if run.step == 5 else passes(*a))
    with pytest.raises(TrainingError, match="loss is nan at step 6"):
        run.run([], quiet=True)
    assert torch.load(tmp_path / "nan" / "checkpoint.pt", weights_only=True)["step"] == 3


@pytest.mark.parametrize("step", [2, 9])  # a checkpoint is due after the third step; the tenth is the last
def test_weights_that_are_not_finite_are_never_kept(tmp_path, monkeypatch, step):
    """A gradient may overflow where the loss does not: no later loss would say so after the last step."""
    run = trainer(tmp_path, "run")
    assert run.n_steps == 10
    update = Trainer._update

    def overflows(self):
        update(self)
        if self.step == step:
            self.parameters[0].data[0, 0] = math.inf

    monkeypatch.setattr(Trainer, "_update", overflows)
    kept = "there is no checkpoint yet in" if step == 2 else "the last checkpoint in"
    with pytest.raises(TrainingError, match=f"weights are not finite after step {step + 1}; {kept}"):
        run.run([], quiet=True)
    path = tmp_path / "run" / "checkpoint.pt"
    assert (torch.load(path, weights_only=True)["step"] if path.exists() else 0) == (0 if step == 2 else 9)


@pytest.mark.parametrize("content", [b"", b"PK\3\4 cut off", None])
def test_a_checkpoint_that_cannot_be_read_is_an_error(tmp_path, content):
    path = tmp_path / "run" / "checkpoint.pt"
    run = trainer(tmp_path, "run")
    if content is None:
        torch.save({"weights": torch.zeros(2)}, path)
    else:
        path.write_bytes(content)
    for read in (run.resume, lambda: steps_done(str(path.parent))):
        with pytest.raises(TrainingError, match=r"checkpoint.pt is (not a readable|no) checkpoint"):
            read()


def test_ctrl_c_ends_a_run_after_its_step_with_a_checkpoint(whole, tmp_path, monkeypatch):
    stopped = trainer(tmp_path, "stopped")
    update = Trainer._update

    def interrupts(self):
        if self.step == 4:
            signal.raise_signal(signal.SIGINT)  # amid the step
            monkeypatch.undo()
        update(self)

    monkeypatch.setattr(Trainer, "_update", interrupts)
    with pytest.raises(KeyboardInterrupt):
        stopped.run([], quiet=True)
    again = trainer(tmp_path, "stopped")
    again.resume()
    assert again.step == 5
    again.run([], quiet=True)
    for one, two in zip(whole.parameters, again.parameters, strict=True):
        assert torch.equal(one, two)


def test_the_second_ctrl_c_ends_at_once():
    with held_interrupts() as interrupted:
        assert not interrupted()
        signal.raise_signal(signal.SIGINT)
        assert interrupted()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_checkpoints_come_by_time(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(training_loop.time, "monotonic", lambda: now[0])
    run = trainer(tmp_path, "run", epochs=0.1)
    del run.is_due  # the helper's, by steps
    run.checkpoint_seconds = 60.0
    for seconds, due in ((59.0, False), (61.0, True)):
        now[0] = seconds
        assert run.is_due() is due
    run.save()
    assert not run.is_due()
