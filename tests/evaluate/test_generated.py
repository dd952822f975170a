"""`first-cpp eval` beside the dense model's own answers: fidelity as a score, how far answers agree, loops, cut-off answers."""

from __future__ import annotations

import json
import random
import re

import llama_cpp
import numpy as np
import pytest
import reference
from evaluating import QUESTIONS, evaluate
from helpers import greedy

from first_cpp.evaluate import asking
from first_cpp.evaluate.generated import agreement, ends_in_loop
from first_cpp.gguf.synthetic import SHAPES

PROMPTS = [("text", "Write a sentence."), ("code", "Sort a list."), ("text", "Who are you?"), ("code", "Print 1 to 9.")]
SKIPPED = {1, 4}
N = 8


@pytest.fixture(scope="module")
def both(models):
    """One model in PyTorch and as a file."""
    model = reference.make_model(SHAPES["tiny"], seed=2)
    path = str(models / "eval-reference.gguf")
    reference.write_gguf(path, model, SHAPES["tiny"])
    return model, path


def write(path, records):
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    return str(path)


def read(out):
    answers = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    rows = {one["row"]: one for one in json.loads((out / "report.json").read_text())["rows"]}
    return {(one["row"], one["question"]): one for one in answers}, rows


@pytest.fixture(scope="module")
def evaluated(both, tmp_path_factory):
    """Prompts alone, answered by the dense model and with a set skipped; no --kl."""
    folder = tmp_path_factory.mktemp("generated")
    data = write(folder / "chat.jsonl", [{"task": task, "prompt": prompt} for task, prompt in PROMPTS])
    args = ["--skip", "0", "--row", f"set={both[1]}@1,4", "--kl", "0"]
    assert evaluate(both[1], data, folder / "report", *args) == 0
    return folder / "report"


def dense_answers(path, load):
    """By stock llama_cpp: the prompt of each question, and its greedy answer."""
    llm = load(path, cls=llama_cpp.Llama)
    prompts = [llm.tokenize(prompt.encode()) for _, prompt in PROMPTS]
    answers = [greedy(llm, prompt, N) for prompt in prompts]
    assert not any(llm.token_eos() in answer for answer in answers)  # this model never ends one
    return prompts, answers


def test_prompts_alone_are_scored_by_fidelity(both, evaluated, load):
    """Against PyTorch, in which answer positions pass by the layers, along the answers of stock llama_cpp."""
    prompts, answers = dense_answers(both[1], load)
    wanted = []
    for prompt, answer in zip(prompts, answers, strict=True):
        choices = reference.run(both[0], prompt, answer, SKIPPED)[:-1].argmax(axis=1)
        wanted.append(float(np.mean(choices == np.array(answer))))
    found, rows = read(evaluated)
    assert [found["set@2/6", i]["fidelity"] for i in range(4)] == pytest.approx(wanted)
    assert 0 < np.mean(wanted) < 1
    scores = {task: 100 * np.mean([one for (name, _), one in zip(PROMPTS, wanted, strict=True) if name == task]) for task in
              ("text", "code")}  # fmt: skip
    assert rows["set@2/6"]["scores"] == {task: {"fidelity": pytest.approx(score)} for task, score in scores.items()}
    assert rows["set@2/6"]["fidelity"] == pytest.approx(np.mean(wanted))
    assert rows["set@2/6"]["by_task"]["code"]["fidelity"] == pytest.approx(scores["code"] / 100)
    assert rows["dense"]["scores"] == {"text": {"fidelity": 100}, "code": {"fidelity": 100}}
    assert rows["set@2/6"]["ratio"][0] == pytest.approx(np.mean([*scores.values()]) / 100)


def test_how_far_greedy_answers_agree(both, evaluated, load):
    _, answers = dense_answers(both[1], load)
    found, rows = read(evaluated)
    assert [found["dense", i]["ids"] for i in range(4)] == answers
    alike = []
    for i, answer in enumerate(answers):
        own, n = found["set@2/6", i]["ids"], 0
        while n < N and own[n] == answer[n]:
            n += 1
        alike.append(n / N)
    assert rows["set@2/6"]["agreement"] == pytest.approx(np.mean(alike))
    assert 0 < np.mean(alike) < 1
    assert rows["dense"]["agreement"] == 1
    assert rows["set@2/6"]["by_task"]["text"]["agreement"] == pytest.approx((alike[0] + alike[2]) / 2)


def test_tables_of_prompts_alone(evaluated):
    """Fidelity stands in the first table, how answers went in a second one; all fit 80 columns."""
    text = (evaluated / "report.md").read_text()
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("| ")]
    heads = [[cell.strip() for cell in table[0].split("|")[1:-1]] for table in tables]
    assert heads[0] == ["row", "skipped", "of reference", "fidelity", "KL", "TPOT ms"]
    assert heads[1] == ["row", "agrees", "loops", "cut off"]
    assert heads[2] == ["row", "text fidelity", "code fidelity", "failed"]
    assert max(len(line) for table in tables for line in table) <= 80
    _, rows = read(evaluated)
    cells = [cell.strip() for cell in tables[1][3].split("|")[1:-1]]
    assert cells == ["set@2/6", *(f"{rows['set@2/6'][name]:.3f}" for name in ("agreement", "repetition", "cut_off_rate"))]
    assert cells[-1] == "1.000"


def test_without_kl_no_column_is_for_it(both, tmp_path):
    data = write(tmp_path / "qa.jsonl", QUESTIONS[:2])
    assert evaluate(both[1], data, tmp_path / "report", "--skip", "0", "--row", f"set={both[1]}@1,4", "--kl", "0") == 0
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| row     | skipped | of reference           | TPOT ms |" in text
    _, rows = read(tmp_path / "report")
    assert rows["set@2/6"]["fidelity"] is None
    assert rows["set@2/6"]["agreement"] is not None


def test_answers_that_end_loop_or_fail_are_told_apart(both, tmp_path, monkeypatch):
    """Answers written by hand: one loops, one ends, one fails."""
    loop, end = [5, 6, 7, 8] * 4, [1, 2, 3]
    given = iter([(loop, False), (end, True), None, (loop, False), (end, True), (end, True)])

    def answered(llm, question, max_tokens):
        one = next(given)
        if one is None:
            return {"task": question.task, "text": "", "error": "E: too long"}
        return {"task": question.task, "text": "x", "tokens": len(one[0]), "ids": one[0], "ended": one[1], "ttft_ms": 1.0,
                "tpot_ms": 1.0, "median_step_ms": 1.0, "n_layer": 6, "skipped_layers": []}  # fmt: skip

    monkeypatch.setattr(asking, "_answer", answered)
    data = write(tmp_path / "qa.jsonl", [QUESTIONS[0]] * 3)
    assert evaluate(both[1], data, tmp_path / "report", "--skip", "0", "--row", f"set={both[1]}@1,4", "--kl", "0") == 0
    _, rows = read(tmp_path / "report")
    first, second = rows["dense"], rows["set@2/6"]
    assert list(first["failed"]) == ["1"]
    assert (first["repetition"], first["cut_off_rate"]) == (0.5, 0.5)
    assert (second["repetition"], second["cut_off_rate"]) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert second["agreement"] == 0.5  # of the questions that both answered


@pytest.mark.parametrize(
    ("lines", "args", "message"),
    [
        ([{"task": "qa", "prompt": "x", "response": "y"}, {"task": "qa", "prompt": "z"}], [], ":2: response is missing"),
        ([{"task": "text", "prompt": "x"}], ["--metric", "text=summary"], ":1: response is missing"),
    ],
)
def test_a_response_that_is_needed(both, tmp_path, capsys, lines, args, message):
    data = write(tmp_path / "bad.jsonl", lines)
    assert evaluate(both[1], data, tmp_path / "report", *args) == 2
    error = capsys.readouterr().err
    assert message in error
    assert f"--metric {lines[0]['task']}=fidelity" in error


def test_fidelity_can_be_asked_for_where_there_are_responses(both, tmp_path):
    data = write(tmp_path / "qa.jsonl", QUESTIONS[:2])
    args = ["--skip", "0", "--metric", "qa=fidelity", "--row", f"set={both[1]}@1,4"]
    assert evaluate(both[1], data, tmp_path / "report", *args) == 0
    found, rows = read(tmp_path / "report")
    assert all("fidelity" in found["set@2/6", i] for i in range(2))  # --kl 1 alone would have measured the first
    assert list(rows["dense"]["scores"]["qa"]) == ["fidelity"]
    assert evaluate(both[1], data, tmp_path / "report", "--skip", "0", "--row", f"set={both[1]}@1,4") == 2  # other records


def test_a_loop_is_what_a_regular_expression_finds():
    rng = random.Random(0)
    texts = ["".join(rng.choices("ab", k=rng.randint(0, 18))) for _ in range(3000)]
    texts += [one + one[-n:] * times for one in texts[:300] for n in (1, 2, 3, 5, 7) for times in (2, 3, 11)]

    def looped(text):
        return any(re.search(f"(.{{{p}}})\\1{{{max(3, -(-12 // p)) - 1},}}$", text) for p in range(1, 1 + len(text) // 3))

    found = [ends_in_loop(list(text.encode())) for text in texts]
    assert found == [looped(text) for text in texts]
    assert 100 < sum(found) < len(texts) - 100


def test_agreement_is_of_the_longer_answer():
    assert agreement([1, 2, 3], [1, 2, 3]) == 1
    assert agreement([1, 9, 3], [1, 2, 3]) == pytest.approx(1 / 3)
    assert agreement([1, 2, 3, 4], [1, 2]) == agreement([1, 2], [1, 2, 3, 4]) == 0.5
    assert agreement([], [1]) == 0
