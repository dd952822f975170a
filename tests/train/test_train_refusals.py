"""What `first-cpp train` refuses, before expensive work, and what of others it leaves as it is."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
import reference
from training import Words, examples

from first_cpp.cli.folder_lock import check_unlocked
from first_cpp.cli.main import main
from first_cpp.gguf.synthetic import SHAPES
from first_cpp.train import option_checks
from first_cpp.train.asked_data import Data

USERS = '{"prompt": "a b c", "response": "b c"}\n' * 4


@pytest.mark.parametrize("share", ["--max-share", "--skip"])
@pytest.mark.usefixtures("tiny_hf")
def test_shares_that_leave_no_layer_are_refused_before_data_is_read(tmp_path, capsys, share):
    assert main(["train", "--model", "./m", "--data", "nowhere.jsonl", "--out", str(tmp_path / "run"), share, "0.95"]) == 2
    assert "would skip all 6 layers" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "change",
    [
        ["--max-share", "1"],
        ["--skip", "-0.1"],
        ["--batch-size", "0"],
        ["--rank", "-1"],
        ["--epochs", "-1"],
        ["--epochs", "nan"],
        ["--average", "1.5"],
        ["--passes", "0"],
        ["--distill", "-1"],
        ["--temperature", "0"],
        ["--limit", "0"],
        ["--layers", "even,3"],
    ],
    ids=" ".join,
)
def test_values_out_of_range_are_refused(capsys, change):
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--model", "none.gguf", "--data", "none", "--out", "none", *change])
    said = capsys.readouterr().err
    assert f"argument {change[0]}: " in said
    assert change[1] in said or "above 0" in said


@pytest.mark.parametrize(
    "change",
    [
        ["--recipe", "two-step", "--rank", "0"],
        ["--quantize", "Q4_0", "--rank", "0"],
        ["--teacher", "none", "--distill", "0"],
        ["--teacher", "none", "--recipe", "two-step"],
        ["--teacher", "answers"],
        ["--init", "none", "--rank", "0"],
        ["--sets", "none", "--skip", "0.25"],
        ["--start", "influence", "--layers", "even"],
        ["--start", "search", "--max-share", "0"],
        ["--search-data", "none", "--layers", "even"],
        ["--search-data", "none", "--layers", "1,2"],
        ["--search-data", "none", "--init", "none"],
    ],
    ids=" ".join,
)
def test_options_that_contradict_are_refused_before_anything_is_loaded(tmp_path, capsys, change):
    assert main(["train", "--model", "none.gguf", "--data", "none", "--out", str(tmp_path), *change]) == 2
    assert change[0] in capsys.readouterr().err


@pytest.mark.usefixtures("tiny_hf")
@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("valid.jsonl", ["--data", "d.jsonl", "--valid", "u/valid.jsonl"], "in place of your u/valid.jsonl"),
        ("valid.jsonl", ["--data", "d.jsonl"], "has a valid.jsonl that no run wrote"),
        ("log.csv", ["--data", "d.jsonl"], "has a log.csv that no run wrote"),
        ("prompts.jsonl", ["--prompts", "./u/prompts.jsonl"], "in place of your ./u/prompts.jsonl"),
        ("answers.jsonl", ["--data", "u/answers.jsonl"], "in place of your u/answers.jsonl"),
        ("answers.gguf", ["--data", "d.jsonl", "--model", "u/answers.gguf"], "in place of your u/answers.gguf"),
    ],
)
def test_files_of_the_user_s_in_the_folder_of_a_run_stay(tmp_path, capsys, monkeypatch, name, words, said):
    """A run would remove its valid.jsonl, of losses, and cut its prompts.jsonl."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "u").mkdir()
    (tmp_path / "u" / name).write_text(USERS)
    (tmp_path / "d.jsonl").write_text(USERS)
    assert main(["train", "--model", "m.gguf", "--rank", "0", "--quiet", *words, "--out", "u"]) == 2
    assert said in capsys.readouterr().err
    assert {one.name: one.read_text() for one in (tmp_path / "u").iterdir()} == {name: USERS}


@pytest.mark.usefixtures("tiny_hf")
def test_a_folder_that_another_run_writes_to_is_refused(tmp_path, capsys, monkeypatch):
    """Before its first checkpoint, too; a run that was killed holds nothing."""
    data, out = tmp_path / "data.jsonl", str(tmp_path / "run")
    data.write_text(USERS)
    words = ["train", "--model", "./m", "--data", str(data), "--out", out, "--rank", "0", "--layers", "even", "--quiet"]
    holds = "import time\nfrom first_cpp.cli.folder_lock import *\n"
    holds += f"with locked_folder({out!r}): print(1, flush=True), time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", holds], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"1\n"
        (tmp_path / "run" / "log.csv").write_text("step,loss\n1,2\n")
        for more in ([], ["--resume"]):
            assert main([*words, *more]) == 2
            assert "another command is writing to" in capsys.readouterr().err
        monkeypatch.setattr(option_checks, "check_unlocked", lambda _out: None)  # begun at the same moment
        assert main(words) == 2
        assert "another command is writing to" in capsys.readouterr().err
        assert (tmp_path / "run" / "log.csv").read_text() == "step,loss\n1,2\n"
        other.kill()
        other.wait()
    monkeypatch.undo()
    monkeypatch.setattr(
        "first_cpp.train.run_setup.load_model", lambda _path: (reference.make_model(SHAPES["tiny"], seed=2), Words())
    )
    assert main(words) == 0
    assert "step,loss,share" in (tmp_path / "run" / "log.csv").read_text()
    check_unlocked(out)


@pytest.mark.usefixtures("tiny_hf")
def test_a_run_that_ended_meanwhile_is_not_written_over(tmp_path, capsys, monkeypatch):
    data, out = tmp_path / "data.jsonl", tmp_path / "run"
    data.write_text(USERS)

    def reads(args, _tokenizer):
        out.mkdir()
        (out / "train.json").write_text("{}")  # as the other one ends
        return Data(examples(2), [], [])

    monkeypatch.setattr("first_cpp.train.run_setup.read_data", reads)
    assert main(["train", "--model", "./m", "--data", str(data), "--out", str(out), "--rank", "0", "--quiet"]) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert [one.name for one in out.iterdir()] == ["train.json"]


def test_a_missing_package_names_the_extra(tmp_path, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "peft" else find(name, *rest))
    assert main(["train", "--model", "./m", "--data", "d", "--out", str(tmp_path / "run")]) == 2
    assert 'peft, which is not installed: pip install "first-cpp[train]"' in capsys.readouterr().err
