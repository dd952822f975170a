"""What users of llama_cpp.Llama count on, with routing on, each against what it must equal."""

from __future__ import annotations

import json
import pathlib
import pickle
import subprocess
import sys
import textwrap
import types

import llama_cpp
import numpy as np
import pytest
from helpers import greedy, logits, tokens
from routers_files import routed_model

from first_cpp import Llama, MissingFileError, ModelFileError

PROMPT = "Once upon a time there was"
GREEDY = {"max_tokens": 24, "temperature": 0}
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello there"}]
SKIP = 0.34  # 2 of 6 layers


@pytest.fixture(scope="module")
def routed(tiny, models):
    return routed_model(tiny, models, seed=51)


@pytest.fixture
def llm(routed, load):
    return load(routed, skip=SKIP, chat_format="chatml")


def text_of(chunks, key="text"):
    return "".join((c["choices"][0][key] if key == "text" else c["choices"][0]["delta"].get("content") or "") for c in chunks)


def in_ascii(chunks):
    """The base's streams stop at bytes that make no character, which random weights produce, and drop others."""
    chunks = list(chunks)
    return text_of(chunks).encode("ascii", "ignore"), chunks[-1]["choices"]


# -- without routing every feature gives what the base gives ----------------------------------------------------------

FORMATS = ["llama-2", "alpaca", "vicuna", "chatml", "zephyr", "mistral-instruct", "gemma", "openchat", "saiga", "qwen"]
FEATURES = {
    "stop strings": lambda llm: llm(PROMPT, stop=["e", "xyz"], max_tokens=40, temperature=0.9, seed=3),
    "echo": lambda llm: llm(PROMPT, echo=True, **GREEDY),
    "suffix": lambda llm: llm(PROMPT, suffix=" and they lived", **GREEDY),
    "penalties": lambda llm: llm(PROMPT, repeat_penalty=1.3, frequency_penalty=0.5, presence_penalty=0.5, **GREEDY),
    "mirostat": lambda llm: llm(PROMPT, mirostat_mode=2, max_tokens=24, temperature=0.9, seed=5),
    "samplers": lambda llm: llm(PROMPT, top_k=7, top_p=0.8, min_p=0.1, typical_p=0.9, max_tokens=24, temperature=1.2, seed=5),
    "tokens as prompt": lambda llm: llm(tokens(20), **GREEDY),
    "logit bias": lambda llm: llm(PROMPT, logit_bias={70: 5.0, 80: -100}, **GREEDY),
    "min tokens": lambda llm: llm(
        PROMPT, logits_processor=llama_cpp.LogitsProcessorList([llama_cpp.MinTokensLogitsProcessor(20, 2)]), **GREEDY
    ),
    "stopping criteria": lambda llm: llm(
        PROMPT, stopping_criteria=llama_cpp.StoppingCriteriaList([lambda ids, scores: len(ids) > 40]), **GREEDY
    ),
    "grammar": lambda llm: llm(PROMPT, grammar=llama_cpp.LlamaGrammar.from_string('root ::= [a-z ]{5,9} "!"'), **GREEDY),
    "stream": lambda llm: in_ascii(llm(PROMPT, stream=True, **GREEDY)),
    "chat stream": lambda llm: [c["choices"] for c in llm.create_chat_completion(MESSAGES, stream=True, **GREEDY)],
    "openai v1": lambda llm: llm.create_chat_completion_openai_v1(MESSAGES, **GREEDY).choices[0].message.content,
    "chat": lambda llm: llm.create_chat_completion(MESSAGES, **GREEDY),
}


def told(result):
    """A result without what differs from call to call."""
    return result if not isinstance(result, dict) else {key: result[key] for key in ("choices", "usage")}


@pytest.mark.parametrize("feature", FEATURES)
def test_features_without_routing_are_the_bases(tiny, load, feature):
    if feature == "openai v1":
        pytest.importorskip("openai")
    results = [
        told(FEATURES[feature](load(tiny, cls, chat_format="chatml", **own)))
        for cls, own in ((llama_cpp.Llama, {}), (Llama, {"skip": None}))
    ]
    assert results[0] == results[1]


@pytest.mark.parametrize("chat_format", FORMATS)
def test_chat_formats(routed, load, chat_format):
    base = load(routed, llama_cpp.Llama, chat_format=chat_format, n_ctx=1024)
    dense = load(routed, skip=None, chat_format=chat_format, n_ctx=1024)
    assert told(dense.create_chat_completion(MESSAGES, **GREEDY)) == told(base.create_chat_completion(MESSAGES, **GREEDY))
    llm = load(routed, skip=SKIP, chat_format=chat_format, n_ctx=1024)
    whole = llm.create_chat_completion(MESSAGES, **GREEDY)["choices"][0]["message"]["content"]
    streamed = text_of(llm.create_chat_completion(MESSAGES, stream=True, **GREEDY), "delta")
    # the base's streams drop bytes that make no character alone, which random weights produce
    assert streamed.encode("ascii", "ignore") == whole.encode("ascii", "ignore")
    assert len(llm.routing.skipped) == 2


# -- with routing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [[], ["e"], ["th", "zz"]], ids=str)
@pytest.mark.parametrize("temperature", [0, 0.9])
def test_streaming_is_not_streaming(llm, stop, temperature):
    ask = {"max_tokens": 40, "temperature": temperature, "stop": stop, "seed": 7}
    whole = llm(PROMPT, **ask)["choices"][0]
    chunks = list(llm(PROMPT, stream=True, **ask))
    assert text_of(chunks) == whole["text"]
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["finish_reason"]


def test_completions_are_the_generated_tokens(llm):
    prompt = llm.tokenize(PROMPT.encode())
    assert llm(PROMPT, **GREEDY)["choices"][0]["text"] == llm.detokenize(greedy(llm, prompt, 24)).decode(errors="ignore")


def test_stop_strings_end_the_text(llm):
    whole = llm(PROMPT, max_tokens=60, temperature=0)["choices"][0]["text"]
    stop = whole[10:12]
    stopped = llm(PROMPT, max_tokens=60, temperature=0, stop=[stop])["choices"][0]
    assert stopped["text"] == whole[: whole.index(stop)]
    assert stopped["finish_reason"] == "stop"


def test_seeds(llm):
    ask = {"max_tokens": 24, "temperature": 1.0}
    assert llm(PROMPT, seed=1, **ask)["choices"] == llm(PROMPT, seed=1, **ask)["choices"]
    assert llm(PROMPT, seed=1, **ask)["choices"] != llm(PROMPT, seed=2, **ask)["choices"]


def test_logits_processors_and_bias_and_criteria_see_and_steer_every_token(llm):
    seen = []

    def only_a(ids, scores):
        seen.append((len(ids), scores.shape))
        scores[:] = -1e9
        scores[ord("a") + 3] = 1
        return scores

    processed = llm(PROMPT, logits_processor=llama_cpp.LogitsProcessorList([only_a]), max_tokens=9, temperature=0)
    assert processed["choices"][0]["text"] == "a" * 9
    assert [shape for _, shape in seen] == [(320,)] * len(seen)
    assert llm(PROMPT, logit_bias={ord("b") + 3: 1e4}, max_tokens=9, temperature=0)["choices"][0]["text"] == "b" * 9
    prompt = tokens(20)
    criteria = llama_cpp.StoppingCriteriaList([lambda ids, scores: len(ids) >= 25])
    assert len(list(llm.generate(prompt, temp=0.0, stopping_criteria=criteria))) == 5


def test_logits_all_and_logprobs(routed, load):
    llm = load(routed, skip=SKIP, logits_all=True)
    found = llm(PROMPT, logprobs=3, **GREEDY)
    log = found["choices"][0]["logprobs"]
    n = found["usage"]["completion_tokens"]
    assert len(log["tokens"]) == len(log["token_logprobs"]) == len(log["top_logprobs"]) == len(log["text_offset"]) == n
    assert all(token in top for token, top in zip(log["tokens"], log["top_logprobs"], strict=True))
    left_out = llm.routing.skipped
    prompt = llm.tokenize(PROMPT.encode())
    answer = greedy(llm, prompt, n)
    assert llm.scores.shape == (512, 320)
    # the same logits, evaluated by hand: the prompt with all layers, the answer without
    by_hand = load(routed, skip=None, logits_all=True)
    by_hand.eval(prompt)
    for i, token in enumerate(answer):
        row = logits(by_hand)[0].astype(np.float64)
        expected = row[token] - row.max() - np.log(np.exp(row - row.max()).sum())
        assert log["token_logprobs"][i] == pytest.approx(expected, abs=1e-4)
        with by_hand.skipping(left_out):
            by_hand.eval([token])


@pytest.mark.parametrize("content", [b"no GGUF at all" * 9, None], ids=["text", "a model"])
def test_a_lora_that_is_none(routed, load, tmp_path, content):
    path = tmp_path / "lora.gguf"
    path.write_bytes(pathlib.Path(routed).read_bytes() if content is None else content)
    with pytest.raises(ModelFileError, match=r"lora\.gguf"):
        load(routed, lora_path=str(path))


SCHEMA = {
    "type": "object",
    "properties": {"answer": {"enum": ["yes", "no"]}, "count": {"enum": [1, 2, 30]}, "sure": {"type": "boolean"}},
    "required": ["answer", "count", "sure"],
}


@pytest.mark.parametrize("seed", range(4))
def test_json_schemas_hold(llm, seed):
    found = llm.create_chat_completion(
        MESSAGES, response_format={"type": "json_object", "schema": SCHEMA}, temperature=1.5, seed=seed, max_tokens=300
    )
    value = json.loads(found["choices"][0]["message"]["content"])
    assert value["answer"] in ("yes", "no")
    assert value["count"] in (1, 2, 30)
    assert value["sure"] in (True, False)
    assert len(llm.routing.skipped) == 2


@pytest.mark.parametrize("seed", range(3))
def test_tools_are_called_with_valid_arguments(routed, load, seed):
    llm = load(routed, skip=SKIP, chat_format="chatml-function-calling", n_ctx=2048)
    tools = [{"type": "function", "function": {"name": "count", "description": "Counts.", "parameters": SCHEMA}}]
    found = llm.create_chat_completion(
        MESSAGES,
        tools=tools,
        tool_choice={"type": "function", "function": {"name": "count"}},
        temperature=1.5,
        seed=seed,
        max_tokens=300,
    )
    (call,) = found["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "count"
    assert set(json.loads(call["function"]["arguments"])) == {"answer", "count", "sure"}


@pytest.mark.parametrize("seed", range(4))
def test_grammars_hold(llm, seed):
    import re

    grammar = llama_cpp.LlamaGrammar.from_string('root ::= [a-z]{3,8} " " [0-9]{2} "."')
    found = llm(PROMPT, grammar=grammar, temperature=1.5, seed=seed, max_tokens=60)["choices"][0]
    assert re.fullmatch(r"[a-z]{3,8} [0-9]{2}\.", found["text"])


def test_a_lora_that_is_not_there(routed, load):
    with pytest.raises(MissingFileError, match=r"no-such\.gguf"):
        load(routed, lora_path="no-such.gguf")


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_caches_keep_a_conversation(routed, load, tmp_path, cache):
    """Turns with a cache in between, and other prompts between the turns, are the turns of a model of its own."""
    caches = {"ram": llama_cpp.LlamaRAMCache, "disk": lambda: llama_cpp.LlamaDiskCache(str(tmp_path / "cache"))}
    cached, plain = load(routed, skip=SKIP), load(routed, skip=SKIP)
    cached.set_cache(caches[cache]())
    for llm in (cached, plain):
        llm.said = []
    text = PROMPT
    for turn in range(3):
        answers = [llm(text, **GREEDY)["choices"][0]["text"] for llm in (cached, plain)]
        assert answers[0] == answers[1]
        cached(f"another prompt {turn}", **GREEDY)  # the cache brings the conversation back
        text += answers[0] + " And then?"


def test_interrupted_is_not_interrupted(routed, load):
    whole, parts = load(routed, skip=SKIP), load(routed, skip=SKIP)
    first = whole(PROMPT, **GREEDY)["choices"][0]["text"]
    assert parts(PROMPT, **GREEDY)["choices"][0]["text"] == first
    state = parts.save_state()
    parts("something else", **GREEDY)
    parts.load_state(state)
    copied = pickle.loads(pickle.dumps(parts))
    try:
        follow = PROMPT + first + " And then?"
        expected = whole(follow, **GREEDY)["choices"]
        assert parts(follow, **GREEDY)["choices"] == expected
        assert copied(follow, **GREEDY)["choices"] == load(routed, skip=SKIP)(follow, **GREEDY)["choices"]
    finally:
        copied.close()


def test_infill_is_routed(llm):
    plain = llm(PROMPT, suffix=" the end", **GREEDY)
    assert len(llm.routing.skipped) == 2
    assert plain["usage"]["prompt_tokens"] > llm(PROMPT, **GREEDY)["usage"]["prompt_tokens"]


def test_a_chat_handler_of_ones_own(routed, load):
    def handler(*, llama, messages, **kwargs):
        return llama.create_completion(messages[-1]["content"], max_tokens=8, temperature=0)

    llm = load(routed, skip=SKIP, chat_handler=handler)
    assert llm.create_chat_completion(MESSAGES)["choices"] == llm("Hello there", max_tokens=8, temperature=0)["choices"]
    assert len(llm.routing.skipped) == 2


def test_from_pretrained(routed, monkeypatch):
    hub = types.ModuleType("huggingface_hub")
    hub.HfFileSystem = lambda: types.SimpleNamespace(ls=lambda repo, recursive=False: [{"name": f"{repo}/model-q4.gguf"}])
    hub.hf_hub_download = lambda **kwargs: routed
    utils = types.ModuleType("huggingface_hub.utils")
    utils.validate_repo_id = lambda repo: None
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.setitem(sys.modules, "huggingface_hub.utils", utils)
    llm = Llama.from_pretrained("someone/model", "*q4.gguf", skip=SKIP, verbose=False)
    try:
        assert isinstance(llm, Llama)
        llm("Once", max_tokens=1)
        assert len(llm.routing.skipped) == 2
    finally:
        llm.close()


def test_several_models_in_one_process(routed, tiny_q8, load):
    one, two, stock = load(routed, skip=SKIP), load(tiny_q8, skip=[0, 3]), load(tiny_q8, llama_cpp.Llama)
    expected = [greedy(load(routed, skip=SKIP), tokens(20), 12), greedy(load(tiny_q8, skip=[0, 3]), tokens(20), 12)]
    base = greedy(load(tiny_q8, llama_cpp.Llama), tokens(20), 12)
    answers = [llm.generate(tokens(20), temp=0.0) for llm in (one, two, stock)]
    found = [[next(answer) for answer in answers] for _ in range(12)]  # token by token in turns
    assert [list(column) for column in zip(*found, strict=True)] == [*expected, base]


BAD_GRAMMARS = {
    "unfinished": "root ::= (",
    "nested deep": "root ::= " + "(" * 60_000,
    "no such rule": "root ::= other",
    "no root": "nothing ::= [a-z]",
    "left recursive": "root ::= root [a]",
    "empty range": "root ::= [z-a]",
    "quote in a class": 'root ::= ["] [z-a] ["]',
    "hash in a class": "root ::= [#] [z-a]",
    "nested behind a quote": 'root ::= ["] ' + "(" * 30_000 + '"a"' + ")" * 30_000 + ' ["]',
    "repetition backwards": 'root ::= "a"{5,2}',
    "end token": 'root ::= <[2]> "a"',
    "no character": 'root ::= "\\UFFFFFFFF"',
    "NUL": 'root ::= "a\\x00b"',
}


@pytest.mark.parametrize(
    "schema",
    [
        '{"type": "string", "maxLength": 150}',
        '{"type": "string", "maxLength": 1000}',
        '{"type": "array", "items": {"type": "integer"}, "maxItems": 120}',
    ],
)
def test_long_schemas_are_no_deep_nesting(llm, schema):
    grammar = llama_cpp.LlamaGrammar.from_json_schema(schema)
    assert llm(PROMPT, grammar=grammar, max_tokens=5)["usage"]["completion_tokens"] > 0


def test_brackets_in_a_text_are_no_class(llm):
    grammar = llama_cpp.LlamaGrammar.from_string('root ::= ["] "[z-a]" ["]')
    assert llm(PROMPT, grammar=grammar, max_tokens=12)["choices"][0]["text"] == '"[z-a]"'


def test_grammars_that_would_end_the_process(tiny):
    """All in one process of their own, which says whose turn it is."""
    code = f"""
        import llama_cpp
        from first_cpp import Llama
        llm = Llama({tiny!r}, verbose=False)
        expected = llm("Once", max_tokens=4, temperature=0)["choices"]
        for name, grammar in {BAD_GRAMMARS!r}.items():
            print(name, flush=True)
            try:
                llm("Once", max_tokens=4, grammar=llama_cpp.LlamaGrammar(_grammar=grammar))
            except ValueError as error:
                assert "grammar" in str(error), error
            else:
                raise SystemExit("no error")
            assert llm("Once", max_tokens=4, temperature=0)["choices"] == expected
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-100:] + done.stderr
    assert done.stdout.splitlines() == list(BAD_GRAMMARS)


def test_an_answer_ends_at_the_stop_that_comes_first(load, tiny):
    """Also where one token has several of them, whatever their order."""
    llm = load(tiny)
    ask = {"max_tokens": 9, "temperature": 0, "logit_bias": {llm.tokenize(b"w13", add_bos=False)[-1]: 100.0}}
    assert llm([1, 50, 60], **ask)["choices"][0]["text"].startswith("w13w13")
    for stops in (["3", "w1"], ["w1", "3"]):
        whole = llm([1, 50, 60], stop=stops, **ask)["choices"][0]
        streamed = "".join(chunk["choices"][0]["text"] for chunk in llm([1, 50, 60], stop=stops, stream=True, **ask))
        assert (whole["text"], streamed, whole["finish_reason"]) == ("", "", "stop")


@pytest.mark.parametrize("text", ["a😀b漢字é.", "漢字漢字", "é", "👩\u200d👧 ok"])
@pytest.mark.parametrize("stop", [None, "字", "b漢", ["é.", "字漢"], "ok!"], ids=str)
@pytest.mark.parametrize("logprobs", [None, 1])
def test_a_stream_loses_no_character(load, tiny, text, stop, logprobs):
    """Every character that is not ASCII lies in several tokens of this model."""
    llm = load(tiny, logits_all=True)
    ends = [text.index(one) for one in ([stop] if isinstance(stop, str) else stop or ()) if one in text]

    def ask(**more):
        grammar = llama_cpp.LlamaGrammar.from_string(f"root ::= {json.dumps(text, ensure_ascii=False)}")
        return llm([1, 50], max_tokens=60, temperature=0, stop=stop, logprobs=logprobs, grammar=grammar, **more)

    chunks = [chunk["choices"][0] for chunk in ask(stream=True)]
    assert "".join(chunk["text"] for chunk in chunks) == text[: min(ends, default=None)]
    assert "".join(chunk["text"] for chunk in chunks) == ask()["choices"][0]["text"]
    if logprobs and not ends:  # as it comes
        assert sum(bool(chunk["text"]) for chunk in chunks) == len(text)


def test_a_chat_with_logprobs_loses_no_character(load, tiny):
    llm = load(tiny, logits_all=True)
    grammar = llama_cpp.LlamaGrammar.from_string('root ::= "é漢"')
    ask = {"max_tokens": 20, "temperature": 0, "logprobs": True, "top_logprobs": 1, "grammar": grammar}
    chunks = llm.create_chat_completion([{"role": "user", "content": "Hi"}], stream=True, **ask)
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == "é漢"
