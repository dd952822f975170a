"""Writes docs/reference/benchmarks.md from the files in benchmarks/results. No number in it is written by hand."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterable
from typing import Any

import llama_cpp
from commands import COMMANDS
from common import RESULTS

from first_cpp.bench.models import random_routers
from first_cpp.gguf.embed import write_sidecar
from first_cpp.gguf.model_file import ModelFile

PATH = os.path.join(os.path.dirname(RESULTS), os.pardir, "docs", "reference", "benchmarks.md")
Record = dict[str, Any]


def write_routers_beside(model: str) -> None:
    """Random routers for SmolLM2: scoring costs what it costs with trained ones."""
    write_sidecar(random_routers(ModelFile.open(model)), model, f"{model}.routers")


def save_bench(path: str, records: str, command: str) -> None:
    """Keep what `first-cpp bench -o json` printed, beside the command; no path of this machine."""
    rows = json.loads(records)
    for row in rows:
        row["model_filename"] = os.path.basename(row["model_filename"])
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"command": command, "machine": rows[0]["machine"], "rows": rows}, file, indent=1)
        file.write("\n")


def read(name: str) -> Record:
    with open(os.path.join(RESULTS, f"{name}.json"), encoding="utf-8") as file:
        found: Record = json.load(file)
    return found


def table(columns: list[str], rows: Iterable[Iterable[object]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)])


def section(title: str, words: str, body: str, *sources: str) -> str:
    commands = "\n".join(f"    {COMMANDS.get(source) or read(source)['command']}" for source in sources)
    return f"## {title}\n{words}\n\n{body}\n\n{commands}\n"


def pm(row: Record, key: str, form: str = ".3f") -> str:
    """A figure with its standard error over repetitions, where there is more than one."""
    value, error = row[key], row.get(f"{key}_stderr")
    return format(value, form) + (f" ± {error:{form}}" if error is not None else "")


def of(name: str, **wanted: object) -> list[Record]:
    return [row for row in read(name)["rows"] if all(row[key] == value for key, value in wanted.items())]


def limit_rows() -> list[list[str]]:
    rows = []
    for name in ("limit-smollm2", "limit-1b", "limit-3b"):
        idle = {row["model_type"]: row for row in of(name, engine="first_cpp", skip=0.0)}
        for row in of(name, engine="first_cpp", skip=0.25):
            rows.append(
                [
                    row["model_type"] if row["random_weights"] else "SmolLM2-135M-Instruct Q4_0",
                    f"{row['n_skipped']} of {row['n_layer']}",
                    f"{row['step_p50_ms']:.2f}",
                    pm(row, "over_pruned"),
                    f"{1 / idle[row['model_type']]['speedup']:.3f}",
                    pm(row, "speedup"),
                    f"{row['byte_limit']:.3f}",
                    f"{row['limit_reached']:.0%}",
                ]
            )
    return rows


LIMIT_COLUMNS = ["model", "skipped", "median step, ms", "step / pruned", "idle / stock", "speed-up", "byte limit", "reached"]


def limit() -> str:
    return section(
        "Decoding against the limit",
        "The same model with the same layers pruned from the file is the limit of what skipping them can reach. The byte limit\n"
        "is bytes of weights and KV read per token, dense over the rest. Medians of ratios, the two taken step by step in turns.",
        table(LIMIT_COLUMNS, limit_rows()),
        "limit-smollm2",
        "limit-1b",
        "limit-3b",
    )


def depth() -> str:
    rows = [
        [
            row["n_depth"],
            f"{row['step_p50_ms']:.1f}",
            pm(row, "speedup"),
            f"{row['byte_limit']:.3f}",
            f"{row['limit_reached']:.0%}",
        ]
        for row in of("depth", engine="first_cpp", skip=0.25)
    ]
    return section(
        "With context already there",
        "3B shape, Q4_0, 7 of 28 layers skipped: their KV is not read either, so the gain grows with the context.",
        table(["tokens there", "median step, ms", "speed-up", "byte limit", "reached"], rows),
        "depth",
    )


def prefill() -> str:
    (row,) = of("ttft", engine="first_cpp")
    routed = read("routed_prefill")["rows"]
    rows = [
        [
            r["prompt"],
            r["prefill"],
            f"{r['ttft_s']:.2f}",
            f"{r['ttft_over_full']:.3f}",
            f"{r['kl']:.3f}",
            f"{r['same_next']:.0%}",
        ]
        for r in routed["rows"]
    ]
    return (
        section(
            "Time to first token",
            f"SmolLM2-135M Q4_0, 512-token prompt, routers reading it: TTFT over stock's, median of {len(row['samples_ns'])} turns.",
            table(
                ["TTFT ms", "TTFT / stock"],
                [[f"{row['ttft_ms']:.0f}", f"{1 / row['speedup']:.3f} ± {row['speedup_stderr']:.3f}"]],
            ),
            "ttft",
        )
        + "\n"
        + section(
            'prefill="routed" costs quality',
            f"The first {routed['route_tokens']} tokens decide, the rest of the prompt is read without the skipped layers too (skip share "
            f"{routed['skip']:g}, input-blind\nrouters, SmolLM2-135M Q4_0). KL from dense to each, per token of dense's own answer, in "
            "nats; same: how often the\nlikeliest next token is dense's.",
            table(["prompt tokens", "prefill", "TTFT s", "/ full", "KL", "same"], rows),
            "routed_prefill",
        )
    )


def whole_answer() -> str:
    row = read("whole_answer")["rows"]
    rows = [
        [name, f"{row[f'seconds_{name}']:.3f}", pm(row, f"speedup_{name}") if name != "stock" else "1"]
        for name in ("stock", "dense", "skipping")
    ]
    loading = read("load_time")["rows"]
    return (
        section(
            "A whole answer",
            "`create_completion`: 128-token prompt, 256 tokens, greedy, SmolLM2-135M Q4_0, 8 of 30 layers skipped.",
            table(["engine", "seconds", "speed-up over stock"], rows),
            "whole_answer",
        )
        + "\n"
        + section(
            "Loading",
            f"`Llama(...)` to ready, beyond what stock does: {loading['shape']} shape with a 128k vocabulary, routers beside it.",
            table(
                ["whole load, s", "beyond stock, ms", "first load, ms"],
                [
                    [
                        f"{loading['whole_load_s']:.1f}",
                        f"{loading['beyond_stock_ms']:.0f}",
                        f"{loading['beyond_stock_first_ms']:.0f}",
                    ]
                ],
            ),
            "load_time",
        )
    )


def memory() -> str:
    found = read("memory_limit")["rows"]
    rows = [
        [
            r["layers_skipped"],
            f"{r['seconds_per_token'] * 1e3:.0f}",
            f"{r['bytes_read_per_token'] / 2**20:.0f}",
            f"{r['major_faults_per_token']:.0f}",
            f"{r['speedup']:.1f}",
        ]
        for r in found["shares"]
    ]
    kv = [
        [
            f"{r['engine']} {r['skip']:g}",
            *(
                f"{r[key] / 2**20:.1f}" if r[key] is not None else ""
                for key in ("kv_bytes", "kv_bytes_used", "kv_bytes_released")
            ),
            f"{r['resident_bytes'] / 2**20:.0f}",
        ]
        for r in of("resident", n_prompt=0)
    ]
    return (
        section(
            "A model larger than memory",
            f"{found['shape']} {found['type'].upper()} with random weights, {found['file_bytes'] / 2**20:.0f} MiB, in a process held to "
            f"{found['limit_bytes'] / 2**20:.0f} MiB ({found['how']}):\nthe pages of skipped layers are never read.",
            table(["skipped", "median step, ms", "MiB read per token", "major faults per token", "speed-up"], rows),
            "memory_limit",
        )
        + "\n"
        + section(
            "KV memory given back",
            "SmolLM2-135M Q4_0 with `release_kv=True`, MiB; resident: of a process that runs the row alone.",
            table(["row", "KV in all", "in use", "given back", "resident"], kv),
            "resident",
        )
    )


def drafts() -> str:
    found = read("drafts")["rows"]
    rows = [
        [
            r["task"],
            r["engine"],
            r["draft"],
            f"{r['seconds_per_answer']:.2f}",
            f"{r['speedup']:.2f}",
            f"{r['widest_near_tie']:.2f}",
        ]
        for r in found["answers"]
    ]
    sizes = list(next(iter(found["step_cost_over_one_token"].values())))
    costs = [[model, *(f"{cost[n]:.2f}" for n in sizes)] for model, cost in found["step_cost_over_one_token"].items()]
    return section(
        "Prompt-lookup drafts",
        f"Whole greedy answers of up to {found['tokens']} tokens, SmolLM2-135M Q4_0, skip share {found['skip']:g}, input-blind "
        "routers; speed-up per token over\nstock without drafts, prompt included. near tie: where an answer with drafts leaves the one "
        "without, by how many logits\nthe latter preferred its token. A draft pays when a step yields more tokens than it costs "
        "(second table).\nNo length does here, so nothing is drafted unless asked for.",
        table(["task", "engine", "draft", "s per answer", "speed-up", "near tie"], rows)
        + "\n\n"
        + table(["step of tokens, cost over one", *sizes], costs),
        "drafts",
    )


def turns() -> str:
    found = read("chat_turns")["rows"]
    rows = [[name, *(f"{value:.0f}" for value in values)] for name, values in found["ttft_ms"].items()]
    return section(
        "A chat of ten turns",
        f"TTFT in ms by turn, answers of {found['tokens']} tokens, SmolLM2-135M Q4_0, 8 of 30 layers skipped. stock keeps all of the "
        'KV cache;\nskipping reads the last answer again with all layers; with `prefill="routed"` the answer stays valid.',
        table(["row", *(str(turn + 1) for turn in range(found["turns"]))], rows),
        "chat_turns",
    )


def conversation() -> str:
    found = [read(name)["rows"] for name in ("conversation", "conversation-1b")]
    first, turns = found[0], [str(turn + 1) for turn in range(found[0]["turns"])]
    parts = [_played(one["model"], turns) for one in found]
    for n_chats, engines in first["alternating"].items():
        rows = [[engine, *(f"{value:.0f}" for value in values)] for engine, values in engines.items()]
        parts.append(
            f"{n_chats} chats that alternate on one model, TTFT in ms by turn, median over the chats. cache: "
            "`Llama(cache_bytes=)`, as `first-cpp serve --cache-bytes`;\nstock's is `set_cache(LlamaRAMCache())`, as its server's.\n\n"
            + table(["engine", *turns[: len(rows[0]) - 1]], rows)
        )
    return section(
        "A conversation with pauses",
        f"{first['turns']} turns, answers of {first['tokens']} tokens, a skip share of {first['skip']:g} by input-blind routers. catch-up: "
        "the idle pass reads the answer again\nwhile the user reads. Seconds of the whole conversation without its pauses; TTFT over "
        "stock's, turn by turn, the median of turns 2 to the last\nand the worst.",
        "\n\n".join(parts),
        "conversation",
        "conversation-1b",
    )


def _played(model: Record, turns: list[str]) -> str:
    rows = []
    for pause, engines in model["pauses"].items():
        for engine, row in engines.items():
            later = row["ttft_over_stock"][1:]
            over = [f"{row['over_stock']:.2f}", f"{statistics.median(later):.2f}", f"{max(later):.2f}"]
            rows.append([f"{pause} s", engine, f"{row['seconds']:.1f}", *over, *(f"{value:.0f}" for value in row["ttft_ms"])])
    cost = model["pass"]
    return (
        f"{model['model']}. The pass over an answer takes {cost['plain_s'] * 1e3:.0f} ms; with the logits of all its "
        f"positions, which measure the fidelity, {cost['measured_s'] * 1e3:.0f} ms.\n\n"
        + table(["pause", "engine", "seconds", "/ stock", "TTFT / stock", "worst", *(f"TTFT {turn}" for turn in turns)], rows)
    )


def busy() -> str:
    rows = [
        [
            row["busy"],
            row["setting"],
            row["n_threads"],
            *(f"{row[key]:.1f}" for key in ("step_ms", "mean_step_ms", "prefill_ms")),
        ]
        for row in read("busy")["rows"]
    ]
    return section(
        "On a busy machine",
        "Threads meet at a barrier after each node of the graph, and libgomp spins there: where other processes want the cores, those turns "
        "are taken\nfrom the thread that is waited for. No setting is good on both kinds of machine; on one that is always busy, one thread "
        "is best.\nSmolLM2-135M, stock llama_cpp, ms.",
        table(["busy processes", "setting", "threads", "median step", "mean step", "prefill"], rows),
        "busy",
    )


def held() -> str:
    found = read("held")["rows"]
    rows = [
        [run["order"], f"{run['target']:g}", f"{run['mean']:.3f}", f"{run['share']:.3f}", f"{run['speed_up']:.2f}"]
        for run in found["runs"]
    ]
    return section(
        "A fidelity that is held",
        f"{found['prompts']} prompts of {len(found['kinds'])} kinds, SmolLM2-135M calibrated, greedy answers of up to {found['tokens']} "
        "tokens; the dial moves after each.\nmixed: in random order. blocks: one kind after the other.\n\n![The mean as it runs, and the skip share](../held.svg)",
        table(["order", "target", "mean fidelity", "mean skip share", "speed-up by bytes"], rows),
        "held",
    )


def cross_check() -> str:
    found = read("llama_bench")["rows"]
    rows = [
        [
            r["file"],
            r["test"],
            f"{r['llama_bench_ts']:.1f}",
            f"{r['first_cpp_bench_ts']:.1f}",
            f"{r['ratio_whole']:.3f}",
            pm(r, "ratio"),
        ]
        for r in found["rows"]
    ]
    off = [f"{r['file']}, {r['test']}" for r in found["rows"] if abs(r["ratio"] - 1) > found["tolerance"]]
    return section(
        "Beside llama-bench",
        f"llama.cpp's own llama-bench, built from the same source, and `first-cpp bench` on the same files in turns, {found['rounds']} "
        f"rounds: {found['shape']}\n{found['type'].upper()} with random weights, tokens a second. Without a quarter: both run a "
        f"file that lacks {len(found['layers'])} layers; a\nquarter skipped: `first-cpp bench` skips them in the whole one. llama-bench does not sample; `first-cpp bench` does, "
        f"{found['sampling_ms']:.2f} ms a token with this vocabulary, and the last column\nis without that. "
        + (
            f"Further apart than {found['tolerance']:.0%}: {'; '.join(off)}."
            if off
            else f"All are within {found['tolerance']:.0%}."
        ),
        table(["file", "test", "llama-bench", "first-cpp bench", "ours / theirs", "without sampling"], rows),
        "llama_bench",
    )


def write() -> None:
    """Write the document, when every result is there."""
    machine = read("limit-smollm2")["machine"]
    head = (
        "# Benchmarks\n\n"
        f"Written by `make bench` from benchmarks/results. {machine}; llama-cpp-python {llama_cpp.__version__}. A shared machine: "
        "absolute times\nvary by ten per cent and more between runs, ratios taken in turns by about one. Random weights: kernels do not "
        "look at\nvalues, so latency is that of the real model.\n"
    )
    parts = [
        head,
        limit(),
        depth(),
        prefill(),
        whole_answer(),
        memory(),
        turns(),
        conversation(),
        held(),
        drafts(),
        busy(),
        cross_check(),
    ]
    with open(PATH, "w", encoding="utf-8") as file:
        file.write("\n".join(parts))


if __name__ == "__main__":
    write()
