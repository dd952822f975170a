"""docs/internals/faults.md has a line for every known fault, and the tests that it names exist."""

from __future__ import annotations

import pathlib
import re

TESTS = pathlib.Path(__file__).parents[1]
ROW = re.compile(r"\| (\d+) \| (.+) \| (.+) \| (.+) \|")


def test_every_fault_has_a_line_and_every_line_its_test():
    rows = [
        match.groups()
        for line in (TESTS.parent / "docs/internals/faults.md").read_text().splitlines()
        if (match := ROW.fullmatch(line))
    ]
    assert [int(number) for number, *_ in rows] == list(range(1, len(rows) + 1))
    assert len(rows) >= 106
    for number, _, happens, test in rows:
        if test == "does not apply":
            assert happens.startswith("none: "), number
            continue
        file, name = test.split("::")
        assert re.search(rf"^ *def {name}\(", next(TESTS.glob(f"*/test_{file}.py")).read_text(), re.MULTILINE), (number, test)
