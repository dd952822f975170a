"""The record of an answer has one set of names wherever it is shown."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from routers_files import routed_model
from server import NO_END, chat, serving

from first_cpp.cli.answer_record import AnswerRecord, AnswerRecorder
from first_cpp.cli.model_options import ModelOptions
from first_cpp.errors import OptionError

FIELDS = {
    "tokens",
    "prompt_tokens",
    "ttft_ms",
    "tpot_ms",
    "n_layer",
    "skipped_layers",
    "keep",
    "why",
    "expected_speedup",
    "predicted_cost",
    "expected_change",
}


@pytest.fixture(scope="module")
def routed(tiny, models):
    return routed_model(tiny, models, seed=44)


def check(record: dict) -> None:
    assert set(record) == FIELDS
    assert record["n_layer"] == len(record["keep"]) == 6
    assert len(record["skipped_layers"]) == 2
    assert record["expected_speedup"] > 1
    assert (record["predicted_cost"], record["expected_change"]) == (None, None)  # these routers have no cost probes
    assert record["ttft_ms"] > 0


def test_run(routed):
    command = [sys.executable, "-m", "first_cpp", "run", "-m", routed, "--raw", "-n", "4", "--json", "Once upon"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
    check(json.loads(done.stdout)["first_cpp"])


def test_serve(routed):
    with serving(routed, "-c", 512, "--chat-format", "chatml") as server:
        check(server.http.post("/v1/chat/completions", json=chat()).json()["first_cpp"])


def test_llm_plugin(routed, load):
    pytest.importorskip("llm")
    from first_cpp.llm_plugin import FirstCppModel

    response = FirstCppModel("mine", load(routed, chat_format="chatml")).prompt("Hello", max_tokens=4)
    response.text()
    check(response.response_json)


def test_a_record_is_of_the_last_answer(routed, load):
    llm = load(routed)
    recorder = AnswerRecorder(llm)
    assert recorder.record() is None
    for n in (1, 5):
        llm.create_completion("Once", max_tokens=n, logit_bias=NO_END, temperature=0)
        record = recorder.record()
        assert (record.tokens, record.tpot_ms is None) == (n, n == 1)
        assert record.prompt_tokens == llm.routing.prompt_tokens


def test_tpot_is_the_mean_after_the_first_token(routed, load):
    llm = load(routed)
    llm.create_completion("Once", max_tokens=5, logit_bias=NO_END, temperature=0)
    assert AnswerRecorder(llm).record().tpot_ms == llm.timing.tpot * 1e3


def test_the_line_shows_no_rate_for_one_token():
    assert (
        AnswerRecord(1, 4, 5.0, None, 2, (), None, "dense", 1.0).line()
        == "1 token · - tokens/s · TTFT 0.01 s · 2 of 2 layers ##"
    )


# -- the options of a model ----------------------------------------------------------------------------------------------


def test_a_model_by_its_options(routed):
    options = ModelOptions(routed, skip=(1, 2), ctx=256, threads=1)
    assert (options.name, options.n_ctx) == ("routed-44", 256)
    llm = options.load()
    try:
        assert (llm.skip, llm.n_ctx()) == ((1, 2), 256)
    finally:
        llm.close()


@pytest.mark.parametrize(
    "given",
    [{"model": "hf:no-owner"}, {"chat_format": "chatmll"}],
    ids=str,
)
def test_options_that_cannot_be_used(given):
    with pytest.raises(OptionError):
        ModelOptions(**given)


def test_a_seed_of_its_own_for_every_load(routed):
    """llama_cpp's own default is the same in every process."""
    answers = set()
    for _ in range(3):
        llm = ModelOptions(routed, ctx=256).load()
        answers.add(llm.create_completion("Once", max_tokens=12, temperature=1.5)["choices"][0]["text"])
        llm.close()
    assert len(answers) == 3
