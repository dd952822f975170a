"""benchmarks/own_lora.py: the rows that it makes, with the commands in place of the work."""

from __future__ import annotations

import json
import os
import pathlib
import sys
from types import SimpleNamespace

import own_lora
import pytest

KINDS = {"chat": ["math", "code"], "tldr": ["tldr"], "qa": ["qa"], "translation": ["translation"], "dialogue": ["dialogue"]}


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name, tasks in KINDS.items():
        for split in ("train", "valid", "test"):
            lines = [
                json.dumps({"task": task, "prompt": f"{split} {task} {i}", "response": "r"}) for i in range(9) for task in tasks
            ]
            (folder / f"{name}.{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def commands(monkeypatch):
    """The commands that were given; each writes what it was told to, a calibration the order of its layers."""
    found = []
    sets = [SimpleNamespace(level=level) for level in (1, 2, 3)]
    monkeypatch.setattr(own_lora.Calibration, "load", lambda _path: SimpleNamespace(order=(5, 4, 3, 2, 1, 0), sets=sets))
    monkeypatch.setattr(own_lora, "quantise", lambda _model, path, _kind: open(path, "w").close())

    def run(words, **_more):
        found.append(words[2:])
        out = words[words.index("--out") + 1]
        if "train" in words:
            answer = {"task": "qa", "prompt": "p", "response": "r", "prompt_tokens": [1]}
            with open(os.path.join(out, own_lora.ANSWERS), "w", encoding="utf-8") as file:
                file.writelines(
                    json.dumps(one) + "\n" for one in (answer, answer | {"response": ""}, answer | {"prompt_tokens": [1] * 500})
                )
        elif "eval" in words:
            os.makedirs(out)
            with open(os.path.join(out, "report.json"), "w", encoding="utf-8") as file:
                file.write('{"rows": 7}')
        else:
            open(out, "w").close()

    monkeypatch.setattr(own_lora, "run", run)
    return found


def go(monkeypatch, tmp_path, data, *more):
    words = ["own_lora.py", "--model", "m.gguf", "--data", str(data), "--folder", str(tmp_path / "rows"), "--per-kind", "4"]
    monkeypatch.setattr(sys, "argv", [*words, "--threads", "1", "--out", str(tmp_path / "own_lora.json"), *more])
    own_lora.main()


def test_all_rows_are_trained_on_the_same_and_judged_together(monkeypatch, tmp_path, data, commands):
    go(monkeypatch, tmp_path, data, "--tests", "7")
    rows = tmp_path / "rows"
    prompts = [json.loads(line) for line in (rows / "train.jsonl").read_text().splitlines()]
    kinds = sorted(kind for of_file in KINDS.values() for kind in of_file)
    assert [one["task"] for one in prompts] == 4 * kinds  # equally many, in turns
    assert {key for one in prompts for key in one} == {"task", "prompt"}
    assert len({one["prompt"] for one in prompts}) == len(prompts)
    assert all(one["prompt"].startswith(f"train {one['task']} ") for one in prompts)

    trained = [words for words in commands if words[1] == "train"]
    assert len(trained) == 6
    shared = {"--batch-size", "--passes", "--lr", "--average", "--quantize"}
    given = [{words[i]: words[i + 1] for i in range(len(words) - 1) if words[i] in shared} for words in trained]
    assert given == 6 * [given[0]]
    assert set(given[0]) == shared
    assert next(words[words.index("--layers") + 1] for words in trained if "--layers" in words) == "5,4,3"
    (dense,) = (words for words in trained if words.count("--max-share") == 1 and words[words.index("--max-share") + 1] == "0")
    (paper,) = (words for words in trained if "two-step" in words)
    assert paper[paper.index("--data") + 1] == str(rows / "own.jsonl")
    assert json.loads((rows / "own.jsonl").read_text()) == {"task": "qa", "prompt": "p", "response": "r"}
    assert "--prompts" in dense

    judged = commands[-1]
    beside = [judged[i + 1] for i, word in enumerate(judged) if word == "--row"]
    assert f"budget={rows}/calibrated.gguf@budget:0.4" in beside
    assert f"single set={rows}/single-set.gguf@given:0.25" in beside
    assert f"dense + LoRA={rows}/dense-+-LoRA.gguf" in beside
    assert f"the paper's routers={rows}/the-papers-routers.gguf@0.25" in beside
    assert [row for row in beside if row.startswith("Q8_0=")] == [f"Q8_0={rows}/as-it-came-Q8_0.gguf"]
    tests = [json.loads(line) for line in pathlib.Path(judged[judged.index("--data") + 1]).read_text().splitlines()]
    assert [one["task"] for one in tests] == 7 * kinds
    assert judged[judged.index("--kl") + 1] == "7"
    assert json.loads((tmp_path / "own_lora.json").read_text())["rows"] == {"rows": 7}


def test_what_is_made_is_not_made_again(monkeypatch, tmp_path, data, commands):
    go(monkeypatch, tmp_path, data, "--until", "trained")
    made = len(commands)
    assert not any("eval" in words for words in commands)
    (tmp_path / "rows" / "evenly-spaced.gguf").unlink()
    go(monkeypatch, tmp_path, data, "--until", "fitted")
    assert [words[1] if words[0] == "first_cpp" else words[0] for words in commands[made:]] == ["convert", "calibrate"]


def test_the_score_over_all_tasks_but_one(tmp_path):
    """As an evaluation of the others alone says it."""
    tests, answers = tmp_path / "test.jsonl", tmp_path / "answers.jsonl"
    records = [{"task": "tldr", "prompt": str(i), "response": "one two three"} for i in range(4)]
    records.insert(1, {"task": "qa", "prompt": "q", "response": "five"})
    tests.write_text("".join(json.dumps(one) + "\n" for one in records))
    texts = {"dense": "one two three", "dense + LoRA": "one two three", "budget@0.25": "one", "single set@0.25": "four"}
    common = {"tokens": 3, "ids": [1, 2, 3], "ended": True, "n_layer": 4, "skipped_layers": [1]}
    found = [
        {"row": row, "question": i, "task": one["task"], "text": text if one["task"] == "tldr" else "five", **common}
        for row, text in texts.items()
        for i, one in enumerate(records)
    ]
    answers.write_text("".join(json.dumps(one) + "\n" for one in found))
    rows = [{"row": row, "share": 0.25 * row.endswith("0.25")} for row in texts]
    report = {"rows": rows, "reference": "dense + LoRA", "bootstrap": {"draws": 20, "seed": 0}}
    over = own_lora.without("qa", report, str(tests), str(answers))
    assert over["ratio"]["dense"] == [1, 1, 1]
    assert over["ratio"]["budget@0.25"] == pytest.approx([0.5] * 3)  # ROUGE-L: precision 1, recall a third
    assert over["ratio"]["single set@0.25"] == [0, 0, 0]
    assert over["share_skipped"]["budget@0.25"] == 0.25
    assert over["leads"] == [{"row": "budget", "share": 0.25, "over": "single set", "lead": pytest.approx([0.5] * 3)}]
