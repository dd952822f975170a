"""Several models in one server, one loaded at a time: requests pick, wait for a swap, and get what that model alone says."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable

import httpx
import llama_cpp
import psutil
import pytest
from in_process import command
from routers_files import routed_model
from server import NO_END, Server, chat, error_of, serving

from first_cpp import Llama
from first_cpp.gguf.synthetic import SHAPES, write_random

OPTIONS = ("--chat-format", "chatml", "-c", 2048)
TEXTS = {"a": "Hello", "b": "Good evening"}


@pytest.fixture(scope="module")
def files(tiny, tiny_q8, models):
    """Two models of unlike answers: a has routers, b has other weights and none."""
    other = models / "other.gguf"
    write_random(other, SHAPES["tiny"], seed=5)
    return {"a": routed_model(tiny, models, seed=401), "b": str(other)}


@pytest.fixture(scope="module")
def server(files):
    with serving(files["a"], "-m", files["b"], "--alias", "a", "--alias", "b", *OPTIONS) as started:
        yield started


@pytest.fixture(scope="module")
def alone(files):
    """What each model says to its text when it is the only one of a server."""
    said = {}
    for name, file in files.items():
        with serving(file, *OPTIONS) as server:
            said[name] = text_of(ask(server.url, None, TEXTS[name]))
    assert said["a"] != said["b"]
    return said


def ask(url: str, model: str | None, text: str, **more: object) -> httpx.Response:
    body = chat(text, **more) | ({} if model is None else {"model": model})
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)


def text_of(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


def test_the_models_are_listed_and_picked(server, alone):
    assert [model.id for model in server.client().models.list().data] == ["a", "b"]
    assert server.client().models.retrieve("b").id == "b"
    for name in ("a", "b", "a", "b", "b"):
        answer = ask(server.url, name, TEXTS[name])
        assert text_of(answer) == alone[name]
        assert answer.json()["model"] == name
        assert server.health()["loaded"] == name
    assert text_of(ask(server.url, None, TEXTS["a"])) == alone["a"]  # no name: the first


def test_an_unknown_name_is_a_404_that_names_those_there_are(server):
    refused = server.http.post("/v1/completions", json={"model": "gpt-4o", "prompt": "x"})
    assert (refused.status_code, error_of(refused)["code"], error_of(refused)["param"]) == (404, "model_not_found", "model")
    assert "'a', 'b'" in error_of(refused)["message"]
    assert server.http.get("/v1/models/gpt-4o").status_code == 404


@pytest.mark.slow
def test_an_answer_ends_before_its_model_is_swapped_and_those_who_wait_get_theirs(server, alone):
    """A long stream of a; meanwhile b, a and b are asked: each is right, and the stream is whole."""
    assert text_of(ask(server.url, "a", TEXTS["a"])) == alone["a"]
    loads = server.metric("first_cpp_load_seconds_count")
    found: dict[int, str] = {}
    body = chat("Once", model="a", stream=True, max_tokens=1500, logit_bias=NO_END)
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=60) as stream:
        lines = stream.iter_lines()
        next(lines)
        names = ("b", "a", "b")
        threads = []
        for number, name in enumerate(names):

            def one(number: int = number, name: str = name) -> None:
                found[number] = text_of(ask(server.url, name, TEXTS[name]))

            threads.append(threading.Thread(target=one))
            threads[-1].start()
            server.wait_for(queue=number + 1)
        assert server.health()["loaded"] == "a"
        said = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    for thread in threads:
        thread.join()
    assert said[-1]["choices"][0]["finish_reason"] == "length"
    assert found == {number: alone[name] for number, name in enumerate(names)}
    assert server.metric("first_cpp_load_seconds_count") == loads + 3
    assert server.metric("first_cpp_models_loaded") == 1


def test_what_a_model_cannot_is_refused_also_where_it_is_not_loaded(server):
    """b has no routers: a 400 once it is loaded, and the model is right for the next request."""
    assert ask(server.url, "a", "x", skip=0.34).status_code == 200
    refused = ask(server.url, "b", "x", skip=0.34)
    assert (refused.status_code, error_of(refused)["code"]) == (400, "invalid_skip")
    streamed = ask(server.url, "a", "x", skip=[77], stream=True)
    assert (streamed.status_code, error_of(streamed)["code"]) == (400, "invalid_skip")
    assert server.health()["loaded"] == "a"


def test_the_vocabulary_of_a_model_that_is_not_loaded(server, files, load):
    ask(server.url, "a", "x")
    count = {"count": len(load(files["b"], cls=llama_cpp.Llama).tokenize(b"four"))}
    counted = server.http.post("/extras/tokenize/count", json={"model": "b", "input": "four"})
    assert counted.json() == count
    assert server.health()["loaded"] == "b"
    assert server.http.post("/extras/tokenize/count", json={"model": "b", "input": "four"}).json() == count


def test_fidelity_is_kept_over_swaps(server):
    first = ask(server.url, "a", "Hello", skip=0.34).json()["id"]
    wait_for_fidelity(server, first)
    second = ask(server.url, "b", "Hello", skip=[2]).json()["id"]
    assert [one["id"] for one in wait_for_fidelity(server, second)[:2]] == [second, first]


def wait_until(so: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait_for_fidelity(server: Server, answer: str) -> list[dict]:
    """What was measured, once the answer of that id was."""
    for _ in range(500):
        data = server.http.get("/v1/fidelity").json()["data"]
        if answer in [one["id"] for one in data]:
            return data
        time.sleep(0.02)
    raise AssertionError("the answer was not measured")


def test_a_file_that_went_away_is_an_error_of_its_requests_alone(files, tmp_path, tiny):
    gone = tmp_path / "gone.gguf"
    shutil.copy(tiny, gone)
    with serving(files["b"], "-m", gone, "--alias", "b", "--alias", "gone", *OPTIONS) as server:
        gone.unlink()
        failed = ask(server.url, "gone", "x")
        assert (failed.status_code, error_of(failed)["code"]) == (500, "model_not_loaded")
        assert str(gone) not in failed.text  # for the log, not for clients
        assert ask(server.url, "b", "x").status_code == 200
    assert f"gone cannot be loaded: Model path does not exist: {gone}" in server.errors


# -- memory --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(models):
    """Two files of some 60 MB."""
    paths = [models / f"large-{number}.gguf" for number in (1, 2)]
    for number, path in enumerate(paths):
        write_random(path, SHAPES["smollm2-135m"], "q4_0", seed=number)
    return list(map(str, paths))


def resident(server: Server) -> int:
    return psutil.Process(server.process.pid).memory_info().rss


@pytest.mark.slow
def test_memory_is_that_of_one_model(large):
    with serving(large[0], "-m", large[1], *OPTIONS) as server:
        for name in ("large-1", "large-2"):
            ask(server.url, name, "x", max_tokens=1)
        before = resident(server)
        for name in ("large-1", "large-2", "large-1", "large-2"):
            ask(server.url, name, "x", max_tokens=1)
        assert resident(server) < before + 20e6


@pytest.mark.timed
def test_keep_alive_frees_the_model_and_the_next_request_loads_it(large):
    with serving(large[0], "--keep-alive", 0.4, *OPTIONS) as server:
        first = ask(server.url, None, "x", max_tokens=4)
        full = resident(server)
        time.sleep(0.2)
        assert server.health()["loaded"] == "large-1"
        server.wait_for(loaded=None, timeout=5)
        wait_until(lambda: resident(server) < full - 50e6)
        assert server.metric("first_cpp_models_loaded") == 0
        assert server.health()["n_layer"] == 30
        again = ask(server.url, None, "x", max_tokens=4)
        assert text_of(again) == text_of(first)
        assert server.health()["loaded"] == "large-1"
        assert server.stop() == 0


# -- the command line ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--alias", "one"), "--alias: 1 names for 2 models"),
        (("--alias", "one", "--alias", "one"), "two models are called 'one'"),
        (("--skip", "0.25"), "skip=0.25 needs routers and there are none in"),
        (("--skip", "5,6"), "6"),
        (("--lora", "x.gguf"), "--lora is of one model, and there are 2"),
        (("--fidelity", "0.9"), "--fidelity is of one model, and there are 2"),
        (("-m", "gone.gguf"), "Model path does not exist: gone.gguf"),
    ],
)
def test_options_that_do_not_go_with_several_models(files, options, message):
    done = command("serve", "--port", "0", "-m", files["a"], "-m", files["b"], *options)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr


def test_a_model_alone_answers_as_the_library(files, alone):
    llm = Llama(files["b"], chat_format="chatml", n_ctx=2048, verbose=False)
    answer = llm.create_chat_completion(**chat(TEXTS["b"]), repeat_penalty=1.1)
    llm.close()
    assert answer["choices"][0]["message"]["content"] == alone["b"]
