"""prefill="routed": what it saves of TTFT and what it costs, on SmolLM2-135M Q4_0 with input-blind routers.

KL: of the next-token distributions from dense to each row, mean over dense's own greedy continuation, in nats.

python benchmarks/routed_prefill.py --prompts 512,2048,8192 --route-tokens 256
"""

from __future__ import annotations

import argparse
import statistics
import tempfile

from common import SETTINGS, influence_routers, parser, save, smollm2_q4_0
from texts import long_text

from first_cpp import Llama
from first_cpp.runtime.greedy import answer_timed
from first_cpp.runtime.teacher_forcing import fidelity, follow, kl


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--prompts", default="512,2048,8192")
    arguments.add_argument("--route-tokens", type=int, default=256)
    arguments.add_argument("--skip", type=float, default=0.25)
    arguments.add_argument("--tokens", type=int, default=48, help="of dense's answer, over which KL is taken")
    args = arguments.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model = smollm2_q4_0(folder)
        own = {"routers": influence_routers(model), "skip": args.skip}
        settings = {"n_ctx": 8192 + 256, **SETTINGS}
        whole = Llama(model, **own, **settings)
        routed = Llama(model, prefill="routed", route_tokens=args.route_tokens, **own, **settings)
        text = whole.tokenize(long_text(8 * 8192).encode())
        answer_timed(whole, text[:512], 2)  # the first prompt warms up
        for n in (int(part) for part in args.prompts.split(",")):
            rows += measure(whole, routed, text[:n], args, 1 if n > 4096 else 3)
    figures = {"skip": args.skip, "route_tokens": args.route_tokens, "left_out": list(routed.routing.skipped)}
    save(args.out, {**figures, "rows": rows})


def measure(whole: Llama, routed: Llama, prompt: list[int], args: argparse.Namespace, rounds: int) -> list[dict[str, object]]:
    times: dict[str, list[float]] = {"full": [], "routed": []}
    for _ in range(rounds):
        for name, llm in (("full", whole), ("routed", routed)):
            llm.reset()
            times[name].append(answer_timed(llm, prompt, 1, ignore_end=True).ttft)
    whole.skip = None  # the prompt's KV is there, read with all layers
    answer = answer_timed(whole, prompt, args.tokens, ignore_end=True).tokens
    dense = follow(whole, prompt, answer[:-1])
    whole.skip = args.skip
    rows: list[dict[str, object]] = []
    for name, llm in (("full", whole), ("routed", routed)):
        found = follow(llm, prompt, answer[:-1])
        rows.append(
            {
                "prompt": len(prompt),
                "prefill": name,
                "ttft_s": statistics.median(times[name]),
                "ttft_over_full": statistics.median(a / b for a, b in zip(times[name], times["full"], strict=True)),
                "kl": float(kl(dense, found).mean()),
                "same_next": fidelity(found, answer),
            }
        )
    return rows


if __name__ == "__main__":
    main()
