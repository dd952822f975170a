"""The same layers skipped for every prompt, and what that does to speed. python examples/fixed_layers.py [MODEL.gguf]"""

from __future__ import annotations

import sys

from first_cpp import Llama
from first_cpp.gguf.bundled import find_demo_model


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else find_demo_model()
    llm = Llama(model, n_ctx=512, verbose=False)
    n_layer = len(llm.unskippable)
    possible = [layer for layer, why in enumerate(llm.unskippable) if not why]
    early = possible[max(1, n_layer // 10) :][: max(1, n_layer // 8)]  # an eighth of the layers, soon after the first
    for skip in ([], early):
        llm.skip = skip
        llm.reset()
        text = llm("Three things to see in a harbour:", max_tokens=48, temperature=0.0)["choices"][0]["text"]
        print(f"skipped {llm.routing.skipped}: TPOT {llm.timing.tpot * 1e3:.1f} ms\n{text.strip()}\n")
    llm.close()


if __name__ == "__main__":
    main()
