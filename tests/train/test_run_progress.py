"""The plan of a run: the parts of its estimate, and the one bar over all phases."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest
import reference
import torch
from torch.utils.flop_counter import FlopCounterMode
from training import Words, examples, lora_trainer

from first_cpp.cli.main import main, setup_arg_parser
from first_cpp.gguf.quantise import quantise
from first_cpp.gguf.synthetic import SHAPES
from first_cpp.streams import quick_copy
from first_cpp.train import asked_data, dense_answers, phase_times, run_plan
from first_cpp.train.dense_answers import ANSWERS as ANSWER_FILE
from first_cpp.train.dense_answers import Kept
from first_cpp.train.phase_times import Pace, Work, phases
from first_cpp.train.run_progress import ANSWERS, PREDICTIONS, STEPS, VALIDATION, Counter, Phase, RunProgress
from first_cpp.train.settings import Settings

PACE = Pace(prompt=0.5, answer=0.25, step=2.0, update=0.125, rounding=0.75, work=50.0)
PLAN = [Phase(ANSWERS, 10.0), Phase(PREDICTIONS, 4.0), Phase(STEPS, 30.0), Phase(VALIDATION, 6.0)]


class FakeClock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize("quiet", [True, False])
def test_a_task_s_name_is_no_markup(capsys, quiet):
    """Names of tasks are the user's; rich ends with an error for a mark that closes nothing."""
    with RunProgress(PLAN, quiet) as progress:
        progress.word("ordering the layers for [/b]")
        progress.say("task [red] and [/i] \33[2J takes its own order")
    assert "task [red] and [/i] \\x1b[2J takes its own order" in capsys.readouterr().err


def test_an_estimates_parts_add_up():
    """Each kind of work alone, and all of them together."""
    works = {
        "prompts": (Work(prompts=7.0), 7.0),
        "dense answers": (Work(answers=11.0), 11.0),
        "predicted costs": (Work(predicted=6), 3.0),
        "order of the layers": (Work(searched=2), 2 * (0.5 + 6 * 2.5 / 2 * 0.25)),
        "fitting the routers": (Work(fitted=10), 5.0),
        "validation": (Work(valid=4, shares=3), 4 * 1.25),
    }
    for name, (work, seconds) in works.items():
        assert phases(PACE, work, 6) == [Phase(name, pytest.approx(seconds))]
    steps = {one.name: one.seconds for one in phases(PACE, Work(examples=8, work=25.0, steps=2, updates=6), 6)}
    assert steps == {
        STEPS: 8 * 0.5 * 2.0 + 6 * 0.125 + 2 * 0.75,
        VALIDATION: 8 * 0.5,
    }  # without validation data keep scores are read
    whole = Work(7.0, 11.0, 6, 2, 10, 8, 2, 25.0, 6, valid=4, shares=3, validations=2)
    wanted = sum(seconds for _, seconds in works.values()) + 8 * 0.5 * 2.0 + 6 * 0.125 + 2 * 0.75 + 2 * 4 * 1.25
    assert sum(one.seconds for one in phases(PACE, whole, 6)) == pytest.approx(wanted)


def test_what_remains_by_a_clock():
    clock = FakeClock()
    progress = RunProgress(PLAN, clock=clock)
    assert (progress.total, progress.done, progress.remaining()) == (50, 0, 50)
    step = progress.begin(ANSWERS)
    clock.now += 3
    assert progress.remaining() == 47  # as planned, as long as nothing is known
    clock.now += 7
    step(1, 2)  # 10 seconds for a half: 20 for all, of which 10 remain
    assert progress.done == 5
    assert 45 < progress.remaining() < 50
    assert progress.remaining() == pytest.approx(40 + 0.5 * (0.1 * 10 + 10) / 0.6)
    before = progress.remaining()
    clock.now += 2
    assert progress.remaining() == pytest.approx(before - 2)
    clock.now += 1000
    assert progress.remaining() == 40
    step(2, 2)
    assert (progress.done, progress.remaining()) == (10, 40)


def test_phases_that_never_come_and_unplanned_ones():
    clock = FakeClock()
    progress = RunProgress(PLAN, clock=clock)
    more = Counter(progress.begin(STEPS), 3)  # predictions were planned, and are not needed
    assert (progress.done, progress.remaining()) == (14, 36)
    clock.now += 10
    more()
    assert progress.done == 24
    assert progress.remaining() == pytest.approx(6 + 20)
    progress.begin("another")(1, 1)
    assert (progress.done, progress.remaining()) == (44, 6)
    progress.begin(VALIDATION)(1, 1)
    assert (progress.done, progress.remaining()) == (50, 0)


def test_measuring_changes_nothing(tmp_path):
    run = lora_trainer(tmp_path, Settings(quantize="Q4_0", batch_size=4, layers="search"), examples(9))
    weights = {name: p.detach().clone() for name, p in run.lora.named_parameters()}
    random, order = torch.random.get_rng_state(), run.objective.order
    pace = phase_times.measure(run, run.examples)
    assert min(pace.prompt, pace.answer, pace.step, pace.update, pace.rounding) > 0
    assert pace.step > pace.answer
    assert all(torch.equal(p, weights[name]) for name, p in run.lora.named_parameters())
    assert all(p.grad is None for p in run.parameters)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert (run.objective.order, len(run.optimizer.state)) == (order, 0)


@pytest.fixture
def tiny_hf(monkeypatch):
    monkeypatch.setattr(
        "first_cpp.train.run_setup.load_model", lambda _path: (reference.make_model(SHAPES["tiny"], seed=2), Words())
    )


@pytest.fixture
def words(tmp_path):
    """A run over prompts that the dense model answers."""
    model, prompts = str(tmp_path / "m.gguf"), tmp_path / "p.jsonl"
    reference.write_gguf(model, reference.make_model(SHAPES["tiny"], seed=2), SHAPES["tiny"])
    prompts.write_text("".join(json.dumps({"prompt": f"Say {'a ' * (i % 20)}word {i}"}) + "\n" for i in range(40)))
    given = ["train", "--model", model, "--prompts", str(prompts), "-n", "9", "--out", str(tmp_path / "run"), "--rank", "2"]
    return [
        *given,
        "--layers",
        "3,4",
        "--max-share",
        "0.3",
        "--batch-size",
        "2",
        "--precision",
        "float32",
        "--quantize",
        "Q4_0",
    ]


@pytest.mark.usefixtures("tiny_hf")
def test_the_plan_comes_before_the_dense_answers(tmp_path, words, monkeypatch, capsys):
    answered, plan = [], run_plan.plan

    def watched(args, run, of):
        answered.append(len((tmp_path / "run" / ANSWER_FILE).read_text().splitlines()))
        assert [one.name for one in of] == [ANSWERS, STEPS, VALIDATION]
        assert run.asked.answer_seconds == next(one.seconds for one in of if one.name == ANSWERS) > 0
        return plan(args, run, of)

    monkeypatch.setattr(run_plan, "plan", watched)
    assert main([*words, "--stop-after", "1"]) == 0
    assert answered == [asked_data.SAMPLE]
    error = capsys.readouterr().err
    assert "plan: 40 examples" in error
    assert "20 steps of 2, 3 updates each" in error
    assert "dense answers" in error
    assert error.count("100%") <= 1  # one bar
    record = json.loads((tmp_path / "run" / "train.json").read_text())
    assert record["steps"] == 1
    assert "(40 examples)" in record["data"]


@pytest.mark.usefixtures("tiny_hf")
def test_a_run_that_was_stopped_after_an_empty_answer_goes_on(tmp_path, words):
    """An empty answer is given first, and may be all that there is: nothing can be measured on it, but on the others."""
    args = setup_arg_parser().parse_args(words)
    asked = asked_data.AskedData(args)
    ((first, key), *_) = dense_answers._wanted(args.model, asked._prompts, asked._ask)
    record = {"key": key, "task": "", "prompt": first.text, "prompt_tokens": [1], "response": "", "tokens": [], "end": 2}
    Kept(str(tmp_path / "run" / ANSWER_FILE)).add(record)
    assert main([*words, "--stop-after", "1"]) == 0


@pytest.mark.usefixtures("tiny_hf")
def test_a_run_says_what_it_does_not_learn(tmp_path, words, capsys):
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": "word " * n}) + "\n" for n in (1, 2, 200)))
    assert main([*words, "--max-prompt", "64", "--stop-after", "1"]) == 0
    assert "1 of 3 answers are not learned: 1 to a prompt longer than --max-prompt 64" in capsys.readouterr().err


@pytest.mark.usefixtures("tiny_hf")
@pytest.mark.parametrize("stopped", [False, True])
def test_one_quick_copy_answers_all(tmp_path, words, monkeypatch, stopped):
    """The answers before the plan, those after it and those to validate on; it is gone where the run ends at the plan, too."""
    made, plan = [], run_plan.plan

    def copied(model, out, kind):
        made.append(out)
        quantise(model, out, kind)

    def planned(*given):
        if stopped:
            raise KeyboardInterrupt
        return plan(*given)

    monkeypatch.setattr(quick_copy, "SLOW_IN_BATCHES", ("f32",))
    monkeypatch.setattr(quick_copy, "quantise", copied)
    monkeypatch.setattr(run_plan, "plan", planned)
    valid = tmp_path / "v.jsonl"
    valid.write_text('{"prompt": "Say another word"}\n')
    assert main([*words, "--valid", str(valid), "--stop-after", "1"]) == (130 if stopped else 0)
    assert made == [str(tmp_path / "run" / "answers.gguf")]
    assert not (tmp_path / "run" / "answers.gguf").exists()
    assert len((tmp_path / "run" / ANSWER_FILE).read_text().splitlines()) == (asked_data.SAMPLE if stopped else 41)


@pytest.mark.slow  # trains twice
@pytest.mark.usefixtures("tiny_hf")
def test_a_plan_changes_no_weight(tmp_path, words):
    """With a plan, which measures on some answers first, and without one."""
    rows = []
    for out, more in (("loud", []), ("quiet", ["--quiet"])):
        words[words.index("--out") + 1] = str(tmp_path / out)
        assert main([*words, "--stop-after", "3", *more]) == 0
        rows.append([line.rsplit(",", 1)[0] for line in (tmp_path / out / "log.csv").read_text().splitlines()])
    assert rows[0] == rows[1]
    assert len(rows[0]) == 4


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_hf")
@pytest.mark.parametrize("more", [[], ["--max-share", "0", "--batch-size", "8"]], ids=["sets", "dense"])
def test_an_estimate_is_within_a_factor_of_two(words, monkeypatch, more):
    """Of what torch computes from the plan to the end of training, on a clock that its operations move."""
    seen, plan = [], run_plan.plan

    def watched(args, run, of):
        seen.append((sum(one.seconds for one in of if one.name in (STEPS, VALIDATION)), work.get_total_flops()))
        return plan(args, run, of)

    monkeypatch.setattr(run_plan, "plan", watched)
    with FlopCounterMode(display=False) as work:
        monkeypatch.setattr(phase_times, "time", SimpleNamespace(perf_counter=work.get_total_flops))
        assert main([*words, "--limit", "16", *more]) == 0
    estimated, before = seen[0]
    assert 0.5 < estimated / (work.get_total_flops() - before) < 2


def test_parts_in_lines():
    (line,) = run_plan.parts([Phase("steps", 30.0), Phase("validation", 90.0)])
    assert re.fullmatch(r"      steps 30 seconds, validation 90 seconds", line)
    assert run_plan.parts([Phase("steps", 30.0)]) == []
