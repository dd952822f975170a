"""`first-cpp bench`: what it measures, how it reports, what it refuses."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import sqlite3

import numpy as np
import pytest
from helpers import greedy
from routers_files import budget_routers, routed_model

from first_cpp.bench import measure
from first_cpp.bench.number_lists import numbers, skips
from first_cpp.cli.main import main
from first_cpp.errors import OptionError
from first_cpp.gguf.embed import embed
from first_cpp.runtime.machine import physical_cores

SMALL = ["-p", "16", "-n", "4", "-r", "2", "--no-resident", "-t", "2"]


def bench(capsys, *args):
    """What `first-cpp bench` prints."""
    assert main(["bench", *SMALL, *args]) == 0
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def records(tiny_q8):
    """Records of stock, dense, skipping and pruned in pp, tg and pg."""
    import contextlib

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["bench", *SMALL[:-3], "-t", "2", "-m", tiny_q8, "--skip", "0,0.34", "-pg", "8,4", "-o", "json"]) == 0
    return json.loads(out.getvalue())


# -- rows and records ----------------------------------------------------------------------------------------------


def test_every_row_of_every_test(records):
    rows = [(one["test"], one["engine"], one["skip"]) for one in records]
    engines = [("stock", 0.0), ("first_cpp", 0.0), ("first_cpp", 0.34), ("pruned", 0.34)]
    assert rows == [(test, *engine) for test in ("pp16", "tg4", "pp8+tg4") for engine in engines]
    for one in records:
        assert one["n_layer"] == 6
        assert one["n_skipped"] == len(one["skipped_layers"]) == (2 if one["skip"] else 0)
        assert len(one["samples_ns"]) == 2
        assert one["avg_ns"] == pytest.approx(np.mean(one["samples_ns"]), abs=1)
        assert one["avg_ts"] == pytest.approx(
            np.mean([(one["n_prompt"] + one["n_gen"]) / ns * 1e9 for ns in one["samples_ns"]])
        )
        assert one["resident_bytes"] > 2**25
        assert (one["ttft_ms"] is None) == (one["test"] == "tg4")
        assert (one["tpot_ms"] is None) == (one["step_p50_ms"] is None) == (one["test"] == "pp16")


def test_ratios_stand_where_they_mean_something(records):
    by_row = {(one["test"], one["engine"], one["skip"]): one for one in records}
    decoding = by_row["tg4", "first_cpp", 0.34]
    assert by_row["tg4", "stock", 0.0]["speedup"] == 1
    assert decoding["over_pruned"] > 0.5
    assert decoding["limit_reached"] == pytest.approx(decoding["speedup"] / decoding["byte_limit"])
    assert decoding["kv_bytes"] == 6 * 256 * 2 * 64 * 2  # layers x cells x (k and v) x values x f16
    assert 0 < decoding["kv_bytes_used"] < decoding["kv_bytes"]
    for row in (by_row["pp16", "first_cpp", 0.34], by_row["tg4", "stock", 0.0], by_row["tg4", "pruned", 0.34]):
        assert row["over_pruned"] is row["byte_limit"] is None


def test_routers_choose_the_layers(tiny, models, load, capsys, monkeypatch):
    model = routed_model(tiny, models, seed=3)
    keeps = []
    original = measure.answer_timed
    monkeypatch.setattr(
        measure, "answer_timed", lambda llm, *a, **k: (original(llm, *a, **k), keeps.append(llm.routing.keep))[0]
    )
    shown = json.loads(bench(capsys, "-m", model, "--skip", "0.34", "-o", "json", "--engines", "first_cpp"))
    assert any(keep is not None for keep in keeps), "no prompt was scored"
    llm = load(model, skip=0.34)
    next(llm.generate(np.random.default_rng(0).integers(40, 240, 16).tolist(), temp=0.0))
    assert {tuple(one["skipped_layers"]) for one in shown} == {llm.routing.skipped}


def test_random_routers_score_the_prompt(tiny, capsys):
    shown = json.loads(
        bench(capsys, "-m", tiny, "--routers", "random", "--skip", "0.34", "-o", "json", "--engines", "first_cpp")
    )
    assert [one["n_skipped"] for one in shown] == [2, 2]
    assert "chosen by the routers" in bench(
        capsys, "-m", tiny, "--routers", "random", "--skip", "0.34", "--engines", "first_cpp"
    )


def test_auto_is_what_the_prompt_can_spare(tiny, tmp_path, capsys, load):
    path = str(tmp_path / "budget.gguf")
    embed(budget_routers(tiny, tolerance=0.5), tiny, path, quiet=True)
    words = ["-m", path, "--skip", "auto,0.34", "--engines", "first_cpp"]
    said = bench(capsys, *words)
    assert re.search(r"skip auto: layers? [\d, -]+ \(chosen by the routers for a prompt of 16 tokens; ", said)
    assert "(the set of the file's calibration for all prompts)" in said
    shown = json.loads(bench(capsys, *words, "-o", "json"))
    llm = load(path)
    greedy(llm, np.random.default_rng(0).integers(40, 240, 16).tolist(), 1)
    rows = {one["skip"]: tuple(one["skipped_layers"]) for one in shown if one["n_gen"]}
    assert rows == {0.34: (3, 4), "auto": llm.routing.skipped}
    assert rows["auto"]


def test_layers_as_well_as_shares(tiny, capsys):
    shown = json.loads(bench(capsys, "-m", tiny, "--skip", "0,0.34,[1,4]", "-o", "json", "--engines", "first_cpp,pruned"))
    rows = [(one["engine"], one["skip"], one["skipped_layers"]) for one in shown if one["n_gen"]]
    both = [("first_cpp", [1, 4], [1, 4]), ("pruned", [1, 4], [1, 4])]
    assert rows == [("first_cpp", 0.0, []), ("first_cpp", 0.34, [2, 3]), ("pruned", 0.34, [2, 3]), *both]


def test_depth_with_routers_in_the_model(tiny, models, capsys):
    model = routed_model(tiny, models, seed=5)
    assert "d64" in bench(capsys, "-m", model, "-p", "0", "-d", "64", "--skip", "0.34")


def test_released_kv_is_reported(tiny, capsys):
    one = json.loads(bench(capsys, "-m", tiny, "--skip", "0.34", "-o", "json", "--engines", "first_cpp", "--release-kv"))[-1]
    assert 0 < one["kv_bytes_released"] <= one["kv_bytes"] / 3


def test_another_file_and_drafts(tiny, tiny_q8, capsys):
    args = ["--vs", tiny_q8, "--skip", "0,0.34", "--draft", "3", "-o", "json", "--engines", "stock,first_cpp"]
    shown = json.loads(bench(capsys, "-m", tiny, *args))
    rows = {(one["engine"], one["skip"], one["draft"]): one for one in shown if one["n_gen"]}
    engines = (("stock", 0), ("first_cpp", 0), ("first_cpp", 0.34))
    assert set(rows) == {("other", 0, 0), *((*engine, draft) for engine in engines for draft in (0, 3))}
    assert rows["other", 0, 0]["model_size"] < rows["stock", 0, 0]["model_size"]


def test_combinations_of_settings(tiny, capsys):
    args = ["--skip", "0", "--engines", "first_cpp", "-t", "1,2", "-ub", "8-16*2", "-d", "0,32", "-o", "jsonl"]
    shown = [json.loads(line) for line in bench(capsys, "-m", tiny, *args).splitlines()]
    found = {(one["n_threads"], one["n_ubatch"], one["n_depth"], one["n_gen"]) for one in shown}
    assert found == {(t, u, d, n) for t in (1, 2) for u in (8, 16) for d in (0, 32) for n in (0, 4)}


def test_prompts_from_a_text(tiny, capsys, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("It was a dark night. " * 4)
    assert "pp16" in bench(capsys, "-m", tiny, "--skip", "0", "--engines", "stock", "-f", str(text))
    assert main(["bench", "-m", tiny, "-p", "500", "-n", "1", "-f", str(text)]) == 2
    assert "tokens, the longest prompt needs 500" in capsys.readouterr().err


# -- formats -------------------------------------------------------------------------------------------------------


def test_formats_hold_the_same(tiny, capsys):
    args = ["-m", tiny, "--skip", "0,0.34", "--engines", "first_cpp"]
    as_json = json.loads(bench(capsys, *args, "-o", "json"))
    keys = [key for key in as_json[0] if not key.startswith("samples_")]
    rows = list(csv.DictReader(io.StringIO(bench(capsys, *args, "-o", "csv"))))
    assert [list(row) for row in rows] == [keys] * 4
    assert [(row["test"], row["skipped_layers"]) for row in rows] == [
        (one["test"], " ".join(map(str, one["skipped_layers"]))) for one in as_json
    ]
    database = sqlite3.connect(":memory:")
    database.executescript(bench(capsys, *args, "-o", "sql"))
    query = "SELECT test, skip, n_gen, random_weights FROM llama_bench"
    assert database.execute(query).fetchall() == [(o["test"], o["skip"], o["n_gen"], 0) for o in as_json]
    table = [line for line in bench(capsys, *args, "-o", "md").splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(as_json)
    assert len({len(line) for line in table}) == 1
    assert "2 of 6" in table[3]


def test_llama_bench_fields_come_first(records):
    expected = [
        *("build_commit", "build_number", "cpu_info", "gpu_info", "backends", "model_filename", "model_type", "model_size"),
        *("model_n_params", "n_batch", "n_ubatch", "n_threads", "cpu_mask", "cpu_strict", "poll", "type_k", "type_v"),
    ]
    assert list(records[0])[: len(expected)] == expected
    assert {"n_prompt", "n_gen", "n_depth", "test_time", "avg_ns", "stddev_ns", "avg_ts", "stddev_ts"} <= set(records[0])


def test_the_other_format_goes_to_stderr_and_the_plot_to_its_file(tiny, capsys, tmp_path):
    plot = tmp_path / "plot.png"
    main(["bench", *SMALL, "-m", tiny, "--skip", "0,0.34", "-oe", "jsonl", "--plot", str(plot)])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    assert json.loads(lines[0])["engine"] == "stock"
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_random_weights_are_said_above_every_table(capsys, tmp_path):
    assert (
        main(["bench", *SMALL, "--synthetic", "tiny", "--type", "q8_0,q4_0", "--cache", str(tmp_path), "--skip", "0.34"]) == 0
    )
    out, err = capsys.readouterr()
    assert [line for line in out.splitlines() if line.startswith("#")] == [
        "### tiny Q8_0 (random weights)",
        "### tiny Q4_0 (random weights)",
    ]
    assert f"writing tiny Q8_0 with random weights to {tmp_path}" in err
    assert f"the model is kept for the next time: {tmp_path}/tiny-q8_0" in out
    kept = {name: os.stat(tmp_path / name).st_mtime_ns for name in os.listdir(tmp_path)}
    assert len(kept) == 2
    bench(capsys, "--synthetic", "tiny", "--type", "q8_0", "--cache", str(tmp_path), "--skip", "0")
    assert {name: os.stat(tmp_path / name).st_mtime_ns for name in os.listdir(tmp_path)} == kept


# -- what is refused -----------------------------------------------------------------------------------------------


def test_layers_that_the_routers_keep_count_as_computed(tiny, tmp_path, capsys):
    side = routed_model(tiny, tmp_path, seed=6, sidecar=True, skippable="[true, false, true, true, true, true]")
    args = ["-m", tiny, "--routers", side, "--skip", "0.34,[1,4]", "-o", "json", "-oe", "md", "-p", "0"]
    assert main(["bench", *SMALL, *args]) == 0
    out, err = capsys.readouterr()
    found = {one["engine"]: one for one in json.loads(out) if one["skip"] == [1, 4]}
    assert [(one["n_skipped"], one["skipped_layers"]) for one in found.values()] == [(1, [4])] * 2
    assert found["first_cpp"]["byte_limit"] < next(one["byte_limit"] for one in json.loads(out) if one["n_skipped"] == 2)
    assert found["pruned"]["model_size"] > next(
        o["model_size"] for o in json.loads(out) if o["skip"] == 0.34 and o["engine"] == "pruned"
    )
    assert "skip [1,4]: layer 4 (the router file marks the others unskippable)" in err


def test_a_rate_with_drafts_is_of_the_tokens_it_names(tiny, capsys):
    args = ["-m", tiny, "--skip", "0", "--engines", "stock", "--draft", "2", "-o", "json", "-p", "0"]
    for one in json.loads(bench(capsys, *args)):
        assert one["avg_ns"] == pytest.approx(one["tpot_ms"] * 1e6 * one["n_gen"], rel=1e-3)


def test_drafts_go_beyond_a_batch(tiny, capsys):
    shown = json.loads(bench(capsys, "-m", tiny, "--skip", "0.34", "--draft", "2", "-o", "json", "-p", "64", "-b", "32"))
    assert {(one["engine"], one["draft"]) for one in shown} >= {("stock", 2), ("first_cpp", 2)}


def test_auto_is_told_as_the_prompt_of_the_test_decided(tiny, tmp_path, monkeypatch, capsys):
    model, run = str(tmp_path / "auto.gguf"), []
    embed(budget_routers(tiny, seed=3, scale=0.4), tiny, model, quiet=True)
    answers = measure._Repetition._answers

    def answering(self, found):
        times = answers(self, found)
        run.append(self._models["first_cpp auto"].routing.skipped)
        return times

    monkeypatch.setattr(measure._Repetition, "_answers", answering)
    args = ["-m", model, "--skip", "auto", "-o", "json", "-p", "0", "-pg", "16,4", "-r", "3", "--engines", "first_cpp"]
    decoding, both = json.loads(bench(capsys, *args))
    assert run == [tuple(both["skipped_layers"])] * 3
    assert both["n_skipped"] == len(run[0]) != decoding["n_skipped"]


def test_numbers_are_llama_benchs():
    assert numbers("1,2", "-p") == [1, 2]
    assert numbers("1-4", "-p") == [1, 2, 3, 4]
    assert numbers("10-30+10,1-8*2", "-p") == [10, 20, 30, 1, 2, 4, 8]
    for text in ("", "a", "1,", "4-1", "0-8*2", "1-8*1", "1-8+0", "-1"):
        with pytest.raises(OptionError, match="-p"):
            numbers(text, "-p")


def test_skips_are_shares_and_sets_of_layers():
    assert skips("0.25,0,0.25") == [0.0, 0.25]
    assert skips("0") == [0.0]
    assert skips("0,0.25,[7,11],[3]") == [0.0, 0.25, (7, 11), (3,)]
    assert skips("7,11") == [(7, 11)]
    assert skips("7,") == [(7,)]
    for text in ("", "x", "1.5", "[1,1]", "[x]", "[1", "0,[]", "nan"):
        with pytest.raises(OptionError, match="--skip"):
            skips(text)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "no model: give -m FILE or --synthetic SHAPE"),
        (["-m", "nowhere.gguf"], "there is no file nowhere.gguf"),
        (["--synthetic", "llama-9"], "'llama-9' is unknown; allowed: tiny"),
        (["--synthetic", "tiny", "--type", "q9"], "'q9' is unknown; allowed: f32"),
        (["--synthetic", "tiny", "--skip", "1.5"], "skip=1.5: a share of layers is at least 0 and below 1"),
        (["--synthetic", "tiny", "--skip", "x"], "'x' is not auto, a share of layers like 0.25 or a set of layers like [7,11]"),
        (["--synthetic", "tiny", "--skip", "7,11"], "layer 7 does not exist"),
        (["--synthetic", "tiny", "--skip", "0.95"], "all 6 layers"),
        (["--synthetic", "tiny", "--engines", "stock,mlx"], "mlx unknown"),
        (["--synthetic", "tiny", "-p", "0", "-n", "0"], "nothing to measure"),
        (["--synthetic", "tiny", "-pg", "5"], "is not PP,TG"),
        (["--synthetic", "tiny", "-ctk", "q9"], "'q9' is not a type of a KV cache"),
        (["--synthetic", "tiny", "-ctv", "q8_0"], "add -fa 1"),
        (["--synthetic", "tiny", "-t", "5000"], "-t: 5000 is above 512"),
        (["--synthetic", "tiny", "--skip", "0", "--engines", "pruned"], "no rows"),
        (["--synthetic", "tiny", "-t", "0"], "-t: 0 is below 1"),
        (["--synthetic", "tiny", "-n", "0", "--plot", "x.png"], "--plot draws decoding"),
        (["--synthetic", "tiny", "--plot", "no/such/x.png"], "the folder of"),
    ],
)
def test_what_cannot_be_measured(args, message, capsys, tmp_path):
    assert main(["bench", "--cache", str(tmp_path), *args]) == 2
    assert message in capsys.readouterr().err


def test_too_many_threads_are_warned_of(tiny, capsys):
    assert (
        main(
            [
                "bench",
                *SMALL[:-2],
                "-t",
                str(physical_cores() + 1),
                "-m",
                tiny,
                "--skip",
                "0",
                "--engines",
                "stock",
                "-n",
                "1",
                "-p",
                "0",
            ]
        )
        == 0
    )
    assert "more threads than the" in capsys.readouterr().err
