"""Prints the README's table from the figures that decode_speed.py wrote.

python benchmarks/table.py benchmarks/results/decode_speed.json
"""

from __future__ import annotations

import json
import sys

COLUMNS = ["model", "left out", "speed-up", "TPOT / pruned file", "TPOT idle / stock", "scoring / prefill"]


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        rows = json.load(file)
    print("| " + " | ".join(COLUMNS) + " |\n|" + " --- |" * len(COLUMNS))
    for row in rows:
        ratios = ("tpot_skipping_over_pruned", "tpot_idle_over_stock", "scoring_share_of_prefill")
        cells = [f"{row[key][0]:.3f} +- {row[key][1]:.3f}" for key in ratios]
        print(f"| {row['model']} | {row['layers_left_out']} | {row['speed_up_over_stock'][0]:.2f}x | {' | '.join(cells)} |")
    print(f"\n{rows[0]['machine']}; llama-cpp-python {rows[0]['llama_cpp_python']}.")


if __name__ == "__main__":
    main()
