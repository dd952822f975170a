"""The Markdown table of a benchmark, one row after the other as they are measured, and what stands above and below it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from .engines import Row, skip_text
from .records import Record
from .workload import Test


@dataclass(frozen=True)
class Column:
    """name: the head. width: of its cells, as far as it is known beforehand. cell: a record's text."""

    name: str
    width: int
    cell: Callable[[Record], str]


WIDTH = 120
SPARED = ("reached", "RAM MiB", "limit", "TTFT ms", "skipped")
"""Columns that a table does without where long names of tests or rows would make it wider than WIDTH, in this order."""


class Table:
    """One model's table in one configuration; cells of known width, so that rows can be written one by one.

    wide: all columns. resident: whether resident memory was measured. spared: the columns that had no room.
    """

    def __init__(self, tests: Sequence[Test], rows: Sequence[Row], n_layer: int, resident: bool, wide: bool) -> None:
        engines = [_engine(row.engine, row.draft) for row in rows]
        skips = [skip_text(row.skip) for row in rows]
        found = [
            Column("test", max(len(test.name) for test in tests), lambda r: str(r["test"])),
            Column("engine", max(map(len, engines)), lambda r: _engine(r["engine"], r["draft"])),
            Column("skip", max(map(len, skips)), lambda r: _skip(r["skip"])),
            Column("skipped", len(f"{n_layer} of {n_layer}"), lambda r: f"{r['n_skipped']} of {r['n_layer']}"),
            Column("t/s", 12, lambda r: f"{_rate(r['avg_ts'])} ± {_rate(r['stddev_ts'])}"),
        ]
        if any(test.n_prompt for test in tests):
            found.append(Column("TTFT ms", 0, lambda r: _number(r["ttft_ms"], ".1f")))
        if any(test.n_gen for test in tests):
            found.append(Column("TPOT ms", 0, lambda r: _number(r["tpot_ms"], ".2f")))
            if wide:
                found.append(Column("median step ms", 0, lambda r: _number(r["step_p50_ms"], ".2f")))
                found.append(Column("p95 step ms", 0, lambda r: _number(r["step_p95_ms"], ".2f")))
        found.append(Column("speed-up", 0, lambda r: _number(r["speedup"], ".3f")))
        if any(test.n_gen and not test.n_prompt for test in tests):
            if wide:
                found.append(Column("/ pruned", 0, lambda r: _number(r["over_pruned"], ".3f")))
            found.append(Column("limit", 0, lambda r: _number(r["byte_limit"], ".3f")))
            found.append(Column("reached", 0, lambda r: _number(r["limit_reached"], ".0%")))
        if wide:
            found.append(Column("KV MiB: all / used / back", 0, _kv))
        if resident:
            found.append(Column("RAM MiB", 0, lambda r: _number(_mib(r["resident_bytes"]), ".0f")))
        self._columns = [Column(one.name, max(one.width, len(one.name)), one.cell) for one in found]
        self.spared: list[str] = []
        for name in SPARED:
            if wide or len(self.head().splitlines()[0]) <= WIDTH:
                break
            kept = [one for one in self._columns if one.name != name]
            self.spared += [name] if len(kept) < len(self._columns) else []
            self._columns = kept

    def head(self) -> str:
        """The two lines above the rows."""
        names = [one.name.ljust(one.width) for one in self._columns]
        rules = ["-" * one.width for one in self._columns]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in (names, rules))

    def line(self, one: Record) -> str:
        """The row of one record."""
        return f"| {' | '.join(column.cell(one).ljust(column.width) for column in self._columns)} |"


def heading(one: Record) -> str:
    """What is measured: the model in a heading, and the settings that hold for all of its rows."""
    size, params = one["model_size"], one["model_n_params"]
    facts = [one["model_type"]] if one["model_type"] != one["model_name"] else []
    facts += [
        f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.2f} MiB",
        f"{params / 1e9:.2f} B parameters" if params >= 1e9 else f"{params / 1e6:.2f} M parameters",
        f"{one['n_layer']} layers",
        f"{one['n_threads']} threads" if one["n_threads"] > 1 else "1 thread",
        f"KV cache {one['type_k']}" + (f"/{one['type_v']}" if one["type_v"] != one["type_k"] else ""),
        f"batch {one['n_batch']}/{one['n_ubatch']}",
    ]
    facts += ["flash attention"] if one["flash_attn"] else []
    facts += ["not mapped"] if one["load_mode"] == "none" else []
    lines = [""]
    for fact in facts:
        lines = [*lines[:-1], *_joined(lines[-1], fact)]
    return f"### {one['model_name']}\n\n" + "\n".join(lines) + "\n"


def _joined(line: str, fact: str, width: int = 80) -> list[str]:
    if not line:
        return [fact]
    return [f"{line}, {fact}"] if len(line) + len(fact) + 3 <= width else [f"{line},", fact]


def layer_ranges(layers: Sequence[int]) -> str:
    """Layer numbers with ranges.

    >>> layer_ranges([3, 4, 5, 9])
    '3-5, 9'
    """
    parts: list[list[int]] = []
    for layer in sorted(layers):
        if parts and parts[-1][-1] == layer - 1:
            parts[-1].append(layer)
        else:
            parts.append([layer])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)


def _engine(engine: str, draft: int) -> str:
    return engine + (f", draft {draft}" if draft else "")


def _skip(skip: float | list[int] | Literal["auto"]) -> str:
    return skip_text(tuple(skip) if isinstance(skip, list) else skip)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _rate(value: float) -> str:
    """Three to four digits, and no exponent."""
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def _mib(n_bytes: int | None) -> float | None:
    return None if n_bytes is None else n_bytes / 2**20


def _kv(one: Record) -> str:
    if one["kv_bytes"] is None:
        return ""
    return " / ".join(f"{one[key] / 2**20:.0f}" for key in ("kv_bytes", "kv_bytes_used", "kv_bytes_released"))
