"""The field's own metrics, each as numbers per answer and a score from their sums: so that answers can be drawn again.

BLEU and chrF by sacrebleu, ROUGE-L by rouge-score, exact match and F1 by SQuAD's rules (Rajpurkar et al. 2016).
"""

from __future__ import annotations

import collections
import re
import string
import unicodedata
from collections.abc import Collection, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..cli.scripts import words_apart
from ..errors import OptionError

Numbers = npt.NDArray[np.float64]
FIDELITY = "fidelity"
"""The kind of a task whose reference is the dense model's own answer."""


class Metric(Protocol):
    """numbers: float64 [n, k] for n answers. score: from the sum over answers and their count, 0 to 100.

    reads: what of an answer's record `numbers` gets, "text" or "fidelity"; nothing, as of an answer that failed, is None.
    """

    name: str
    reads: str

    def numbers(self, answers: Sequence[Any], references: Sequence[Sequence[str]]) -> Numbers: ...

    def score(self, total: Numbers, count: int) -> float: ...


class Corpus:
    """A sacrebleu metric: a corpus score from summed n-gram counts."""

    reads = "text"

    def __init__(self, name: str) -> None:
        from sacrebleu.metrics import BLEU, CHRF

        self.name = name
        self._metric: Any = BLEU(effective_order=False) if name == "BLEU" else CHRF()

    def numbers(self, answers: Sequence[str], references: Sequence[Sequence[str]]) -> Numbers:
        found = []
        for answer, expected in zip(answers, references, strict=True):
            found.append(self._metric._extract_corpus_statistics([answer], [[one] for one in expected])[0])
        return np.array(found, np.float64)

    def score(self, total: Numbers, count: int) -> float:
        return float(self._metric._compute_score_from_stats([int(value) for value in total]).score)


class Mean:
    """A metric with one value an answer, 0 to 1, and the mean as its score."""

    reads = "text"

    def __init__(self, name: str) -> None:
        self.name = name
        self._of = {"ROUGE-L": rouge_best, "ROUGE-L mean": rouge_mean, "F1": squad_f1, "EM": squad_exact}[name]

    def numbers(self, answers: Sequence[str], references: Sequence[Sequence[str]]) -> Numbers:
        return np.array([[self._of(a, r)] for a, r in zip(answers, references, strict=True)], np.float64)

    def score(self, total: Numbers, count: int) -> float:
        return float(total[0]) / count * 100


class Fidelity:
    """Share of positions of the dense model's own answer at which the row's first choice is its token; mean over answers."""

    name = reads = "fidelity"

    def numbers(self, answers: Sequence[float | None], references: Sequence[Sequence[str]]) -> Numbers:
        return np.array([[value or 0.0] for value in answers], np.float64)

    def score(self, total: Numbers, count: int) -> float:
        return float(total[0]) / count * 100


METRICS: dict[str, tuple[str, ...]] = {
    "translation": ("BLEU", "chrF"),
    "summary": ("ROUGE-L",),
    "summary-mean": ("ROUGE-L mean",),
    "answer": ("F1", "EM"),
    FIDELITY: ("fidelity",),
}
"""Kinds of task; the first metric is the one that is averaged over tasks."""

KIND_OF_TASK = {"translation": "translation", "tldr": "summary", "dialogue": "summary-mean", "qa": "answer"}


def kinds_of_tasks(given: Sequence[str], tasks: Sequence[str], prompts_alone: Collection[str] = ()) -> dict[str, str]:
    """The kind of each task: those given as TASK=KIND, and those known. Raises OptionError for a task without one, and for a
    kind of a task that there is not.

    prompts_alone: tasks without a reference, scored by the dense model's own answers unless `given` says otherwise.

    >>> kinds_of_tasks(["poem=summary"], ["qa", "poem"])["poem"]
    'summary'
    """
    kinds = KIND_OF_TASK | dict.fromkeys(prompts_alone, FIDELITY)
    for text in given:
        task, sign, kind = text.partition("=")
        if not sign or kind not in METRICS:
            raise OptionError(f"--metric {text!r} is not TASK=KIND with KIND one of {', '.join(METRICS)}")
        if task not in tasks:
            raise OptionError(f"--metric {text!r}: no question is of task {task!r}; there are {', '.join(map(repr, tasks))}")
        kinds[task] = kind
    for task in dict.fromkeys(tasks):
        if task not in kinds:
            raise OptionError(f"how is task {task!r} scored? Give --metric {task}=KIND, one of {', '.join(METRICS)}")
    return kinds


def metrics_of(kind: str) -> list[Metric]:
    """The metrics of a kind of task."""
    if kind == FIDELITY:
        return [Fidelity()]
    return [Corpus(name) if name in ("BLEU", "chrF") else Mean(name) for name in METRICS[kind]]


def _rouge(answer: str, reference: str) -> float:
    """ROUGE-L F-measure by rouge-score, whose own words have the letters a to z alone: other scripts are split here."""
    from rouge_score.rouge_scorer import RougeScorer

    tokenizer = None if mostly_latin(reference) else AnyScript()
    return float(RougeScorer(["rougeL"], use_stemmer=True, tokenizer=tokenizer).score(reference, answer)["rougeL"].fmeasure)


def mostly_latin(text: str) -> bool:
    """Whether at least half of a text's letters are a to z.

    >>> mostly_latin("Zwei Männer"), mostly_latin("два человека")
    (True, False)
    """
    letters = [sign for sign in text if sign.isalpha()]
    return 2 * sum(sign.isascii() for sign in letters) >= len(letters)


class AnyScript:
    """Words of any script, as a tokenizer of rouge-score."""

    def tokenize(self, text: str) -> list[str]:
        """The words, in lower case, without punctuation.

        >>> AnyScript().tokenize("Два человека! 你好")
        ['два', 'человека', '你', '好']
        """
        plain = "".join(sign if unicodedata.category(sign)[0] in "LMN" else " " for sign in text.lower())
        return words_apart(plain).split()


def rouge_best(answer: str, references: Sequence[str]) -> float:
    """ROUGE-L F-measure against the nearest reference."""
    return max(_rouge(answer, one) for one in references)


def rouge_mean(answer: str, references: Sequence[str]) -> float:
    """ROUGE-L F-measure, mean over references."""
    return sum(_rouge(answer, one) for one in references) / len(references)


def _words(text: str) -> list[str]:
    """SQuAD's normalisation: lower case, no punctuation, no articles. Signs stand for words where a script has no blanks."""
    bare = "".join(" " if char in string.whitespace else char for char in text.lower() if char not in string.punctuation)
    return words_apart(re.sub(r"\b(a|an|the)\b", " ", bare)).split()


def squad_exact(answer: str, references: Sequence[str]) -> float:
    """1 if the answer is one of the references."""
    return float(any(_words(answer) == _words(one) for one in references))


def squad_f1(answer: str, references: Sequence[str]) -> float:
    """F1 over words against the nearest reference."""
    return max(_f1(_words(answer), _words(one)) for one in references)


def _f1(found: list[str], expected: list[str]) -> float:
    if not found or not expected:
        return float(found == expected)
    same = sum((collections.Counter(found) & collections.Counter(expected)).values())
    return 0.0 if same == 0 else 2 * same / (len(found) + len(expected))
