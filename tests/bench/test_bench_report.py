"""The table and the picture of `first-cpp bench`."""

from __future__ import annotations

import io

import pytest

from first_cpp.bench import command, plot, table
from first_cpp.bench.engines import OURS, PRUNED, STOCK, Row
from first_cpp.bench.table import Table, heading
from first_cpp.bench.workload import Test
from first_cpp.cli.main import main


def made_up(engine, n_skipped=0, **fields):
    """A record as large as any."""
    return {
        **{"model_name": "llama-3.2-3b Q4_K_M (random weights)", "model_type": "llama 3B Q4_K - Medium", "load_mode": "mmap"},
        **{"model_size": 2 << 30, "model_n_params": 3.2e9, "n_layer": 28, "n_threads": 16, "type_k": "f16", "type_v": "f16"},
        **{"n_batch": 2048, "n_ubatch": 512, "flash_attn": False, "test": "pp512+tg128", "n_gen": 128, "n_prompt": 512},
        **{"engine": engine, "draft": 0, "skip": n_skipped / 28, "n_skipped": n_skipped, "avg_ts": 1234.5, "stddev_ts": 123.4},
        **{"ttft_ms": 12345.6, "tpot_ms": 123.45, "step_p50_ms": 123.4, "step_p95_ms": 130.0, "speedup": 1.123},
        **{"over_pruned": 1.012, "byte_limit": 1.234, "limit_reached": 0.97, "kv_bytes": 1 << 30, "kv_bytes_used": 1 << 29},
        **{"kv_bytes_released": 1 << 28, "resident_bytes": 5 << 30},
        **fields,
    }


def test_the_columns_fit_120():
    tests = [Test(512, 0), Test(0, 128), Test(512, 128)]
    rows = [Row(STOCK, "m"), Row(OURS, "m", 0.25, tuple(range(7))), Row(PRUNED, "p", 0.25, tuple(range(7)))]
    made = Table(tests, rows, 28, resident=True, wide=False)
    lines = [*made.head().splitlines(), made.line(made_up("first_cpp", 7))]
    assert {len(line) for line in lines} == {len(lines[0])}
    assert len(lines[0]) <= 120
    assert "KV MiB" not in made.head()
    assert "KV MiB" in Table(tests, rows, 28, resident=True, wide=True).head()
    assert all(len(line) <= 80 for line in heading(made_up("stock")).splitlines())


@pytest.mark.parametrize(
    ("test", "draft", "layers", "spared"),
    [
        (Test(512, 128), 0, (14,), []),
        (Test(512, 128, 8192), 0, (14,), ["reached"]),
        (Test(512, 128, 8192), 8, tuple(range(3, 12)), ["reached", "RAM MiB", "limit", "TTFT ms"]),
    ],
    ids=["short", "depth", "all"],
)
def test_long_names_take_the_room_of_columns_that_can_be_spared(test, draft, layers, spared):
    rows = [Row(STOCK, "m"), Row(OURS, "m", layers, layers, draft)]
    tests = [Test(512, 0), Test(0, 128), test]
    made = Table(tests, rows, 28, resident=True, wide=False)
    one = made_up("first_cpp", len(layers), skip=list(layers), draft=draft, test=test.name)
    lines = [*made.head().splitlines(), made.line(one)]
    assert {len(line) for line in lines} == {len(lines[0])}
    assert len(lines[0]) <= 120
    assert made.spared == spared
    assert not any(name in made.head() for name in spared)
    assert Table(tests, rows, 28, resident=True, wide=True).spared == []


def test_columns_that_had_no_room_are_named(tiny, capsys, monkeypatch):
    args = ["bench", "-m", tiny, "--skip", "0.34", "-p", "0", "-n", "4", "-r", "1", "-t", "1", "--no-resident"]
    args += ["--engines", "first_cpp"]
    assert main(args) == 0
    assert "not shown" not in capsys.readouterr().out
    monkeypatch.setattr(table, "WIDTH", 85)
    assert main(args) == 0
    assert "not shown, for want of width: reached; --wide shows all columns" in capsys.readouterr().out


def test_columns_that_no_test_fills_are_not_there():
    head = Table([Test(512, 0)], [Row(STOCK, "m")], 28, resident=False, wide=True).head()
    assert "TTFT" in head
    assert not any(name in head for name in ("TPOT", "step", "limit", "RAM"))
    assert "TTFT" not in Table([Test(0, 8)], [Row(STOCK, "m")], 28, resident=False, wide=True).head()


def test_rows_appear_as_they_are_measured(tiny, capsys, monkeypatch):
    """What is on stdout when the second test begins."""
    shown = []
    monkeypatch.setattr(command, "_progress", lambda model, on: lambda what: shown.append((what, capsys.readouterr().out)))
    args = ["-p", "16", "-n", "4", "-r", "1", "-t", "1", "--no-resident", "--engines", "stock"]
    assert main(["bench", "-m", tiny, "--skip", "0", *args]) == 0
    before = dict(shown)
    assert "| pp16 | stock" in before["tg4"]
    assert "| tg4 " not in before["tg4"]


def test_what_is_skipped_and_what_is_not_measured_is_there(tiny, capsys):
    args = ["-p", "0", "-n", "4", "-r", "1", "-t", "1", "--no-resident", "--draft", "2"]
    assert main(["bench", "-m", tiny, "--skip", "0,0.34", *args]) == 0
    out = capsys.readouterr().out
    assert "skip 0.34: layers 2-3 (those amid the model: it has no routers)" in out
    assert "not measured: pruned at skip 0, which is stock" in out
    assert "not measured: pruned with drafts" in out


# -- the picture ---------------------------------------------------------------------------------------------------


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Draw records; returns the titles of the left panels, and for each the labels of its lines."""
    import matplotlib.pyplot as plt

    kept = []
    monkeypatch.setattr(plt, "close", kept.append)

    def _drawn(records):
        plot.draw(records, str(tmp_path / "plot.png"))
        assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
        return {
            axis.get_title(loc="left"): sorted(line.get_label() for line in axis.lines)
            for axis in kept[-1].axes
            if axis.get_title(loc="left")
        }

    yield _drawn
    monkeypatch.undo()
    for figure in kept:
        plt.close(figure)


def test_one_pair_of_panels_a_file_named_by_the_model(drawn):
    """llama.cpp names the pruned file, and one of --vs, differently: they stand beside the model they are compared with."""
    records = [
        made_up("stock", test="tg128"),
        made_up("first_cpp", 7, test="tg128"),
        made_up("pruned", 7, test="tg128", model_type="llama ?B Q4_K - Medium"),
        made_up("other", test="tg128", model_type="llama 3B Q2_K"),
        made_up("first_cpp", 7, test="tg128", draft=3),
        made_up("stock", test="tg128", model_name="smollm2-135m"),
    ]
    assert drawn(records) == {
        "llama-3.2-3b Q4_K_M (random weights), tg128, 16 threads": ["first_cpp", "llama 3B Q2_K", "pruned", "stock"],
        "smollm2-135m, tg128, 16 threads": ["stock"],
    }


def test_settings_that_differ_have_panels_of_their_own(drawn):
    records = [made_up("stock", n_threads=n, type_k=kind) for n in (1, 2) for kind in ("f16", "q8_0")]
    assert list(drawn(records)) == [
        f"llama-3.2-3b Q4_K_M (random weights), pp512+tg128, {threads}, type_k {kind}"
        for threads in ("1 thread", "2 threads")
        for kind in ("f16", "q8_0")
    ]


def test_a_set_of_layers_is_a_point_of_its_own(drawn):
    records = [made_up("first_cpp", n, test="tg128") for n in (7, 0)]
    records += [made_up(engine, 2, test="tg128", skip=[7, 11]) for engine in ("first_cpp", "pruned")]
    (labels,) = drawn(records).values()
    assert labels == ["first_cpp", "first_cpp [7,11]", "pruned [7,11]"]


def test_what_is_not_drawn_is_said():
    assert plot.not_drawn([made_up("stock")]) == ""
    records = [made_up("stock"), made_up("stock", draft=3), made_up("stock", n_gen=0)]
    assert plot.not_drawn(records) == "not drawn: rows with drafts, whose gain depends on the text; tests that decode nothing"


def test_nothing_to_draw():
    with pytest.raises(ValueError, match="needs a decoding test"):
        plot.draw([made_up("stock", n_gen=0)], io.BytesIO())
