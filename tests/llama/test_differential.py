"""Random sequences of calls on stock llama_cpp.Llama and on ours without skipping: what comes back is the same, bit for bit.

Left out is what docs/internals/faults.md says stock does wrong: it goes beyond the end of the context, its streams drop
characters, and it takes bias and processors together for neither.
"""

from __future__ import annotations

import random
import warnings

import llama_cpp
import numpy as np
import pytest

from first_cpp import Llama

WORDS = ["Once upon a time", "Hello there", " and they lived", "w13", "é漢字 ok", "a", "The quick brown fox jumps. "]
N_CTX = 512


class Side:
    """One of the two models, with the states that it has saved."""

    def __init__(self, llm: llama_cpp.Llama) -> None:
        self.llm = llm
        self.states: list[llama_cpp.LlamaState] = []


def text(rng):
    return "".join(rng.choice(WORDS) for _ in range(rng.randint(1, 3)))


def some_tokens(rng):
    return [rng.randint(3, 319) for _ in range(rng.randint(1, 30))]


def some_of(rng, **choices):
    return {name: rng.choice(values) for name, values in choices.items() if rng.random() < 0.25}


def sampling(rng):
    found = some_of(
        rng,
        top_k=[0, -1, 1, 5],
        top_p=[0.0, 0.5, 1.0],
        min_p=[0.0, 0.3],
        typical_p=[0.5],
        mirostat_mode=[1, 2],
        mirostat_tau=[3.0],
        repeat_penalty=[1.1, 1.5],
        frequency_penalty=[0.5],
        presence_penalty=[-0.5, 0.5],
    )
    return {"temperature": rng.choice([0, 0, 0.7, 1.5, -1.0]), **found}


def completion(rng):
    found = some_of(rng, stop=["e", ["e", "th"], ["zz"], [], None, "é"], seed=[0, 1, 7], echo=[True], suffix=[" the end"])
    steered = rng.random()
    if steered < 0.2:
        found["logit_bias"] = {rng.randint(3, 319): rng.choice([5.0, -100, 2]) for _ in range(3)}
    elif steered < 0.4:
        token = rng.randint(3, 319)
        found["logits_processor"] = llama_cpp.LogitsProcessorList([lambda ids, scores: raised(scores, token)])
    if rng.random() < 0.2:
        longest = rng.randint(5, 60)
        found["stopping_criteria"] = llama_cpp.StoppingCriteriaList([lambda ids, scores: len(ids) > longest])
    return {**sampling(rng), **found, "max_tokens": rng.choice([1, 3, 8, 30])}


def in_ascii(ids, scores):
    """No token with a byte that is no character alone: stock's streams stop at those that never become one."""
    scores[3 + 128 : 3 + 256] = -1e9
    return scores


def raised(scores, token):
    scores[token] += 1.0
    return scores


def without_names(answer):
    return {"choices": answer["choices"], "usage": answer["usage"]}


def whole(chunks, key, field):
    made = [chunk["choices"][0] for chunk in chunks]
    return "".join((one[key] if field is None else one[key].get(field)) or "" for one in made), made[-1]["finish_reason"]


# -- the calls: each draws what it does, and gives a function that does it on a side -----------------------------------------


def complete(rng, logits_all):
    prompt, ask = text(rng), completion(rng)
    if rng.random() < 0.3:
        prompt = some_tokens(rng)
        ask.pop("echo", None)
    if logits_all and rng.random() < 0.4:
        ask["logprobs"] = rng.choice([0, 3])
    return lambda side: without_names(side.llm.create_completion(prompt, **ask))


def stream(rng, _):
    prompt, ask = text(rng), {**completion(rng), "logits_processor": llama_cpp.LogitsProcessorList([in_ascii])}
    ask.pop("logit_bias", None)
    return lambda side: whole(side.llm.create_completion(prompt, stream=True, **ask), "text", None)


def chat(rng, _):
    messages = [{"role": "user", "content": text(rng)} for _ in range(rng.randint(1, 2))]
    ask = {name: value for name, value in completion(rng).items() if name not in ("echo", "suffix", "stopping_criteria")}
    return lambda side: without_names(side.llm.create_chat_completion(messages, **ask))


def stream_chat(rng, _):
    messages = [{"role": "user", "content": text(rng)}]
    ask = {**sampling(rng), "max_tokens": 12, "stop": ["zz"], "logits_processor": llama_cpp.LogitsProcessorList([in_ascii])}
    return lambda side: whole(side.llm.create_chat_completion(messages, stream=True, **ask), "delta", "content")


def leave(rng, _):
    """A stream that is left early."""
    prompt, n = text(rng), rng.randint(1, 3)
    ask = {**sampling(rng), "max_tokens": 12, "logits_processor": llama_cpp.LogitsProcessorList([in_ascii])}

    def do(side):
        chunks = side.llm.create_completion(prompt, stream=True, **ask)
        found = [chunk["choices"] for chunk, _ in zip(chunks, range(n), strict=False)]
        chunks.close()
        return found

    return do


def generate(rng, _):
    prompt, n, reset = some_tokens(rng), rng.randint(1, 12), rng.random() < 0.8
    ask = sampling(rng)
    ask["temp"] = ask.pop("temperature")

    def do(side):
        answer = side.llm.generate(list(prompt), reset=reset or not side.llm.n_tokens, **ask)
        found = [next(answer) for _ in range(n)]
        answer.close()
        return found

    return do


def evaluate(rng, _):
    prompt, ask = some_tokens(rng), rng.choice([{"temp": 0.0}, {"temp": 1.0}, {"repeat_penalty": 1.3}, {}])
    return lambda side: (side.llm.eval(prompt), side.llm.sample(**ask))


def go_back(rng, _):
    share = rng.random()

    def do(side):
        side.llm.n_tokens = int(side.llm.n_tokens * share)
        side.llm._requires_eval = True  # stock would sample from the logits of what was evaluated last

    return do


def save(rng, _):
    return lambda side: side.states.append(side.llm.save_state())


def restore(rng, _):
    which = rng.random()
    return lambda side: side.llm.load_state(side.states[int(which * len(side.states))]) if side.states else None


def reset(rng, _):
    return lambda side: side.llm.reset()


def seed(rng, _):
    value = rng.randint(0, 99)
    return lambda side: side.llm.set_seed(value)


def cache(rng, _):
    on = rng.random() < 0.6
    return lambda side: side.llm.set_cache(llama_cpp.LlamaRAMCache() if on else None)


def look(rng, logits_all):
    prompt, special = text(rng).encode(), rng.random() < 0.5
    return lambda side: (
        side.llm.tokenize(prompt, special, not special),
        side.llm.detokenize([1, *range(3, 300, 7)], special=special),
        list(side.llm.eval_tokens),
        np.array(side.llm.eval_logits).tolist() if logits_all else None,
    )


CALLS = [complete] * 5 + [stream] * 2 + [chat, stream_chat] + [generate] * 3 + [evaluate] * 2 + [restore] * 2
CALLS += [leave, go_back, save, reset, seed, cache, look]


def settings(rng):
    found = some_of(rng, n_batch=[16, 64], n_ubatch=[8], last_n_tokens_size=[8], flash_attn=[True], type_k=[8])
    if found.get("flash_attn"):
        found |= some_of(rng, type_v=[8])
    return {"n_ctx": N_CTX, "seed": rng.randint(1, 9), "logits_all": rng.random() < 0.4, "chat_format": "chatml", **found}


def room_for_all(side):
    """Stock llama_cpp goes beyond the end of the context."""
    if side.llm.n_tokens > N_CTX // 2:
        side.llm.reset()


@pytest.mark.parametrize("own", [{"skip": None}, {"skip": "auto"}], ids=str)
@pytest.mark.parametrize("number", range(5))
def test_without_skipping_every_call_does_what_stock_does(tiny, load, own, number):
    rng = random.Random(number)
    given = settings(rng)
    sides = [Side(load(tiny, llama_cpp.Llama, **given)), Side(load(tiny, Llama, **given, **own))]
    for step in range(20):
        name = rng.choice(CALLS)
        do = name(rng, given["logits_all"])
        found = []
        for side in sides:
            room_for_all(side)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found.append((do(side), side.llm._seed, side.llm.input_ids[: side.llm.n_tokens].tolist()))
        assert repr(found[0]) == repr(found[1]), (number, step, name.__name__, given)
