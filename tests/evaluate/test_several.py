"""`first-cpp eval --streams`: answers decoded together are those of each prompt alone."""

from __future__ import annotations

import json

import pytest
from evaluating import QUESTIONS, evaluate
from routers_files import budget_routers, routed_model

from first_cpp.evaluate import several
from first_cpp.evaluate.answer_file import AnswerFile
from first_cpp.gguf.cost_probes import TolerancePoint
from first_cpp.gguf.embed import embed

TABLE = (TolerancePoint(0.02, 0.1, 0.02, 0.98), TolerancePoint(0.2, 0.5, 0.2, 0.9))
ROWS = ["--skip", "0,0.3,0.5", "--baselines", "even,last", "--kl", "1"]


@pytest.fixture(scope="module")
def budget(tiny, models):
    path = str(models / "budget-several.gguf")
    embed(budget_routers(tiny, scale=0.05, table=TABLE, tolerance=0.06), tiny, path, quiet=True)
    return path


def answers(folder) -> dict[tuple[str, int], dict]:
    lines = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    assert len({(one["row"], one["question"]) for one in lines}) == len(lines)
    return {(one["row"], one["question"]): one for one in lines}


def same(together: dict, alone: dict) -> None:
    assert together.keys() == alone.keys()
    for key, one in together.items():
        untimed = {name: value for name, value in alone[key].items() if not name.endswith("_ms")}
        if "kl" in untimed:
            untimed["kl"] = pytest.approx(untimed["kl"], rel=0.01, abs=1e-4)
        assert one == untimed


@pytest.mark.parametrize("streams", [2, 16])
def test_answers_are_those_of_each_prompt_alone(budget, routed, tiny, data, tmp_path, monkeypatch, streams):
    """Rows of three files, with the layers that the prompts choose, fixed ones and none; the dense one is not the first."""
    rows = [*ROWS, "--base", tiny, "--row", f"routed={routed}@0.34", "--row", f"set={routed}@1,4"]
    assert evaluate(budget, data, tmp_path / "alone", *rows) == 0
    assert evaluate(budget, data, tmp_path / "together", *rows, "--streams", str(streams)) == 0
    found = answers(tmp_path / "together")
    same(found, answers(tmp_path / "alone"))
    assert len({tuple(one["skipped_layers"]) for (row, _), one in found.items() if row == "budget@0.3"}) > 1
    assert {number for (row, number), one in found.items() if "kl" in one} == {0, 2, 4, 5}


def test_memory_may_be_short(budget, routed, data, tmp_path, monkeypatch):
    """Each question is a block of its own then, and each prompt held alone."""
    rows = [*ROWS, "--row", f"set={routed}@1,4", "--streams", "4"]
    assert evaluate(budget, data, tmp_path / "whole", *rows) == 0
    monkeypatch.setattr(several, "MOST_KEPT", 1)
    assert evaluate(budget, data, tmp_path / "short", *rows) == 0
    same(answers(tmp_path / "short"), answers(tmp_path / "whole"))


def test_a_side_file_is_read_beside_the_model(tiny, data, tmp_path):
    side = routed_model(tiny, tmp_path, 4, sidecar=True)
    rows = ["--routers", side, "--skip", "0,0.34", "--row", f"base={tiny}"]
    assert evaluate(tiny, data, tmp_path / "alone", *rows) == 0
    assert evaluate(tiny, data, tmp_path / "together", *rows, "--streams", "3") == 0
    same(answers(tmp_path / "together"), answers(tmp_path / "alone"))


def test_a_report_without_times(routed, data, tmp_path, capsys):
    """No answer has a time of its own."""
    assert evaluate(routed, data, tmp_path / "report", "--skip", "0,0.34", "--streams", "4") == 0
    assert "TPOT" not in capsys.readouterr().out
    rows = json.loads((tmp_path / "report" / "report.json").read_text())["rows"]
    assert [(one["tpot_ms"], one["median_step_ms"]) for one in rows] == [(None, None)] * 2
    assert (tmp_path / "report" / "quality.png").exists()


def test_a_killed_run_goes_on(routed, data, tmp_path, monkeypatch):
    rows, kept = ["--skip", "0,0.34", "--streams", "2"], AnswerFile.add
    assert evaluate(routed, data, tmp_path / "whole", *rows) == 0
    added = []

    def killed(self, one):
        if len(added) == 8:
            raise KeyboardInterrupt
        added.append(one)
        kept(self, one)

    monkeypatch.setattr(AnswerFile, "add", killed)
    assert evaluate(routed, data, tmp_path / "parts", *rows) == 130
    monkeypatch.setattr(AnswerFile, "add", lambda self, one: (added.append(one), kept(self, one)))
    assert evaluate(routed, data, tmp_path / "parts", *rows) == 0
    assert len(added) == 2 * len(QUESTIONS)
    same(answers(tmp_path / "parts"), answers(tmp_path / "whole"))


def test_answers_of_another_way_do_not_mix_in(routed, data, tmp_path, capsys):
    assert evaluate(routed, data, tmp_path / "report", "--skip", "0") == 0
    assert evaluate(routed, data, tmp_path / "report", "--skip", "0", "--streams", "2") == 2
    assert "holds an evaluation with other streams" in capsys.readouterr().err


def test_prompts_of_any_length_and_those_that_do_not_fit(routed, tmp_path, capsys):
    """Beyond the room that a stream has at first; the last one is longer than the context."""
    path = tmp_path / "long.jsonl"
    lengths = (1, 60, 2, 30, 600)
    lines = [{"task": "qa", "prompt": "word " * n, "response": "no"} for n in lengths]
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    for name, streams in (("alone", []), ("together", ["--streams", "3"])):
        assert evaluate(routed, str(path), tmp_path / name, "--skip", "0,0.34", "--kl", "9", *streams) == 0
    same(answers(tmp_path / "together"), answers(tmp_path / "alone"))
    rows = json.loads((tmp_path / "together" / "report.json").read_text())["rows"]
    assert [list(one["failed"]) for one in rows] == [["4"], ["4"]]
    assert "give a larger --ctx" in capsys.readouterr().out
