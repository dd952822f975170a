"""A conversation with pauses in which a person reads, and several that alternate: TTFT by turn, and seconds in all.

Engines: stock llama_cpp.Llama; skipping: first_cpp, a quarter of the layers skipped (input-blind routers); catch-up: the same
with the idle pass in each pause. SmolLM2-135M Q4_0, or a synthetic shape with random routers. Every turn is played by all
engines one after the other, and each goes on with its own answers. Seconds leave the pauses out.

python benchmarks/conversation.py
python benchmarks/conversation.py --synthetic llama-3.2-1b
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import llama_cpp
from common import SETTINGS, influence_routers, parser, save, smollm2_q4_0

from first_cpp import Llama
from first_cpp.bench.models import default_cache, synthetic_model
from first_cpp.runtime.idle_thread import IdleThread

SKIP = 0.25
N_CTX = 4096
QUESTION = "Tell me one more thing about old bridges, rivers and the towns beside them, please; number {}."


@dataclass
class Chat:
    """One conversation on one model. idle: catches up in the pauses. completions: by create_completion, not generate."""

    llm: Any
    name: int = 0
    idle: IdleThread | None = None
    completions: bool = False
    tokens: list[int] = field(default_factory=list)
    ttft: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def turn(self, number: int, n_tokens: int) -> None:
        """Ask, and take an answer of n_tokens tokens, whatever it says."""
        text = f"<|im_start|>user\n{'' if number else f'We are talk {self.name}. '}{QUESTION.format(number + 1)}<|im_end|>\n"
        self.tokens += self.llm.tokenize(f"{text}<|im_start|>assistant\n".encode(), add_bos=False, special=True)
        start = time.perf_counter()
        if self.idle is not None:
            self.idle.pause()  # what a new message waits for counts
        self.tokens += self._completed(n_tokens, start) if self.completions else self._generated(n_tokens, start)
        self.seconds += time.perf_counter() - start
        if self.idle is not None:
            self.idle.begin()

    def _generated(self, n_tokens: int, start: float) -> list[int]:
        answer = self.llm.generate(self.tokens, temp=0.0)
        said = [next(answer)]
        self.ttft.append(time.perf_counter() - start)
        said += [next(answer) for _ in range(n_tokens - 1)]
        answer.close()
        return said

    def _completed(self, n_tokens: int, start: float) -> list[int]:
        """By create_completion, which alone knows llama_cpp's cache."""
        chunks = self.llm.create_completion(list(self.tokens), max_tokens=n_tokens, temperature=0, stream=True)
        next(chunks)
        self.ttft.append(time.perf_counter() - start)
        for _ in chunks:
            pass
        return [int(token) for token in self.llm.input_ids[len(self.tokens) : self.llm.n_tokens]]

    def pause(self, seconds: float) -> None:
        """A person reads. After the pass nothing happens, so that is not waited for; nor does it go on amid another's turn."""
        if self.idle is not None:
            if seconds:
                self.idle.wait(seconds)
            self.idle.pause()


def play(engines: dict[str, tuple[Any, bool]], n_turns: int, n_tokens: int, pause: float) -> dict[str, Chat]:
    """One conversation for each engine, turn by turn in turns. engines: the model, and whether it catches up."""
    chats = {name: Chat(llm, idle=IdleThread(llm) if catches_up else None) for name, (llm, catches_up) in engines.items()}
    for llm, _ in engines.values():
        llm.reset()
    for number in range(n_turns):
        for chat in chats.values():
            chat.turn(number, n_tokens)
            chat.pause(pause)
    return chats


def alternate(llm: Any, catches_up: bool, n_chats: int, n_turns: int, n_tokens: int, pause: float) -> list[float]:
    """TTFT by turn, median over chats that take turns on one model."""
    llm.reset()
    idle = IdleThread(llm) if catches_up else None
    chats = [Chat(llm, name, idle, completions=True) for name in range(n_chats)]
    for number in range(n_turns):
        for chat in chats:
            chat.turn(number, n_tokens)
            chat.pause(pause)
    return [statistics.median(turn) for turn in zip(*(chat.ttft for chat in chats), strict=True)]


def pass_costs(models: dict[str, Llama], n_tokens: int, rounds: int) -> dict[str, float]:
    """Seconds of the pass over an answer: "plain" without, "measured" with logits at all its positions."""

    def once(llm: Llama) -> float:
        llm.reset()
        answer = llm.generate(llm.tokenize(QUESTION.encode()), temp=0.0)
        for _ in range(n_tokens):
            next(answer)
        answer.close()
        start = time.perf_counter()
        llm.catch_up()
        return time.perf_counter() - start

    rows = [{name: once(llm) for name, llm in models.items()} for _ in range(rounds)]
    found = {f"{name}_s": statistics.median(row[name] for row in rows) for name in models}
    return {**found, "logits_s": statistics.median(row["measured"] - row["plain"] for row in rows)}


def measure(name: str, path: str, routers: Any, args: argparse.Namespace) -> dict[str, Any]:
    """All figures of one model."""
    settings = {"n_ctx": N_CTX, **SETTINGS}
    stock = llama_cpp.Llama(path, **settings)
    skipping = Llama(path, routers=routers, skip=SKIP, measure=None, **settings)
    catching = Llama(path, routers=routers, skip=SKIP, **settings)
    found: dict[str, Any] = {"model": name, "pauses": {}}
    engines = {"stock": (stock, False), "skipping": (skipping, False), "catch-up": (catching, True)}
    play(engines, 1, 4, 0.0)
    for pause in (args.pause, 0.0):
        chats = play(engines, args.turns, args.tokens, pause)
        found["pauses"][f"{pause:g}"] = {
            engine: {
                "ttft_ms": [t * 1e3 for t in chat.ttft],
                "seconds": chat.seconds,
                "over_stock": chat.seconds / chats["stock"].seconds,
                "ttft_over_stock": [a / b for a, b in zip(chat.ttft, chats["stock"].ttft, strict=True)],
            }
            for engine, chat in chats.items()
        }
    found["pass"] = {"tokens": args.tokens, **pass_costs({"plain": skipping, "measured": catching}, args.tokens, args.rounds)}
    for llm in (stock, skipping, catching):
        llm.close()
    return found


def several(path: str, routers: Any, args: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """TTFT in ms by turn of two and of four alternating chats."""
    settings = {"n_ctx": N_CTX, **SETTINGS}

    def stock_with_cache() -> Any:
        llm = llama_cpp.Llama(path, **settings)
        llm.set_cache(llama_cpp.LlamaRAMCache(args.cache_bytes))
        return llm

    makers: dict[str, Callable[[], Any]] = {
        "stock": lambda: llama_cpp.Llama(path, **settings),
        "stock, its cache": stock_with_cache,
        "catch-up": lambda: Llama(path, routers=routers, skip=SKIP, **settings),
        "catch-up, cache": lambda: Llama(path, routers=routers, skip=SKIP, cache_bytes=args.cache_bytes, **settings),
    }
    found: dict[str, dict[str, list[float]]] = {}
    for n_chats in (2, 4):
        rows = found[str(n_chats)] = {}
        for name, make in makers.items():
            llm = make()
            turns = alternate(llm, name.startswith("catch-up"), n_chats, args.alternating_turns, args.tokens, args.pause)
            rows[name] = [seconds * 1e3 for seconds in turns]
            llm.close()
    return found


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--turns", type=int, default=10)
    arguments.add_argument("--tokens", type=int, default=48, help="of each answer")
    arguments.add_argument("--pause", type=float, default=1.0, help="seconds that a person reads")
    arguments.add_argument("--rounds", type=int, default=5, help="of the cost of the pass")
    arguments.add_argument("--alternating-turns", type=int, default=4)
    arguments.add_argument("--cache-bytes", type=int, default=1 << 28)
    arguments.add_argument("--synthetic", help="a shape with random weights in place of SmolLM2; one conversation alone")
    args = arguments.parse_args()
    settings = {"turns": args.turns, "tokens": args.tokens, "pause_s": args.pause, "skip": SKIP}
    if args.synthetic:
        shape = synthetic_model(args.synthetic, "q4_0", default_cache())
        save(args.out, {**settings, "model": measure(shape.name, shape.path, shape.routers, args)})
        return
    with tempfile.TemporaryDirectory() as folder:
        model = smollm2_q4_0(folder)
        routers = influence_routers(model)
        found = measure("SmolLM2-135M-Instruct Q4_0", model, routers, args)
        save(args.out, {**settings, "model": found, "alternating": several(model, routers, args)})


if __name__ == "__main__":
    main()
