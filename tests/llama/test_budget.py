"""A budget by prompt: predicted costs against NumPy, the level that a tolerance allows, shares, candidate sets."""

from __future__ import annotations

import dataclasses
import itertools
import pickle
import re

import numpy as np
import pytest
from helpers import greedy, tokens
from llama_cpp.llama_chat_format import Llava15ChatHandler
from routers_files import ORDER, budget_routers, cost_probes
from vision import N_IMAGE_TOKENS, image_url, write_clip

from first_cpp import Llama, SettingError
from first_cpp.gguf.cost_probes import LayerSet
from first_cpp.gguf.embed import embed, write_sidecar
from first_cpp.gguf.synthetic import SHAPES
from first_cpp.runtime.predicted_cost import dial_of, predict, tolerance_of

PROMPT = tokens(40, seed=1)
GLOBAL = {1: (3,), 2: (3, 4), 4: (1, 2, 3, 4)}  # of each level the set for all prompts


def log_costs(llm: Llama, prompt: list[int], cost) -> np.ndarray:
    """DESIGN's formula, in float64, from the hidden states that llama.cpp computes: float64 [n_set]."""
    hidden = llm.hidden_states(prompt).astype(np.float64)  # [n_layer + 1, n, n_embd]
    normed = hidden / np.sqrt((hidden**2).mean(-1, keepdims=True) + cost.norm_eps)
    inputs = [*normed[list(cost.read)].mean(axis=1), *normed[list(cost.last), -1]]
    return cost.bias + np.einsum("sre,re->s", cost.weight.astype(np.float64), inputs)


def expected_levels(llm: Llama, prompt: list[int], cost) -> dict[int, tuple[float, tuple[int, ...]]]:
    """Of each level the predicted cost and the layers, written down apart from the package's own words."""
    found, highest = {}, -np.inf
    logs = log_costs(llm, prompt, cost)
    for level in sorted({one.level for one in cost.sets}):
        numbers = [i for i, one in enumerate(cost.sets) if one.level == level]
        best = numbers[0]
        for other in numbers[1:]:
            if logs[other] < logs[numbers[0]] - cost.margin and logs[other] < logs[best]:
                best = other
        highest = max(highest, logs[best])
        found[level] = (float(np.exp(highest)), cost.sets[best].layers)
    return found


@pytest.mark.parametrize(("read", "last"), [((1, 4), ()), ((2,), (2, 5)), ((), (3,))])
@pytest.mark.parametrize("kind", ["sets", "layers"])
@pytest.mark.parametrize(("n_batch", "n_ubatch"), [(512, 512), (64, 7), (9, 1)])
def test_predicted_costs_whatever_the_batches(tiny, load, kind, read, last, n_batch, n_ubatch):
    routers = budget_routers(tiny, kind, tolerance=1e6, read=read, last=last)
    llm = load(tiny, routers=routers, n_batch=n_batch, n_ubatch=n_ubatch)
    for seed in range(3):
        prompt = tokens(70, seed=seed)
        greedy(llm, prompt, 1)
        routing = llm.routing
        highest = np.exp(np.maximum.accumulate(log_costs(load(tiny), prompt, routers.cost)))[-1]
        one_position = 1e-3  # which llama.cpp computes a little differently in other batches, and no mean evens out
        assert routing.cost == pytest.approx(highest, rel=one_position if last else 1e-4)
        assert (routing.level, len(routing.skipped), routing.prompt_tokens) == (4, 4, 70)
        assert (routing.keep is None) == (kind == "sets")


def test_each_prompt_has_its_own_level(tiny, load):
    """Each layer more costs at most the tolerance: just within, just beyond, for every prompt and pair of levels."""
    llm, plain = load(tiny, routers=budget_routers(tiny, scale=0.1, tolerance=0.03)), load(tiny)
    chosen = set()
    for seed in range(6):
        prompt = tokens(30, seed=seed)
        levels = expected_levels(plain, prompt, llm.routers.cost)
        prices = {0: 0.0} | {level: cost for level, (cost, _) in levels.items()}
        for low, high in itertools.combinations(prices, 2):
            slope = (prices[high] - prices[low]) / (high - low)
            for tolerance in (slope * 1.001, slope * 0.999) if slope else ():
                llm.tolerance = tolerance
                greedy(llm, prompt, 1)
                best = min(prices, key=lambda k: prices[k] - tolerance * k)
                assert llm.routing.level == best, (seed, low, high)
                assert llm.routing.skipped == (levels[best][1] if best else ())
                assert llm.routing.cost == pytest.approx(prices[best], rel=1e-4)
        llm.tolerance = None
        greedy(llm, prompt, 1)
        chosen.add(llm.routing.level)
    assert len(chosen) > 1


def test_routers_choose_the_layers_of_a_level(tiny, load):
    llm = load(tiny, routers=budget_routers(tiny, "layers", tolerance=1e6))
    greedy(llm, PROMPT, 1)
    lowest = tuple(sorted(np.argsort(llm.routing.keep, kind="stable")[:4].tolist()))
    assert llm.routing.skipped == lowest
    by_share = load(tiny, routers=budget_routers(tiny, "layers"), skip=4 / 6)
    assert greedy(by_share, PROMPT, 6) == greedy(llm, PROMPT, 6)
    assert by_share.routing.skipped == lowest
    assert by_share.routing.cost == pytest.approx(llm.routing.cost)


def test_no_level_is_cheaper_than_a_smaller_one():
    probes = cost_probes(margin=0.0)
    found = predict(probes, np.array([-1.0, 9.0, -3.0, -0.5]))
    assert found.levels == (1, 2, 4)
    assert found.costs == pytest.approx(np.exp([-1.0, -1.0, -0.5]))
    for part, expected in ((1.001, 2), (0.999, None), (0.0, None)):  # four layers are the cheapest each
        assert found.within(part * np.exp(-0.5) / 4) == expected
    assert [found.cost_of(level) for level in (0, 3)] == [0.0, None]


def test_another_set_only_where_it_is_surely_cheaper():
    probes = cost_probes(margin=0.5)
    for second, number in ((-3.4, 0), (-3.6, 1), (-2.0, 0)):  # the first is at -3
        assert predict(probes, np.array([-3.0, second, 0.0, 0.0])).sets[0] == number
    huge = predict(probes, np.array([np.inf, np.inf, np.inf, 900.0]))
    assert (huge.costs, huge.within(1e300)) == ((np.inf,) * 3, None)


def test_a_prompt_takes_a_groups_set(tiny, load):
    cost = cost_probes(weight=np.zeros((4, 2, 128), np.float32), bias=np.array([-3, -4, -2.5, -2], np.float32), margin=0.5)
    llm = load(tiny, routers=dataclasses.replace(budget_routers(tiny), cost=cost), tolerance=0.02)
    greedy(llm, PROMPT, 1)
    assert (llm.routing.skipped, llm.routing.level) == ((1,), 1)
    assert llm.routing.cost == pytest.approx(np.exp(-4))
    llm.skip = 1 / 6  # a share is the set for all prompts
    greedy(llm, PROMPT, 1)
    assert llm.routing.skipped == GLOBAL[1]


@pytest.mark.parametrize("layers", range(1, 6))
def test_a_share_is_the_levels_set_or_the_order(tiny, load, layers):
    llm = load(tiny, routers=budget_routers(tiny, order=(5, 4, 1, 2, 3, 0)), skip=layers / 6)
    greedy(llm, PROMPT, 1)
    expected = GLOBAL.get(layers) or tuple(sorted((5, 4, 1, 2, 3, 0)[:layers]))
    assert llm.routing.skipped == expected
    assert (llm.routing.level, llm.routing.cost is None) == ((layers, False) if layers in GLOBAL else (None, True))


def test_unskippable_layers_stay(tiny, load):
    """Those that the file marks are no part of the order's share; those of this model's graphs are spared in a level's set."""
    routers = budget_routers(tiny, skippable=(True,) * 5 + (False,), order=(5, *(i for i in ORDER if i != 5)))
    llm = load(tiny, routers=routers, skip=0.5)
    greedy(llm, PROMPT, 1)
    assert llm.routing.skipped == (1, 3, 4)
    llm.skip, llm.tolerance = "auto", 1e6
    llm._layers.unskippable = ("", "", "its KV", "", "", "")
    greedy(llm, [*PROMPT, 5], 1)
    assert llm.routing.skipped == (1, 3, 4)
    assert "of which 3 are skippable" in llm.routing.why


def test_the_choice_is_what_decoding_skips(tiny, load):
    llm = load(tiny, routers=budget_routers(tiny), tolerance=1e6)
    assert greedy(llm, PROMPT, 12) == greedy(load(tiny, skip=[1, 2, 3, 4]), PROMPT, 12)


@pytest.mark.parametrize("kind", ["sets", "layers"])
def test_from_files(tiny, tmp_path, load, kind):
    routers, embedded, side = budget_routers(tiny, kind, tolerance=0.5), tmp_path / "m.gguf", tmp_path / "s.gguf"
    embed(routers, tiny, embedded, quiet=True)
    write_sidecar(routers, tiny, side)
    found = []
    for llm in (load(tiny, routers=routers), load(embedded), load(tiny, routers=side)):
        greedy(llm, PROMPT, 4)
        assert llm.routing.changed == pytest.approx(routers.cost.changed(llm.routing.cost), rel=1e-5)  # float32 in files
        found.append(dataclasses.replace(llm.routing, changed=None))
    assert found[0] == found[1] == found[2]
    assert found[0].level > 0


def test_only_the_read_layers_are_handed_over(tiny, load):
    """A graph is cut at each layer that is read: whole sets do not pay for those that nobody reads."""
    llm = load(tiny, routers=budget_routers(tiny, read=(4,), tolerance=1.0))
    assert llm._read._read_layers == (4,)
    greedy(llm, PROMPT, 1)
    assert llm.routing.cost is not None


@pytest.mark.parametrize("context", [{"prefill": "routed", "route_tokens": 9}, {"release_kv": True}, {"kv": "keep"}], ids=str)
def test_with_other_settings(tiny, load, context):
    llm = load(tiny, routers=budget_routers(tiny, tolerance=1.0), **context)
    greedy(llm, PROMPT, 4)
    n = 9 if "prefill" in context else 40
    levels = expected_levels(load(tiny), PROMPT[:n], llm.routers.cost)
    best = max(level for level, (cost, _) in levels.items() if cost <= 1.0)
    assert (llm.routing.level, llm.routing.prompt_tokens) == (best, n)
    assert llm.routing.cost == pytest.approx(levels[best][0], rel=1e-4)
    assert (llm.routing.kv_bytes_released > 0) == ("release_kv" in context)


def test_images_do_not_count(tiny, tmp_path, load):
    """Their positions have no hidden states of text: the text around them decides."""

    def seeing(**settings):
        handler = Llava15ChatHandler(write_clip(tmp_path / "clip.gguf", SHAPES["tiny"].n_embd), verbose=False)
        return load(tiny, routers=budget_routers(tiny), chat_handler=handler, **settings)

    def ask(llm):
        content = [{"type": "image_url", "image_url": {"url": image_url(1)}}, {"type": "text", "text": "What is it?"}]
        answer = llm.create_chat_completion([{"role": "user", "content": content}], max_tokens=8, temperature=0)
        return answer["choices"][0]["message"]["content"]

    llm = seeing(tolerance=1e6)
    answer = ask(llm)
    assert (llm.routing.level, llm.routing.skipped) == (4, (1, 2, 3, 4))
    columns = llm._read.scores(llm.routing.prompt_tokens)
    assert columns.shape == (llm.routing.prompt_tokens, 4)
    unread = np.isnan(columns).any(axis=1)
    assert unread.sum() == N_IMAGE_TOKENS
    assert llm.routing.cost == pytest.approx(np.exp(columns[~unread].mean(axis=0)[[0, 2, 3]].max()), rel=0.2)
    assert ask(seeing(skip=[1, 2, 3, 4])) == answer


def test_a_share_of_whole_sets_needs_no_scores(tiny, load, monkeypatch):
    """Where hidden states are not named there is no prediction, and a share is still a share."""
    llm = load(tiny, routers=budget_routers(tiny), skip=2 / 6)
    monkeypatch.setattr(llm._layers, "_inputs", [""] * 6)
    greedy(llm, PROMPT, 2)
    assert (llm.routing.skipped, llm.routing.cost, llm.routing.level) == ((3, 4), None, None)
    llm.skip = "auto"
    greedy(llm, PROMPT, 2)
    assert llm.routing.skipped == ()
    assert "without scores" in llm.routing.why


# -- words ----------------------------------------------------------------------------------------------------------------


def flat(tiny, *bias: float, **other):
    """Routers whose predicted costs are the same for every prompt: levels 1, 2, 4."""
    sets = (LayerSet(1, (3,)), LayerSet(2, (3, 4)), LayerSet(4, (1, 2, 3, 4)))
    weight = np.zeros((3, 2, 128), np.float32)
    return budget_routers(tiny, sets=sets, weight=weight, bias=np.log(bias).astype(np.float32), **other)


def test_why_is_in_words(tiny, load):
    llm = load(tiny, routers=flat(tiny, 0.01, 0.04, 0.3))
    for tolerance, said, changed in (
        (
            0.05,
            "skips 2 of 6 layers: expected to change about 4 in 100 words "
            "(for each skipped layer: predicted cost 0.02, tolerance 0.05 nats a token)",
            0.04,
        ),
        (0.5, "skips 4 of 6 layers: expected to change about 20 in 100 words", 0.2),
        (
            0.001,
            "nothing is skipped: skipping 1 of 6 layers is expected to change about 1 in 100 words "
            "(for each skipped layer: predicted cost 0.01, tolerance 0.001 nats a token)",
            0.0,
        ),
        (0.0, "tolerance 0: nothing is skipped", None),
    ):
        llm.tolerance = tolerance
        greedy(llm, PROMPT, 1)
        assert llm.routing.why.startswith(said)
        assert llm.routing.changed == (changed if changed is None else pytest.approx(changed, abs=1e-3))
    llm.skip = 2 / 6
    greedy(llm, PROMPT, 1)
    assert llm.routing.why == (
        "the set for all prompts, share 0.333333 asks for 2 of 6 layers; expected to change about 4 in 100 words"
    )
    llm.skip = 5 / 6
    greedy(llm, PROMPT, 1)
    assert llm.routing.why.endswith("5 of 6 layers; what that costs is unknown: up to 4 layers were measured")
    assert llm.routing.changed is None


def test_the_cost_beside_a_tolerance_is_within_it_where_layers_are_skipped_and_above_where_none_is(tiny, load):
    llm = load(tiny, routers=flat(tiny, 0.01, 0.04, 0.3))
    for tolerance in (0.001, 0.005, 0.009, 0.011, 0.02, 0.05, 0.08, 0.2, 1.0):
        llm.tolerance = tolerance
        greedy(llm, PROMPT, 1)
        cost, told = map(float, re.search(r"predicted cost (\S+), tolerance (\S+) nats", llm.routing.why).groups())
        assert told == tolerance
        assert (cost <= tolerance) is bool(llm.routing.skipped)
        assert repr(llm.routing).count(" in all, skips") == bool(llm.routing.skipped)


def test_words_without_a_table_are_numbers(tiny, load):
    llm = load(tiny, routers=flat(tiny, 0.01, 0.04, 0.3, table=()), tolerance=0.05)
    greedy(llm, PROMPT, 1)
    assert "expected to cost 0.04 nats a token" in llm.routing.why
    assert llm.routing.changed is None


# -- the setting ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), True, "0.1", [0.1], 10**400], ids=str)
def test_invalid_tolerances(tiny, load, value):
    llm = load(tiny, routers=budget_routers(tiny))
    with pytest.raises(SettingError, match="tolerance="):
        llm.tolerance = value
    assert llm.tolerance == pytest.approx(0.1)
    with pytest.raises(SettingError, match="tolerance="):
        Llama("no such file, and it is not asked for", tolerance=value, verbose=False)


def test_a_tolerance_needs_cost_probes(tiny, load):
    plain = dataclasses.replace(budget_routers(tiny, "layers"), cost=None)
    for routers in (None, plain):
        with pytest.raises(SettingError, match=r"tolerance=0.1 needs cost probes.*first-cpp calibrate"):
            load(tiny, routers=routers, tolerance=0.1)
        llm = load(tiny, routers=routers)
        assert llm.tolerance is None
        with pytest.raises(SettingError, match="needs cost probes"):
            llm.tolerance = 0.1
        llm.tolerance = None


def test_the_setting_survives_a_pickle(tiny, load):
    llm = load(tiny, routers=budget_routers(tiny), tolerance=0.2)
    llm.tolerance = 0.03
    other = pickle.loads(pickle.dumps(llm))
    try:
        assert other.tolerance == 0.03
        assert greedy(other, PROMPT, 4) == greedy(llm, PROMPT, 4)
    finally:
        other.close()


def test_a_tolerance_turned_up_reads_the_prompt_again(tiny, load):
    """With tolerance 0 nothing was read of the prompt that a budget could stand on."""
    llm = load(tiny, routers=budget_routers(tiny), tolerance=0)
    greedy(llm, PROMPT, 2)
    assert llm.routing.skipped == ()
    llm.tolerance = 1e6
    greedy(llm, PROMPT, 2)
    fresh = load(tiny, routers=budget_routers(tiny), tolerance=1e6)
    greedy(fresh, PROMPT, 2)
    assert llm.routing == fresh.routing


# -- a fidelity that is held moves the tolerance --------------------------------------------------------------------------


def test_a_held_fidelity_moves_the_tolerance(tiny, load):
    """DESIGN 10: the dial stands for a tolerance, and every prompt still has its own level."""
    llm = load(tiny, routers=flat(tiny, 0.01, 0.04, 0.3), fidelity=0.9)
    start = llm.held.dial
    assert start == pytest.approx(cost_probes().mean_share(0.1) / 0.4)
    greedy(llm, PROMPT, 12)
    first = llm.tolerance
    assert first == pytest.approx(0.1)  # where the dial begins, the file's own
    assert llm.routing.level == 2
    assert llm.catch_up()
    measured = llm.fidelity.share
    greedy(llm, PROMPT, 2)
    assert llm.held.dial == pytest.approx(start + llm.held.gain * (measured - 0.9))
    assert (llm.tolerance > first) == (measured > 0.9)
    assert "fidelity 0.9 is held" in llm.routing.why


def test_an_answer_that_skips_nothing_counts_as_dense(tiny, load):
    llm = load(tiny, routers=flat(tiny, 5.0, 6.0, 7.0), fidelity=0.9)
    for _ in range(3):
        greedy(llm, PROMPT, 4)
    assert llm.routing.skipped == ()
    assert (llm.held.answers, llm.held.mean) == (2, 1.0)


def test_a_dial_is_from_dense_to_the_end_of_the_table():
    for probes in (cost_probes(), cost_probes(table=())):
        ends = [tolerance_of(probes, dial) for dial in (0.0, 0.3, 0.6, 1.0)]
        assert ends == sorted(ends)
        assert ends[0] == 0
        assert tolerance_of(probes, dial_of(probes)) == pytest.approx(probes.tolerance)
    assert ends[-1] == pytest.approx(0.2)


def test_a_tolerance_and_a_fidelity_contradict_each_other(tiny, load):
    with pytest.raises(SettingError, match="give one"):
        load(tiny, routers=budget_routers(tiny), fidelity=0.9, tolerance=0.1)
    llm = load(tiny, routers=budget_routers(tiny), fidelity=0.9)
    with pytest.raises(SettingError, match="moves the tolerance"):
        llm.tolerance = 0.1
    other = pickle.loads(pickle.dumps(llm))
    assert other.held.target == 0.9
    other.close()
