"""Benchmark records in llama-bench's formats: its fields first (tools/llama-bench), first_cpp's own after them."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from .measure import Measured, spread

Record = dict[str, Any]
FORMATS = ("md", "csv", "json", "jsonl", "sql")


def record(measured: Measured, configuration: Record, resident_bytes: int | None) -> Record:
    """One JSON object: fields of the configuration, then the test, then llama-bench's averages, then ours."""
    rates, test, row = measured.rates(), measured.test, measured.row
    nanoseconds = [round(seconds * 1e9) for seconds in measured.seconds]
    steps = sorted(measured.steps)
    whole = measured.kv_bytes or (None, None, None)
    speed_up = statistics.median(measured.speed_ups) if measured.speed_ups else None
    limit = measured.byte_limit
    return {
        **configuration,
        "n_prompt": test.n_prompt,
        "n_gen": test.n_gen,
        "n_depth": test.n_depth,
        "avg_ns": round(statistics.mean(nanoseconds)),
        "stddev_ns": round(spread(nanoseconds)),
        "avg_ts": statistics.mean(rates),
        "stddev_ts": spread(rates),
        "test": test.name,
        "engine": row.engine,
        "skip": row.skip,
        "layers_skipped": len(row.left_out),
        "left_out": list(row.left_out),
        "draft": row.draft,
        "ttft_ms": statistics.median(measured.ttft) * 1e3 if measured.ttft else None,
        "tpot_p50_ms": statistics.median(steps) * 1e3 if steps else None,
        "tpot_p95_ms": steps[int(len(steps) * 0.95)] * 1e3 if steps else None,
        "speedup": speed_up,
        "speedup_stderr": _error(measured.speed_ups),
        "over_pruned": statistics.median(measured.over_pruned) if measured.over_pruned else None,
        "over_pruned_stderr": _error(measured.over_pruned),
        "byte_limit": limit,
        "limit_reached": speed_up / limit if speed_up and limit else None,
        "kv_bytes": whole[0],
        "kv_bytes_used": whole[1],
        "kv_bytes_released": whole[2],
        "resident_bytes": resident_bytes,
        "samples_ns": nanoseconds,
        "samples_ts": rates,
    }


def _error(values: Sequence[float]) -> float | None:
    """Standard error of the mean over repetitions."""
    return spread(values) / len(values) ** 0.5 if len(values) > 1 else None


def write(records: Sequence[Record], form: str) -> str:
    """The records as text in one of the FORMATS."""
    if form == "json":
        return json.dumps(records, indent=2) + "\n"
    if form == "jsonl":
        return "".join(json.dumps(one) + "\n" for one in records)
    flat = [{key: value for key, value in one.items() if not key.startswith("samples_")} for one in records]
    if form == "csv":
        return _csv(flat)
    return _sql(flat) if form == "sql" else _markdown(records)


def _csv(records: Sequence[Record]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(records[0]) if records else [], quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writeheader()
    for one in records:
        writer.writerow({key: _plain(value) for key, value in one.items()})
    return out.getvalue()


def _plain(value: object) -> object:
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, bool):
        return int(value)
    return "" if value is None else value


def _sql(records: Sequence[Record]) -> str:
    if not records:
        return ""
    kinds = {bool: "INTEGER", int: "INTEGER", float: "REAL"}
    columns = {}
    for key in records[0]:
        value = next((one[key] for one in records if one[key] is not None), None)
        columns[key] = "INTEGER" if key.endswith("_bytes") else kinds.get(type(value), "TEXT")
    lines = [
        "CREATE TABLE IF NOT EXISTS llama_bench (",
        ",\n".join(f"  {key} {kind}" for key, kind in columns.items()),
        ");",
        "",
    ]
    for one in records:
        values = ", ".join(_sql_value(value) for value in one.values())
        lines.append(f"INSERT INTO llama_bench ({', '.join(columns)}) VALUES ({values});")
    return "\n".join(lines) + "\n"


def _sql_value(value: object) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, (bool, int, float)):
        return str(_plain(value))
    return "'" + str(_plain(value)).replace("'", "''") + "'"


def _markdown(records: Sequence[Record]) -> str:
    columns: dict[str, Callable[[Record], str]] = {
        "model": lambda r: r["model_type"],
        "size": lambda r: (
            f"{r['model_size'] / 2**30:.2f} GiB" if r["model_size"] >= 2**30 else f"{r['model_size'] / 2**20:.2f} MiB"
        ),
        "params": lambda r: (
            f"{r['model_n_params'] / 1e9:.2f} B" if r["model_n_params"] >= 1e9 else f"{r['model_n_params'] / 1e6:.2f} M"
        ),
        "backend": lambda r: r["backends"],
        "threads": lambda r: str(r["n_threads"]),
        "test": lambda r: r["test"],
        "engine": lambda r: r["engine"] + (f", drafts of {r['draft']}" if r["draft"] else ""),
        "skip": lambda r: f"{r['skip']:g}",
        "left out": lambda r: f"{r['layers_skipped']} of {r['n_layer']}",
        "t/s": lambda r: f"{r['avg_ts']:.2f} ± {r['stddev_ts']:.2f}",
        "TTFT ms": lambda r: _number(r["ttft_ms"], ".1f"),
        "TPOT ms": lambda r: _number(r["tpot_p50_ms"], ".2f"),
        "p95": lambda r: _number(r["tpot_p95_ms"], ".2f"),
        "speed-up": lambda r: _number(r["speedup"], ".3f"),
        "/ pruned": lambda r: _number(r["over_pruned"], ".3f"),
        "limit": lambda r: _number(r["byte_limit"], ".3f"),
        "reached": lambda r: _number(r["limit_reached"], ".0%"),
        "KV MiB all / used / back": _kv,
        "resident MiB": lambda r: "" if r["resident_bytes"] is None else f"{r['resident_bytes'] / 2**20:.0f}",
    }
    rows = [[name for name in columns], *[[cell(one) for cell in columns.values()] for one in records]]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows]
    lines.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    return "\n".join(lines) + "\n"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _kv(one: Record) -> str:
    if one["kv_bytes"] is None:
        return ""
    return " / ".join(f"{one[key] / 2**20:.0f}" for key in ("kv_bytes", "kv_bytes_used", "kv_bytes_released"))
