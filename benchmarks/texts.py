"""Texts that benchmarks answer about, and a long one to read."""

from __future__ import annotations

import importlib
import inspect

PASSAGES = {
    "bridge": (
        "The old bridge over the Larn was built in 1894 by the engineer Clara Weiss. It has seven stone arches and is 212 metres "
        "long. In 1931 a flood carried away the third arch, which was rebuilt in brick within eight months. Since 1978 no lorries "
        "may cross it. In the spring of this year inspectors found cracks in two of the piers. The town council decided to close "
        "one lane at a time, so that the bridge stays open while the piers are repaired. The work will take fourteen months and "
        "cost about nine million crowns, of which the region pays a third. Shop owners on the east bank had feared that a closed "
        "bridge would cost them customers.",
        "Who built the old bridge over the Larn?",
    ),
    "seeds": (
        "Many trees in the dry forest drop their seeds just before the rains. The seeds of the silver acacia are different: they "
        "stay in their pods until a fire passes through. Heat cracks the hard coat of the seed, and smoke tells it that the ground "
        "has been cleared. Within two weeks of a fire the young plants stand so close together that the ground looks green from "
        "the air. Most of them die in the first summer. Those that live grow quickly, because ash feeds them and nothing shades "
        "them. Foresters who kept fire out of the valley for thirty years found hardly any young acacias there. They now burn small "
        "plots every autumn, and the silver acacia has come back.",
        "What cracks the hard coat of the seed of the silver acacia?",
    ),
    "clock": (
        "The clock in the tower of the town hall runs on a weight of sixty kilograms that is wound up every Monday. Its pendulum is "
        "three metres long and swings once in a little more than two seconds. Until 1957 a clockmaker from the next street wound it; "
        "today the caretaker of the town hall does. On cold days the pendulum becomes shorter and the clock runs fast by as much as "
        "four seconds a day. To slow it, the caretaker takes a penny from a small shelf on the pendulum; to speed it up, he adds "
        "one. Each penny changes the time by two fifths of a second a day. The pennies on the shelf were minted in 1897.",
        "How long is the pendulum of the clock?",
    ),
    "ferry": (
        "The ferry to the island leaves from the north pier at seven, at noon and at five in the afternoon. In winter the noon "
        "crossing is dropped. The crossing takes fifty minutes when the sea is calm and may take twice as long in a westerly wind. "
        "Cars must be booked a day ahead, bicycles travel free. The ferry carries mail, milk and newspapers on the first crossing, "
        "and on the last one it brings the pupils of the upper school home. When the wind is stronger than eight on the Beaufort "
        "scale the ferry stays in the harbour, which happens on about twenty days of the year. The islanders then fetch their "
        "bread from the bakery that opened in the old lighthouse.",
        "When does the ferry stay in the harbour?",
    ),
}


def questions() -> list[str]:
    """A question on each paragraph."""
    return [
        f"{passage}\n\n{question} Answer in a full sentence, with the words of the text."
        for passage, question in PASSAGES.values()
    ]


def summaries() -> list[str]:
    """A summary of each paragraph."""
    return [
        f"Summarize this text in three sentences, staying close to its words.\n\n{passage}" for passage, _ in PASSAGES.values()
    ]


def long_text(n_characters: int) -> str:
    """Prose about programming: the documentation strings of Python's own library, in a fixed order."""
    modules = ("argparse", "asyncio", "collections", "datetime", "decimal", "difflib", "email", "fractions", "functools", "http.client",
               "inspect", "ipaddress", "itertools", "json", "logging", "optparse", "os", "pathlib", "pickle", "random", "re", "shutil",
               "statistics", "subprocess", "tarfile", "textwrap", "threading", "typing", "unittest", "urllib.request", "zipfile")  # fmt: skip
    parts: list[str] = []
    size = 0
    for name in modules:
        module = importlib.import_module(name)
        members = [module, *(value for _, value in sorted(vars(module).items()) if callable(value))]
        for member in members:
            text = inspect.getdoc(member) or ""
            if len(text) > 200 and text not in parts:
                parts.append(text)
                size += len(text) + 2
        if size >= n_characters:
            return "\n\n".join(parts)[:n_characters]
    raise ValueError(f"the documentation strings have {size} characters, {n_characters} were asked for")
