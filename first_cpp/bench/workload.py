"""What a command line asks to measure: the tests, and every combination of llama.cpp's settings."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import llama_cpp

from ..errors import OptionError
from ..runtime.arguments import MOST_THREADS
from .number_lists import numbers

KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
_PLAIN_KV_TYPES = ("f32", "f16", "bf16")

Configuration = dict[str, Any]
"""n_threads, n_batch, n_ubatch, type_k, type_v (names), flash_attn, use_mmap."""


@dataclass(frozen=True)
class Test:
    """Read `n_prompt` tokens (pp), decode `n_gen` (tg), or both one after the other (pg), with `n_depth` tokens there already.

    >>> Test(512, 128, n_depth=2048).name
    'pp512+tg128 @ d2048'
    """

    n_prompt: int
    n_gen: int
    n_depth: int = 0

    __test__ = False  # not pytest's

    @property
    def name(self) -> str:
        parts = [f"pp{self.n_prompt}"] * (self.n_prompt > 0) + [f"tg{self.n_gen}"] * (self.n_gen > 0)
        return "+".join(parts) + (f" @ d{self.n_depth}" if self.n_depth else "")

    @property
    def n_tokens(self) -> int:
        return self.n_prompt + self.n_gen


def tests_of(args: argparse.Namespace) -> list[Test]:
    """The tests, by depth. Raises OptionError where there are none."""
    prompts, answers = numbers(args.n_prompt, "-p"), numbers(args.n_gen, "-n")
    pairs = [_pair(text) for text in args.pg]
    tests = []
    for depth in numbers(args.n_depth, "-d"):
        tests += [Test(n, 0, depth) for n in prompts if n]
        tests += [Test(0, n, depth) for n in answers if n]
        tests += [Test(n_prompt, n_gen, depth) for n_prompt, n_gen in pairs]
    if not tests:
        raise OptionError("nothing to measure: -p, -n and -pg are all empty")
    return tests


def _pair(text: str) -> tuple[int, int]:
    both = numbers(text, "-pg", least=1)
    if len(both) != 2:
        raise OptionError(f"-pg: {text!r} is not PP,TG: prompt tokens and decoded tokens")
    return both[0], both[1]


def configurations_of(args: argparse.Namespace) -> Iterator[Configuration]:
    """Every combination of the settings. Raises OptionError for one that llama.cpp does not have."""
    choices: dict[str, list[Any]] = {
        "n_threads": numbers(args.threads, "-t", least=1, most=MOST_THREADS),
        "n_batch": numbers(args.batch_size, "-b", least=1),
        "n_ubatch": numbers(args.ubatch_size, "-ub", least=1),
        "type_k": [_kv_type(name) for name in args.cache_type_k.split(",")],
        "type_v": [_kv_type(name) for name in args.cache_type_v.split(",")],
        "flash_attn": [bool(one) for one in numbers(args.flash_attn, "-fa")],
    }
    for values in itertools.product(*choices.values()):
        found = {**dict(zip(choices, values, strict=True)), "use_mmap": args.mmap == "1"}
        if found["type_v"] not in _PLAIN_KV_TYPES and not found["flash_attn"]:
            raise OptionError(f"-ctv {found['type_v']}: llama.cpp quantises the V cache with flash attention only; add -fa 1")
        yield found


def _kv_type(name: str) -> str:
    if name not in KV_TYPES:
        raise OptionError(f"-ctk, -ctv: {name!r} is not a type of a KV cache; allowed: {', '.join(KV_TYPES)}")
    return name


def llama_settings(configuration: Configuration, tests: Sequence[Test]) -> dict[str, Any]:
    """The keywords of llama_cpp.Llama; the context has room for the longest test."""
    types = {key: getattr(llama_cpp, f"GGML_TYPE_{configuration[key].upper()}") for key in ("type_k", "type_v")}
    n_ctx = max(test.n_depth + test.n_tokens for test in tests) + 16
    return {
        **configuration,
        **types,
        "n_threads_batch": configuration["n_threads"],
        "n_ctx": -(-n_ctx // 256) * 256,
        "verbose": False,
    }
