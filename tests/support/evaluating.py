"""Questions of four tasks, and `first-cpp eval` with few tokens."""

from __future__ import annotations

from first_cpp.cli.main import main

QUESTIONS = [
    {
        "task": "qa",
        "prompt": "Who wound the clock?",
        "response": "the caretaker",
        "references": ["the caretaker", "a caretaker"],
    },
    {"task": "qa", "prompt": "How long is it?", "response": "three metres"},
    {"task": "translation", "prompt": "Translate to German: a dog.", "response": "Ein Hund."},
    {"task": "translation", "prompt": "Translate to German: a cat runs.", "response": "Eine Katze rennt."},
    {"task": "tldr", "prompt": "Summarize: the ferry leaves at noon.", "response": "The ferry leaves at noon."},
    {
        "task": "dialogue",
        "prompt": "Summarize the dialogue: A: hi. B: hi.",
        "response": "They greet.",
        "references": ["They greet.", "Hi."],
    },
]


def evaluate(routed, data, out, *args):
    small = ["-n", "8", "--kl", "1", "--draws", "50", "--quiet", "-t", "2", "-c", "512"]
    return main(["eval", "--model", routed, "--data", data, "--out", str(out), *small, *args])
