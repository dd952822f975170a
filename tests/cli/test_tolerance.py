"""Predicted costs and tolerances wherever a person or a client meets them: run, chat, inspect, serve, the llm plugin."""

from __future__ import annotations

import json

import openai
import pytest
from in_process import command
from routers_files import budget_routers
from server import chat, serving

from first_cpp.chat.terminal import Terminal
from first_cpp.cli.answer_record import AnswerRecord
from first_cpp.cli.main import main
from first_cpp.gguf.embed import embed

LEVELS = {"bias": [-9.0, -9.0, -3.0, -1.0], "scale": 0.0, "tolerance": 0.06}  # 1, 2 layers are within it, 4 are not
USER = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def budget(tiny, models):
    import numpy as np

    path = str(models / "budget.gguf")
    embed(budget_routers(tiny, **{**LEVELS, "bias": np.array(LEVELS["bias"], np.float32)}), tiny, path, quiet=True)
    return path


def check(record: dict, n_skipped: int, cost: float, change: float) -> None:
    assert len(record["skipped_layers"]) == n_skipped
    assert (record["predicted_cost"], record["expected_change"]) == (
        pytest.approx(cost, rel=1e-3),
        pytest.approx(change, abs=1e-3),
    )


def test_run(budget):
    run = ("run", "-m", budget, "--raw", "-n", "4", "--json", "Once upon")
    found = [
        json.loads(command(*run, *more).stdout)["first_cpp"] for more in ((), ("--tolerance", "0.5"), ("--tolerance", "1e-9"))
    ]
    check(found[0], 2, 0.0498, 0.046)
    check(found[1], 4, 0.3679, 0.2)
    check(found[2], 0, 0.0, 0.0)
    assert "about 5 in 100 words" in found[0]["why"]


def test_mistakes_are_one_line(budget, tiny, capsys):
    with pytest.raises(SystemExit):
        main(["run", "-m", budget, "--tolerance", "-1", "x"])
    assert "argument --tolerance" in capsys.readouterr().err
    done = command("run", "-m", tiny, "--tolerance", "0.1", "x")
    assert done.returncode == 2
    assert "tolerance=0.1 needs cost probes" in done.stderr


def test_the_line_under_an_answer():
    record = AnswerRecord(20, 9, 120.0, 12.5, 6, (2, 4), None, "why", 1.31, 0.04, 0.031)
    assert record.line().endswith("1.31x expected over dense · about 3 in 100 words changed")
    assert AnswerRecord(20, 9, 1.0, 1.0, 6, (2,), None, "why", 1.31, float("inf"), 0.2).as_json()["predicted_cost"] is None


def test_chat(budget, monkeypatch):
    lines = ("/tolerance", "Hello", "/layers", "/tolerance 0.5", "Again", "/layers", "/tolerance lots", "/tolerance -1")
    text = "\n".join((*lines, "/skip 0.17", "More", "/layers", "/skip auto", "/tolerance 0.0001", "/compare", ""))
    monkeypatch.setattr(Terminal, "note", lambda self, line: self.quiet(line(None)))
    done = command("chat", "-m", budget, "-n", "6", "--temp", "0", "-c", "512", "--chat-format", "chatml", text=text)
    out = done.stdout
    assert "tolerance is 0.06 nats a token" in out
    assert "###..#  skips 2 of 6 layers: expected to change about 5 in 100 words (for each skipped layer: predicted" in out
    assert "predicted cost 0.0249, tolerance 0.06 nats a token)" in out
    assert "tolerance is 0.5 nats a token" in out
    assert "#....#  skips 4 of 6 layers: expected to change more than 20 in 100 words" in out
    assert "/tolerance lots: a number of nats a token is needed" in out + done.stderr
    assert "tolerance=-1.0 is not a predicted cost" in out + done.stderr
    assert "###.##  the set for all prompts, share 0.17 asks for 1 of 6 layers; expected to change fewer than 1" in out
    assert "about 5 in 100 words changed" in out  # the line under an answer
    assert "nothing to compare: nothing is skipped: skipping 1 of 6 layers is expected to change" in out
    assert out.endswith("/skip 0.1 or /tolerance COST, a larger one, skips layers all the same\n")


def test_inspect(budget, capsys):
    assert main(["inspect", budget]) == 0
    out = capsys.readouterr().out.splitlines()
    for said in (
        "routers      whole sets of layers, as many as a prompt can spare by the cost probes",
        'recommended  skip="auto", 20% of the layers on average; for every prompt alike skip=0.34',
        "cost probes  4 sets x 2 read layers (1, 4) x 128 values",
        "levels       1, 2, 4 layers",
        "tolerance    0.06 nats a token for fidelity 0.95, margin 0.125",
        "skip 1       3 | 1",
        "skip 4       1-4",
        "0.05         0.200       0.960     0.0400",
    ):
        assert said in out


def test_inspect_of_routers_with_probes(tiny, models, capsys):
    path = str(models / "budget-layers.gguf")
    embed(budget_routers(tiny, "layers"), tiny, path, quiet=True)
    assert main(["inspect", path]) == 0
    out = capsys.readouterr().out
    assert "6 layers x 128 values, linear" in out
    assert "levels       1, 2, 4 layers" in out
    assert "margin" not in out  # one set a level: nothing to choose between
    assert "skip 1" not in out


def test_serve(budget):
    with serving(budget, "-c", 512, "--chat-format", "chatml") as server:
        assert server.health()["tolerance"] == pytest.approx(0.06)

        def ask(**extra):
            answer = server.client().chat.completions.create(model="budget", messages=USER, max_tokens=3, extra_body=extra)
            return answer.model_extra["first_cpp"]

        check(ask(), 2, 0.0498, 0.046)
        check(ask(tolerance=0.5), 4, 0.3679, 0.2)
        check(ask(), 2, 0.0498, 0.046)  # the request before changes nothing
        check(ask(skip=1 / 6), 1, 0.00012, 0.0)
        assert ask(tolerance=0)["skipped_layers"] == []
        streamed = server.http.post("/v1/chat/completions", json=chat(stream=True, tolerance=0.5)).text
        assert '"predicted_cost":0.36788' in streamed
        for bad in (-1, "0.1", True, [0.1], {}):
            with pytest.raises(openai.BadRequestError, match="tolerance=") as refused:
                ask(tolerance=bad)
            assert refused.value.param == "tolerance"


def test_serve_with_limits(budget):
    with serving(budget, "-c", 512, "--chat-format", "chatml", "--tolerance", "0.5") as server:
        assert server.health()["tolerance"] == 0.5
        answer = server.http.post("/v1/chat/completions", json=chat()).json()
        check(answer["first_cpp"], 4, 0.3679, 0.2)
    done = command("serve", "-m", budget, "--port", "0", "--max-skip", "0.4")
    assert done.returncode == 2
    assert "skip='auto', a share of 0.667, is above the maximum of this server, 0.4" in done.stderr


def test_llm_plugin(budget, load):
    pytest.importorskip("llm")
    from first_cpp.llm_plugin import FirstCppModel

    model = FirstCppModel("mine", load(budget, chat_format="chatml"))
    for settings, n_skipped in (({}, 2), ({"tolerance": 0.5}, 4), ({}, 2)):
        response = model.prompt("Hello", max_tokens=4, **settings)
        response.text()
        assert len(response.response_json["skipped_layers"]) == n_skipped
