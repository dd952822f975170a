"""Attacks on the library: what callers pass to a model, and what befalls their process. Each says what came of it."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import jsonschema
import llama_cpp
import numpy as np
from json_schemas import EXACT, REFUSED, Closing, answer
from test_grammars import CORPUS, DEAD_ENDS, ENDLESS

Attack = Callable[[Any, str], str]
"""Takes the class and a model's path. Returns "held", or what is wrong, which an exception is too."""

SETTINGS = {"verbose": False, "n_ctx": 512, "n_threads": 1, "n_threads_batch": 1, "chat_format": "chatml"}
USER = [{"role": "user", "content": "Hello"}]


def refused(llm: Any, call: Callable[[], Any], said: str = "") -> str:
    """Whether a call raises, saying `said`, and the model goes on."""
    try:
        found = call()
    except Exception as error:
        if said.lower() not in str(error).lower():
            return f"wrong: an error that does not name {said!r}: {str(error)[:80]}"
        llm.create_completion("Once", max_tokens=1)
        return "held"
    return f"wrong: answered {str(found)[:80]!r}"


# -- structured output ------------------------------------------------------------------------------------------------


def _grammar(text: str) -> Attack:
    def attack(cls: Any, model: str) -> str:
        cls(model, **SETTINGS)("Once", grammar=llama_cpp.LlamaGrammar.from_string(text), seed=5, max_tokens=40)
        return "held"

    return attack


def _dead_end(text: str) -> Attack:
    def attack(cls: Any, model: str) -> str:
        llm = cls(model, **SETTINGS)
        try:
            llm("Once", grammar=llama_cpp.LlamaGrammar.from_string(text), seed=5, max_tokens=9)
        except (ValueError, RuntimeError):
            llm("Once", max_tokens=1)
        return "held"

    return attack


def _schema(schema: dict[str, Any]) -> Attack:
    """Four answers of a random model; those that end by themselves must be what the schema says."""

    def attack(cls: Any, model: str) -> str:
        llm = cls(model, **{**SETTINGS, "n_ctx": 1024})
        ended = 0
        for seed in range(4):
            found = answer(llm, schema, seed) if cls is not llama_cpp.Llama else _stock_answer(llm, schema, seed)
            if found["finish_reason"] == "stop":
                ended += 1
                jsonschema.Draft202012Validator(schema).validate(json.loads(found["message"]["content"]))
        return "held" if ended else "wrong: no answer ended"

    return attack


def _stock_answer(llm: Any, schema: dict[str, Any], seed: int) -> dict[str, Any]:
    """As `answer` of the tests, in llama_cpp's words."""
    return llm.create_chat_completion(
        USER,
        response_format={"type": "json_object", "schema": schema},
        seed=seed,
        temperature=1.0,
        max_tokens=400,
        logits_processor=llama_cpp.LogitsProcessorList([Closing(llm)]),
    )["choices"][0]


def _refused_schema(schema: Any, said: str) -> Attack:
    def attack(cls: Any, model: str) -> str:
        llm = cls(model, **SETTINGS)
        text = schema if isinstance(schema, str) else json.dumps(schema) if not _no_json(schema) else str(schema)
        form = {"type": "json_object", "schema": schema if not isinstance(schema, str) else text}
        return refused(llm, lambda: llm.create_chat_completion(USER, response_format=form, max_tokens=9), said)

    return attack


def _no_json(schema: Any) -> bool:
    try:
        json.dumps(schema)
    except TypeError:
        return True
    return False


def _large_count(cls: Any, model: str) -> str:
    grammar = llama_cpp.LlamaGrammar.from_json_schema('{"type": "string", "maxLength": 100000000}')
    cls(model, **SETTINGS)("Once", grammar=grammar, max_tokens=5)
    return "held"


def _raising_processor(cls: Any, model: str) -> str:
    def fails(tokens: Any, scores: Any) -> Any:
        raise KeyError("mine")

    llm = cls(model, **SETTINGS)
    processors = llama_cpp.LogitsProcessorList([fails])
    return refused(llm, lambda: llm("Once", max_tokens=2, logits_processor=processors), "mine")


def _no_logits(grammar: str | None) -> Attack:
    def attack(cls: Any, model: str) -> str:
        def nothing(tokens: Any, scores: Any) -> Any:
            scores[:] = np.nan
            return scores

        llm = cls(model, **SETTINGS)
        more = {} if grammar is None else {"grammar": llama_cpp.LlamaGrammar.from_string(grammar)}
        processors = llama_cpp.LogitsProcessorList([nothing])
        return refused(llm, lambda: llm("Once", max_tokens=2, logits_processor=processors, **more))

    return attack


STRUCTURED = {f"grammar: {name}": _grammar(text) for name, text in CORPUS.items()}
STRUCTURED |= {f"dead end: {name}": _dead_end(text) for name, text in DEAD_ENDS.items()}
STRUCTURED |= {"without end": _dead_end(ENDLESS), "a count of 10^8": _large_count}
STRUCTURED |= {f"schema: {name}": _schema(schema) for name, schema in EXACT.items()}
STRUCTURED |= {f"refused schema: {said}": _refused_schema(schema, "") for schema, said in REFUSED}
STRUCTURED |= {f"no logits, grammar {one}": _no_logits(one) for one in (None, "root ::= [a-z]+")}


# -- odd places -------------------------------------------------------------------------------------------------------


def _interrupted_while_loading(cls: Any, model: str) -> str:
    """SIGINT while models are loaded one after another."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGINT)).start()
        for _ in range(200):
            cls(model, **SETTINGS).close()
    except KeyboardInterrupt:
        return "held"
    return "wrong: the signal was lost"


def _exit_amid(work: str) -> Attack:
    def attack(cls: Any, model: str) -> str:
        code = (
            f"import sys, threading, time, llama_cpp; from {cls.__module__.split('.')[0]} import Llama\n"
            f"llm = Llama({model!r}, n_ctx=2048, n_batch=2048, n_ubatch=2048, n_threads=1, verbose=False)\n"
            f"threading.Thread(target=lambda: {work}, daemon=True).start(); time.sleep(0.1)\n"
        )
        status = os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code])
        return (
            "held" if status == 0 else f"died: {signal.Signals(-status).name}" if status < 0 else f"wrong: exit code {status}"
        )

    return attack


def _state(change: Callable[[Any], None]) -> Attack:
    """A state that cannot be restored: an error, and then the answer of a fresh model."""

    def attack(cls: Any, model: str) -> str:
        llm, fresh = cls(model, **SETTINGS), cls(model, **SETTINGS)
        prompt = list(range(5, 60))
        llm.eval(prompt)
        state = llm.save_state()
        change(state)
        try:
            llm.load_state(state)
            return "wrong: it was taken"
        except (RuntimeError, ValueError):
            pass
        told = dict(max_tokens=6, temperature=0)
        longer = [*prompt, 5]
        same = llm(longer, **told)["choices"][0]["text"] == fresh(longer, **told)["choices"][0]["text"]
        return "held" if same else "wrong: it answers otherwise than a fresh model"

    return attack


def _cut(state: Any) -> None:
    state.llama_state, state.llama_state_size = state.llama_state[:-1000], state.llama_state_size - 1000


def _zeros(state: Any) -> None:
    state.llama_state = bytes(len(state.llama_state))


def _short(state: Any) -> None:
    state.llama_state = state.llama_state[:100]


def _second_thread(cls: Any, model: str) -> str:
    llm = cls(model, **{**SETTINGS, "n_ctx": 2048})
    failed: list[BaseException] = []

    def ask() -> None:
        try:
            llm([5] * 1500, max_tokens=8)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    llm("Once", max_tokens=1)
    return "held" if failed else "wrong: four threads at once, and no error"


def _use_after_close(cls: Any, model: str) -> str:
    llm = cls(model, **SETTINGS)
    llm.eval([5])
    llm.close()
    for use in (llm.sample, lambda: llm.eval([5]), lambda: llm("Once")):
        try:
            use()
        except Exception:
            continue
        return "wrong: no error"
    return "held"


ODD: dict[str, Attack] = {"Ctrl-C while loading": _interrupted_while_loading}
ODD |= {
    f"the interpreter ends amid {work}": _exit_amid(work)
    for work in ("llm.eval([5] * 2000)", "llm([5] * 1000, max_tokens=900)", "list(llm.generate([5] * 2000))")
}
ODD |= {f"a state that is {change.__name__[1:]}": _state(change) for change in (_cut, _zeros, _short)}
ODD |= {
    "an exception in a logits processor": _raising_processor,
    "four threads": _second_thread,
    "use after close": _use_after_close,
}


# -- wrong types ------------------------------------------------------------------------------------------------------

MESSAGES: tuple[Any, ...] = (
    "Hello", None, 5, {"role": "user", "content": "x"}, [5], ["x"], [None], [{"content": "x"}], [{"role": 5, "content": "x"}],
    [{"role": "user", "content": 5}],
)  # fmt: skip


def _messages(given: Any) -> Attack:
    def attack(cls: Any, model: str) -> str:
        llm = cls(model, **SETTINGS)
        return refused(llm, lambda: llm.create_chat_completion(given, max_tokens=2), "message")

    return attack


CLAIMS = {f"messages={given!r}": _messages(given) for given in MESSAGES}
LIBRARY = {"structured output": STRUCTURED, "odd places": ODD, "claims: wrong types": CLAIMS}
