"""Prompt-lookup drafts with and without skipping: whole greedy answers on SmolLM2-135M Q4_0, summaries and questions.

Also what a decoding step of several tokens costs, on SmolLM2 and on a 1B shape: a draft pays when a step yields more tokens.
Kernels round differently by batch size, so an answer can leave the one without drafts at a near tie; its width is told.

python benchmarks/drafts.py --drafts 0,2,3,6
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence

import llama_cpp
import numpy as np
from common import SETTINGS, influence_routers, parser, save, smollm2_q4_0
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding
from texts import questions, summaries

from first_cpp import Llama
from first_cpp.bench.models import synthetic_model
from first_cpp.runtime.chat_prompt import chat_prompt
from first_cpp.runtime.greedy import answer_timed

Row = tuple[str, int]
"""Engine, and tokens per draft."""


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--drafts", default="0,2,3,6")
    arguments.add_argument("--skip", type=float, default=0.1, help="skip share; input-blind routers choose")
    arguments.add_argument("--tokens", type=int, default=96, help="longest answer")
    args = arguments.parse_args()
    drafts = [int(part) for part in args.drafts.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        model = smollm2_q4_0(folder)
        routers = influence_routers(model)
        settings = {"n_ctx": 1024, **SETTINGS}
        models: dict[Row, llama_cpp.Llama] = {}
        for n in drafts:
            draft = {"draft_model": LlamaPromptLookupDecoding(num_pred_tokens=n)} if n else {}
            models["stock", n] = llama_cpp.Llama(model, **draft, **settings)
            models["skipping", n] = Llama(model, routers=routers, skip=args.skip, **draft, **settings)
        rows = []
        for task, texts in (("summaries", summaries()), ("questions", questions())):
            prompts = [chat_prompt(models["stock", drafts[0]], text) for text in texts]
            rows += measure(task, models, prompts, args.tokens)
        left_out = list(models["skipping", drafts[0]].routing.skipped)
        costs = {"smollm2-135m q4_0": step_costs(models["stock", drafts[0]])}
        for llm in models.values():
            llm.close()
        stock = llama_cpp.Llama(synthetic_model("llama-3.2-1b", "q4_0", folder).path, **settings)
        costs["llama-3.2-1b q4_0 (random weights)"] = step_costs(stock)
        stock.close()
    figures = {"skip": args.skip, "left_out": left_out, "tokens": args.tokens}
    save(args.out, {**figures, "answers": rows, "step_cost_over_one_token": costs})


def measure(task: str, models: dict[Row, llama_cpp.Llama], prompts: list[list[int]], n_tokens: int) -> list[dict[str, object]]:
    seconds: dict[Row, list[float]] = {row: [] for row in models}
    answers: dict[Row, list[list[int]]] = {row: [] for row in models}
    for prompt in prompts:
        for row, llm in models.items():
            llm.reset()
            start = time.perf_counter()
            answers[row].append(answer_timed(llm, prompt, n_tokens).tokens)
            seconds[row].append(time.perf_counter() - start)
    per_token = {row: sum(seconds[row]) / sum(map(len, answers[row])) for row in models}  # answers differ in length
    first = next(iter(models))
    return [
        {
            "task": task,
            "engine": engine,
            "draft": n,
            "seconds_per_answer": statistics.mean(seconds[engine, n]),
            "tokens": sum(map(len, answers[engine, n])),
            "speedup": per_token[first] / per_token[engine, n],
            "widest_near_tie": max(
                near_tie(models[engine, first[1]], prompt, plain, drafted)
                for prompt, plain, drafted in zip(prompts, answers[engine, first[1]], answers[engine, n], strict=True)
            ),
        }
        for engine, n in models
    ]


def near_tie(llm: llama_cpp.Llama, prompt: list[int], plain: list[int], drafted: list[int]) -> float:
    """Where two answers part: by how much the model without drafts prefers its own token, in logits. 0 if they are equal."""
    parting = next((i for i, (a, b) in enumerate(zip(plain, drafted, strict=False)) if a != b), None)
    if parting is None:
        return 0.0
    llm.reset()
    tokens = llm.generate(prompt, temp=0.0)
    for _ in range(parting + 1):
        next(tokens)
    row = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(llm.ctx, -1), shape=(llm.n_vocab(),))
    tokens.close()
    return float(row[plain[parting]] - row[drafted[parting]])


def step_costs(llm: llama_cpp.Llama, sizes: Sequence[int] = (1, 2, 3, 4, 5, 8), repetitions: int = 9) -> dict[int, float]:
    """Seconds of decoding steps of so many tokens over those of one token, which is the first size."""
    seconds: dict[int, list[float]] = {n: [] for n in sizes}
    llm.reset()
    llm.eval(list(range(300, 364)))
    for _ in range(repetitions):
        for n, taken in seconds.items():
            start = time.perf_counter()
            llm.eval(list(range(400, 400 + n)))
            taken.append(time.perf_counter() - start)
    return {n: statistics.median(a / b for a, b in zip(taken, seconds[1], strict=True)) for n, taken in seconds.items()}


if __name__ == "__main__":
    main()
