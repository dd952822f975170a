"""The model for lm-evaluation-harness: what it scores is what stock llama_cpp and PyTorch say, and the documented runs work."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import llama_cpp
import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="needs the lm-eval extra")

import reference
from lm_eval.api.instance import Instance

from first_cpp.errors import OptionError
from first_cpp.gguf.synthetic import SHAPES
from first_cpp.lm_eval import FirstCppLM

ROOT = pathlib.Path(__file__).parents[2]
PAIRS = [("Once upon a time", " there was"), ("Once upon a time", " a king"), ("Hello", "!"), ("", "alone"), ("Once ", "more")]


def asked(kind: str, *arguments: object) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0, metadata=("t", 0, 1))


def stock_scores(path: str, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """By stock llama_cpp, all tokens in one batch."""
    llm = llama_cpp.Llama(path, n_ctx=512, logits_all=True, verbose=False)
    llm.eval(context + continuation)
    logits = np.asarray(llm.scores[: llm.n_tokens], np.float64)[len(context) - 1 : -1]
    llm.close()
    return score_of(logits, continuation)


def score_of(logits: np.ndarray, continuation: list[int]) -> tuple[float, bool]:
    logits = logits - logits.max(1, keepdims=True)
    logprobs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return float(logprobs[np.arange(len(continuation)), continuation].sum()), bool((logits.argmax(1) == continuation).all())


@pytest.fixture
def tokens_of(tiny, load):
    """Context and continuation as the harness parts them, by stock llama_cpp's tokenizer."""
    stock = load(tiny, cls=llama_cpp.Llama)

    def part(context: str, continuation: str) -> tuple[list[int], list[int]]:
        if not context:
            return [stock.token_bos()], stock.tokenize(continuation.encode(), add_bos=False)
        stripped = context.rstrip()
        whole = stock.tokenize((context + continuation).encode())
        n = len(stock.tokenize(stripped.encode()))
        return whole[:n], whole[n:]

    return part


def test_dense_scores_are_those_of_stock_llama_cpp(tiny, load, tokens_of):
    lm = FirstCppLM(load(tiny, skip=None))
    found = lm.loglikelihood([asked("loglikelihood", *pair) for pair in PAIRS], disable_tqdm=True)
    for (value, greedy), pair in zip(found, PAIRS, strict=True):
        expected = stock_scores(tiny, *tokens_of(*pair))
        assert value == pytest.approx(expected[0], abs=2e-3)
        assert greedy == expected[1]


def test_the_greedy_answer_is_known_as_such(tiny, load):
    lm = FirstCppLM(load(tiny, skip=[2]))
    tokens = lm.tok_encode("Once upon")
    generator = lm.llama.generate(tokens, temp=0.0, repeat_penalty=1.0)
    answer = [next(generator) for _ in range(5)]
    generator.close()
    other = [*answer[:-1], (answer[-1] + 1) % 300]
    found = lm._loglikelihood_tokens([(("", ""), tokens, answer), (("", ""), tokens, other)], disable_tqdm=True)
    assert [greedy for _, greedy in found] == [True, False]


def test_continuations_skip_layers_and_contexts_do_not(hf, tmp_path):
    """By the model in PyTorch, in which prompt positions run every layer and answer positions skip two."""
    path = str(tmp_path / "hf.gguf")
    reference.write_gguf(path, hf, SHAPES["tiny"])
    lm = FirstCppLM(path, skip="1+3", n_ctx=128)
    try:
        for context, continuation in (("Once upon a time", " there was a king"), ("Hello", " you")):
            whole, n = lm.tok_encode(context + continuation), len(lm.tok_encode(context))
            (found,) = lm.loglikelihood([asked("loglikelihood", context, continuation)], disable_tqdm=True)
            rows = reference.run(hf, whole[:n], whole[n:], {1, 3}).astype(np.float64)[:-1]
            expected = score_of(rows, whole[n:])
            assert found[0] == pytest.approx(expected[0], abs=5e-3)
            dense = score_of(reference.run(hf, whole[:n], whole[n:], set()).astype(np.float64)[:-1], whole[n:])
            assert abs(found[0] - dense[0]) > 0.05
    finally:
        lm.llama.close()


def test_whole_texts_are_scored_in_windows(tiny, load):
    text = "It was a long and quiet evening, and nobody spoke."
    lm = FirstCppLM(load(tiny, skip=None))
    (found,) = lm.loglikelihood_rolling([asked("loglikelihood_rolling", text)], disable_tqdm=True)
    tokens = lm.tok_encode(text, add_special_tokens=False)
    assert found == pytest.approx(stock_scores(tiny, [lm.prefix_token_id], tokens)[0], abs=5e-3)
    narrow = FirstCppLM(load(tiny, skip=None, n_ctx=32))
    (windowed,) = narrow.loglikelihood_rolling([asked("loglikelihood_rolling", text)], disable_tqdm=True)
    n = narrow.max_length - 1
    expected = stock_scores(tiny, [lm.prefix_token_id], tokens[:n])[0]
    rest = tokens[n:]
    while rest:  # windows that overlap: as many tokens of context as there is room for
        part, rest, before = rest[:n], rest[n:], tokens[: len(tokens) - len(rest)]
        context = before[-(n - len(part) + 1) :]
        expected += stock_scores(tiny, context, part)[0]
    assert windowed == pytest.approx(expected, abs=1e-2)


def test_answers_are_those_of_stock_and_end_before_until(tiny, load):
    stock, lm = load(tiny, cls=llama_cpp.Llama), FirstCppLM(load(tiny, skip=None), max_gen_toks=24)
    plain = stock("Once", max_tokens=24, temperature=0, repeat_penalty=1.0)["choices"][0]["text"]
    (whole,) = lm.generate_until([asked("generate_until", "Once", {"until": []})], disable_tqdm=True)
    assert whole == plain
    stop = plain[6:8]
    (cut,) = lm.generate_until([asked("generate_until", "Once", {"until": [stop], "do_sample": False})], disable_tqdm=True)
    assert cut == plain[: plain.index(stop)]
    with pytest.raises(OptionError, match="num_beams cannot be honoured"):
        lm.generate_until([asked("generate_until", "Once", {"num_beams": 4})], disable_tqdm=True)
    with pytest.raises(OptionError, match="leaves no room for a prompt"):
        lm.generate_until([asked("generate_until", "Once", {"max_gen_toks": 4000})], disable_tqdm=True)


def test_contexts_that_are_too_long_lose_their_beginning(tiny, load):
    lm = FirstCppLM(load(tiny, skip=None, n_ctx=64))
    (found,) = lm.loglikelihood([asked("loglikelihood", "word " * 100 + "end", " of it")], disable_tqdm=True)
    tokens = lm.tok_encode("word " * 100 + "end of it")
    n = len(tokens) - len(lm.tok_encode("word " * 100 + "end"))
    assert found[0] == pytest.approx(stock_scores(tiny, tokens[-lm.max_length : -n], tokens[-n:])[0], abs=2e-3)
    with pytest.raises(OptionError, match="give n_ctx="):
        lm.loglikelihood([asked("loglikelihood", "x", "word " * 100)], disable_tqdm=True)


def test_a_chat_template_is_applied(tiny, models):
    from raw_gguf import with_metadata

    turns = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    template = turns + "{% if add_generation_prompt %}assistant:{% endif %}"
    file = with_metadata(tiny, models / "chat-eval.gguf", tokenizer__chat_template=template)
    lm = FirstCppLM(str(file), n_ctx=64)
    try:
        turn = [{"role": "user", "content": "Hi"}]
        assert lm.apply_chat_template(turn) == "user: Hi\nassistant:"
        assert lm.apply_chat_template(turn, add_generation_prompt=False) == "user: Hi\n"
    finally:
        lm.llama.close()


def test_without_a_template_a_chat_is_refused(tiny, load):
    with pytest.raises(OptionError, match="has no chat template"):
        FirstCppLM(load(tiny)).apply_chat_template([{"role": "user", "content": "Hi"}])


# -- the harness itself --------------------------------------------------------------------------------------------------


@pytest.mark.slow  # the harness loads pandas, scikit-learn and datasets
@pytest.mark.parametrize("skip", ["none", "1+3"])
def test_the_documented_runs(tiny, tmp_path, skip):
    """The commands of docs/guide/lm-eval.md, on the task files of examples/, with a tiny model."""
    page = (ROOT / "docs/guide/lm-eval.md").read_text()
    (command,) = [line.strip() for line in page.splitlines() if line.strip().startswith("python -m first_cpp.lm_eval run")][:1]
    arguments = command.split()[3:]
    given = arguments.index("--model_args") + 1
    arguments[given] = f"model={tiny},skip={skip},n_ctx=512,threads=1"
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "first_cpp.lm_eval", *arguments, "--output_path", str(tmp_path / "out")],
        cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (report,) = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(report.read_text())["results"]
    assert 0 <= results["choices"]["acc,none"] <= 1
    assert "exact_match,strict-match" in results["sums"]
