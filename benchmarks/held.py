"""A fidelity that is held, over hundreds of prompts: what `Llama(skip="auto", fidelity=)` does with its dial, prompt by prompt.

The prompts come mixed, and in blocks of one kind, the worst order. For each target: the mean fidelity as it runs, the share of
layers skipped, and the speed-up by bytes of weights read. Greedy answers are the same every time, so each (prompt, set of
layers) is answered once and kept in --state: targets and orders share it, and a run that was ended goes on.

python benchmarks/held.py --model smollm2-first.gguf --data chat.valid.jsonl qa.valid.jsonl --prompts 300
"""

from __future__ import annotations

import itertools
import json
import os
import random
import time
from typing import Any

from common import SETTINGS, parser, save

from first_cpp import Llama
from first_cpp.gguf.byte_limit import weight_reads
from first_cpp.gguf.new_file import new_file
from first_cpp.runtime.chat_prompt import chat_prompt
from first_cpp.runtime.held import HeldFidelity
from first_cpp.runtime.predicted_cost import dial_of, tolerance_of

Layers = tuple[int, ...]


def read_prompts(paths: list[str], n: int, longest: int) -> list[dict[str, str]]:
    """About `n` prompts, as many of each task, drawn by a fixed seed."""
    rows = [json.loads(line) for path in paths for line in open(path, encoding="utf-8")]  # noqa: SIM115
    kinds: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        if len(row["prompt"]) <= longest:
            kinds.setdefault(row["task"], []).append(row)
    drawn = random.Random(0)
    for kind in kinds.values():
        drawn.shuffle(kind)
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*(kinds[name] for name in sorted(kinds))))
    return [row for row in in_turn if row is not None][:n]


class Answers:
    """What each prompt can skip, and what each set keeps of its answer."""

    def __init__(self, llm: Llama, prompts: list[dict[str, str]], n_tokens: int, state: str) -> None:
        self._llm, self._prompts, self._n_tokens, self._path = llm, prompts, n_tokens, state
        self._kept: dict[str, Any] = {"choices": {}, "answers": {}}
        if os.path.exists(state):
            with open(state, encoding="utf-8") as file:
                self._kept = json.load(file)
        self._saved = time.monotonic()

    def _tokens(self, number: int) -> list[int]:
        return chat_prompt(self._llm, self._prompts[number]["prompt"])

    def skipped(self, number: int, tolerance: float) -> Layers:
        """The set that the prompt chooses at a tolerance; between two that choose the same, it is that one too."""
        known = self._kept["choices"].setdefault(str(number), [])
        below = [entry for entry in known if entry[0] <= tolerance]
        above = [entry for entry in known if entry[0] >= tolerance]
        if below and above and below[-1][1] == above[0][1]:
            return tuple(below[-1][1])
        llm = self._llm
        llm.skip, llm.tolerance = "auto", tolerance
        answer = llm.generate(self._tokens(number), temp=0.0)
        next(answer)
        answer.close()
        found = llm.routing.skipped
        known.append([tolerance, list(found)])
        known.sort(key=lambda entry: entry[0])
        return tuple(found)

    def answer(self, number: int, layers: Layers) -> dict[str, float]:
        """The fidelity of the greedy answer that skips `layers`."""
        key = f"{number} {' '.join(map(str, layers))}"
        if key not in self._kept["answers"]:
            llm = self._llm
            llm.skip = list(layers)
            answer = llm.generate(self._tokens(number), temp=0.0)
            for token in itertools.islice(answer, self._n_tokens):
                if token == llm.token_eos():
                    break
            answer.close()
            llm.catch_up()
            measured = llm.fidelity
            fidelity = 1.0 if not layers or measured is None else measured.share
            self._kept["answers"][key] = {"fidelity": fidelity, "tokens": llm.timing.n_tokens}
            if time.monotonic() - self._saved > 20:
                self.save()
        return self._kept["answers"][key]  # type: ignore[no-any-return]

    def save(self) -> None:
        with new_file(self._path, "w") as file:
            json.dump(self._kept, file)
        self._saved = time.monotonic()


def hold(answers: Answers, target: float, order: list[int]) -> dict[str, Any]:
    """One run over the prompts, as `Llama(skip="auto", fidelity=target)` moves its dial."""
    llm = answers._llm
    cost = llm.routers.cost
    held = HeldFidelity(target, dial=dial_of(cost))
    reads = weight_reads(llm.model_path)
    means, shares, n_bytes = [], [], []
    for number in order:
        layers = answers.skipped(number, tolerance_of(cost, held.dial))
        answer = answers.answer(number, layers)
        held.observe(answer["fidelity"])
        means.append(held.mean)
        shares.append(len(layers) / len(llm.unskippable))
        n_bytes.append(reads.weights(layers))
    return {
        "target": target,
        "mean": held.mean,
        "share": sum(shares) / len(shares),
        "speed_up": len(n_bytes) * reads.weights() / sum(n_bytes),
        "running_mean": [round(mean, 4) for mean in means],
        "shares": [round(share, 3) for share in shares],
    }


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--model", required=True, help="a model that `first-cpp calibrate` wrote")
    arguments.add_argument("--routers", help="the side file, where the model carries none")
    arguments.add_argument("--data", nargs="+", required=True, help="JSON Lines with task and prompt")
    arguments.add_argument("--prompts", type=int, default=300)
    arguments.add_argument("--longest", type=int, default=1200, help="characters of a prompt")
    arguments.add_argument("--tokens", type=int, default=32, help="of each answer")
    arguments.add_argument("--targets", type=float, nargs="+", default=[0.90, 0.95, 0.98])
    arguments.add_argument("--state", default="held.state.json", help="what is kept from run to run")
    args = arguments.parse_args()
    prompts = read_prompts(args.data, args.prompts, args.longest)
    llm = Llama(args.model, routers=args.routers, n_ctx=2048, **SETTINGS)
    answers = Answers(llm, prompts, args.tokens, args.state)
    mixed = list(range(len(prompts)))
    random.Random(1).shuffle(mixed)
    blocks = sorted(mixed, key=lambda number: prompts[number]["task"])
    kinds = sorted({prompt["task"] for prompt in prompts})
    try:
        runs = [
            {"order": name, **hold(answers, target, order)}
            for name, order in (("mixed", mixed), ("blocks", blocks))
            for target in args.targets
        ]
    finally:
        answers.save()
    save(args.out, {"prompts": len(prompts), "kinds": kinds, "tokens": args.tokens, "runs": runs})


if __name__ == "__main__":
    main()
