"""Which orders a run starts from: of all tasks or of each, searched or by block influence."""

from __future__ import annotations

import pytest
import torch
from training import answer, examples, trainer

from first_cpp.train import layer_orders
from first_cpp.train.examples import Example
from first_cpp.train.layer_orders import find_order, sample, sample_by_task, start_orders
from first_cpp.train.settings import TrainingError


def test_routers_are_fitted_on_prompts_of_every_task(tmp_path, monkeypatch):
    """As many of each as N_FITTED says, though fewer would fill the sample that the search reads."""
    fitted = []
    monkeypatch.setattr(layer_orders, "N_TOKENS", 1)
    monkeypatch.setattr(layer_orders, "N_FITTED", 5)
    monkeypatch.setattr(layer_orders, "fit_routers", lambda _run, _orders, prompts, _advance: fitted.extend(prompts))
    pool = [Example(task, e.prompt, e.response) for i, task in enumerate("ab") for e in examples(8, seed=i)]
    start_orders(trainer(tmp_path, "run", search_examples=pool), "search", False)
    assert sorted(example.task for example in fitted) == ["a"] * 5 + ["b"] * 5


def test_a_task_takes_its_own_order_where_it_is_surely_better(tmp_path, monkeypatch, capsys):
    """Layers that do nothing are surely the first to be skipped; an order only as good as the shared one is not taken."""
    useless = [1, 4, 0, 2, 3, 5]
    orders = {"a": useless, "b": [0, 2, 3, 5, 1, 4], "the same": [2, 0, 3, 5, 4, 1], "one": useless, "ab": [2, 0, 3, 5, 1, 4]}
    orders["equal"] = orders["ab"]
    groups = {"a": examples(8), "b": examples(8, 20), "equal": examples(2), "the same": examples(8, 40), "one": examples(1)}
    run = trainer(tmp_path, "run")
    for il in (1, 4):
        run.routed.layers[il].self_attn.o_proj.weight.zero_()
        run.routed.layers[il].mlp.down_proj.weight.zero_()
    run.search_examples = [
        Example(task, one.prompt, answer(run.lora, one.prompt, 6)) for task, group in groups.items() for one in group
    ]

    def find(_run, _kind, found, _advance):
        return orders[found[0].task if len({one.task for one in found}) == 1 else "ab"]

    def gain(run, own, shared, found):
        assert own != shared  # nothing to measure
        return measured(run, own, shared, found)

    measured = layer_orders.gain_of
    monkeypatch.setattr(layer_orders, "find_order", find)
    monkeypatch.setattr(layer_orders, "gain_of", gain)
    start_orders(run, None, False)
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
    start_orders(run, start, initialised)
    assert sorted(run.objective.order) == (list(range(6)) if found else [])
    assert torch.equal(run.routed.bank.weight, before) is (found is None)
    if found:
        name = "t" if found == "search" and run.settings.layers == "routers" else "all"
        assert run.orders == {name: find_order(run, found, sample(run.examples, 0))}


def test_an_order_is_found_on_examples_of_its_own(tmp_path, monkeypatch):
    others = [Example("u", [1, 2, 3], [4, 5, i]) for i in range(4)]
    run = trainer(tmp_path, "run", search_examples=others)
    read = []
    monkeypatch.setattr(
        layer_orders, "find_order", lambda _run, _kind, examples, _advance: read.extend(examples) or [5, 4, 3, 2, 1, 0]
    )
    start_orders(run, None, False)
    assert run.orders == {"u": [5, 4, 3, 2, 1, 0]}
    assert sorted(one.response[2] for one in read) == [0, 1, 2, 3]
    with pytest.raises(TrainingError, match="examples to order layers on"):
        trainer(tmp_path, "run").resume()


def test_a_run_killed_after_the_search_keeps_what_it_found(tmp_path, monkeypatch):
    run = trainer(tmp_path, "run")
    start_orders(run, "influence", False)
    again = trainer(tmp_path, "run")
    monkeypatch.setattr(layer_orders, "find_order", None)
    again.resume()
    assert (again.step, again.orders, again.objective.order) == (0, run.orders, run.orders["all"])
    assert torch.equal(again.routed.bank.bias, run.routed.bank.bias)
