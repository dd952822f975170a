"""Evaluations that are ended on purpose make no noise; those that fail do, and warnings are no errors."""

from __future__ import annotations

import argparse
import contextlib
import logging
import threading

import llama_cpp
import pytest
from in_process import command

from first_cpp import AnswerCancelled, Llama
from first_cpp.cli.execute import run
from first_cpp.runtime.llama_log import ggml_levels, hush

LOG = logging.getLogger("llama-cpp-python")


def test_a_cancelled_prefill_says_nothing(tiny, capfd):
    llm = Llama(tiny, n_ctx=4096, n_batch=4096, n_ubatch=4096, verbose=False)
    level = LOG.level
    for delay in (0.002, 0.01, 0.03, 0.06):
        llm.reset()
        threading.Timer(delay, llm.cancel).start()
        try:
            next(llm.generate([5] * 4000, temp=0.0))
        except AnswerCancelled:
            break
    else:
        pytest.fail("nothing was cancelled")
    assert "removing memory" not in capfd.readouterr().err
    assert LOG.level == level
    llm.close()


def test_the_level_comes_back_after_the_last_model():
    LOG.setLevel(logging.ERROR)
    hush(True)
    hush(True)
    hush(False)
    assert LOG.level > logging.CRITICAL
    hush(False)
    assert LOG.level == logging.ERROR


def test_a_level_set_meanwhile_stays():
    hush(True)
    LOG.setLevel(logging.DEBUG)
    hush(False)
    assert LOG.level == logging.DEBUG
    LOG.setLevel(logging.ERROR)


# -- levels -----------------------------------------------------------------------------------------------------------------

BEYOND = 4096
"""A context larger than the small model was trained for: llama.cpp warns of it."""
WARNING, ERROR = "possible training context overflow", "failed to open GGUF file"


def provoke(model):
    """A warning and an error of llama.cpp, with verbose=False."""
    Llama(model, n_ctx=BEYOND, verbose=False).close()
    assert not llama_cpp.llama_model_load_from_file(b"/nowhere.gguf", llama_cpp.llama_model_default_params())


@pytest.mark.parametrize(("within", "shown"), [(contextlib.nullcontext, WARNING), (ggml_levels, ERROR)])
def test_the_library_is_as_stock_and_our_programs_go_by_ggmls_levels(tiny, capfd, within, shown):
    with within():
        provoke(tiny)
    said = capfd.readouterr().err
    assert [text for text in (WARNING, ERROR) if text in said] == [shown]


def test_a_verb_shows_errors_and_with_verbose_warnings(tiny, capfd):
    asked = ("run", "-m", tiny, "--raw", "-n", "1", "-c", str(BEYOND), "x")
    assert command(*asked).stderr == ""
    assert WARNING in command(*asked, "--verbose").stderr
    LOG.setLevel(logging.ERROR)
    assert run(lambda _: provoke(tiny), argparse.Namespace()) == 0
    said = capfd.readouterr().err
    assert ERROR in said
    assert WARNING not in said
    with pytest.raises(ZeroDivisionError), ggml_levels():  # whatever ends it, the library is as before
        _ = 1 / 0
    provoke(tiny)
    assert WARNING in capfd.readouterr().err
