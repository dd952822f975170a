"""A whole answer through create_completion: 128-token prompt, 256 tokens, greedy; SmolLM2-135M Q4_0, a quarter skipped.

python benchmarks/whole_answer.py --rounds 6
"""

from __future__ import annotations

import statistics
import tempfile

import llama_cpp
from common import SETTINGS, parser, save, smollm2_q4_0

from first_cpp import Llama
from first_cpp.runtime.interleaved import call_times

LEFT_OUT = list(range(11, 19))  # 8 of 30: a share of 0.25


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=6)
    args = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = smollm2_q4_0(folder)
        settings = {"n_ctx": 512, **SETTINGS}
        models = {
            "stock": llama_cpp.Llama(model, **settings),
            "dense": Llama(model, skip=None, **settings),
            "skipping": Llama(model, skip=LEFT_OUT, **settings),
        }
        prompt = models["stock"].tokenize(b"The council met on Tuesday to talk about the old bridge over the river. " * 20)[
            :128
        ]

        def answer(llm: llama_cpp.Llama) -> None:
            done = llm.create_completion(prompt, max_tokens=256, temperature=0)
            assert done["usage"]["completion_tokens"] == 256, done

        for llm in models.values():
            answer(llm)
        times = call_times(models, answer, args.rounds, before=lambda llm: llm.reset())
        for llm in models.values():
            llm.close()
    rows = {f"seconds_{name}": statistics.median(values) for name, values in times.items()}
    for name in ("dense", "skipping"):
        ratios = [a / b for a, b in zip(times["stock"], times[name], strict=True)]
        rows[f"speedup_{name}"] = statistics.median(ratios)
        rows[f"speedup_{name}_stderr"] = statistics.stdev(ratios) / len(ratios) ** 0.5
    save(args.out, rows)


if __name__ == "__main__":
    main()
