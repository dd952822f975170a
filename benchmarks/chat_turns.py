"""TTFT by turn of a ten-turn chat: what a turn reads again. SmolLM2-135M Q4_0, a quarter of the layers skipped.

stock: llama_cpp.Llama. skipping: first_cpp, the last answer is read again with all layers. routed prefill: the answer is kept
too. from the beginning: first_cpp without reuse.

python benchmarks/chat_turns.py --turns 10 --rounds 2
"""

from __future__ import annotations

import statistics
import tempfile
import time

import llama_cpp
from common import SETTINGS, parser, save, smollm2_q4_0

from first_cpp import Llama

SKIPPED = list(range(11, 19))  # 8 of 30: a share of 0.25
QUESTION = "Tell me one more thing about old bridges, rivers and the towns beside them, please; number {}."


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--turns", type=int, default=10)
    arguments.add_argument("--tokens", type=int, default=48, help="of each answer")
    arguments.add_argument("--rounds", type=int, default=2)
    args = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = smollm2_q4_0(folder)
        settings = {"n_ctx": 2048, **SETTINGS}
        models = {
            "stock": llama_cpp.Llama(model, **settings),
            "skipping": Llama(model, skip=SKIPPED, **settings),
            "routed prefill": Llama(model, skip=SKIPPED, prefill="routed", route_tokens=32, **settings),
            "from the beginning": Llama(model, skip=SKIPPED, **settings),
        }
        times: dict[str, list[list[float]]] = {name: [] for name in models}
        for _ in range(args.rounds):
            for name, llm in models.items():
                times[name].append(conversation(llm, args.turns, args.tokens, forget=name == "from the beginning"))
        for llm in models.values():
            llm.close()
    rows = {name: [statistics.median(turn) * 1e3 for turn in zip(*rounds, strict=True)] for name, rounds in times.items()}
    save(args.out, {"turns": args.turns, "tokens": args.tokens, "ttft_ms": rows})


def conversation(llm: llama_cpp.Llama, n_turns: int, n_tokens: int, forget: bool) -> list[float]:
    """Seconds to the first token of each turn; answers have n_tokens tokens, whatever they say."""
    llm.reset()
    so_far: list[int] = []
    found = []
    for turn in range(n_turns):
        question = f"<|im_start|>user\n{QUESTION.format(turn + 1)}<|im_end|>\n<|im_start|>assistant\n"
        so_far += llm.tokenize(question.encode(), add_bos=False, special=True)
        if forget:
            llm.reset()
        start = time.perf_counter()
        answer = llm.generate(so_far, temp=0.0)
        said = [next(answer)]
        found.append(time.perf_counter() - start)
        said += [next(answer) for _ in range(n_tokens - 1)]
        answer.close()
        so_far += [*said, *llm.tokenize(b"<|im_end|>\n", add_bos=False, special=True)]
    return found


if __name__ == "__main__":
    main()
