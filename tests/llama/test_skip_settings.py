"""What `skip` may be, what it decides, and what is refused, by name and before anything is loaded."""

from __future__ import annotations

import itertools
import time

import llama_cpp
import numpy as np
import pytest
from helpers import greedy, tokens
from routers_files import routed_model

import first_cpp
from first_cpp import Llama, RoutingError, SkipError
from first_cpp.skip import parse_skip

PROMPT = tokens(40, seed=3)


@pytest.fixture(scope="module")
def routed(tiny, models):
    return routed_model(tiny, models, seed=21)


def test_settings_and_what_they_decide(routed, load):
    llm = load(routed)
    assert llm.routing is None
    greedy(llm, PROMPT, 2)
    assert len(llm.routing.skipped) == 2  # the file recommends 0.34 of 6
    assert llm.routing.share == pytest.approx(2 / 6)
    order = np.argsort(llm.routing.keep)
    for share, count in ((0.1, 1), (0.5, 3), (0.8, 5), (0.05, 0)):
        llm.skip = share
        greedy(llm, PROMPT, 2)
        assert llm.routing.skipped == tuple(sorted(order[:count].tolist()))
    llm.skip = (4, 2)
    greedy(llm, PROMPT, 2)
    assert (llm.routing.skipped, llm.routing.keep, llm.routing.why) == ((2, 4), None, "fixed set")
    llm.skip = None
    greedy(llm, PROMPT, 2)
    assert llm.routing.skipped == ()


def test_layers_the_file_marks_unskippable_stay(tiny, tmp_path, load):
    path = routed_model(tiny, tmp_path, skippable="[false, false, false, true, true, false]")
    llm = load(path, skip=0.8)
    greedy(llm, PROMPT, 2)
    assert llm.routing.skipped == (3, 4)
    assert "only 2 are skippable" in llm.routing.why
    llm.skip = [0, 3]
    greedy(llm, PROMPT, 2)
    assert llm.routing.skipped == (3,)
    assert "[0] stay" in llm.routing.why


@pytest.mark.parametrize(
    "skip",
    [-0.1, 1, 1.0, 1.5, float("nan"), float("inf"), "0.3", True, False, [7.5], [0, 0], [-1], [True], ["1"], b"a", {}.items],
)
def test_bad_skip_is_refused_before_the_file_is_read(skip):
    with pytest.raises(SkipError, match="skip"):
        Llama("no-such-file.gguf", skip=skip, verbose=False)


LONG = {"one": [0] * 20_000, "many": list(range(20_000)), "range": range(10**12), "endless": itertools.count()}


@pytest.mark.timed
@pytest.mark.parametrize("skip", LONG.values(), ids=LONG)
def test_a_long_list_of_layers_is_a_quick_error(skip):
    began = time.perf_counter()
    with pytest.raises(SkipError, match="more than 4096 entries"):
        Llama("no-such-file.gguf", skip=skip, verbose=False)
    parse_skip(range(4096))
    assert time.perf_counter() - began < 0.1


@pytest.mark.parametrize(("skip", "hint"), [(7, "skip=[7]"), (1.0, "skip=[1]"), (1.5, ""), (-1, ""), (float("inf"), "")])
def test_a_number_that_is_no_share_may_be_a_layer(skip, hint):
    with pytest.raises(SkipError) as told:
        Llama("no-such-file.gguf", skip=skip, verbose=False)
    assert str(told.value).partition("alone write ")[2] == hint


@pytest.mark.parametrize(("skip", "said"), [([6], "0 to 5"), (range(6), "all 6"), (0.95, "all 6 layers")])
def test_skip_that_does_not_fit_the_model(routed, load, skip, said):
    with pytest.raises(SkipError, match=said):
        load(routed, skip=skip)
    llm = load(routed)
    with pytest.raises(SkipError, match=said):
        llm.skip = skip
    assert llm.skip == "auto"


def test_share_without_routers_is_refused(tiny, load):
    with pytest.raises(SkipError, match="routers"):
        load(tiny, skip=0.25)
    llm = load(tiny)
    with pytest.raises(SkipError, match="routers"):
        llm.skip = 0.25
    assert llm.routers is None
    greedy(llm, PROMPT, 2)
    assert llm.routing.skipped == ()


@pytest.mark.parametrize(("given", "meant"), [("n_gpu_layer", "n_gpu_layers"), ("skp", "skip"), ("router", "routers")])
def test_unknown_keyword_names_the_nearest(tiny, given, meant):
    with pytest.raises(TypeError, match=f"{given}.*did you mean '{meant}'"):
        Llama(tiny, **{given: 1})


def test_gpu_layers_with_routing_are_refused(routed, load, monkeypatch):
    monkeypatch.setattr(llama_cpp, "llama_supports_gpu_offload", lambda: True)
    with pytest.raises(first_cpp.OffloadError, match=r"n_gpu_layers=-1.*CPU only"):
        Llama(routed, n_gpu_layers=-1, verbose=False)
    llm = load(routed, n_gpu_layers=1, skip=None)
    with pytest.raises(first_cpp.OffloadError, match="CPU only"):
        llm.skip = 0.25
    with pytest.raises(first_cpp.OffloadError, match="CPU only"), llm.skipping([1]):
        pass


def test_model_whose_graph_does_not_fit_runs_dense_and_says_so(routed, load):
    dense = greedy(load(routed, skip=None), PROMPT, 8)
    llm = load(routed)
    llm._layers.declare_dense(6, "its layers have no names")
    with pytest.warns(RuntimeWarning, match="runs dense: its layers have no names"):
        llm.skip = 0.5
    assert greedy(llm, PROMPT, 8) == dense
    assert (llm.routing.skipped, llm.routing.why) == ((), "dense: its layers have no names")


def test_strict_makes_that_an_error(routed, tiny, load, monkeypatch):
    load(tiny, strict=True).skip = None  # nothing asked, nothing refused
    monkeypatch.setattr(first_cpp.llama, "learn_layout", lambda llm, layers, *rest: layers.declare_dense(6, "no names"))
    for skip in (0.25, [1], "auto"):
        with pytest.raises(first_cpp.RoutingError, match=r"no layer of .* can be skipped: no names; strict=False"):
            load(routed, skip=skip, strict=True)
    llm = load(routed, skip=None, strict=True)
    assert llm.dense_because == "no names"
    assert llm.unskippable == ("no names",) * 6
    with pytest.raises(first_cpp.RoutingError, match="no names"), llm.skipping([1]):
        pass


def test_after_a_graph_that_could_not_be_patched_the_next_answer_is_right(routed, load, monkeypatch):
    llm = load(routed, skip=[2])

    def check():
        raise RoutingError("layer 2 cannot be skipped in this graph: made up")

    monkeypatch.setattr(llm._layers, "check", check)
    with pytest.raises(RoutingError, match="made up"):
        greedy(llm, PROMPT, 8)
    monkeypatch.undo()
    assert greedy(llm, PROMPT, 8) == greedy(load(routed, skip=[2]), PROMPT, 8)
