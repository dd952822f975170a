"""`first-cpp eval --streams`: answers decoded together are those of each prompt alone."""

from __future__ import annotations

import dataclasses
import json

import pytest
from architectures.write import write_tiny
from evaluating import QUESTIONS, evaluate
from raw_gguf import with_metadata
from routers_files import budget_routers, routed_model

from first_cpp import Llama
from first_cpp.cli.main import main
from first_cpp.errors import RoutingError
from first_cpp.evaluate import several
from first_cpp.evaluate.answer_file import AnswerFile
from first_cpp.evaluate.asking import found_answer
from first_cpp.gguf.cost_probes import TolerancePoint
from first_cpp.gguf.embed import embed
from first_cpp.gguf.synthetic import SHAPES, write_random
from first_cpp.streams.engine import Engine

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


@pytest.mark.parametrize("streams", [3, pytest.param(16, marks=pytest.mark.slow)])
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


@pytest.mark.parametrize("architecture", ["gemma3", "jamba", pytest.param("rwkv6", marks=pytest.mark.slow)])
def test_states_of_every_kind(tmp_path, data, architecture):
    """A sliding window shorter than the prompts, and recurrent states: of each stream its own. In a graph of several streams no
    layer of RWKV can be skipped, so each answer is decoded by itself."""
    model = tmp_path / f"{architecture}.gguf"
    write_tiny(model, architecture)
    rows = ["--skip", "0", "--row", f"set={model}@2,4", "--kl", "9", "-c", "256"]
    assert evaluate(str(model), data, tmp_path / "alone", *rows) == 0
    assert evaluate(str(model), data, tmp_path / "together", *rows, "--streams", "3") == 0
    found = answers(tmp_path / "together")
    assert not any("error" in one for one in found.values())
    same(found, answers(tmp_path / "alone"))


def test_what_cannot_be_decoded_is_counted_as_failed(routed, data, tmp_path, monkeypatch):
    """The answers of one row; the others go on."""
    read = Engine.read_next

    def broken(self, tokens, positions, streams, skipped=frozenset()):
        if skipped == {1, 4}:
            raise RoutingError("broken")
        return read(self, tokens, positions, streams, skipped)

    monkeypatch.setattr(Engine, "read_next", broken)
    rows = ["--skip", "0", "--row", f"set={routed}@1,4", "--row", f"other={routed}@2,3", "--streams", "3"]
    assert evaluate(routed, data, tmp_path / "report", *rows) == 0
    rows = json.loads((tmp_path / "report" / "report.json").read_text())["rows"]
    assert [len(one["failed"]) for one in rows] == [0, len(QUESTIONS), 0]
    assert set(rows[1]["failed"].values()) == {"RoutingError: broken"}


def test_every_question_has_an_answer_or_an_error(routed, data, tmp_path, monkeypatch):
    """Also where what was decoded cannot be written down."""

    def broken(engine, question, *answer):
        if question.task == "tldr":
            raise ValueError("no text")
        return found_answer(engine, question, *answer)

    monkeypatch.setattr(several, "found_answer", broken)
    assert evaluate(routed, data, tmp_path / "report", "--skip", "0,0.34", "--streams", "3") == 0
    found = answers(tmp_path / "report")
    assert len(found) == 2 * len(QUESTIONS)
    assert {one["task"] for one in found.values() if "error" in one} == {"tldr"}


def test_a_row_of_another_template_is_compared_after_the_same_prompt(routed, data, tmp_path):
    """KL and fidelity are those of one at a time: along the dense answer, after the dense prompt, with the set chosen by it."""
    template = "{% for one in messages %}[{{ one.content }}]{% endfor %}"
    other = with_metadata(routed, tmp_path / "other.gguf", tokenizer__chat_template=template)
    rows = ["--skip", "0,0.34", "--row", f"other={other}@0.34", "--kl", "9"]
    assert evaluate(routed, data, tmp_path / "alone", *rows) == 0
    assert evaluate(routed, data, tmp_path / "together", *rows, "--streams", "3") == 0
    found = answers(tmp_path / "together")
    same(found, answers(tmp_path / "alone"))
    assert found["other@0.34", 0]["kl"] == found["routed@0.34", 0]["kl"]  # the same weights
    assert found["other@0.34", 0]["ids"] != found["routed@0.34", 0]["ids"]


@pytest.mark.parametrize("streams", [[], ["--streams", "3"]])
def test_a_row_of_another_vocabulary_is_not_compared_token_by_token(routed, data, tmp_path, capsys, streams):
    other = tmp_path / "other.gguf"
    write_random(other, dataclasses.replace(SHAPES["tiny"], n_vocab=400))
    rows = ["--skip", "0", "--row", f"other={other}", "--row", f"set={routed}@1,4", *streams]
    assert evaluate(routed, data, tmp_path / "report", *rows) == 0
    assert "other has another vocabulary" in capsys.readouterr().out
    dense, found, fixed = json.loads((tmp_path / "report" / "report.json").read_text())["rows"]
    assert (found["kl"], found["fidelity"], found["agreement"], found["failed"]) == (None, None, None, {})
    assert found["by_task"]["qa"]["agreement"] is None
    assert dense["agreement"] == 1
    assert fixed["kl"] > 0
    assert evaluate(routed, data, tmp_path / "report2", *rows, "--metric", "qa=fidelity") == 2
    assert "another vocabulary than --model, so its fidelity cannot be measured, by which task 'qa'" in capsys.readouterr().err


def test_more_streams_than_there_are_positions_for_are_refused(routed, data, tmp_path, capsys):
    with pytest.raises(SystemExit):
        evaluate(routed, data, tmp_path / "report", "--streams", "33")
    assert "argument --streams: 33 is above 32" in capsys.readouterr().err
    assert evaluate(routed, data, tmp_path / "report", "--skip", "0", "--streams", "32") == 0


def test_questions_that_are_not_measured_need_no_blocks_of_their_own(routed, data, tmp_path, monkeypatch):
    """However little memory there is for distributions."""
    opened = []
    monkeypatch.setattr(several, "MOST_KEPT", 1)
    monkeypatch.setattr(several, "Engine", lambda *given: (opened.append(given), Engine(*given))[1])
    for kl, n_blocks in ((0, 1), (1, 4)):  # one question of each of four tasks
        opened.clear()
        assert evaluate(routed, data, tmp_path / str(kl), "--skip", "0,0.34", "--kl", str(kl), "--streams", "2") == 0
        assert len(opened) == n_blocks


def test_the_model_of_the_plan_is_closed_before_the_streams_take_memory(routed, data, tmp_path, monkeypatch):
    events, made, closed = [], Llama.__init__, Llama.close
    monkeypatch.setattr(Llama, "__init__", lambda self, *a, **k: (events.append(("open", id(self))), made(self, *a, **k))[1])
    monkeypatch.setattr(Llama, "close", lambda self: (events.append(("close", id(self))), closed(self))[1])
    assert evaluate(routed, data, tmp_path / "report", "--skip", "0", "--streams", "2") == 0
    opened = set()
    for what, which in events:
        opened = opened | {which} if what == "open" else opened - {which}
        assert len(opened) <= 1


def test_a_model_that_reads_long_contexts_otherwise(tmp_path, data):
    """LongRoPE's factors go by the length of the context, not by that of the prompt: 512 here, made for 256."""
    model = tmp_path / "phi3.gguf"
    write_tiny(model, "phi3")
    rows = ["--skip", "0", "--row", f"set={model}@2,4"]
    assert evaluate(str(model), data, tmp_path / "alone", *rows) == 0
    assert evaluate(str(model), data, tmp_path / "together", *rows, "--streams", "3") == 0
    same(answers(tmp_path / "together"), answers(tmp_path / "alone"))


@pytest.mark.parametrize(("streams", "word"), [([], "clock"), (["--streams", "3"], "ferry")], ids=["the first", "a later one"])
def test_a_prompt_that_the_template_refuses_is_counted(routed, data, tmp_path, streams, word):
    """Also in the plan, which reads every prompt; the others are answered."""
    raises = "{{ raise_exception('no ' ~ one.content) }}"
    turn = f"{{% if '{word}' in one.content %}}{raises}{{% endif %}}[{{{{ one.content }}}}]"
    template = f"{{% for one in messages %}}{turn}{{% endfor %}}"
    choosy = with_metadata(routed, tmp_path / "choosy.gguf", tokenizer__chat_template=template)
    words = ["eval", "--model", str(choosy), "--data", data, "--out", str(tmp_path / "report"), "--skip", "0,0.34", "-n", "4"]
    assert main([*words, "--draws", "50", "-t", "2", "-c", "512", *streams]) == 0
    found = answers(tmp_path / "report")
    assert len(found) == 2 * len(QUESTIONS)
    refused = {number for (_, number), one in found.items() if "error" in one}
    assert refused == {number for number, one in enumerate(QUESTIONS) if word in one["prompt"]}
