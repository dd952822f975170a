"""`first-cpp eval`: metrics against their libraries, the bootstrap against a formula, rows, resume and the report."""

from __future__ import annotations

import json
import os
import shutil

import llama_cpp
import numpy as np
import pytest
from routers_files import routed_model

from first_cpp import Llama
from first_cpp.cli.main import main
from first_cpp.errors import MissingFileError, SkipError
from first_cpp.evaluate import asking
from first_cpp.evaluate.bootstrap import Scores
from first_cpp.evaluate.metrics import Corpus, Mean, squad_exact, squad_f1
from first_cpp.evaluate.rows import RowPlan, parse_row
from first_cpp.skip import fixed_layers

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


@pytest.fixture(scope="module")
def routed(tiny, models):
    return routed_model(tiny, models, seed=71)


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in QUESTIONS))
    return str(path)


def evaluate(routed, data, out, *args):
    small = ["-n", "8", "--kl", "1", "--draws", "50", "--quiet", "-t", "2", "-c", "512"]
    return main(["eval", "--model", routed, "--data", data, "--out", str(out), *small, *args])


# -- metrics -------------------------------------------------------------------------------------------------------

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
    ("text", "references", "f1", "exact"),
    [
        ("The caretaker.", ["caretaker"], 1, 1),
        ("the old caretaker", ["a caretaker", "nobody"], 2 / 3, 0),
        ("", ["caretaker"], 0, 0),
        ("three  Metres!", ["3 metres", "three metres"], 1, 1),
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


# -- rows ----------------------------------------------------------------------------------------------------------


def test_static_sets():
    assert fixed_layers("last", 0.34, 6) == (4, 5)
    assert fixed_layers("even", 0.34, 6) == (2, 3)
    assert fixed_layers("even", 0.25, 30) == tuple(round((i + 1) * 29 / 9) for i in range(8))
    assert fixed_layers("influence", 0.5, 6, [5, 1, 4, 0, 3, 2]) == (1, 4, 5)
    assert fixed_layers("random", 0.5, 6, seed=1) == fixed_layers("random", 0.5, 6, seed=1)
    assert len(fixed_layers("random", 0.5, 30)) == 15


def test_rows_as_typed(tiny):
    def parse(text, order=()):
        return parse_row(text, lambda: order)

    row = parse(f"tuned={tiny}@0.25")
    assert (row.name, row.system, row.file, row.skip, row.share) == ("tuned@0.25", "tuned", tiny, 0.25, 0.25)
    assert parse(f"tuned={tiny}").skip is None
    best = parse(f"best={tiny}@3,1")
    assert (best.name, best.skip, best.share) == ("best@2/6", (1, 3), 2 / 6)
    auto = parse(f"tuned={tiny}@auto")
    assert (auto.name, auto.skip, auto.share) == ("tuned@auto", "auto", 0.0)
    even = parse(f"even+lora={tiny}@even:0.34")
    assert (even.name, even.system, even.skip, even.share) == ("even+lora@0.34", "even+lora", (2, 3), 0.34)
    assert parse(f"x={tiny}@influence:0.34", [4, 0, 1, 2, 3, 5]).skip == (0, 4)
    with pytest.raises(MissingFileError, match=r"--row x: there is no file a\.gguf"):
        parse("x=a.gguf@0.25")
    for text in (
        "a.gguf",
        "=a.gguf",
        "x=",
        f"x={tiny}@2",
        f"x={tiny}@even:",
        f"x={tiny}@even:1,2",
        f"x={tiny}@2,6",
        f"x={tiny}@odd:0.5",
        f"x={tiny}@search:0.5",
    ):
        with pytest.raises(ValueError, match=r"--row|skip|layers 'odd'|was not trained"):
            parse(text)
    with pytest.raises(SkipError, match="'odd' is unknown"):
        fixed_layers("odd", 0.5, 6)


def test_a_row_leaves_out_the_layers_that_its_lora_was_trained_for(tiny, tmp_path):
    def trained(number, **train):
        return routed_model(tiny, tmp_path, number, **{f"train.{key}": value for key, value in train.items()})

    def parse(kind, file, seed=0):
        return parse_row(f"x={file}@{kind}:0.34", lambda: [0, 1, 2, 3, 4, 5], seed).skip

    search = trained(1, layers="search", seed="3", order="5,2,0,1,3,4")
    influence = trained(2, layers="influence", seed="3", order="1,4,0,2,3,5")
    assert parse("search", search) == (2, 5)
    assert parse("influence", influence) == (1, 4)
    assert parse("influence", search) == (0, 1)
    with pytest.raises(ValueError, match="was not trained with layers of the kind 'search'"):
        parse("search", influence)
    for number, order in ((5, "1,2,3"), (6, "a,b"), (7, "0,1,2,3,4,4")):
        with pytest.raises(ValueError, match=r"first\.train\.order"):
            parse("search", trained(number, layers="search", seed="3", order=order))
    random = trained(3, layers="random", seed="3")
    assert parse("random", random, seed=0) == fixed_layers("random", 0.34, 6, seed=3) != fixed_layers("random", 0.34, 6, seed=0)


# -- a whole evaluation --------------------------------------------------------------------------------------------


def test_a_report_with_everything(routed, data, tiny, tmp_path, capsys):
    out = tmp_path / "report"
    args = ["--skip", "0,0.34", "--baselines", "all", "--calibrate", data, "--row", f"other={tiny}@0,5",
            "--row", f"even+lora={routed}@even:0.34"]  # fmt: skip
    assert evaluate(routed, data, out, *args) == 0
    shown = capsys.readouterr().out
    record = json.loads((out / "report.json").read_text())
    rows = {one["row"]: one for one in record["rows"]}
    names = ["dense", "routed@0.34", "influence@0.34", "even@0.34", "random@0.34", "last@0.34", "other@2/6", "even+lora@0.34"]
    assert list(rows) == names
    assert all(name in shown for name in names)
    assert all(len(one["ratio"]) == 3 for one in rows.values())
    assert rows["dense"]["share_skipped"] == 0
    for name in names[1:]:
        assert rows[name]["share_skipped"] == pytest.approx(2 / 6)
        assert rows[name]["kl"] > 0
        assert 0 <= rows[name]["fidelity"] <= 1
        assert not rows[name]["failed"]
    assert rows["last@0.34"]["layers"]["qa"] == [0, 0, 0, 0, 1, 1]
    assert set(rows["dense"]["scores"]["qa"]) == {"F1", "EM"}
    assert set(rows["dense"]["scores"]["translation"]) == {"BLEU", "chrF"}
    assert [one["over"] for one in record["leads"]] == ["influence", "even", "random", "last", "other", "even+lora"]
    assert rows["even+lora@0.34"]["scores"] == rows["even@0.34"]["scores"]
    assert {"report.json", "report.md", "quality.png", "layers.png", "answers.jsonl", "run.json"} == set(os.listdir(out))


def test_answers_are_create_chat_completions(routed, data, load, tmp_path):
    out = tmp_path / "report"
    assert evaluate(routed, data, out, "--skip", "0.34", "--kl", "0") == 0
    answers = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    llm = load(routed, skip=0.34, n_ctx=512)
    for one in answers:
        if one["row"] == "routed@0.34":
            prompt = llm.tokenize(QUESTIONS[one["question"]]["prompt"].encode())
            text = llm.create_completion(prompt, max_tokens=8, temperature=0)["choices"][0]["text"]
            assert one["text"].encode("ascii", "ignore") == text.strip().encode("ascii", "ignore")
            assert len(one["skipped_layers"]) == 2


def test_answers_cut_off_are_counted(routed, data, tmp_path, monkeypatch, capsys):
    """No token ends an answer but one row's to one task, which every token ends."""
    answered, ending = asking._answer, [False]
    monkeypatch.setattr(llama_cpp, "llama_vocab_is_eog", lambda vocab, token: ending[-1])

    def watched(llm, question, max_tokens):
        ending.append(llm.skip is None and question.task == "qa")
        return answered(llm, question, max_tokens)

    monkeypatch.setattr(asking, "_answer", watched)
    assert evaluate(routed, data, tmp_path / "report", "--skip", "0,0.34") == 0
    rows = json.loads((tmp_path / "report" / "report.json").read_text())["rows"]
    assert [one["cut_off"] for one in rows] == [
        {"qa": 0, "translation": 2, "tldr": 1, "dialogue": 1},
        {"qa": 2, "translation": 2, "tldr": 1, "dialogue": 1},
    ]
    table = capsys.readouterr().out.split("| cut off |")[1].split("\n\n")[0]
    shown = [line.split("|")[-2].strip() for line in table.splitlines() if line.startswith("| ")]
    assert shown[1:] == ["0.667", "1.000"]


def test_a_prompt_is_read_once_for_all_rows_of_a_file(routed, data, tmp_path, monkeypatch):
    lengths, original = [], Llama.eval

    def watched(self, tokens):
        lengths.append(len(tokens))
        return original(self, tokens)

    monkeypatch.setattr(Llama, "eval", watched)
    args = ["--skip", "0,0.34,0.5", "--row", f"set={routed}@0,5", "--kl", "0"]
    assert evaluate(routed, data, tmp_path / "report", *args) == 0
    assert sum(n > 1 for n in lengths) == len(QUESTIONS)


def test_a_killed_run_goes_on(routed, data, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    evaluate(routed, data, whole, "--skip", "0,0.34")
    original, asked = asking._answer, []

    def killed(llm, question, max_tokens):
        if len(asked) == 8:
            raise KeyboardInterrupt
        asked.append(question)
        return original(llm, question, max_tokens)

    monkeypatch.setattr(asking, "_answer", killed)
    assert evaluate(routed, data, parts, "--skip", "0,0.34") == 130
    with open(parts / "answers.jsonl", "a", encoding="utf-8") as file:
        file.write('{"row": "routed@0.34", "quest')  # a line that was being written
    asked.clear()
    assert evaluate(routed, data, parts, "--skip", "0,0.34") == 0
    assert len(asked) == 12 - 8
    found = [json.loads((folder / "report.json").read_text())["rows"] for folder in (whole, parts)]
    for one, other in zip(*found, strict=True):
        assert one["scores"] == other["scores"]
        assert one["kl"] == pytest.approx(other["kl"]) if one["kl"] else other["kl"] is None


def test_failures_are_counted_and_named(routed, tmp_path, capsys):
    path = tmp_path / "long.jsonl"
    lines = [*QUESTIONS[:2], {"task": "qa", "prompt": "word " * 400, "response": "no"}]
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    assert evaluate(routed, str(path), tmp_path / "report", "--skip", "0.34") == 0
    record = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [list(one["failed"]) for one in record["rows"]] == [["2"], ["2"]]
    assert "give a larger --ctx" in capsys.readouterr().out


def test_kl_is_zero_against_itself(routed, load):
    from first_cpp.evaluate.questions import Question

    llm, dense = load(routed, skip=None), load(routed, skip=None)
    own = asking.DenseAnswer.of(dense, Question("qa", "Who wound the clock?", ("x",)), 6)
    assert own.compare(llm) == {"kl": pytest.approx(0, abs=1e-6), "fidelity": 1}
    llm.skip = [1, 4]
    skipping = own.compare(llm)
    assert skipping["kl"] > 0
    assert skipping["fidelity"] < 1
    assert asking.DenseAnswer.of(dense, Question("qa", "word " * 4000, ("x",)), 6) is None


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--skip", "1.5"], "is not a share of layers"),
        (["--skip", "0.95"], "would leave out all 6 layers"),
        (["--baselines", "influence"], "needs --calibrate"),
        (["--baselines", "odd"], "'odd' is unknown"),
        (["--row", "x"], "is not NAME=FILE"),
        (["--row", "x=nowhere.gguf"], "there is no file nowhere.gguf"),
        (["--reference", "tuned"], "tuned is no row"),
        (["--metric", "qa=rouge"], "is not TASK=KIND"),
        (["--routers", "nowhere.gguf"], "there is no file nowhere.gguf"),
    ],
)
def test_what_cannot_be_evaluated(routed, data, tmp_path, capsys, args, message):
    assert evaluate(routed, data, tmp_path / "report", *args) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


def test_a_seed_below_0_is_refused_before_answers(routed, data, tmp_path, capsys):
    with pytest.raises(SystemExit):
        evaluate(routed, data, tmp_path / "report", "--seed", "-1")
    assert "argument --seed: '-1' is not a whole number of at least 0" in capsys.readouterr().err


def test_a_share_needs_routers(routed, tiny, data, tmp_path, capsys):
    assert evaluate(routed, data, tmp_path / "report", "--row", f"other={tiny}@0.34") == 2
    assert f"no routers in {tiny}" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", ":1: not JSON"),
        ('{"task": "qa", "response": "x"}', ":1: prompt is missing"),
        ('{"task": "qa", "prompt": "x", "response": ""}', ":1: response is empty"),
        ('{"task": "qa", "prompt": "x", "response": "y", "references": []}', "references is []"),
        ('{"task": "poem", "prompt": "x", "response": "y"}', "how is task 'poem' scored? Give --metric poem=KIND"),
    ],
)
def test_bad_data(routed, tmp_path, capsys, line, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(line + "\n")
    assert evaluate(routed, str(path), tmp_path / "report") == 2
    assert message in capsys.readouterr().err


def test_other_questions_do_not_mix_in(routed, data, tmp_path, capsys):
    out = tmp_path / "report"
    evaluate(routed, data, out, "--skip", "0")
    assert evaluate(routed, data, out, "--skip", "0", "--limit", "2") == 2
    assert "holds an evaluation with other questions" in capsys.readouterr().err


def test_other_models_and_layers_do_not_mix_in(routed, tiny, models, data, tmp_path, capsys):
    """A file made anew under the same name, and another set of as many layers, are other rows."""
    out, file = tmp_path / "report", tmp_path / "m.gguf"
    shutil.copy(routed, file)
    assert evaluate(str(file), data, out, "--skip", "0", "-t", "1") == 0
    os.remove(out / "answers.jsonl")  # as a run leaves it that was killed before its first answer: nothing can be mixed
    assert evaluate(str(file), data, out, "--skip", "0", "--row", f"set={file}@1,2") == 0
    assert evaluate(str(file), data, out, "--skip", "0,0.34", "--row", f"set={file}@1,2") == 0  # rows may be added
    assert evaluate(str(file), data, out, "--skip", "0", "--row", f"set={file}@1,3") == 2
    assert "holds an evaluation with other row set@2/6" in capsys.readouterr().err
    assert evaluate(str(file), data, out, "--skip", "0", "-t", "1") == 2
    assert "holds an evaluation with other threads" in capsys.readouterr().err
    raw = bytearray(file.read_bytes())
    raw[-200:] = bytes(200)
    file.write_bytes(raw)
    assert evaluate(str(file), data, out, "--skip", "0") == 2
    assert "holds an evaluation with other row dense" in capsys.readouterr().err


def test_kl_is_to_the_model_with_its_side_file(tiny, data, tmp_path, monkeypatch):
    """With --routers, the dense row is the base with the side file's LoRA: KL to itself is not measured, nor to less."""
    made = []
    original = asking.DenseAnswer.of
    monkeypatch.setattr(asking.DenseAnswer, "of", lambda dense, *rest: (made.append(dense), original(dense, *rest))[1])
    side = routed_model(tiny, tmp_path, 4, sidecar=True)
    assert evaluate(tiny, data, tmp_path / "report", "--routers", side, "--skip", "0,0.34", "--row", f"base={tiny}") == 0
    assert {llm.routers is not None for llm in made} == {True}
    rows = {one["row"]: one for one in json.loads((tmp_path / "report" / "report.json").read_text())["rows"]}
    assert rows["dense"]["kl"] is None
    assert rows["base"]["kl"] == pytest.approx(0, abs=1e-6)  # another row, though zero routers change nothing
    assert rows["routed@0.34"]["kl"] > 0


def test_the_model_as_it_came_is_the_first_row(routed, tiny, data, tmp_path):
    """`base` stands before `dense`, whose weights were trained."""
    assert evaluate(routed, data, tmp_path / "report", "--skip", "0", "--base", tiny) == 0
    rows = json.loads((tmp_path / "report" / "report.json").read_text())["rows"]
    assert [one["row"] for one in rows] == ["base", "dense"]
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-6)  # the routers of this file changed no weight
    assert rows[1]["kl"] is None


def test_tables_fit_80_columns(routed, data, tmp_path, capsys):
    """Scores of four tasks stand in several tables, each with the rows' names."""
    assert evaluate(routed, data, tmp_path / "report", "--skip", "0,0.34", "--baselines", "even,last") == 0
    tables = [block.splitlines() for block in capsys.readouterr().out.split("\n\n") if block.startswith("| ")]
    assert max(len(line) for table in tables for line in table) <= 80
    names = [cell.strip() for table in tables for cell in table[0].split("|")[1:-1]]
    for wanted in ("translation BLEU", "translation chrF", "tldr ROUGE-L", "qa EM", "cut off", "failed"):
        assert names.count(wanted) == 1
    assert names.count("row") >= 3


def test_it_ends_with_the_next_commands_and_asks_for_the_base(routed, tiny, data, tmp_path, capsys):
    for out, base in (("one", []), ("two", ["--base", tiny])):
        assert evaluate(routed, data, tmp_path / out, "--skip", "0", *base) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[-3:] == ["next:", f"  first-cpp chat -m {routed}", f"  first-cpp serve -m {routed}"]
        assert any("--base FILE adds it" in line for line in lines) == (not base)


def test_blocks_that_predict_further_tokens_are_not_layers(tmp_path):
    """Of 7 blocks one predicts further tokens: the last layers that an answer runs are 4 and 5."""
    import gguf

    path = tmp_path / "nextn.gguf"
    writer = gguf.GGUFWriter(str(path), "glm4moe")
    writer.add_block_count(7)
    writer.add_uint32("glm4moe.nextn_predict_layers", 1)
    writer.add_tensor("token_embd.weight", np.zeros((64, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    plan = RowPlan(str(path), None, None, [0.34], ["last"], [f"x={path}@4,5"], tuple, seed=0)
    assert [row.skip for row in plan.rows()] == [None, 0.34, (4, 5), (4, 5)]
    with pytest.raises(SkipError, match="layer 6 does not exist"):
        parse_row(f"x={path}@5,6", tuple)


def test_the_plan_comes_before_the_answers(routed, data, tmp_path, capsys, monkeypatch):
    seen = []
    monkeypatch.setattr(
        asking, "_answer", lambda *a: seen.append(capsys.readouterr().err) or {"task": "qa", "text": "", "error": "none"}
    )
    small = ["-n", "8", "--kl", "0", "--draws", "50", "-t", "2", "-c", "512", "--skip", "0,0.34"]
    command = ["eval", "--model", routed, "--data", data, "--out", str(tmp_path / "report"), *small]
    assert main(command) == 0
    assert "plan: 2 rows (dense, routed@0.34)" in seen[0]
    assert "6 questions, 12 answers of at most 8 tokens\n" in seen[0]
    assert "at most 1 second;" in seen[0]
    lines = (tmp_path / "report" / "answers.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "report" / "answers.jsonl").write_text("".join(lines[:5]))
    seen.clear()
    assert main(command) == 0
    assert "7 answers of at most 8 tokens; 5 are there already" in seen[0]


def test_tpot_is_a_mean_over_tokens(tmp_path):
    from first_cpp.evaluate.report import _tpot

    assert _tpot([{"tokens": 3, "tpot_ms": 2.0}, {"tokens": 1, "tpot_ms": 0.0}, {"tokens": 0, "tpot_ms": 0.0}]) == 2.0
    assert _tpot([{"tokens": 3, "tpot_ms": 2.0}, {"tokens": 2, "tpot_ms": 5.0}]) == pytest.approx(3.0)
    assert _tpot([]) == 0
