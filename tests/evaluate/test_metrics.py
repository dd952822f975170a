"""Metrics against their libraries, and the bootstrap against a formula."""

from __future__ import annotations

import numpy as np
import pytest

from first_cpp.evaluate.bootstrap import Scores
from first_cpp.evaluate.metrics import Corpus, Mean, rouge_best, squad_exact, squad_f1

TEXTS = ["Ein Hund läuft über das Gras.", "Eine Katze", "", "Zwei Männer stehen vor einem Haus."]
EXPECTED = [["Ein Hund rennt über das Gras."], ["Eine Katze schläft."], ["Ein Mann."], ["Zwei Männer stehen vor einem Haus."]]


@pytest.mark.parametrize("name", ["BLEU", "chrF"])
def test_corpus_scores_are_sacrebleus(name):
    import sacrebleu

    metric = Corpus(name)
    numbers = metric.numbers(TEXTS, EXPECTED)
    theirs = {"BLEU": sacrebleu.corpus_bleu, "chrF": sacrebleu.corpus_chrf}[name](TEXTS, [[one[0] for one in EXPECTED]]).score
    assert metric.score(numbers.sum(axis=0), 4) == pytest.approx(theirs, abs=1e-9)


def test_rouge_over_references():
    best, mean = Mean("ROUGE-L"), Mean("ROUGE-L mean")
    texts, wanted = ["the cat sat"], [["the cat sat", "dogs bark"]]
    assert best.score(best.numbers(texts, wanted).sum(axis=0), 1) == 100
    assert mean.score(mean.numbers(texts, wanted).sum(axis=0), 1) == 50


@pytest.mark.parametrize(
    ("text", "reference", "score"),
    [
        ("Кошка сидит дома.", "кошка сидит дома", 1),
        ("кошка сидит", "кошка спит", 1 / 2),
        ("你好世界", "你好。世界、", 1),
        ("你好", "你好世界", 2 / 3),
        ("नमस्ते दुनिया", "नमस्ते, दुनिया", 1),
        ("two cats", "две кошки", 0),
        ("The cats sat.", "cat sat", 4 / 5),  # rouge-score's own words and stems where letters are a to z
    ],
)
def test_rouge_reads_every_script(text, reference, score):
    assert rouge_best(text, [reference]) == pytest.approx(score)


@pytest.mark.parametrize(
    ("text", "references", "f1", "exact"),
    [
        ("The caretaker.", ["caretaker"], 1, 1),
        ("the old caretaker", ["a caretaker", "nobody"], 2 / 3, 0),
        ("", ["caretaker"], 0, 0),
        ("three  Metres!", ["3 metres", "three metres"], 1, 1),
        ("三米长", ["三米"], 4 / 5, 0),  # no blanks between words: sign by sign
    ],
)
def test_squads_rules(text, references, f1, exact):
    assert squad_f1(text, references) == pytest.approx(f1)
    assert squad_exact(text, references) == exact


def test_bootstrap_intervals():
    rng = np.random.default_rng(0)
    values = rng.random((400, 1))
    scores = Scores(2000, seed=1)
    metric = Mean("F1")
    scores.add("ref", "t", metric, np.full((400, 1), 0.5))
    scores.add("a", "t", metric, values)
    scores.add("b", "t", metric, values - 0.1)
    interval = scores.ratio("a", "ref", ["t"])
    error = 1.96 * values.std() / 20 / 0.5
    assert interval.value == pytest.approx(values.mean() / 0.5)
    assert interval.high - interval.low == pytest.approx(2 * error, rel=0.1)
    lead = scores.lead("a", "b", "ref", ["t"])  # paired: the difference does not vary
    assert (lead.value, lead.low, lead.high) == pytest.approx((0.2, 0.2, 0.2))


def test_tpot_is_a_mean_over_tokens(tmp_path):
    from first_cpp.evaluate.report import _tpot

    assert _tpot([{"tokens": 3, "tpot_ms": 2.0}, {"tokens": 1, "tpot_ms": 0.0}, {"tokens": 0, "tpot_ms": 0.0}]) == 2.0
    assert _tpot([{"tokens": 3, "tpot_ms": 2.0}, {"tokens": 2, "tpot_ms": 5.0}]) == pytest.approx(3.0)
    assert _tpot([]) is None
    assert _tpot([{"tokens": 1, "tpot_ms": 0.0}]) is None
