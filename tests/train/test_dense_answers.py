"""`train --prompts`: the dense model's own answers, kept and resumed; prompts that a model writes itself."""

from __future__ import annotations

import argparse
import contextlib
import json
import os

import llama_cpp
import numpy as np
import pytest
import reference
import torch
from helpers import greedy, twins
from scipy.special import logsumexp
from training import Words

from first_cpp.cli.jsonl import DataError
from first_cpp.cli.main import main
from first_cpp.errors import OptionError
from first_cpp.gguf.synthetic import SHAPES
from first_cpp.runtime.chat_prompt import chat_prompt, user_turn
from first_cpp.train import dense_answers as asking
from first_cpp.train.dense_answers import (
    AskedPrompt,
    DenseModel,
    as_examples,
    dense_answers,
    is_usable,
    own_prompts,
    read_prompts,
)
from first_cpp.train.dense_outputs import N_TOP, Outputs
from first_cpp.train.settings import Ask

PROMPTS = [AskedPrompt("Once upon a time", "tale"), AskedPrompt("What is it?")]


SIX = Ask(max_tokens=6)


def said_of(record):
    """A record without what the model gave each token."""
    return {name: value for name, value in record.items() if not name.startswith("top_")}


def outputs(n):
    """The same two tokens at each of n positions."""
    return Outputs(np.full((n, 2), 4, np.int32), np.full((n, 2), -1.0, np.float32))


def answers(model, folder, ask=SIX, said=None):
    said = [] if said is None else said
    with contextlib.closing(DenseModel(model, str(folder), 2)) as dense:
        return dense_answers(dense, PROMPTS, ask, 256, lambda *counts: said.append(counts))


def test_answers_are_stock_llama_cpps_greedy_ones(tiny, tmp_path, load):
    stock = load(tiny, llama_cpp.Llama)
    for one, prompt in zip(answers(tiny, tmp_path), PROMPTS, strict=True):
        assert one["prompt_tokens"] == chat_prompt(stock, prompt.text)
        assert one["tokens"] == greedy(stock, one["prompt_tokens"], 6)
        assert (one["task"], one["prompt"], one["end"]) == (prompt.task, prompt.text, None)


def test_a_rerun_asks_for_what_is_missing_alone(tiny, tmp_path, monkeypatch):
    first = answers(tiny, tmp_path)
    path = tmp_path / asking.ANSWERS
    text = path.read_text()
    path.write_text(text[:-9])  # a kill left the last line unfinished
    asked = []
    answered = asking._answered
    monkeypatch.setattr(asking, "_answered", lambda engine, of, ask: asked.extend(of) or answered(engine, of, ask))
    found = answers(tiny, tmp_path)
    assert [said_of(one) for one in found] == [said_of(one) for one in first]
    for one, before in zip(found, first, strict=True):  # how many are decoded together changes the last digits
        values = (Outputs.unpacked(record).log_probabilities for record in (one, before))
        np.testing.assert_allclose(*values, atol=2e-3)
    assert len(asked) == 1
    lines = [[said_of(json.loads(line)) for line in of.splitlines()] for of in (path.read_text(), text)]
    assert lines[0] == lines[1]
    first = found
    monkeypatch.setattr(asking.DenseModel, "opened", lambda *_: pytest.fail("loaded for nothing"))
    said = []
    assert answers(tiny, tmp_path, said=said) == first
    assert said == [(2, 2)]


def test_answers_of_another_model_or_setting_are_not_taken(tiny, tiny_q8, tmp_path):
    answers(tiny, tmp_path)
    for model, ask in ((tiny_q8, SIX), (tiny, Ask(max_tokens=5)), (tiny, Ask(n=1, max_tokens=6))):
        before = len((tmp_path / asking.ANSWERS).read_text().splitlines())
        answers(model, tmp_path, ask)
        assert len((tmp_path / asking.ANSWERS).read_text().splitlines()) == before + 2


def test_answers_of_a_model_merged_anew_are_not_taken(tmp_path):
    one, other = twins(tmp_path)
    first = [record["tokens"] for record in answers(one, tmp_path)]
    assert [record["tokens"] for record in answers(other, tmp_path)] != first
    assert [record["tokens"] for record in answers(one, tmp_path)] == first


def test_drawn_answers_differ_and_are_the_same_again(tiny, tmp_path):
    ask = Ask(n=3, temperature=1.0, max_tokens=8, seed=4)
    drawn = [one["tokens"] for one in answers(tiny, tmp_path / "a", ask) if one["prompt"] == "What is it?"]
    assert len({tuple(one) for one in drawn}) == 3
    assert drawn == [one["tokens"] for one in answers(tiny, tmp_path / "b", ask) if one["prompt"] == "What is it?"]


@pytest.fixture(autouse=True)
def _folders(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()


def test_what_the_model_gave_each_token_is_kept_with_the_answer(tiny, tmp_path, load):
    """The oracle reads each answer again in one call; of drawn ones too, and of the end token where there is one."""
    stock = load(tiny, llama_cpp.Llama, logits_all=True)
    for ask in (SIX, Ask(n=1, temperature=1.0, max_tokens=6)):
        for one, prompt in zip(answers(tiny, tmp_path, ask), PROMPTS, strict=True):
            found, tokens = Outputs.unpacked(one), chat_prompt(stock, prompt.text)
            n = len(one["tokens"]) + (one["end"] is not None)
            assert found.tokens.shape == found.log_probabilities.shape == (n, min(N_TOP, stock.n_vocab()))
            stock.reset()
            stock.eval([*tokens, *one["tokens"]])
            rows = np.array(stock.scores[len(tokens) - 1 : len(tokens) - 1 + n], np.float64)
            expected = rows - logsumexp(rows, axis=1, keepdims=True)
            np.testing.assert_allclose(found.log_probabilities, np.take_along_axis(expected, found.tokens, 1), atol=2e-3)
            assert (found.tokens[:, 0] == rows.argmax(1)).all()
            assert (np.diff(found.log_probabilities, axis=1) <= 0).all()


def test_an_answer_that_the_model_ends_keeps_what_it_gave_the_end(tiny, tmp_path, load, monkeypatch):
    llm = load(tiny, llama_cpp.Llama)
    tokens = greedy(llm, chat_prompt(llm, PROMPTS[0].text), 4)
    ends = tokens.index(tokens[3])
    monkeypatch.setattr(llama_cpp, "llama_vocab_is_eog", lambda _vocabulary, token: token == tokens[3])
    for ask in (SIX, Ask(n=1, temperature=1e-6, max_tokens=6)):
        one = answers(tiny, tmp_path, ask)[0]
        assert (one["tokens"], one["end"]) == (tokens[:ends], tokens[3])
        assert Outputs.unpacked(one).tokens[:, 0].tolist() == tokens[: ends + 1]


def test_a_prompt_without_room_for_an_answer_is_dropped(tiny, tmp_path):
    long = AskedPrompt("word " * 400)
    one, other = dense_answers(DenseModel(tiny, str(tmp_path), 2), [long, PROMPTS[0]], SIX, 256, lambda *_: None)
    assert (one["tokens"], len(other["tokens"])) == ([], 6)
    assert [len(example.response) for example in as_examples([one, other], 500)] == [6]


@pytest.mark.parametrize("kind", ["normal", "equal", "steep", "few at the sample's places"])
def test_the_most_probable_tokens_are_found(kind):
    logits = np.random.default_rng(1).standard_normal(5000).astype(np.float32)
    if kind == "equal":
        logits[:] = 1
    elif kind == "steep":
        logits *= 50
    elif kind == "few at the sample's places":
        logits[::64] += 20
    tokens, values = asking.most_probable(logits)
    expected = np.sort(logits - logsumexp(logits.astype(np.float64)))[::-1][:N_TOP]
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-5)
    assert len(set(tokens.tolist())) == N_TOP
    np.testing.assert_allclose(logits[tokens], np.sort(logits)[::-1][:N_TOP])


def test_draws_follow_the_distribution():
    probabilities = np.array([0.5, 0.25, 0.125, 0.125])
    draw = asking.Draw(2.0, "ab")
    counts = np.bincount([draw(2 * np.log(probabilities).astype(np.float32)) for _ in range(4000)], minlength=4) / 4000
    np.testing.assert_allclose(counts, probabilities, atol=0.03)


def test_examples_have_the_models_own_tokens_and_its_end():
    records = [
        {"task": "t", "prompt_tokens": [4, 5], "tokens": [7, 8], "end": 2, **outputs(3).packed()},
        {"task": "t", "prompt_tokens": [4, 5], "tokens": [7], "end": None, **outputs(1).packed()},
        {"task": "t", "prompt_tokens": [4, 5], "tokens": [], "end": 2},
        {"task": "t", "prompt_tokens": [4, 5, 6, 7], "tokens": [7], "end": 2},
    ]
    found = as_examples(records, max_prompt=3)
    assert [one.response for one in found] == [[7, 8, 2], [7]]
    assert [one.outputs.tokens.shape for one in found] == [(3, 2), (1, 2)]
    with pytest.raises(DataError, match="answered none of 1 prompts"):
        as_examples(records[2:3], max_prompt=3)


def test_prompts_need_no_response_and_count_once(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "b", "task": "x"}\n{"prompt": "a", "response": "r"}\n')
    assert read_prompts([str(path)]) == [AskedPrompt("a"), AskedPrompt("b", "x")]
    path.write_text('{"task": "a"}\n')
    with pytest.raises(DataError, match=r"prompts.jsonl:1: prompt is missing"):
        read_prompts([str(path)])


# -- prompts that the model writes -----------------------------------------------------------------------------------------


@pytest.fixture
def writing(monkeypatch):
    """The tiny model as if it had a chat template, and these texts were what it writes in the user's place."""
    texts = ["What is rain?", "What  is rain?\n", "Name three birds.", "broken", "a b \ufffd", "<|im_end|> a b c"]
    texts += ["no no no no no no", "Who was the first king?", "cut off in the"]
    asked = []

    def written(_engine, keys):
        for key in keys:
            text = texts[len(asked) % len(texts)]
            asked.append(key)
            yield key, text, text != texts[-1]

    opened = argparse.Namespace(first={"tokenizer.chat_template": ""})
    monkeypatch.setattr(asking, "written", written)
    monkeypatch.setattr(asking, "AT_ONCE", 4)
    monkeypatch.setattr(asking.DenseModel, "opened", lambda *_: contextlib.nullcontext(object()))
    monkeypatch.setattr(asking.ModelFile, "open", lambda _path: opened)
    monkeypatch.setattr(asking, "weights_fingerprint", lambda _path: "f")
    return asked


def test_duplicates_and_broken_prompts_are_dropped(tmp_path, writing):
    found = own_prompts(DenseModel("m.gguf", str(tmp_path), 1), 3, 0, lambda *_: None)
    assert [one.text for one in found] == ["What is rain?", "Name three birds.", "Who was the first king?"]
    assert len(set(writing)) == len(writing) == 8
    writing.clear()
    assert own_prompts(DenseModel("m.gguf", str(tmp_path), 1), 3, 0, lambda *_: None) == found
    assert writing == []
    with pytest.raises(DataError, match="wrote 3 usable prompts in 40 tries, 4 are wanted"):
        own_prompts(DenseModel("m.gguf", str(tmp_path), 1), 4, 0, lambda *_: None)


@pytest.mark.smollm2
@pytest.mark.slow
def test_a_model_writes_users_turns(smollm2, tmp_path):
    with contextlib.closing(DenseModel(smollm2, str(tmp_path), 2)) as dense, dense.opened(256) as engine:
        found = dict((key, (text, ended)) for key, text, ended in asking.written(engine, ["0a", "0b", "0c", "0d"]))
        again = {key: (text, ended) for key, text, ended in asking.written(engine, ["0c"])}
    assert set(found) == {"0a", "0b", "0c", "0d"}
    assert len({text for text, _ in found.values()}) == 4
    assert any(ended and is_usable(text) for text, ended in found.values())
    assert again["0c"][0][:10] == found["0c"][0][:10]


def test_a_model_without_a_template_writes_none(tiny, tmp_path, load):
    with pytest.raises(OptionError, match="no chat template"):
        own_prompts(DenseModel(tiny, str(tmp_path), 1), 3, 0, lambda *_: None)
    with pytest.raises(ValueError, match="no chat template"):
        user_turn(load(tiny))


@pytest.mark.smollm2
def test_the_users_turn_is_where_the_template_has_the_user_speak(smollm2, load):
    llm = load(smollm2, llama_cpp.Llama, vocab_only=True)
    before, whole = user_turn(llm), chat_prompt(llm, "Name a bird.")
    assert whole[: len(before)] == before
    assert llm.detokenize(whole[len(before) :], special=True).decode().startswith("Name a bird.<|im_end|>")


# -- the command -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny_hf(monkeypatch):
    monkeypatch.setattr(
        "first_cpp.train.run_setup.load_model", lambda _path: (reference.make_model(SHAPES["tiny"], seed=2), Words())
    )


@pytest.mark.usefixtures("tiny_hf")
def test_a_run_learns_the_dense_models_answers_by_kl(tmp_path, capsys):
    model, prompts, out = str(tmp_path / "m.gguf"), tmp_path / "p.jsonl", str(tmp_path / "run")
    reference.write_gguf(model, reference.make_model(SHAPES["tiny"], seed=2), SHAPES["tiny"])
    prompts.write_text("".join(json.dumps({"prompt": f"Say {'a ' * i}word", "task": f"t{i % 2}"}) + "\n" for i in range(8)))
    words = ["train", "--model", model, "--prompts", str(prompts), "--valid", str(prompts), "-n", "5", "--out", out]
    words += ["--rank", "2", "--layers", "3,4", "--max-share", "0.3", "--batch-size", "4", "--precision", "float32", "--quiet"]
    assert main(words) == 0, capsys.readouterr().err
    record = json.loads((tmp_path / "run" / "train.json").read_text())
    assert record["settings"]["teacher"] == "answers"
    assert record["data"] == "p.jsonl (8 examples)"
    lines = (tmp_path / "run" / asking.ANSWERS).read_text().splitlines()
    assert len(lines) == 8  # those to validate on are the same
    first = float((tmp_path / "run" / "log.csv").read_text().splitlines()[1].split(",")[1])
    assert 0 < first < 5
    torch.manual_seed(0)
    dense = [*words[:-1], "--max-share", "0"]
    dense[dense.index("--layers") : dense.index("--layers") + 2] = []
    dense[dense.index(out)] = out + "2"
    assert main([*dense, "--quiet"]) == 0, capsys.readouterr().err
    nothing = float((tmp_path / "run2" / "log.csv").read_text().splitlines()[1].split(",")[1])
    assert nothing == pytest.approx(0, abs=1e-5)  # what is to be matched is what the model does: KL, and no answers' own loss


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "one of the two"),
        (["--data", "d", "--prompts", "p"], "one of the two"),
        (["--prompts", "self", "more.jsonl"], "stands alone"),
        (["--prompts", "p", "--distill", "0"], "--distill above 0"),
        (["--prompts", "p", "--recipe", "two-step"], "--recipe must be exact"),
        (["--data", "d", "--samples", "2"], "--samples draws answers to --prompts"),
        (["--data", "d", "--sets", "s", "--layers", "even"], "neither --layers nor --start"),
        (["--data", "d", "--sets", "s", "--rank", "0"], "--rank must be 1 or more"),
    ],
    ids=str,
)
def test_contradictions_are_refused_before_anything_is_loaded(tmp_path, capsys, words, said):
    assert main(["train", "--model", "none.gguf", "--out", str(tmp_path / "out"), *words]) == 2
    assert said in capsys.readouterr().err
    assert not os.path.exists(tmp_path / "out")


def test_prompts_need_a_gguf(tmp_path, capsys):
    assert main(["train", "--model", str(tmp_path), "--prompts", "p", "--out", str(tmp_path / "out")]) == 2
    assert "must be a GGUF file" in capsys.readouterr().err
