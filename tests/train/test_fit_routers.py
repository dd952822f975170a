"""Routers that start from orders of layers, by ridge regression on what they read."""

from __future__ import annotations

import numpy as np
import torch
from training import examples, trainer

from first_cpp.train.batch import collate
from first_cpp.train.examples import Example
from first_cpp.train.fit_routers import fit_routers, mean_inputs, ridge
from first_cpp.train.model import decoder_layers
from first_cpp.train.routed_model import RoutedModel
from first_cpp.train.router_bank import RouterBank, lowest


def test_routers_start_from_one_order_for_all(tmp_path):
    run = trainer(tmp_path, "run")
    order = [4, 0, 5, 2, 1, 3]
    fit_routers(run, {"t": order}, examples(3))
    assert not run.routed.bank.weight.any()
    scores = run.routed.scores(collate(examples(2, seed=50)))
    assert torch.argsort(scores, dim=1).tolist() == [order] * 2
    np.testing.assert_allclose(scores.sort(dim=1).values[0].detach(), np.linspace(0.2, 0.8, 6), rtol=1e-5)


def test_routers_start_from_an_order_for_each_kind_of_prompt(tmp_path):
    """Prompts that no router was fitted on skip the layers of the task that they are like."""

    def kind(low, seed):
        rng = np.random.default_rng(seed)
        return [Example(str(low), rng.integers(low, low + 8, 12).tolist(), [5, 6]) for _ in range(16)]

    run = trainer(tmp_path, "run")
    orders = {"10": [4, 0, 5, 2, 1, 3], "200": [3, 1, 2, 5, 0, 4]}
    read = []
    fit_routers(run, orders, [*kind(10, 1), *kind(200, 2)], read.append)
    assert sum(read) == 32
    for task, order in orders.items():
        chosen = lowest(run.routed.scores(collate(kind(int(task), 3))), 2)
        assert chosen[:, order[:2]].float().mean() > 0.9


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
    routed = RoutedModel(hf, decoder_layers(hf), bank)
    found = mean_inputs(routed, collate(group))
    routed.remove()
    for row, example in enumerate(group):
        states = hf(torch.tensor([example.prompt]), output_hidden_states=True).hidden_states
        torch.testing.assert_close(found[row, 2], bank.normed(states[2][0]).mean(0), rtol=1e-4, atol=1e-5)
