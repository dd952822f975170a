"""What tools/ writes into documents is what runs left behind."""

from __future__ import annotations

import doctest
import json
import os
import re
import subprocess
import sys

import pytest

TOOLS = os.path.join(os.path.dirname(__file__), os.pardir, os.pardir, "tools")


def leave_run(folder, command, losses, seconds=90):
    folder.mkdir()
    record = {
        "command": f"first-cpp train --model m.gguf --data a.jsonl b.jsonl --out {folder.name} {command}".strip(),
        "data": "a.jsonl (4 examples)",
        "settings": {"seed": 3},
        "machine": "a machine",
        "torch": "2.9",
        "steps": 30,
        "updates": 90,
        "seconds": seconds,
        "valid_loss": {"mean": dict(zip(("0.0", "0.25"), losses, strict=False))} if losses else {},
    }
    (folder / "train.json").write_text(json.dumps(record))
    return str(folder)


def compare(document, *runs):
    command = [sys.executable, os.path.join(TOOLS, "compare_runs.py"), *runs, "--document", str(document)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_runs_are_a_table_of_what_differs(tmp_path):
    document = tmp_path / "RESULTS.md"
    other = "<!-- written by tools/compare_runs.py other -->\nother\n<!-- end -->\n"
    document.write_text(f"before\n{other}<!-- written by tools/compare_runs.py -->\nold\n<!-- end -->\nafter\n")
    runs = [
        leave_run(tmp_path / "base", "--lr 8e-4 --quiet", (1.5, 2.25)),
        leave_run(tmp_path / "set", "--lr 8e-4 --layers search", (1.25, 2.125), 120),
        leave_run(tmp_path / "slow", "--distill 0", (1.0, 2.0)),
        leave_run(tmp_path / "dense", "--lr 1e-2 --max-share 0 --lr 8e-4", (1.0,)),
    ]
    for _ in range(2):
        done = compare(document, *runs)
        assert done.returncode == 0, done.stderr
    text = document.read_text()
    assert text.startswith("before\n" + other)
    assert text.endswith("<!-- end -->\nafter\n")
    assert "old" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows[2:] == [
        "| as it is | 1.500 | 2.250 | 30 | 90 | 1.5 |",
        "| `--layers search` | 1.250 | 2.125 | 30 | 90 | 2.0 |",
        "| `--distill 0`, no `--lr 8e-4` | 1.000 | 2.000 | 30 | 90 | 1.5 |",
        "| `--max-share 0` | 1.000 |  | 30 | 90 | 1.5 |",
    ]


def test_runs_without_validation_show_the_end_of_their_log(tmp_path):
    document = tmp_path / "RESULTS.md"
    document.write_text("<!-- written by tools/compare_runs.py -->\n<!-- end -->\n")
    run = leave_run(tmp_path / "base", "", ())
    (tmp_path / "base" / "log.csv").write_text(
        "step,loss\n" + "".join(f"{i},{2 if 10 < i <= 30 else 9}\n" for i in range(1, 41))
    )
    assert compare(document, run).returncode == 0
    assert "Training loss" in document.read_text()
    assert "| as it is | 2.000 | 30 | 90 | 1.5 |" in document.read_text()


@pytest.mark.parametrize("text", ["nothing", "<!-- written by tools/compare_runs.py -->\n"])
def test_a_document_without_marks_stays(tmp_path, text):
    document = tmp_path / "RESULTS.md"
    document.write_text(text)
    assert compare(document, leave_run(tmp_path / "base", "", (1, 2))).returncode != 0
    assert document.read_text() == text


def test_a_report_is_shown_in_its_part(tmp_path):
    record = {
        "command": "first-cpp eval --model m.gguf",
        "machine": "a machine",
        "first_cpp": "1",
        "llama_cpp_python": "2",
        "tasks": {"qa": 3},
        "reference": "tuned",
        "bootstrap": {"draws": 10},
        "rows": [
            {
                "row": "tuned",
                "share_skipped": 0.25,
                "ratio": [1, 0.5, 1.5],
                "scores": {"qa": {"F1": 50.25}},
                "kl": None,
                "agreement": 0.5,
                "cut_off_rate": 0.75,
                "tpot_ms": 2.5,
                "cut_off": {"qa": 4},
                "failed": {},
            }
        ],
        "leads": [
            {"row": "routed", "share": 0.25, "over": "even", "lead": [0.5, 0.25, 0.75], "by_task": {"qa": [0.5, 0.25, 0.75]}}
        ],
    }
    (tmp_path / "report.json").write_text(json.dumps(record))
    document = tmp_path / "RESULTS.md"
    document.write_text("## Two\n<!-- written by tools/show_report.py two -->\nold\n<!-- end -->\nafter\n")
    command = [sys.executable, os.path.join(TOOLS, "show_report.py"), str(tmp_path), "--part", "two"]
    subprocess.run([*command, "--document", str(document)], check=True)
    lines = document.read_text().splitlines()
    assert [line for line in lines if line.startswith("#")] == [
        "## Two",
        "### By prompt, above other rows of the share",
    ]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| tuned")]
    assert cells == [
        ["tuned", "0.250", "1.000 (0.500 to 1.500)", "2.50"],
        ["tuned", "0.500", "", "0.750"],
        ["tuned", "50.2", "0"],
    ]
    assert lines[-1] == "after"


def test_an_idea_stands_in_the_place_of_the_program(tmp_path):
    document = tmp_path / "notes.md"
    document.write_text("<!-- written by tools/compare_runs.py -->\n<!-- end -->\n")
    runs = [leave_run(tmp_path / name, "--lr 1", (1.0, 2.0)) for name in ("base", "windows", "given")]
    for run, idea in ((runs[1], "windows"), (runs[2], "given --orders a b")):
        path = os.path.join(run, "train.json")
        with open(path, encoding="utf-8") as file:
            text = file.read().replace("first-cpp train", f"python research/try_ideas.py {idea}")
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    assert compare(document, *runs).returncode == 0
    assert "| `python research/try_ideas.py windows` | 1.000 |" in document.read_text()
    assert "| `python research/try_ideas.py given`, `--orders a b` | 1.000 |" in document.read_text()
    assert compare(document, runs[2], runs[0]).returncode == 0
    assert "| `first-cpp train` | 1.000 |" in document.read_text()


def test_what_a_tuning_gained_is_said_from_its_report():
    import tune_transcript

    result = doctest.testmod(tune_transcript)
    assert result.attempted
    assert not result.failed
    found = tune_transcript.toy_examples()
    assert len(found) == 60
    assert [one["prompt"] for one in found] == [one["prompt"] for one in tune_transcript.toy_examples()]


# -- another llama-cpp-python --------------------------------------------------------------------------------------------


def test_what_the_report_on_another_release_is_made_of():
    import upstream

    result = doctest.testmod(upstream)
    assert result.attempted
    assert not result.failed
    moved = [("Llama.eval", "(self, tokens)", "(self, tokens, n=0)"), ("Llama.other", "", "()"), ("llama_decode", "[]", "")]
    text = upstream.report(("0.3.36", "0.3.37"), moved, {"eval", "llama_decode"}, upstream.Outcome(9, {}))
    assert "2 of the names that first_cpp uses moved, 1 others." in text
    assert "| `Llama.eval` | `(self, tokens)` | `(self, tokens, n=0)` |" in text
    assert "| `llama_decode` | `[]` | - |" in text
    failing = upstream.report(("a", "b"), [], set(), upstream.Outcome(9, {"tests.a: test_b": (2, "assert 1 == 2")}))
    assert "Tests: **FAILED** (7 of 9 passed)" in failing
    assert "| tests.a: test_b | 2 | `assert 1 == 2` |" in failing
    assert not upstream.Outcome(0, {}).passed


def test_a_run_without_a_result_has_failed(tmp_path):
    """As where pytest itself cannot start."""
    import upstream

    for package in ("first_cpp", "convert"):
        (tmp_path / package).mkdir()
    found = upstream.run_tests(sys.executable, tmp_path)  # there are no tests
    assert not found.passed


def test_the_surface_of_this_release_is_read():
    import llama_cpp
    import upstream

    version, found = upstream.surface(sys.executable)
    assert version == llama_cpp.__version__
    assert "self" in found["Llama.create_completion"]
    assert "n_gpu_layers" in found["llama_model_params"]
    assert found["LLAMA_FTYPE_MOSTLY_Q4_0"] == "2"
    assert upstream.moved(found, found) == []


def test_a_copy_is_pinned_to_the_other_release(tmp_path):
    import upstream

    upstream.copy_source(tmp_path, "0.3.1")
    found = re.findall(r"llama-cpp-python(?:\[server\])?==([\d.]+)", (tmp_path / "pyproject.toml").read_text())
    assert found == ["0.3.1"] * 3
    assert (tmp_path / "cpp_ext").is_dir()
    assert (tmp_path / "tests" / "conftest.py").is_file()
