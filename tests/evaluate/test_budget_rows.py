"""`first-cpp eval` of a file with cost probes: rows whose prompts choose how many layers, and the mean share that they skip."""

from __future__ import annotations

import json

import pytest
from evaluating import QUESTIONS, evaluate
from routers_files import budget_routers

from first_cpp import Llama
from first_cpp.errors import ContextFull
from first_cpp.evaluate.rows import RowError, RowPlan, auto_share, parse_row
from first_cpp.gguf.cost_probes import TolerancePoint
from first_cpp.gguf.embed import embed, write_sidecar
from first_cpp.runtime.chat_prompt import chat_prompt

TABLE = (TolerancePoint(0.02, 0.1, 0.02, 0.98), TolerancePoint(0.2, 0.5, 0.2, 0.9))


@pytest.fixture(scope="module")
def budget(tiny, models):
    path = str(models / "budget-eval.gguf")
    embed(budget_routers(tiny, scale=0.05, table=TABLE, tolerance=0.06), tiny, path, quiet=True)
    return path


def expected_share(model: str, tolerance: float) -> float:
    """The mean share that the prompts skip, asked of a model of its own."""
    llm = Llama(model, tolerance=tolerance, n_ctx=512, verbose=False)
    shares = []
    try:
        for one in QUESTIONS:
            next(llm.generate(chat_prompt(llm, one["prompt"]), temp=0.0))
            shares.append(llm.routing.share)
    except ContextFull:
        raise AssertionError from None
    finally:
        llm.close()
    return sum(shares) / len(shares)


def test_rows(budget, tiny, tmp_path):
    def plan(**other):
        settings = {"routers": None, "base": None, "shares": [0.0, 0.3, 0.6], "baselines": [], "given": [], "seed": 0}
        return RowPlan(**({"model": budget, "influence": lambda model, routers: ()} | settings | other)).rows()

    found = {row.name: row for row in plan(auto=True)}
    assert list(found) == ["dense", "routed@0.3", "budget@0.3", "routed@0.6", "auto"]  # the table ends at 0.5
    row = found["budget@0.3"]
    assert (row.skip, row.tolerance, row.share, row.system) == ("auto", pytest.approx(0.11), 0.3, "budget")
    assert found["auto"].share == pytest.approx(0.1 + 0.4 * 0.04 / 0.18)
    assert found["auto"].identity() != row.identity()
    side = str(tmp_path / "side.gguf")
    write_sidecar(budget_routers(tiny, table=TABLE), tiny, side)
    assert "budget@0.3" in [row.name for row in plan(model=tiny, routers=side)]
    assert auto_share(tiny) == 0.0


def test_a_report_has_the_mean_share_that_was_skipped(budget, data, tmp_path, capsys):
    out = tmp_path / "report"
    row = f"twice={budget}@auto"
    assert evaluate(budget, data, out, "--skip", "0,0.34,auto", "--row", row, "--kl", "2") == 0
    rows = {one["row"]: one for one in json.loads((out / "report.json").read_text())["rows"]}
    assert list(rows) == ["dense", "routed@0.34", "budget@0.34", "auto", "twice@auto"]
    auto = expected_share(budget, 0.06)
    assert 0 < auto < 4 / 6
    assert rows["auto"]["share_skipped"] == pytest.approx(auto)
    assert rows["budget@0.34"]["share_skipped"] == pytest.approx(expected_share(budget, 0.02 + 0.18 * 0.6))
    assert rows["twice@auto"]["scores"] == rows["auto"]["scores"]
    assert rows["auto"]["kl"] is not None
    assert rows["twice@auto"]["ratio"] == rows["auto"]["ratio"]
    assert "| auto" in capsys.readouterr().out


def test_a_budget_is_set_beside_rows_of_the_share_asked_for(budget, data, tmp_path):
    """It skips the share on average over other prompts: here another one."""
    out, both = tmp_path / "report", ["--row", f"fixed={budget}@even:0.34", "--row", f"less={budget}@even:0.2"]
    assert evaluate(budget, data, out, "--skip", "0,0.34", *both, "--kl", "0") == 0
    record = json.loads((out / "report.json").read_text())
    assert [(one["row"], one["over"]) for one in record["leads"]] == [("routed", "fixed"), ("budget", "fixed")]
    rows = {one["row"]: one for one in record["rows"]}
    assert rows["budget@0.34"]["share_skipped"] != rows["fixed@0.34"]["share_skipped"]
    lead = record["leads"][1]["lead"][0]
    assert lead == pytest.approx(rows["budget@0.34"]["ratio"][0] - rows["fixed@0.34"]["ratio"][0])


def test_a_budget_of_another_file(budget, tiny):
    row = parse_row(f"other={budget}@budget:0.3", tuple)
    assert (row.name, row.share, row.skip, row.tolerance) == ("other@0.3", 0.3, "auto", pytest.approx(0.11))
    for file, share, said in ((tiny, 0.3, "a budget of 0.3 needs"), (budget, 0.6, "a budget of 0.6 needs")):  # the table ends
        with pytest.raises(RowError, match=said):
            parse_row(f"other={file}@budget:{share}", tuple)


def test_auto_alone(budget, data, tmp_path):
    assert evaluate(budget, data, tmp_path / "report", "--skip", "auto", "--kl", "0") == 0
    rows = [one["row"] for one in json.loads((tmp_path / "report" / "report.json").read_text())["rows"]]
    assert rows == ["dense", "auto"]
