"""Grammars in GBNF: llama.cpp's own answer for every one that it can follow, an error and a usable model for the others."""

from __future__ import annotations

import json
import pathlib
import threading
import time

import llama_cpp
import numpy as np
import pytest
from helpers import survives
from llama_cpp import llama_grammar as library

from first_cpp import AnswerCancelled, GrammarError, Llama, LogitsError
from first_cpp._ext import GgufFile
from first_cpp.runtime import grammar as grammar_module
from first_cpp.runtime.grammar import MAX_BYTES, GrammarProcess, check_text

PROMPT = "Once"
ENDLESS = (
    'root ::= opt{2000}\nopt ::= "a"?\n'
    + "# ambiguous: 2,000 ways to read each letter, and each is tried by itself for every token"
)


def gbnf(text: str) -> llama_cpp.LlamaGrammar:
    return llama_cpp.LlamaGrammar.from_string(text)


@pytest.fixture(scope="module")
def llm(tiny):
    model = Llama(tiny, verbose=False, n_ctx=512, n_threads=1)
    yield model
    model.close()


# -- as llama_cpp ------------------------------------------------------------------------------------------------------

SCHEMAS = [
    {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}, "required": ["a"]},
    {"type": "array", "items": {"type": "number"}, "minItems": 1, "maxItems": 4},
    {"type": "string", "minLength": 2, "maxLength": 9},
    {"type": "string", "pattern": "^[a-c]{2,5}-[0-9]+$"},
    {"type": "string", "format": "date-time"},
    {"type": "string", "format": "uuid"},
    {"enum": ["one", 2, None, True]},
    {"const": {"a": [1, 2]}},
    {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
    {"type": ["integer", "null"]},
    {"type": "object", "additionalProperties": {"type": "boolean"}},
    {"type": "object"},
    {"allOf": [{"properties": {"a": {"type": "null"}}}, {"properties": {"b": {"type": "boolean"}}}]},
    {"$ref": "#/$defs/t", "$defs": {"t": {"type": "object", "properties": {"next": {"$ref": "#/$defs/t"}}}}},
    {"items": [{"type": "null"}, {"type": "boolean"}]},
]
CORPUS = {name: getattr(library, name) for name in dir(library) if name.endswith("_GBNF")}
CORPUS |= {f"schema {i}": str(library.json_schema_to_gbnf(json.dumps(schema))) for i, schema in enumerate(SCHEMAS)}
CORPUS |= {
    "classes": 'root ::= [^"\\\\\\x7F\\x00-\\x1F]{3,9} [\\u00e9\\U0001F600-\\U0001F64F]?',
    "comment": 'root ::= ("a" # a quote " and a bracket [\n | "b")\n',
    "brackets in a text": 'root ::= ["] "[z-a]" ["]',
    "any": 'root ::= . . . "!"',
    "token": "root ::= <[70]> <[71]> !<[72]>",
    "repetition": 'root ::= ("ab" | "c"){2,4} [0-9]+ ","? "x"*',
}


@pytest.fixture(scope="module")
def stock(tiny):
    model = llama_cpp.Llama(tiny, verbose=False, n_ctx=512, n_threads=1)
    yield model
    model.close()


@pytest.mark.parametrize("text", CORPUS.values(), ids=CORPUS)
@pytest.mark.parametrize("temperature", [0, 1.3])
def test_answers_are_those_of_llama_cpp(llm, stock, text, temperature):
    """Every grammar that llama_cpp ships or its converter makes, and what else GBNF knows; a random model, token for token."""
    found, expected = (
        model(PROMPT, grammar=gbnf(text), temperature=temperature, seed=5, max_tokens=40)["choices"] for model in (llm, stock)
    )
    assert found == expected


def test_the_model_may_draft(tiny, load):
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

    text = 'root ::= ("ab" | "cd"){20}'
    drafting = load(tiny, draft_model=LlamaPromptLookupDecoding(num_pred_tokens=4))
    found, expected = (
        model(PROMPT, grammar=gbnf(text), temperature=0, max_tokens=60)["choices"] for model in (drafting, load(tiny))
    )
    assert found == expected


def test_processors_come_before_the_grammar(llm):
    def only_x(tokens, scores):
        scores[:] = -1e9
        scores[3 + ord("x")] = 0
        return scores

    processors = llama_cpp.LogitsProcessorList([only_x])
    found = llm(PROMPT, grammar=gbnf("root ::= [a-z]{4}"), max_tokens=9, logits_processor=processors)["choices"][0]["text"]
    assert found == "xxxx"
    found = llm(PROMPT, grammar=gbnf("root ::= [a-c]{4}"), max_tokens=9, logits_processor=processors)["choices"][0]["text"]
    assert len(found) == 4
    assert set(found) <= set("abc")


# -- what llama.cpp ends its process for --------------------------------------------------------------------------------

DEAD_ENDS = {
    "a character that no token has": 'root ::= "\\U0010FFFD"',  # with the bytes of the tiny model it can begin
    "a NUL": 'root ::= "a\\x00b"',
    "an end token": 'root ::= <[2]> "a"',
    "an end token later": 'root ::= "a" <[2]>',
    "nothing more": 'root ::= "a" [z-a]',
    "unfinished": "root ::= (",
    "nested": "root ::= " + "(" * 60_000,
    "brackets": "[" * 20_000,
    "no such token": "root ::= <[99999]>",
    "no root": "nothing ::= [a-z]",
    "left recursive": "root ::= root [a]",
    "code point": 'root ::= "\\UFFFFFFFF"',
    "too many": "root ::= [a]{99999}",
}


@pytest.mark.timed
def test_no_grammar_ends_the_process(tiny):
    """In a process of its own; each is an error or an answer, and the model then answers as before."""
    code = f"""
        import time
        import llama_cpp
        from first_cpp import GrammarError, Llama
        llm = Llama({tiny!r}, verbose=False)
        plain = lambda: llm("Once", max_tokens=4, temperature=0)["choices"]
        expected = plain()
        for name, text in {DEAD_ENDS!r}.items():
            begun = time.monotonic()
            try:
                found = llm("Once", max_tokens=9, grammar=llama_cpp.LlamaGrammar.from_string(text))
                assert name == "a character that no token has", (name, found)
            except GrammarError as error:
                assert "grammar" in str(error), error
            assert time.monotonic() - begun < 3, name
            assert plain() == expected
        print("through")
    """
    done = survives(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("through")


def test_schemas_that_nothing_can_go_on_with(tiny, load):
    class Nothing:
        def __call__(self, tokens, scores):
            scores[:] = -np.inf
            return scores

    llm = load(tiny)
    for schema in ('{"type": "string"}', '{"enum": ["a"]}'):
        grammar = llama_cpp.LlamaGrammar.from_json_schema(schema)
        with pytest.raises(GrammarError, match="no token of this model's vocabulary can go on"):
            llm(PROMPT, grammar=grammar, logits_processor=llama_cpp.LogitsProcessorList([Nothing()]))
    with pytest.raises(LogitsError, match="no token has a finite logit"):
        llm(PROMPT, logits_processor=llama_cpp.LogitsProcessorList([Nothing()]))
    assert llm(PROMPT, max_tokens=3)["usage"]["completion_tokens"] > 0


@pytest.fixture(scope="module")
def broken(tiny, models):
    """A model whose logits are NaN."""
    path = models / "nan.gguf"
    data = bytearray(pathlib.Path(tiny).read_bytes())
    (norm,) = (t for t in GgufFile(tiny).tensors() if t.name == "output_norm.weight")
    data[norm.offset : norm.offset + norm.n_bytes] = np.full(norm.n_bytes // 4, np.nan, np.float32).tobytes()
    path.write_bytes(data)
    return str(path)


def test_logits_that_are_no_numbers(broken):
    code = f"""
        import llama_cpp
        from first_cpp import Llama, LogitsError
        llm = Llama({broken!r}, verbose=False)
        Grammar = llama_cpp.LlamaGrammar
        grammars = [None, Grammar.from_string("root ::= [a-z]+"), Grammar.from_json_schema("{{}}")]
        for grammar in grammars:
            for temperature in (0, 1):
                try:
                    llm("Once", max_tokens=4, temperature=temperature, grammar=grammar)
                except LogitsError as error:
                    assert "NaN" in str(error)
                else:
                    raise SystemExit("no error")
        print("through")
    """
    done = survives(code)
    assert done.stdout.strip() == "through", done.stderr


def test_what_a_processor_raises_is_raised(llm):
    def fails(tokens, scores):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        llm(PROMPT, max_tokens=4, logits_processor=llama_cpp.LogitsProcessorList([fails]))
    assert llm(PROMPT, max_tokens=3)["usage"]["completion_tokens"] > 0


# -- grammars without end ----------------------------------------------------------------------------------------------


def test_a_grammar_without_end_meets_a_time_limit(llm, monkeypatch):
    monkeypatch.setattr(grammar_module, "SECONDS", 0.5)
    expected = llm(PROMPT, max_tokens=4, temperature=0)["choices"]
    with pytest.raises(GrammarError, match="too ambiguous"):
        llm(PROMPT, max_tokens=20, grammar=gbnf(ENDLESS))
    assert llm(PROMPT, max_tokens=4, temperature=0)["choices"] == expected
    assert llm(PROMPT, max_tokens=4, temperature=0, grammar=gbnf('root ::= "abc"'))["choices"][0]["text"] == "abc"


@pytest.mark.timed
def test_a_grammar_without_end_can_be_cancelled(llm):
    timer = threading.Timer(0.5, llm.cancel)
    timer.start()
    begun = time.monotonic()
    with pytest.raises(AnswerCancelled):
        llm(PROMPT, max_tokens=20, grammar=gbnf(ENDLESS))
    assert time.monotonic() - begun < 2
    assert llm(PROMPT, max_tokens=3)["usage"]["completion_tokens"] > 0


def test_close_ends_the_process(tiny):
    llm = Llama(tiny, verbose=False)
    llm(PROMPT, max_tokens=4, grammar=gbnf('root ::= "abc"'))
    process = llm._structured._process._process
    assert process.poll() is None
    llm.close()
    assert process.poll() is not None


def test_the_process_ends_with_ours(tiny):
    code = f"""
        import os, llama_cpp
        from first_cpp import Llama
        llm = Llama({tiny!r}, verbose=False)
        llm("Once", max_tokens=4, grammar=llama_cpp.LlamaGrammar.from_string('root ::= "abc"'))
        print(llm._structured._process._process.pid, flush=True)
        os._exit(0)
    """
    pid = int(survives(code).stdout)
    until = time.monotonic() + 5
    while time.monotonic() < until:
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return
        except FileNotFoundError:
            return
        time.sleep(0.05)
    raise AssertionError("it lives on")


def test_a_process_that_was_killed_is_started_again(llm):
    answer = lambda: llm(PROMPT, max_tokens=4, grammar=gbnf('root ::= "abc"'))["choices"][0]["text"]  # noqa: E731
    assert answer() == "abc"
    process = llm._structured._process._process
    process.kill()
    process.wait()
    assert answer() == "abc"


def test_a_process_that_cannot_start(tmp_path):
    process = GrammarProcess(str(tmp_path / "no-such.gguf"))
    with pytest.raises(GrammarError, match="did not start"):
        process.be_there(lambda: False)


@pytest.mark.parametrize(
    ("text", "said"), [('root ::= "' + "a" * MAX_BYTES + '"', "at most"), ('root ::= "a\0"', "holds a NUL character")]
)
def test_texts_that_are_refused(text, said):
    with pytest.raises(GrammarError, match=said):
        check_text(text)
