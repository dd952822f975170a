"""Evaluations that are ended on purpose make no noise; those that fail do."""

from __future__ import annotations

import logging
import threading

import pytest

from first_cpp import AnswerCancelled, Llama
from first_cpp.runtime.llama_log import hush

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
