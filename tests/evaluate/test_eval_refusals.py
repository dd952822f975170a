"""What cannot be evaluated, and what may not be mixed into an evaluation."""

from __future__ import annotations

import os
import shutil

import pytest
from evaluating import evaluate

from first_cpp.evaluate.questions import read_questions


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--skip", "1.5"], "is not a share of layers"),
        (["--skip", "0,7"], "'7' is not a share of layers: a number of at least 0 and below 1, like 0.25"),
        (["--skip", "50%"], "'50%' is not a share of layers: a number of at least 0 and below 1, like 0.25\n"),
        (["--skip", "0.95"], "would skip all 6 layers"),
        (["--baselines", "influence"], "needs --calibrate"),
        (["--baselines", "odd"], "'odd' is unknown"),
        (["--row", "x"], "is not NAME=FILE"),
        (["--row", "x=nowhere.gguf"], "there is no file nowhere.gguf"),
        (["--reference", "tuned"], "tuned is no row"),
        (["--metric", "qa=rouge"], "is not TASK=KIND"),
        (["--metric", "q=answer"], "no question is of task 'q'; there are 'qa', 'translation', 'tldr', 'dialogue'"),
        (["--routers", "nowhere.gguf"], "there is no file nowhere.gguf"),
    ],
)
def test_what_cannot_be_evaluated(routed, data, tmp_path, capsys, args, message):
    assert evaluate(routed, data, tmp_path / "report", *args) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


def test_a_seed_below_0_is_refused_before_answers(routed, data, tmp_path, capsys):
    with pytest.raises(SystemExit):
        evaluate(routed, data, tmp_path / "report", "--seed", "-1")
    assert "argument --seed: '-1' is not a whole number of at least 0" in capsys.readouterr().err


def test_a_share_needs_routers(routed, tiny, data, tmp_path, capsys):
    assert evaluate(routed, data, tmp_path / "report", "--row", f"other={tiny}@0.34") == 2
    assert f"no routers in {tiny}" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", ":1: not JSON"),
        ('{"task": "qa", "response": "x"}', ":1: prompt is missing"),
        ('{"task": "qa", "prompt": "x", "response": ""}', ":1: response is empty"),
        ('{"task": "qa", "prompt": "x", "response": "y", "references": []}', "references is []"),
        ('{"task": "poem", "prompt": "x", "response": "y"}', "how is task 'poem' scored? Give --metric poem=KIND"),
    ],
)
def test_bad_data(routed, tmp_path, capsys, line, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(line + "\n")
    assert evaluate(routed, str(path), tmp_path / "report") == 2
    assert message in capsys.readouterr().err


def test_references_stand_without_a_response(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "Who?", "references": ["I", "me"]}\n')
    assert read_questions([str(path)])[0].references == ("I", "me")


def test_other_questions_do_not_mix_in(routed, data, tmp_path, capsys):
    out = tmp_path / "report"
    evaluate(routed, data, out, "--skip", "0")
    assert evaluate(routed, data, out, "--skip", "0", "--limit", "2") == 2
    assert "holds an evaluation with other questions" in capsys.readouterr().err


def test_other_models_and_layers_do_not_mix_in(routed, tiny, models, data, tmp_path, capsys):
    """A file made anew under the same name, and another set of as many layers, are other rows."""
    out, file = tmp_path / "report", tmp_path / "m.gguf"
    shutil.copy(routed, file)
    assert evaluate(str(file), data, out, "--skip", "0", "-t", "1") == 0
    os.remove(out / "answers.jsonl")  # as a run leaves it that was killed before its first answer: nothing can be mixed
    assert evaluate(str(file), data, out, "--skip", "0", "--row", f"set={file}@1,2") == 0
    assert evaluate(str(file), data, out, "--skip", "0,0.34", "--row", f"set={file}@1,2") == 0  # rows may be added
    assert evaluate(str(file), data, out, "--skip", "0", "--row", f"set={file}@1,3") == 2
    assert "holds an evaluation with other row set@2/6" in capsys.readouterr().err
    assert evaluate(str(file), data, out, "--skip", "0", "-t", "1") == 2
    assert "holds an evaluation with other threads" in capsys.readouterr().err
    raw = bytearray(file.read_bytes())
    raw[-200:] = bytes(200)
    file.write_bytes(raw)
    assert evaluate(str(file), data, out, "--skip", "0") == 2
    assert "holds an evaluation with other row dense" in capsys.readouterr().err


def test_answers_of_nobody_knows_what_are_refused(routed, data, tmp_path, capsys):
    out = tmp_path / "report"
    assert evaluate(routed, data, out, "--skip", "0") == 0
    os.remove(out / "run.json")
    assert evaluate(routed, data, out, "--skip", "0", "--limit", "2") == 2
    assert "holds answers without the run.json that says of what" in capsys.readouterr().err
    assert not (out / "run.json").exists()
