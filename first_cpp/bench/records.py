"""Benchmark records: llama-bench's fields first (tools/llama-bench), first_cpp's own after them, one flat object a row."""

from __future__ import annotations

import datetime
import statistics
from collections.abc import Sequence
from typing import Any

import llama_cpp

from .._version import __version__
from ..runtime.machine import cpu_name, describe_machine
from .engines import OTHER
from .measure import Measured, spread
from .models import BenchModel
from .workload import Configuration

Record = dict[str, Any]


def record(
    measured: Measured, model: BenchModel, configuration: Configuration, n_layer: int, resident_bytes: int | None
) -> Record:
    """One row of one test. n_layer: of the whole model; resident_bytes: of a process that runs the row alone."""
    return {
        **_llama_bench_fields(measured, model, configuration),
        "first_cpp": __version__,
        "machine": describe_machine(),
        "random_weights": model.random,
        "n_layer": n_layer,
        **_averages(measured),
        **_own_fields(measured, resident_bytes),
        "model_name": model.name,
        "samples_ns": [round(seconds * 1e9) for seconds in measured.seconds],
        "samples_ts": measured.rates(),
    }


def _llama_bench_fields(measured: Measured, model: BenchModel, configuration: Configuration) -> Record:
    """llama-bench's fields of a configuration. Those of GPUs have the values that it gives a CPU."""
    row, facts = measured.row, measured.model
    assert facts is not None
    other = row.engine == OTHER
    return {
        "build_commit": f"llama-cpp-python {llama_cpp.__version__}",
        "build_number": 0,
        "cpu_info": cpu_name(),
        "gpu_info": "",
        "backends": "CPU",
        "model_filename": row.file if other else model.path,
        "model_type": model.name if model.random and not other else facts.kind,
        "model_size": facts.size,
        "model_n_params": facts.n_params,
        **{key: configuration[key] for key in ("n_batch", "n_ubatch", "n_threads")},
        "cpu_mask": "0x0",
        "cpu_strict": False,
        "poll": 50,
        **{key: configuration[key] for key in ("type_k", "type_v")},
        "n_gpu_layers": 0,
        "n_cpu_moe": 0,
        "split_mode": "layer",
        "main_gpu": 0,
        "no_kv_offload": False,
        "flash_attn": configuration["flash_attn"],
        "devices": "auto",
        "tensor_split": "0.00",
        "tensor_buft_overrides": "none",
        "load_mode": "mmap" if configuration["use_mmap"] else "none",
        "embeddings": False,
        "no_op_offload": 0,
        "no_host": False,
        "repack": True,
        "test_time": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def _averages(measured: Measured) -> Record:
    nanoseconds, rates, test = [seconds * 1e9 for seconds in measured.seconds], measured.rates(), measured.test
    return {
        "n_prompt": test.n_prompt,
        "n_gen": test.n_gen,
        "n_depth": test.n_depth,
        "avg_ns": round(statistics.mean(nanoseconds)),
        "stddev_ns": round(spread(nanoseconds)),
        "avg_ts": statistics.mean(rates),
        "stddev_ts": spread(rates),
        "test": test.name,
    }


def _own_fields(measured: Measured, resident_bytes: int | None) -> Record:
    row, steps = measured.row, sorted(measured.steps)
    kv_bytes, kv_bytes_used, kv_bytes_released = measured.kv_bytes or (None, None, None)
    speed_up = statistics.median(measured.speed_ups) if measured.speed_ups else None
    limit = measured.byte_limit
    return {
        "engine": row.engine,
        "skip": list(row.skip) if isinstance(row.skip, tuple) else row.skip,
        "n_skipped": len(measured.skipped),
        "skipped_layers": list(measured.skipped),
        "draft": row.draft,
        "ttft_ms": statistics.median(measured.ttft) * 1e3 if measured.ttft else None,
        "tpot_ms": statistics.mean(steps) * 1e3 if steps else None,
        "step_p50_ms": statistics.median(steps) * 1e3 if steps else None,
        "step_p95_ms": steps[int(len(steps) * 0.95)] * 1e3 if steps else None,
        "speedup": speed_up,
        "speedup_stderr": _error(measured.speed_ups),
        "over_pruned": statistics.median(measured.over_pruned) if measured.over_pruned else None,
        "over_pruned_stderr": _error(measured.over_pruned),
        "byte_limit": limit,
        "limit_reached": speed_up / limit if speed_up and limit else None,
        "kv_bytes": kv_bytes,
        "kv_bytes_used": kv_bytes_used,
        "kv_bytes_released": kv_bytes_released,
        "resident_bytes": resident_bytes,
    }


def _error(values: Sequence[float]) -> float | None:
    """Standard error of the mean over repetitions."""
    return spread(values) / len(values) ** 0.5 if len(values) > 1 else None
