"""About how long each stage takes, from the model's pace on this machine, measured in a second or two."""

from __future__ import annotations

import contextlib
import statistics
import time
from dataclasses import dataclass

import llama_cpp
import numpy as np

from ..gguf.model_file import ModelFile
from ..runtime.chat_prompt import chat_prompt
from ..runtime.greedy import answer_timed
from .examples_split import Record, Split

STEPS = 8
EFFICIENCY = 0.5
"""Of a training step's multiplications, beside a plain one of matrices as large."""
ANSWER_COST = 8
"""Answers are read several times, with gradients; prompts once."""
MERGED = 4e-8
"""Seconds that folding in and quantising take for a weight."""
ROWS = 5
"""Of the report at the end."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of prompts and answers. train_work: of what is trained on, prompts plus ANSWER_COST times answers."""

    train_work: int
    test_prompts: int
    n_test: int
    longest_prompt: int
    longest_response: int


@dataclass(frozen=True)
class Pace:
    """Seconds: to read a token of a prompt and to decode one, by llama.cpp; to multiply one weight; and how many there are."""

    prompt: float
    decoded: float
    multiplied: float
    n_weights: int

    def train(self, lengths: Lengths, epochs: float) -> float:
        """Seconds of training."""
        return epochs * lengths.train_work * self.n_weights * self.multiplied / EFFICIENCY

    def merge(self) -> float:
        """Seconds to fold the LoRA in and quantise."""
        return self.n_weights * MERGED

    def evaluate(self, lengths: Lengths, max_tokens: int) -> float:
        """Seconds that all rows take at most to answer the test's prompts."""
        return 2 * self.prompt * lengths.test_prompts + ROWS * self.decoded * max_tokens * lengths.n_test


def measure(model: ModelFile, split: Split, n_threads: int) -> tuple[Pace, Lengths]:
    """The pace of this machine, and how long the examples are in the model's tokens."""
    settings = {"n_ctx": 512, "n_threads": n_threads, "n_threads_batch": n_threads, "verbose": False}
    with contextlib.closing(llama_cpp.Llama(model.path, **settings)) as llm:
        lengths = _lengths(llm, split)
        prompt = llm.tokenize(b"The quick brown fox jumps over the lazy dog. " * 8)
        answer = answer_timed(llm, prompt, STEPS, ignore_end=True)
    n_weights = sum(int(np.prod(tensor.shape)) for _, tensor in model.tensors() if len(tensor.shape) > 1)
    return Pace(answer.ttft / len(prompt), answer.median_step, _seconds_a_product(), n_weights), lengths


def _lengths(llm: llama_cpp.Llama, split: Split) -> Lengths:
    def tokens(record: Record) -> tuple[int, int]:
        response = llm.tokenize(record["response"].encode(), add_bos=False)
        return len(chat_prompt(llm, record["prompt"])), len(response) + 1

    train, valid, test = ([tokens(one) for one in part] for part in (split.train, split.valid, split.test))
    return Lengths(
        train_work=sum(prompt + ANSWER_COST * answer for prompt, answer in train),
        test_prompts=sum(prompt for prompt, _ in test),
        n_test=len(test),
        longest_prompt=max(prompt for prompt, _ in (*train, *valid, *test)),
        longest_response=max(answer for _, answer in (*train, *valid, *test)),
    )


def _seconds_a_product() -> float:
    """Seconds of one multiplication and addition in a product of float32 matrices as large as a model's."""
    x, w = np.ones((128, 1024), np.float32), np.ones((1024, 1024), np.float32)
    x @ w
    times = []
    for _ in range(5):
        start = time.perf_counter()
        x @ w
        times.append(time.perf_counter() - start)
    return statistics.median(times) / (x.size * w.shape[1])
