"""`first-cpp serve` as OpenAI clients see it, on a tiny routed model."""

from __future__ import annotations

import threading

import httpx
import openai
import pytest
from server import NO_END, chat, error_of

USER = [{"role": "user", "content": "Hello"}]
N_CTX = 2048


@pytest.fixture
def alone(serve_model, load):
    """The same model in this process."""
    return load(serve_model, chat_format="chatml", n_ctx=N_CTX, logits_all=True)


@pytest.fixture
def long_answer(server):
    """Begins an answer that does not end by itself; ends it when the test does."""
    ask = chat(max_tokens=None, stream=True, logit_bias=NO_END)
    with httpx.stream("POST", server.url + "/v1/chat/completions", json=ask, timeout=60) as stream:
        lines = stream.iter_lines()
        next(lines)
        yield lines
    server.wait_for(answering=False)


def ascii_of(text: str) -> str:
    """Random bytes are cut into UTF-8 otherwise by llama_cpp when they come one by one."""
    return text.encode("ascii", "ignore").decode()


# -- what is answered ----------------------------------------------------------------------------------------------------


def test_chat_is_what_the_model_answers_alone(server, alone):
    answer = server.client().chat.completions.create(model="tiny", messages=USER, max_tokens=20, temperature=0)
    expected = alone.create_chat_completion(USER, max_tokens=20, temperature=0, repeat_penalty=1.1)
    assert answer.choices[0].message.content == expected["choices"][0]["message"]["content"]
    assert answer.usage.model_dump(include={"prompt_tokens", "completion_tokens"}) == {
        name: expected["usage"][name] for name in ("prompt_tokens", "completion_tokens")
    }
    told = answer.model_extra["first_cpp"]
    assert tuple(told["skipped_layers"]) == alone.routing.skipped
    assert told["keep"] == pytest.approx(alone.routing.keep, abs=1e-4)
    assert told["n_layer"] == 6
    assert told["ttft_ms"] > 0
    assert told["tpot_ms"] > 0


def test_completion_by_a_grammar(server):
    ask = {"model": "tiny", "prompt": "Once upon", "max_tokens": 8, "temperature": 0}
    found = server.http.post("/v1/completions", json={**ask, "grammar": 'root ::= "abc"'})
    assert found.json()["choices"][0]["text"] == "abc"
    refused = server.http.post("/v1/completions", json={**ask, "grammar": "root ::= root"})
    assert refused.status_code == 400
    assert "grammar" in error_of(refused)["message"]


def test_completion_with_stop_and_seed(server):
    ask = {"model": "tiny", "prompt": "Once upon", "max_tokens": 30, "temperature": 0.9, "seed": 7}
    client = server.client()
    first, second = (client.completions.create(**ask).choices[0].text for _ in range(2))
    assert first == second
    stop = first[4:6]
    assert client.completions.create(**ask, stop=stop).choices[0].text == first[: first.index(stop)]


@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_stream_is_the_answer_in_parts(server, kind):
    client = server.client()
    if kind == "chat":
        create, ask = client.chat.completions.create, {"messages": USER}
    else:
        create, ask = client.completions.create, {"prompt": "Hello"}
    ask |= {"model": "tiny", "max_tokens": 20, "temperature": 0}
    whole, chunks = create(**ask), list(create(**ask, stream=True))
    texts = [chunk.choices[0].delta.content if kind == "chat" else chunk.choices[0].text for chunk in chunks]
    expected = whole.choices[0].message.content if kind == "chat" else whole.choices[0].text
    assert ascii_of("".join(text or "" for text in texts)) == ascii_of(expected)
    told = [chunk.model_extra.get("first_cpp") for chunk in chunks]
    assert told[:-1] == [None] * (len(chunks) - 1)
    assert told[-1]["skipped_layers"] == whole.model_extra["first_cpp"]["skipped_layers"]
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_logprobs(server, alone):
    answer = server.client().chat.completions.create(
        model="tiny", messages=USER, max_tokens=5, temperature=0, logprobs=True, top_logprobs=3
    )
    expected = alone.create_chat_completion(
        USER, max_tokens=5, temperature=0, repeat_penalty=1.1, logprobs=True, top_logprobs=3
    )["choices"][0]["logprobs"]["content"]
    found = answer.choices[0].logprobs.content
    assert [token.token for token in found] == [token["token"] for token in expected]
    assert [token.logprob for token in found] == pytest.approx([token["logprob"] for token in expected], abs=1e-3)
    assert all(1 <= len(token.top_logprobs) <= 4 for token in found)
    plain = server.client().completions.create(model="tiny", prompt="Hello", max_tokens=3, temperature=0, logprobs=2)
    assert len(plain.choices[0].logprobs.token_logprobs) == 3
    bare = server.client().chat.completions.create(
        model="tiny", messages=USER, max_tokens=3, temperature=0, logprobs=True, logit_bias=NO_END
    )
    assert len(bare.choices[0].logprobs.content) == 3


@pytest.mark.parametrize(
    ("skip", "count"), [(0.5, 3), (0, 0), (None, 0), ("auto", 2), ([5, 2], 2), ([], 0), (0.1, 1)], ids=repr
)
def test_skip_of_a_request(server, skip, count):
    answer = server.client().chat.completions.create(model="tiny", messages=USER, max_tokens=3, extra_body={"skip": skip})
    told = answer.model_extra["first_cpp"]["skipped_layers"]
    assert len(told) == count
    if isinstance(skip, list):
        assert told == sorted(skip)
    default = server.client().chat.completions.create(model="tiny", messages=USER, max_tokens=3)
    assert len(default.model_extra["first_cpp"]["skipped_layers"]) == 2  # the request before changes nothing


@pytest.mark.parametrize("skip", ["0.3", True, 1, -0.1, 1.5, [9], [1, 1], {}, [0.5], list(range(6)), "all"], ids=repr)
def test_bad_skip_is_refused(server, skip):
    with pytest.raises(openai.BadRequestError, match="skip") as refused:
        server.client().chat.completions.create(model="tiny", messages=USER, extra_body={"skip": skip})
    assert (refused.value.code, refused.value.param) == ("invalid_skip", "skip")


@pytest.mark.parametrize("skip", [0.5, [0, 1, 2], 0.41])
def test_skip_above_the_maximum_is_refused(strict, skip):
    with pytest.raises(openai.BadRequestError, match=r"above the maximum of this server, 0\.4"):
        strict.client().chat.completions.create(model="routed-31", messages=USER, extra_body={"skip": skip})


def test_models_health_and_tokenize(server):
    assert [model.id for model in server.client().models.list()] == ["tiny"]
    health = server.health()
    assert (health["status"], health["model"], health["n_layer"], health["queue"]) == ("ok", "tiny", 6, 0)
    assert server.http.post("/extras/tokenize/count", json={"input": "abc", "model": "tiny"}).json()["count"] > 3
    assert server.greeting.startswith(f"{server.url} serves tiny (6 layers, skip auto)")


def test_newer_fields_of_openai_clients(server):
    client = server.client()
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    messages = [{"role": "developer", "content": "Be brief"}, {"role": "user", "content": parts}]
    plain = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hello"}]
    answers = [
        client.chat.completions.create(model="tiny", messages=m, temperature=0, **n).choices[0].message.content
        for m, n in ((messages, {"max_completion_tokens": 6}), (plain, {"max_tokens": 6}))
    ]
    assert answers[0] == answers[1]
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
    with pytest.raises(openai.BadRequestError, match="text only"):
        client.chat.completions.create(model="tiny", messages=image)


def test_embeddings(embedding_server, serve_model, load):
    expected = load(serve_model, embedding=True, pooling_type=1, n_ctx=512).embed(["one text", "another"])
    http, create = embedding_server.http, embedding_server.client().embeddings.create
    found = create(model="tiny", input=["one text", "another"])
    assert [item.embedding for item in found.data] == [pytest.approx(row, abs=1e-5) for row in expected]
    answers = [http.post("/v1/chat/completions", json=chat()).json() for _ in range(2)]
    texts = [answer["choices"][0]["message"]["content"] for answer in answers]
    create(model="tiny", input="between")
    texts.append(http.post("/v1/chat/completions", json=chat()).json()["choices"][0]["message"]["content"])
    assert len(set(texts)) == 1
    assert len(answers[0]["first_cpp"]["skipped_layers"]) == 2
    too_long = http.post("/v1/embeddings", json={"input": "x" * 3000})
    assert (too_long.status_code, too_long.json()["error"]["code"]) == (400, "context_length_exceeded")


# -- the queue -----------------------------------------------------------------------------------------------------------


def test_full_line_is_a_503_with_retry_after(server, long_answer):
    waiting = [threading.Thread(target=lambda: server.http.post("/v1/chat/completions", json=chat())) for _ in range(2)]
    for thread in waiting:
        thread.start()
    server.wait_for(queue=2)
    refused = server.http.post("/v1/chat/completions", json=chat())
    assert (refused.status_code, error_of(refused)["code"]) == (503, "queue_full")
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert next(long_answer) is not None  # nobody was killed for it
    assert server.metric("first_cpp_queue_length") == 2
    long_answer.close()
    for thread in waiting:
        thread.join()


def test_line_of_no_places(strict):
    """--queue 0: who comes while an answer is made is refused."""
    ask = {"prompt": "x", "stream": True, "max_tokens": 100000, "logit_bias": NO_END}
    with strict.http.stream("POST", "/v1/completions", json=ask) as stream:
        lines = stream.iter_lines()
        next(lines)
        assert strict.http.post("/v1/completions", json=ask).status_code == 503
    strict.wait_for(answering=False)


def test_first_come_first_served(server, long_answer):
    order = []

    def ask(name):
        server.http.post("/v1/chat/completions", json=chat())
        order.append(name)

    threads = []
    for place, name in enumerate(("first", "second"), start=1):
        threads.append(threading.Thread(target=ask, args=(name,)))
        threads[-1].start()
        server.wait_for(queue=place)
    long_answer.close()
    for thread in threads:
        thread.join()
    assert order == ["first", "second"]


@pytest.mark.timed
def test_who_goes_away_leaves_the_line(server, long_answer):
    def give_up():
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(server.url + "/v1/chat/completions", json=chat(), timeout=0.5)

    ask = threading.Thread(target=give_up)
    ask.start()
    server.wait_for(queue=1)
    ask.join()
    server.wait_for(queue=0, timeout=1)
    assert server.health()["answering"]


def test_client_that_goes_away_stops_its_stream(server, alone):
    before = server.metric("first_cpp_tokens_total"), server.metric("first_cpp_answers_cancelled_total")
    body = chat("Count", stream=True, max_tokens=None, logit_bias=NO_END)
    with httpx.stream("POST", server.url + "/v1/chat/completions", json=body) as stream:
        lines = stream.iter_lines()
        for _ in range(9):
            next(lines)
    assert server.wait_for(answering=False) < 1
    assert server.metric("first_cpp_tokens_total") - before[0] < 100  # of 2000
    assert server.metric("first_cpp_answers_cancelled_total") - before[1] == 1
    answer = server.http.post("/v1/chat/completions", json=chat("And now")).json()
    expected = alone.create_chat_completion(**chat("And now"), repeat_penalty=1.1)
    assert answer["choices"][0]["message"] == expected["choices"][0]["message"]


def test_client_that_goes_away_stops_a_plain_answer(server):
    before = server.metric("first_cpp_answers_cancelled_total")
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            server.url + "/v1/completions", json={"prompt": "x", "max_tokens": 100000, "logit_bias": NO_END}, timeout=0.3
        )
    assert server.wait_for(answering=False) < 1
    assert server.metric("first_cpp_answers_cancelled_total") - before == 1
    assert server.metric("first_cpp_requests_total", route="/v1/completions", status="499") >= 1


def test_metrics(server):
    ask = {"prompt": "Hello there", "max_tokens": 9, "temperature": 0, "logit_bias": NO_END}
    names = ("prompt_tokens_total", "tokens_total", "ttft_seconds_count", "tpot_seconds_count", "layers_skipped_sum")
    before = [server.metric(f"first_cpp_{name}") for name in names]
    requests = server.metric("first_cpp_requests_total", route="/v1/completions", status="200")
    usage = server.http.post("/v1/completions", json=ask).json()["usage"]
    after = [server.metric(f"first_cpp_{name}") for name in names]
    assert [b - a for a, b in zip(before, after, strict=True)] == [usage["prompt_tokens"], 9, 1, 1, 2]
    assert server.metric("first_cpp_requests_total", route="/v1/completions", status="200") == requests + 1
    server.http.get("/a/path/of/its/own")
    assert "/a/path/of/its/own" not in server.http.get("/metrics").text
    assert server.metric("first_cpp_layers") == 6
