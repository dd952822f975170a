"""`first-cpp eval` as a whole: rows, answers, resumed runs and the report."""

from __future__ import annotations

import json
import os
import shlex

import llama_cpp
import pytest
from evaluating import QUESTIONS, evaluate
from routers_files import routed_model

from first_cpp import Llama
from first_cpp.cli.main import main
from first_cpp.evaluate import asking
from first_cpp.evaluate.estimate import Pace, longest_seconds
from first_cpp.evaluate.report import _notes, _table, draw
from first_cpp.evaluate.rows import Row
from first_cpp.train.result import plot_layers


def test_a_report_with_everything(routed, data, tiny, tmp_path, capsys):
    out = tmp_path / "report"
    args = ["--skip", "0,0.34", "--baselines", "all", "--calibrate", data, "--row", f"other={tiny}@0,5",
            "--row", f"even+lora={routed}@even:0.34"]  # fmt: skip
    assert evaluate(routed, data, out, *args) == 0
    shown = capsys.readouterr().out
    record = json.loads((out / "report.json").read_text())
    rows = {one["row"]: one for one in record["rows"]}
    names = ["dense", "routed@0.34", "influence@0.34", "even@0.34", "random@0.34", "last@0.34", "other@2/6", "even+lora@0.34"]
    assert list(rows) == names
    assert all(name in shown for name in names)
    assert all(len(one["ratio"]) == 3 for one in rows.values())
    assert rows["dense"]["share_skipped"] == 0
    for name in names[1:]:
        assert rows[name]["share_skipped"] == pytest.approx(2 / 6)
        assert rows[name]["kl"] > 0
        assert 0 <= rows[name]["fidelity"] <= 1
        assert not rows[name]["failed"]
    assert rows["last@0.34"]["layers"]["qa"] == [0, 0, 0, 0, 1, 1]
    assert set(rows["dense"]["scores"]["qa"]) == {"F1", "EM"}
    assert set(rows["dense"]["scores"]["translation"]) == {"BLEU", "chrF"}
    assert [one["over"] for one in record["leads"]] == ["influence", "even", "random", "last", "other", "even+lora"]
    assert rows["even+lora@0.34"]["scores"] == rows["even@0.34"]["scores"]
    assert {"report.json", "report.md", "quality.png", "layers.png", "answers.jsonl", "run.json"} == set(os.listdir(out))


def test_answers_are_create_chat_completions(routed, data, load, tmp_path):
    out = tmp_path / "report"
    assert evaluate(routed, data, out, "--skip", "0.34", "--kl", "0") == 0
    answers = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    llm = load(routed, skip=0.34, n_ctx=512)
    for one in answers:
        if one["row"] == "routed@0.34":
            prompt = llm.tokenize(QUESTIONS[one["question"]]["prompt"].encode())
            text = llm.create_completion(prompt, max_tokens=8, temperature=0)["choices"][0]["text"]
            assert one["text"].encode("ascii", "ignore") == text.strip().encode("ascii", "ignore")
            assert len(one["skipped_layers"]) == 2


def test_answers_cut_off_are_counted(routed, data, tmp_path, monkeypatch, capsys):
    """No token ends an answer but one row's to one task, which every token ends."""
    answered, ending = asking._answer, [False]
    monkeypatch.setattr(llama_cpp, "llama_vocab_is_eog", lambda vocab, token: ending[-1])

    def watched(llm, question, max_tokens):
        ending.append(llm.skip is None and question.task == "qa")
        return answered(llm, question, max_tokens)

    monkeypatch.setattr(asking, "_answer", watched)
    assert evaluate(routed, data, tmp_path / "report", "--skip", "0,0.34") == 0
    rows = json.loads((tmp_path / "report" / "report.json").read_text())["rows"]
    assert [one["cut_off"] for one in rows] == [
        {"qa": 0, "translation": 2, "tldr": 1, "dialogue": 1},
        {"qa": 2, "translation": 2, "tldr": 1, "dialogue": 1},
    ]
    table = capsys.readouterr().out.split("| cut off |")[1].split("\n\n")[0]
    shown = [line.split("|")[-2].strip() for line in table.splitlines() if line.startswith("| ")]
    assert shown[1:] == ["0.667", "1.000"]


def test_a_prompt_is_read_once_for_all_rows_of_a_file(routed, data, tmp_path, monkeypatch):
    lengths, original = [], Llama.eval

    def watched(self, tokens):
        lengths.append(len(tokens))
        return original(self, tokens)

    monkeypatch.setattr(Llama, "eval", watched)
    args = ["--skip", "0,0.34,0.5", "--row", f"set={routed}@0,5", "--kl", "0"]
    assert evaluate(routed, data, tmp_path / "report", *args) == 0
    assert sum(n > 1 for n in lengths) == len(QUESTIONS)


def test_a_killed_run_goes_on(routed, data, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    evaluate(routed, data, whole, "--skip", "0,0.34")
    original, asked = asking._answer, []

    def killed(llm, question, max_tokens):
        if len(asked) == 8:
            raise KeyboardInterrupt
        asked.append(question)
        return original(llm, question, max_tokens)

    monkeypatch.setattr(asking, "_answer", killed)
    assert evaluate(routed, data, parts, "--skip", "0,0.34") == 130
    with open(parts / "answers.jsonl", "ab") as file:
        file.write('{"row": "routed@0.34", "text": "ö'.encode()[:-1])  # a line that was being written, amid a character
    asked.clear()
    assert evaluate(routed, data, parts, "--skip", "0,0.34") == 0
    assert len(asked) == 12 - 8
    found = [json.loads((folder / "report.json").read_text())["rows"] for folder in (whole, parts)]
    for one, other in zip(*found, strict=True):
        assert one["scores"] == other["scores"]
        assert one["kl"] == pytest.approx(other["kl"]) if one["kl"] else other["kl"] is None


def test_failures_are_counted_and_named(routed, tmp_path, capsys):
    path = tmp_path / "long.jsonl"
    lines = [*QUESTIONS[:2], {"task": "qa", "prompt": "word " * 400, "response": "no"}]
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    assert evaluate(routed, str(path), tmp_path / "report", "--skip", "0.34") == 0
    record = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [list(one["failed"]) for one in record["rows"]] == [["2"], ["2"]]
    assert "give a larger --ctx" in capsys.readouterr().out


def test_kl_is_zero_against_itself(routed, load):
    from first_cpp.evaluate.questions import Question

    llm, dense = load(routed, skip=None), load(routed, skip=None)
    own = asking.DenseAnswer.of(dense, Question("qa", "Who wound the clock?", ("x",)), 6)
    assert own.compare(llm) == {"kl": pytest.approx(0, abs=1e-6), "fidelity": 1}
    llm.skip = [1, 4]
    skipping = own.compare(llm)
    assert skipping["kl"] > 0
    assert skipping["fidelity"] < 1
    assert asking.DenseAnswer.of(dense, Question("qa", "word " * 4000, ("x",)), 6) is None


def test_kl_is_to_the_model_with_its_side_file(tiny, data, tmp_path, monkeypatch):
    """With --routers, the dense row is the base with the side file's LoRA: KL to itself is not measured, nor to less."""
    made = []
    original = asking.DenseAnswer.of
    monkeypatch.setattr(asking.DenseAnswer, "of", lambda dense, *rest: (made.append(dense), original(dense, *rest))[1])
    side = routed_model(tiny, tmp_path, 4, sidecar=True)
    assert evaluate(tiny, data, tmp_path / "report", "--routers", side, "--skip", "0,0.34", "--row", f"base={tiny}") == 0
    assert {llm.routers is not None for llm in made} == {True}
    rows = {one["row"]: one for one in json.loads((tmp_path / "report" / "report.json").read_text())["rows"]}
    assert rows["dense"]["kl"] is None
    assert rows["base"]["kl"] == pytest.approx(0, abs=1e-6)  # another row, though zero routers change nothing
    assert rows["routed@0.34"]["kl"] > 0


def test_the_model_as_it_came_is_the_first_row(routed, tiny, data, tmp_path):
    """`base` stands before `dense`, whose weights were trained."""
    assert evaluate(routed, data, tmp_path / "report", "--skip", "0", "--base", tiny) == 0
    rows = json.loads((tmp_path / "report" / "report.json").read_text())["rows"]
    assert [one["row"] for one in rows] == ["base", "dense"]
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-6)  # the routers of this file changed no weight
    assert rows[1]["kl"] is None


def test_tables_fit_80_columns(routed, data, tmp_path, capsys):
    """Scores of four tasks stand in several tables, each with the rows' names."""
    assert evaluate(routed, data, tmp_path / "report", "--skip", "0,0.34", "--baselines", "even,last") == 0
    tables = [block.splitlines() for block in capsys.readouterr().out.split("\n\n") if block.startswith("| ")]
    assert max(len(line) for table in tables for line in table) <= 80
    names = [cell.strip() for table in tables for cell in table[0].split("|")[1:-1]]
    for wanted in ("translation BLEU", "translation chrF", "tldr ROUGE-L", "qa EM", "cut off", "failed"):
        assert names.count(wanted) == 1
    assert names.count("row") >= 3


def test_it_ends_with_the_next_commands_and_asks_for_the_base(routed, tiny, data, tmp_path, capsys):
    for out, base in (("one", []), ("two", ["--base", tiny])):
        assert evaluate(routed, data, tmp_path / out, "--skip", "0", *base) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[-3:] == ["next:", f"  first-cpp chat -m {routed}", f"  first-cpp serve -m {routed}"]
        assert any("--base FILE adds it" in line for line in lines) == (not base)


def test_pictures_take_a_task_of_any_name(routed, tmp_path, capsys):
    """Between two dollar signs matplotlib would read a formula, and end the command after all of its answers."""
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"task": "costs $5_$", "prompt": "Who wound the clock?", "response": "he"}) + "\n")
    args = ["--skip", "0,0.34", "--metric", "costs $5_$=answer"]
    assert evaluate(routed, str(path), tmp_path / "report", *args) == 0, capsys.readouterr().err
    assert (tmp_path / "report" / "layers.png").exists()
    plot_layers(str(tmp_path / "train.png"), {"costs $5_$": [0.1, 0.2]}, 0.25)  # at the end of a training run
    assert (tmp_path / "train.png").exists()


def test_the_plan_comes_before_the_answers(routed, data, tmp_path, capsys, monkeypatch):
    seen = []
    monkeypatch.setattr(
        asking, "_answer", lambda *a: seen.append(capsys.readouterr().err) or {"task": "qa", "text": "", "error": "none"}
    )
    small = ["-n", "8", "--kl", "0", "--draws", "50", "-t", "2", "-c", "512", "--skip", "0,0.34"]
    command = ["eval", "--model", routed, "--data", data, "--out", str(tmp_path / "report"), *small]
    assert main(command) == 0
    assert "plan: 2 rows (dense, routed@0.34)" in seen[0]
    assert "6 questions, 12 answers of at most 8 tokens\n" in seen[0]
    assert "at most 1 second;" in seen[0]
    lines = (tmp_path / "report" / "answers.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "report" / "answers.jsonl").write_text("".join(lines[:5]))
    seen.clear()
    assert main(command) == 0
    assert "7 answers of at most 8 tokens; 5 are there already" in seen[0]


def test_answers_of_one_token_have_no_time_per_token(routed, data, tmp_path, capsys):
    """Not 0 ms, nor a point at 0 in the picture."""
    assert evaluate(routed, data, tmp_path / "report", "--skip", "0,0.34", "-n", "1") == 0
    assert "TPOT" not in capsys.readouterr().out
    rows = json.loads((tmp_path / "report" / "report.json").read_text())["rows"]
    assert [(one["tpot_ms"], one["median_step_ms"]) for one in rows] == [(None, None)] * 2


def test_the_command_of_a_report_can_be_pasted(routed, tmp_path, monkeypatch):
    data = tmp_path / "my data.jsonl"
    data.write_text(json.dumps(QUESTIONS[0]) + "\n")
    args = ["eval", "-m", routed, "--data", str(data), "--out", str(tmp_path / "out"), "--skip", "0", "-n", "2", "--quiet"]
    monkeypatch.setattr("sys.argv", ["first-cpp", *args])
    assert main(args) == 0
    assert shlex.split(json.loads((tmp_path / "out" / "report.json").read_text())["command"]) == ["first-cpp", *args]


def test_a_reference_that_scores_0_is_named():
    """Else a reader takes half of the reference's own score for what skipping cost."""
    dense = {"row": "dense", "scores": {"qa": {"F1": 0.0, "EM": 0.0}, "tldr": {"ROUGE-L": 9.0}}, "same_vocabulary": True}
    record = {"reference": "dense", "rows": [dense]}
    assert _notes(record) == ["`dense` scores 0 on qa, which counts as 0 of reference for every row.\n"]


def test_a_name_ends_no_cell_of_a_table():
    columns, rule, row = _table(["row", "a|b F1", "c\nd"], [["dense", "1.0", "2.0"]]).splitlines()
    assert columns == "| row   | a\\|b F1 | c d |"
    assert len(columns) == len(rule) == len(row)


def test_a_score_outside_its_interval_can_be_drawn(tmp_path):
    """By rounding alone: 3 * 0.1 is not 0.1 + 0.1 + 0.1."""
    row = {"row": "dense", "system": "dense", "share_skipped": 0.0, "ratio": [0.3, 0.30000000000000004, 0.4], "tpot_ms": 1.0}
    assert draw({"rows": [row], "reference": "dense"}, str(tmp_path)) == ["quality.png"]


def test_the_time_that_answers_take_together(tiny):
    """At most: as many steps as streams share, but rows whose prompts choose have each its own."""
    size = os.path.getsize(tiny)
    alone = Pace(0.01, 0.1, 0.1, 0.1, size)
    together = alone.together(4)
    dense, routed = Row("dense", tiny, 0.0, None), Row("routed@0.34", tiny, 0.34, 0.34)
    assert longest_seconds(alone, [[dense]], [100], 20, set()) == pytest.approx(1 + 20 * 0.1)
    assert longest_seconds(together, [[dense]], [100], 20, set()) == pytest.approx(1 + 20 * 0.1 / 4)
    assert longest_seconds(together, [[routed]], [100], 20, set()) == pytest.approx(1 + 20 * 0.1)
    assert alone.together(32).decoded == 0.01  # no less than a token of a prompt
