"""`first-cpp tune`: what it splits, plans, refuses and resumes; the whole of it on a tiny model."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil

import llama_cpp
import pytest
import reference
from helpers import twins
from routers_files import routed_model
from training import Words

from first_cpp.cli.folder_lock import locked_folder
from first_cpp.cli.jsonl import DataError
from first_cpp.cli.main import main, setup_arg_parser
from first_cpp.errors import OptionError
from first_cpp.evaluate import asking, report
from first_cpp.gguf.model_file import ModelFile
from first_cpp.gguf.new_file import OutputError
from first_cpp.gguf.quantise import quantise, stored_type
from first_cpp.gguf.router_format import load_routers
from first_cpp.gguf.synthetic import SHAPES
from first_cpp.tune import command, job, stages, summary
from first_cpp.tune.examples_split import Split, metrics, read_records, split
from first_cpp.tune.job import Job, Settings, check_same_job
from first_cpp.tune.lengths import Lengths, longest
from first_cpp.tune.stages import Stage, run_stages


def records(n, task="t"):
    return [{"task": task, "prompt": f"Say {i} as {task} does, in a word.", "response": f"It is {i}."} for i in range(n)]


def written(path, lines):
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    return str(path)


# -- the split -------------------------------------------------------------------------------------------------------------


def test_parts_are_apart_whole_and_by_seed():
    data = [*records(40, "a"), *records(20, "b")]
    parts = split(data, seed=1)
    assert sorted(map(json.dumps, (*parts.train, *parts.valid, *parts.test))) == sorted(map(json.dumps, data))
    assert [sum(one["task"] == task for one in parts.test) for task in "ab"] == [8, 4]
    assert [sum(one["task"] == task for one in parts.valid) for task in "ab"] == [4, 2]
    assert split(data[::-1], seed=1).tasks == parts.tasks
    assert split(data, seed=2).test != parts.test == split(data, seed=1).test


def test_a_prompt_with_two_answers_is_in_one_part_and_lines_said_twice_count_once():
    data = [one for i in range(30) for one in ({"prompt": f"p{i}", "response": "a"}, {"prompt": f"p{i}", "response": "b"})]
    parts = split([*data, *data[:7]], seed=0)
    assert parts.dropped == 7
    for one, other in ((parts.train, parts.valid), (parts.train, parts.test), (parts.valid, parts.test)):
        assert not {record["prompt"] for record in one} & {record["prompt"] for record in other}


def test_as_many_lines_as_the_error_asks_for_are_enough():
    parts = split(records(30), seed=0)
    assert (len(parts.test), len(parts.valid) + len(parts.train)) == (6, 24)
    with pytest.raises(DataError, match="give 30 lines"):
        split(records(29), seed=0)


def test_large_files_keep_a_bounded_part_for_the_report():
    parts = split(records(2000), seed=0)
    assert (len(parts.test), len(parts.valid), len(parts.train)) == (100, 50, 1850)


@pytest.mark.parametrize(
    ("data", "given", "said"),
    [
        (records(20), {}, "beside 4 for the report: at least 24 without those are needed; give 30 lines"),
        (records(30), {"test": records(3)}, "3 prompts that are trained on too"),
        (records(30), {"test": []}, "nothing to test on"),
        (records(30), {"valid": []}, "nothing to validate on"),
    ],
    ids=["few", "overlap", "no test", "no valid"],
)
def test_examples_that_cannot_be_split_are_refused(data, given, said):
    with pytest.raises(DataError, match=said):
        split(data, seed=0, **given)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"prompt": "p"}', "data.jsonl:1: response is missing"),
        ('{"prompt": "p", "response": "r", "references": []}', "data.jsonl:1: references is []"),
        ("[]", "data.jsonl:1: expected an object"),
    ],
    ids=["response", "references", "object"],
)
def test_a_bad_line_is_named(tmp_path, line, said):
    (tmp_path / "data.jsonl").write_text(line + "\n")
    with pytest.raises(DataError) as error:
        read_records([str(tmp_path / "data.jsonl")])
    assert said in str(error.value)


def test_a_task_that_is_null_is_none(tmp_path):
    path = written(tmp_path / "data.jsonl", [{"prompt": "p", "response": "a", "task": task} for task in (None, "", "t", 7)])
    assert [one["task"] for one in read_records([path])] == ["", "", "t", "7"]


def test_tasks_are_scored_by_how_long_their_answers_are():
    long = [{"task": "story", "prompt": "p", "response": "word " * 40}]
    chinese = [{"task": "故事", "prompt": "p", "response": "很久很久以前有一座山、山里有一座庙。"}]  # no blanks between words
    found = metrics(Split(records(3, "rare"), [], [*records(3, "qa"), *records(3, ""), *long, *chinese]))
    assert found == ["=answer", "story=summary", "故事=summary"]  # what no test example is of is not scored


# -- what is refused before anything long ----------------------------------------------------------------------------------


def test_refusals_come_before_any_stage(tmp_path, tiny, capsys, monkeypatch):
    monkeypatch.setattr(command, "run_stages", lambda *_: pytest.fail("a stage began"))
    data, out = written(tmp_path / "data.jsonl", records(40)), str(tmp_path / "out")
    few = written(tmp_path / "few.jsonl", records(4))
    for words, said in (
        (["nowhere.jsonl"], "data file does not exist: nowhere.jsonl"),
        ([few], "at least 24"),
        ([data, "--quantize", "Q7_7"], "Q7_7 is not a type of llama.cpp"),
        ([data, "--quantize", "IQ1_S"], "needs an importance matrix"),
        ([data, "-m", "none.gguf"], "does not exist: none.gguf"),
    ):
        model = [] if "-m" in words else ["-m", tiny]
        assert main(["tune", *words, *model, "--out", out]) == 2
        assert said in capsys.readouterr().err
        assert not os.path.exists(out)


def test_a_folder_of_another_tuning_is_refused(tmp_path, tiny):
    model, parts = ModelFile.open(tiny), split(records(40), seed=0)
    settings = Settings("Q8_0", 4)
    check_same_job(str(tmp_path), model, parts, settings)
    check_same_job(str(tmp_path), model, parts, settings)
    for other_parts, other in ((parts, Settings("Q8_0", 8)), (split(records(41), seed=0), settings)):
        with pytest.raises(OptionError, match="rank" if other_parts is parts else "examples"):
            check_same_job(str(tmp_path), model, other_parts, other)
    (tmp_path / "twins").mkdir()
    one, merged_anew = map(ModelFile.open, twins(tmp_path))
    check_same_job(str(tmp_path / "twins"), one, parts, settings)
    with pytest.raises(OptionError, match="with other model"):
        check_same_job(str(tmp_path / "twins"), merged_anew, parts, settings)


@pytest.mark.parametrize("name", ["train.jsonl", "test.jsonl", "sets.gguf", "run", "m-tuned.gguf"])
def test_files_that_no_tuning_wrote_are_not_replaced(tmp_path, tiny, capsys, monkeypatch, name):
    """Data that lies there by the names of the parts, or another command's run that would be taken for a stage's."""
    monkeypatch.setattr(command, "run_stages", lambda *_: pytest.fail("a stage began"))
    shutil.copy(tiny, tmp_path / "m.gguf")
    mine = tmp_path / "mine"
    mine.mkdir()
    data = written(mine / ("train.jsonl" if name == "train.jsonl" else "data.jsonl"), records(40))
    if name == "run":
        (mine / "run").mkdir()
    elif name != "train.jsonl":
        (mine / name).write_text("mine")
    before = {one.name: one.read_bytes() for one in mine.iterdir() if one.is_file()}
    assert main(["tune", data, "-m", str(tmp_path / "m.gguf"), "--out", str(mine)]) == 2
    assert f"has {name} and no tune.json" in capsys.readouterr().err
    assert {one.name: one.read_bytes() for one in mine.iterdir() if one.is_file()} == before


def test_a_folder_that_another_tuning_writes_to_is_refused(tmp_path, tiny, capsys):
    data = written(tmp_path / "data.jsonl", records(40))
    with locked_folder(str(tmp_path / "out")):
        assert main(["tune", data, "-m", tiny, "--out", str(tmp_path / "out")]) == 2
    assert "another command is writing to" in capsys.readouterr().err
    assert not any((tmp_path / "out").iterdir())


def test_the_file_type_of_a_model(tmp_path, tiny, tiny_q8):
    assert stored_type(ModelFile.open(tiny)) == "F32"
    assert stored_type(ModelFile.open(tiny_q8)) == "Q8_0"
    small = str(tmp_path / "small.gguf")
    for kind in ("Q4_0", "Q4_K_M", "F16"):
        quantise(tiny, small, kind)
        assert stored_type(ModelFile.open(small)) == kind


# -- stages ----------------------------------------------------------------------------------------------------------------


def stage(tmp_path, name, work=None):
    result = tmp_path / name
    return Stage(name, f"do {name}", (str(result),), work or (lambda: (print(f"did {name}"), result.write_text(""))))


def test_a_rerun_goes_on_with_the_stage_that_was_stopped(tmp_path):
    said = []

    def stopped():
        raise KeyboardInterrupt

    three = [stage(tmp_path, "one"), stage(tmp_path, "two", stopped), stage(tmp_path, "three")]
    with pytest.raises(KeyboardInterrupt):
        run_stages(three, str(tmp_path), said.append)
    assert said[-1] == "stopped in stage 2 of 3, two; the same command goes on from there"
    assert not (tmp_path / "three").exists()
    said.clear()
    run_stages([three[0], stage(tmp_path, "two"), three[2]], str(tmp_path), said.append)
    assert said[:2] == ["[1/3] one: done before", "[2/3] two: do two"]
    assert (tmp_path / stages.LOG).read_text().count("did one") == 1
    assert "did three" in (tmp_path / stages.LOG).read_text()


@pytest.fixture
def tiny_job(tmp_path, tiny):
    parts = split([*records(40, "one"), *records(40, "two")], seed=0)
    return Job(ModelFile.open(tiny), str(tmp_path / "out"), parts, Settings("Q4_0", 4), Lengths(30, 9), 2)


def test_every_stage_is_a_command_line_that_exists(tiny_job, monkeypatch):
    ran = []
    monkeypatch.setattr(job, "run_verb", lambda *words: ran.append(setup_arg_parser().parse_args(words)))
    monkeypatch.setattr(job, "merge", lambda *_, **settings: ran.append(settings["quantize"]))
    for one in tiny_job.stages():
        one.work()
    sets, train, quantize, fit, evaluated = ran
    assert (sets.sidecar, sets.out) == (True, tiny_job.path("sets.gguf"))
    assert (train.sets, train.quantize) == (sets.out, "Q4_0")
    assert (quantize, fit.model, fit.out, fit.replace) == ("Q4_0", tiny_job.merged, tiny_job.tuned, True)
    assert (sets.sets, fit.sets) == (None, sets.out)
    assert (evaluated.base, evaluated.model, evaluated.reference) == (tiny_job.model.path, tiny_job.tuned, "base")
    assert sets.prompts == fit.prompts != evaluated.data[0]


def test_a_report_that_was_stopped_goes_on_with_other_threads(tiny_job, tiny, tmp_path, monkeypatch):
    """`eval` refuses to mix the answers of both, and names a folder that the user never gave."""
    monkeypatch.setattr(Job, "tuned", routed_model(tiny, tmp_path))
    for folder in (tiny_job.out, tiny_job.path("report")):
        os.makedirs(folder)
    tiny_job.parts.write(tiny_job.out)
    with open(tiny_job.path("test.jsonl"), "w") as file:
        few = {one["task"]: one for one in tiny_job.parts.test}.values()
        file.writelines(json.dumps(one) + "\n" for one in few)
    stopped = dataclasses.replace(tiny_job, quiet=True)
    answered = asking._answer
    monkeypatch.setattr(asking, "_answer", lambda llm, question, _n: answered(llm, question, 2))

    def killed(*_):
        raise KeyboardInterrupt

    write = report.write
    monkeypatch.setattr(report, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        stopped.stages()[4].work()
    assert os.path.exists(tiny_job.path("report/answers.jsonl"))
    monkeypatch.setattr(report, "write", write)
    dataclasses.replace(stopped, threads=1).stages()[4].work()
    assert tiny_job.stages()[4].done


def stage_that_fails(tiny_job, monkeypatch, error):
    """The calibration of a merged model, whose verb raises `error`."""
    os.makedirs(tiny_job.out)
    with open(tiny_job.merged, "w") as file:
        file.write("merged")

    def refuses(*_words):
        raise error

    monkeypatch.setattr(job, "run_verb", refuses)
    return tiny_job.stages()[3]


def test_a_tuned_model_that_cannot_be_calibrated_keeps_its_sets(tiny_job, monkeypatch, capsys):
    fit = stage_that_fails(tiny_job, monkeypatch, DataError("the model gave 0 answers of 2 tokens or more"))
    fit.work()
    assert fit.done
    assert not os.path.exists(tiny_job.merged)
    assert "not calibrated again: the model gave 0 answers" in capsys.readouterr().err


def test_a_full_disk_is_no_reason_to_leave_the_calibration_out(tiny_job, monkeypatch):
    fit = stage_that_fails(tiny_job, monkeypatch, OutputError("tuned.gguf needs 9 bytes, the folder has 3 free"))
    with pytest.raises(OutputError):
        fit.work()
    assert not fit.done
    assert os.path.exists(tiny_job.merged)


def test_the_plan_fits_80_columns_and_promises_only_what_is_known(tiny_job):
    ahead = tiny_job.stages()
    text = command._plan(["data.jsonl"], dataclasses.replace(tiny_job, out="tuned"), ahead)
    assert max(map(len, text.splitlines())) <= 80, text
    for one in ahead:
        assert f". {one.name}" in text
    assert "80 examples of 2 tasks" in text
    words = " ".join(text.split())
    assert (
        "time: calibrate: about 60 seconds each, more with a large model; train and eval: measured and said as each begins."
        in words
    )
    os.makedirs(tiny_job.path("run"))
    with open(tiny_job.path("run/train.json"), "w"):
        words = " ".join(command._plan(["data.jsonl"], tiny_job, ahead).split())
    assert "more with a large model; eval: measured and said" in words
    open(tiny_job.tuned, "w").close()
    os.makedirs(tiny_job.path("report"))
    for name in ("sets.gguf", "report/report.json"):
        open(tiny_job.path(name), "w").close()
    assert "time:" not in command._plan(["data.jsonl"], tiny_job, ahead)


def test_the_longest_prompt_and_response_may_be_in_any_part(tiny):
    def one(prompt, response):
        return {"prompt": prompt, "response": response}

    parts = Split([one("a", "b")], [one("a prompt that is longer", "b")], [one("a", "a long response")])
    with contextlib.closing(llama_cpp.Llama(tiny, vocab_only=True, verbose=False)) as llm:
        prompt = len(llm.tokenize(b"a prompt that is longer"))  # this model has no chat template
        response = len(llm.tokenize(b"a long response", add_bos=False)) + 1  # and the end
    assert longest(ModelFile.open(tiny), parts) == Lengths(prompt, response)


def test_the_summary_sets_the_tuned_model_beside_the_one_that_came(tiny_job):
    def row(system, share, score, tpot, skipped):
        scores = {"one": {"F1": score, "EM": 0.0}, "two": {"F1": score / 2, "EM": 0.0}}
        return {"system": system, "share": share, "scores": scores, "tpot_ms": tpot, "share_skipped": skipped}

    rows = [
        row("base", 0, 20, 10, 0),
        row("dense", 0, 80, 10, 0),
        row("budget", 0.25, 70, 8, 0.2),
        row("auto", 0.1, 79, 0, 0.1),
    ]
    lines = summary.table({"tasks": {"one": 8, "two": 8}, "rows": rows})
    assert lines == [
        "                          one F1  two F1  skipped  tokens/s",
        "the model as it came        20.0    10.0       0%       100",
        "tuned, nothing skipped      80.0    40.0       0%       100",
        "tuned, 25% on average       70.0    35.0      20%       125",
        "tuned, each prompt's own    79.0    39.5      10%",
    ]
    assert summary._ending(tiny_job).splitlines()[-2:] == [
        f"  first-cpp chat -m {tiny_job.tuned}",
        f"  first-cpp serve -m {tiny_job.tuned}",
    ]


@pytest.mark.slow  # calibrates twice, each for as long as it may
def test_a_tiny_model_is_tuned_and_a_rerun_does_nothing_again(tmp_path, tiny_q8, capsys, monkeypatch):
    monkeypatch.setattr(
        "first_cpp.train.run_setup.load_model", lambda _path: (reference.make_model(SHAPES["tiny"], seed=2), Words())
    )
    data, out = written(tmp_path / "data.jsonl", records(44)), str(tmp_path / "out")
    words = ["tune", data, "-m", tiny_q8, "--out", out, "--rank", "2", "--epochs", "0.3", "--minutes", "0.1", "-t", "1"]
    assert main(words) == 0, capsys.readouterr().err
    first = capsys.readouterr()
    tuned = os.path.join(out, "tiny-q8_0-tuned.gguf")
    assert "the model as it came" in first.out
    assert f"first-cpp chat -m {tuned}" in first.out
    assert max(map(len, first.out.splitlines()[2:6])) <= 80
    assert stored_type(ModelFile.open(tuned)) == "Q8_0"
    assert load_routers(tuned).cost is not None
    assert not os.path.exists(os.path.join(out, "merged.gguf"))
    rows = json.loads((tmp_path / "out" / "report" / "report.json").read_text())["rows"]
    assert [one["system"] for one in rows][:2] == ["base", "dense"]
    before = os.stat(tuned).st_mtime_ns
    assert main(words) == 0
    again = capsys.readouterr()
    assert again.err.count("done before") == 5
    assert (again.out, os.stat(tuned).st_mtime_ns) == (first.out, before)
    assert main([*words[:-6], "--epochs", "0.5", "--minutes", "0.1", "-t", "1"]) == 2
    assert "holds a tuning with other epochs" in capsys.readouterr().err
