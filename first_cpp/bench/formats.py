"""Benchmark records as text: JSON, JSON Lines, CSV and SQL, as llama-bench writes them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence

from .records import Record


def write(records: Sequence[Record], form: str) -> str:
    """The records in one of json, jsonl, csv and sql.

    >>> write([{"engine": "stock", "skip": 0.0, "samples_ns": [5]}], "csv")
    '"engine","skip"\\n"stock","0.0"\\n'
    """
    if form == "json":
        return json.dumps(records, indent=2) + "\n"
    if form == "jsonl":
        return "".join(json.dumps(one) + "\n" for one in records)
    flat = [{key: value for key, value in one.items() if not key.startswith("samples_")} for one in records]
    return _csv(flat) if form == "csv" else _sql(flat)


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
