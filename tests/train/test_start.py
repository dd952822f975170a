"""What routers start from: searched orders of layers, by the loss itself, put into the routers by ridge regression."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from training_parts import answer, examples, make_routed, mean_loss, trainer
from transformers import AutoModelForCausalLM, BloomConfig, Gemma3TextConfig, LlamaConfig, MambaConfig

from first_cpp.train import search, start
from first_cpp.train.data import Example
from first_cpp.train.loop import TrainingError
from first_cpp.train.model import decoder_layers
from first_cpp.train.objective import Lesson
from first_cpp.train.rule import Routed, RouterBank, collate, lowest
from first_cpp.train.search import Answers, costs, removal_order
from first_cpp.train.start import begin, find_order, mean_inputs, ridge, sample, sample_by_task, teach_orders


def test_routers_start_from_one_order_for_all(tmp_path):
    run = trainer(tmp_path, "run")
    order = [4, 0, 5, 2, 1, 3]
    teach_orders(run, {"t": order}, examples(3))
    assert not run.routed.bank.weight.any()
    scores = run.routed.scores(collate(examples(2, seed=50)))
    assert torch.argsort(scores, dim=1).tolist() == [order] * 2
    np.testing.assert_allclose(scores.sort(dim=1).values[0].detach(), np.linspace(0.2, 0.8, 6), rtol=1e-5)


def test_routers_start_from_an_order_for_each_kind_of_prompt(tmp_path):
    """Prompts that no router was taught on leave out the layers of the task that they are like."""

    def kind(low, seed):
        rng = np.random.default_rng(seed)
        return [Example(str(low), rng.integers(low, low + 8, 12).tolist(), [5, 6]) for _ in range(16)]

    run = trainer(tmp_path, "run")
    orders = {"10": [4, 0, 5, 2, 1, 3], "200": [3, 1, 2, 5, 0, 4]}
    read = []
    teach_orders(run, orders, [*kind(10, 1), *kind(200, 2)], read.append)
    assert sum(read) == 32
    for task, order in orders.items():
        chosen = lowest(run.routed.scores(collate(kind(int(task), 3))), 2)
        assert chosen[:, order[:2]].float().mean() > 0.9


def test_routers_are_taught_on_prompts_of_every_task(tmp_path, monkeypatch):
    """As many of each as N_TAUGHT says, though fewer would fill the sample that the search reads."""
    taught = []
    monkeypatch.setattr(start, "N_TOKENS", 1)
    monkeypatch.setattr(start, "N_TAUGHT", 5)
    monkeypatch.setattr(start, "teach_orders", lambda _run, _orders, prompts, _advance: taught.extend(prompts))
    pool = [Example(task, e.prompt, e.response) for i, task in enumerate("ab") for e in examples(8, seed=i)]
    begin(trainer(tmp_path, "run", order_on=pool), "search", False)
    assert sorted(example.task for example in taught) == ["a"] * 5 + ["b"] * 5


def test_ridge_is_the_textbooks():
    """Against the normal equations, written out with the intercept as a column of its own."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(7, 12)), rng.normal(size=7)
    weight, bias = ridge(torch.tensor(x), torch.tensor(y), penalty=0.3)
    strength = 0.3 * ((x - x.mean(0)) ** 2).sum(1).mean()
    wide = np.hstack([x, np.ones((7, 1))])
    expected = np.linalg.solve(wide.T @ wide + strength * np.diag([1.0] * 12 + [0.0]), wide.T @ y)
    np.testing.assert_allclose([*weight, bias], expected, rtol=1e-4, atol=1e-6)


def test_mean_inputs_are_what_routers_read(hf):
    bank, group = RouterBank(6, 128, 1e-5), examples(2)
    routed = Routed(hf, decoder_layers(hf), bank)
    found = mean_inputs(routed, collate(group))
    routed.remove()
    for row, example in enumerate(group):
        states = hf(torch.tensor([example.prompt]), output_hidden_states=True).hidden_states
        torch.testing.assert_close(found[row, 2], bank.normed(states[2][0]).mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("distill", [0.0, 1.0])
def test_search_is_greedy_by_the_loss_of_answers(hf, distill):
    """Against every set there is: few are better; layers that do nothing come first."""
    with torch.no_grad():
        for il in (1, 4):
            hf.model.layers[il].self_attn.o_proj.weight.zero_()
            hf.model.layers[il].mlp.down_proj.weight.zero_()
    group = examples(6)
    answered = [Example("t", e.prompt, answer(hf, e.prompt, 6)) for e in group]
    routed = make_routed(hf)
    found = removal_order(routed, [collate(answered[:3]), collate(answered[3:])], 4, distill)
    assert sorted(found) == list(range(6))
    assert set(found[:2]) == {1, 4}
    prompts = [routed.read(collate(answered))]
    lessons = [Lesson(prompts[0].batch, routed.logits(prompts[0]), distill)]

    def loss(left_out):
        return mean_loss(routed, prompts, lessons, left_out)

    for n in range(1, 5):  # what a layer adds grows with what is left out, nearly always
        others = [loss(list(others)) for others in itertools.combinations(range(6), n)]
        assert sum(other < loss(found[:n]) - 1e-4 for other in others) <= len(others) / 5


def test_search_tries_few_layers_again(hf, monkeypatch):
    """Where layers add to the loss on their own, every round after the first tries one."""
    alone, tried = [0.3, 0.1, 0.6, 0.2, 0.5, 0.4], []

    class Sums(Answers):
        def _read(self, left_out, first):
            tried.append(list(left_out))
            return 1.5 + sum(alone[layer] for layer in left_out), []

    monkeypatch.setattr(search, "Answers", Sums)
    assert removal_order(make_routed(hf), [collate(examples(2))], 3) == [1, 3, 0, 5, 4, 2]
    again = [1]  # tried first, and not last before it was chosen
    assert tried == [[], [0], [1], [2], [3], [4], [5], again, [1, 3], [1, 3, 0]]


WIDTHS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 5, "num_attention_heads": 2, "vocab_size": 320}
HEADS = {"num_key_value_heads": 1, "head_dim": 16}


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(lambda: LlamaConfig(**WIDTHS, **HEADS), id="llama"),
        pytest.param(lambda: Gemma3TextConfig(**WIDTHS, **HEADS, sliding_window=4, sliding_window_pattern=2), id="gemma3"),
        pytest.param(lambda: BloomConfig(hidden_size=32, n_layer=5, n_head=2, vocab_size=320), id="in tuples"),
        pytest.param(lambda: MambaConfig(hidden_size=32, num_hidden_layers=5, vocab_size=320, state_size=4), id="no keys"),
    ],
)
def test_answers_read_on_from_a_layer_are_the_same(config):
    """Against all layers computed, on architectures with other caches, masks and outputs."""
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(config()).eval()
    layers = decoder_layers(hf)
    routed = Routed(hf, layers, RouterBank(5, 32, 1e-5))
    with torch.no_grad():
        prompts = [routed.read(collate(examples(3, seed=seed))) for seed in (0, 40)]
        lessons = [Lesson(one.batch, routed.logits(one), 1.0) for one in prompts]
        answers = Answers(routed, prompts, lessons)
        computed, left_out = [], []
        for il, layer in enumerate(layers):  # by what a layer is made of: a layer passed by does not call it
            next(layer.children()).register_forward_hook(lambda *_, il=il: computed.append(il))
        for chosen in (3, 1, 4):
            for layer in sorted(set(range(5)) - set(left_out)):
                computed.clear()
                found = answers.without(layer)
                assert set(computed) == set(range(layer if prompts[0].cache is not None else 0, 5))
                assert found == pytest.approx(mean_loss(routed, prompts, lessons, [*left_out, layer]), rel=1e-5)
            answers.leave_out(chosen)
            left_out.append(chosen)
            assert answers.loss == pytest.approx(mean_loss(routed, prompts, lessons, left_out), rel=1e-5)


def test_orders_cost_what_the_first_layers_do(hf):
    """Of each example, mean over how many are left out; against every example alone."""
    group, orders = examples(5), [[3, 1, 0, 2, 5, 4], [2, 4, 5, 0, 1, 3]]
    routed = make_routed(hf)
    found = costs(routed, [collate(group[:2]), collate(group[2:])], orders, [1, 3], 1.0)
    for row, order in zip(found.tolist(), orders, strict=True):
        for one, cost in zip(group, row, strict=True):
            with torch.no_grad():
                prompts = [routed.read(collate([one]))]
                lessons = [Lesson(prompts[0].batch, routed.logits(prompts[0]), 1.0)]
            expected = [mean_loss(routed, prompts, lessons, order[:depth]) for depth in (1, 3)]
            assert cost == pytest.approx(sum(expected) / 2, rel=1e-4)


def test_a_task_takes_its_own_order_where_it_is_surely_better(tmp_path, monkeypatch, capsys):
    """Layers that do nothing are surely the first to go; an order as good as the one for all is not worth it."""
    useless = [1, 4, 0, 2, 3, 5]
    orders = {"a": useless, "b": [0, 2, 3, 5, 1, 4], "the same": [2, 0, 3, 5, 4, 1], "one": useless, "ab": [2, 0, 3, 5, 1, 4]}
    orders["equal"] = orders["ab"]
    groups = {"a": examples(8), "b": examples(8, 20), "equal": examples(2), "the same": examples(8, 40), "one": examples(1)}
    run = trainer(tmp_path, "run")
    for il in (1, 4):
        run.routed.layers[il].self_attn.o_proj.weight.zero_()
        run.routed.layers[il].mlp.down_proj.weight.zero_()
    run.order_on = [
        Example(task, one.prompt, answer(run.lora, one.prompt, 6)) for task, group in groups.items() for one in group
    ]

    def find(_run, _kind, found, _advance):
        return orders[found[0].task if len({one.task for one in found}) == 1 else "ab"]

    def gain(run, own, shared, found):
        assert own != shared  # nothing to measure
        return measured(run, own, shared, found)

    measured = start.gain_of
    monkeypatch.setattr(start, "find_order", find)
    monkeypatch.setattr(start, "gain_of", gain)
    begin(run, None, False)
    assert run.orders == {"a": useless} | dict.fromkeys(("b", "equal", "one", "the same"), orders["ab"])
    said = capsys.readouterr().err
    assert "a takes its own order: its own gains" in said
    assert "b takes the order for all tasks: its own gains" in said


def test_every_task_has_a_sample():
    group = [Example("b" if i % 3 else "a", [i], [i] * (1 if i % 3 else 50)) for i in range(300)]
    found = sample_by_task(group, 0)
    assert {task: len(some) for task, some in found.items()} == {"a": 13, "b": 96}  # 640 answer tokens, or 96 examples
    assert all(example.task == task for task, some in found.items() for example in some)
    assert found == sample_by_task(group, 0) != sample_by_task(group, 1)


@pytest.mark.parametrize(
    ("settings", "start", "initialised", "found"),
    [
        ({}, None, False, "search"),
        ({}, "influence", False, "influence"),
        ({}, None, True, None),
        ({}, "search", True, "search"),
        ({"layers": "influence"}, None, True, "influence"),
        ({"layers": "search"}, None, False, "search"),
        ({"layers": "even"}, None, False, None),
        ({"max_share": 0.0}, None, False, None),
    ],
)
def test_what_a_run_starts_from(tmp_path, settings, start, initialised, found):
    run = trainer(tmp_path, "run", **settings)
    before = run.routed.bank.weight.detach().clone()
    begin(run, start, initialised)
    assert sorted(run.objective.order) == (list(range(6)) if found else [])
    assert torch.equal(run.routed.bank.weight, before) is (found is None)
    if found:
        name = "t" if found == "search" and run.s.layers == "routers" else "all"
        assert run.orders == {name: find_order(run, found, sample(run.train, 0))}


def test_an_order_is_found_on_examples_of_its_own(tmp_path, monkeypatch):
    others = [Example("u", [1, 2, 3], [4, 5, i]) for i in range(4)]
    run = trainer(tmp_path, "run", order_on=others)
    read = []
    monkeypatch.setattr(
        start, "find_order", lambda _run, _kind, examples, _advance: read.extend(examples) or [5, 4, 3, 2, 1, 0]
    )
    begin(run, None, False)
    assert run.orders == {"u": [5, 4, 3, 2, 1, 0]}
    assert sorted(one.response[2] for one in read) == [0, 1, 2, 3]
    with pytest.raises(TrainingError, match="examples to order layers on"):
        trainer(tmp_path, "run").resume()


def test_a_run_killed_after_the_search_keeps_what_it_found(tmp_path, monkeypatch):
    run = trainer(tmp_path, "run")
    begin(run, "influence", False)
    again = trainer(tmp_path, "run")
    monkeypatch.setattr(start, "find_order", None)
    again.resume()
    assert (again.step, again.orders, again.objective.order) == (0, run.orders, run.orders["all"])
    assert torch.equal(again.routed.bank.bias, run.routed.bank.bias)
