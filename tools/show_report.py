"""Puts the tables of `first-cpp eval` into research/notes.md.

    python tools/show_report.py REPORT --part NAME [--document research/notes.md]

They go between the marks of this file's name and NAME. Every number is from the report's report.json.
"""

from __future__ import annotations

import argparse
import json
import os

from marks import NOTES, fill

from first_cpp.evaluate.report import markdown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", metavar="REPORT")
    parser.add_argument("--part", required=True, metavar="NAME")
    parser.add_argument("--document", default=NOTES)
    args = parser.parse_args()
    with open(os.path.join(args.report, "report.json"), encoding="utf-8") as file:
        text = markdown(json.load(file))
    # its headings are below those of the document
    text = text.replace("# Evaluation\n", "", 1).replace("\n## ", "\n### ")
    fill(args.document, f"tools/show_report.py {args.part}", text)


if __name__ == "__main__":
    main()
