"""The ideas of tools/try_ideas.py do what they say, so that what is measured of them is theirs."""

from __future__ import annotations

import json

import pytest
import reference
import torch
import try_ideas
from training import examples, make_routed, mean_loss, trainer

from first_cpp.gguf.synthetic import SHAPES
from first_cpp.train import layer_orders
from first_cpp.train.batch import collate
from first_cpp.train.examples import Example
from first_cpp.train.losses import AnswerLoss, answer_cross_entropy
from first_cpp.train.model import decoder_layers
from first_cpp.train.objective import Objective
from first_cpp.train.order_search import skip_order
from first_cpp.train.routed_model import RoutedModel
from first_cpp.train.router_bank import RouterBank, lowest
from first_cpp.train.settings import Settings
from first_cpp.train.trainer import Trainer


def bank_of(kind, seed=0):
    torch.manual_seed(seed)
    bank = kind(1, 8, 1e-5)
    torch.nn.init.normal_(bank.weight)
    return bank


@pytest.mark.parametrize("length", [20, 50])
def test_last_tokens_are_scored_alone(length):
    hidden, mask = torch.randn(2, 50, 8), torch.zeros(2, 50, dtype=torch.bool)
    mask[:, 50 - length :] = True
    last = mask.clone()
    last[:, : -try_ideas.LAST] = False
    found = bank_of(try_ideas.LastTokens).score_sums(0, hidden, mask) / mask.sum(1)
    torch.testing.assert_close(found, bank_of(RouterBank).score_sums(0, hidden, last) / last.sum(1))


def test_the_window_that_needs_a_layer_most_counts():
    hidden, mask = torch.randn(1, 16, 8), torch.ones(1, 16, dtype=torch.bool)
    plain = bank_of(RouterBank)
    means = [plain.score_sums(0, hidden[:, i : i + 4], mask[:, i : i + 4]) / 4 for i in range(0, 16, 4)]
    torch.testing.assert_close(bank_of(try_ideas.Windows).score_sums(0, hidden, mask) / 16, torch.stack(means).amax(0))


def test_a_feed_forward_block_left_out_gives_nothing_to_the_answer(hf):
    (example,) = examples(1)
    routed = try_ideas.FeedForward(hf, decoder_layers(hf), make_routed(hf).bank)
    run = torch.ones(1, 6)
    run[:, [1, 4]] = 0
    found = routed.answer_logits(routed.prefill(collate([example])), run)
    routed.remove()
    n = len(example.prompt)

    def silence(_module, _args, update):
        return torch.cat([update[:, :n], torch.zeros_like(update[:, n:])], dim=1)

    for layer in (1, 4):
        hf.model.layers[layer].mlp.register_forward_hook(silence)
    expected = hf(torch.tensor([example.prompt + example.response])).logits[:, n - 1 : -1]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_feed_forward_blocks_are_as_heavy_as_layers(hf, monkeypatch):
    for name in ("layers_for_share", "fixed_layers"):
        monkeypatch.setattr(try_ideas.objective, name, getattr(try_ideas.objective, name))
    layer = decoder_layers(hf)[0]
    all_of_it = sum(m.weight.numel() for m in layer.modules() if isinstance(m, torch.nn.Linear))
    block = sum(m.weight.numel() for m in layer.mlp.modules() if isinstance(m, torch.nn.Linear))
    try_ideas.weigh_alike(layer)
    assert try_ideas.objective.layers_for_share(0.34, 6) == round(2 * all_of_it / block)


def test_stand_ins_fit_what_layers_add(tmp_path):
    """A layer whose update is a constant is stood in for exactly."""
    hf = reference.make_model(SHAPES["tiny"], seed=2).requires_grad_(False)
    layer = hf.model.layers[2]
    layer.register_forward_hook(lambda _module, args, _output: args[0] + 0.5)
    routed = try_ideas.StandIns(hf, decoder_layers(hf), RouterBank(6, 128, 1e-5))
    run = try_ideas.Trainer(routed, hf, examples(8), Settings(), str(tmp_path))
    with torch.no_grad():
        try_ideas.fit_stand_ins(run, examples(8))
    prompts = routed.prefill(collate(examples(3, seed=50)))
    keep = torch.ones(3, 6)
    keep[:, 2] = 0
    torch.testing.assert_close(routed.answer_logits(prompts, keep), routed.answer_logits(prompts), atol=1e-3, rtol=0)


def test_an_order_by_what_layers_cost_alone(hf):
    routed, batches = make_routed(hf), [collate(examples(4))]
    prompts = [routed.prefill(batches[0])]
    losses = [AnswerLoss(batches[0])]
    alone = [mean_loss(routed, prompts, losses, [layer]) for layer in range(6)]
    found = try_ideas._order_alone(skip_order, routed, batches, 3, 0.0)
    assert found == sorted(range(6), key=alone.__getitem__)


def test_an_order_for_a_task_hears_of_the_others(tmp_path):
    run = trainer(tmp_path, "run")
    run.examples = [Example("ab"[i % 2], [i], [0]) for i in range(20)]
    own = [one for one in run.examples if one.task == "a"]
    heard = try_ideas._order_for_all(lambda _trainer, _kind, examples: examples, run, "search", own)
    assert heard[:10] == own
    assert [one.task for one in heard[10:]] == ["b"] * 5


def test_orders_of_earlier_runs_are_known(tmp_path):
    for run, orders in (("tasks", {"a": [1, 0], "b": [0, 1]}), ("shared", {"all": [2, 0]})):
        (tmp_path / run).mkdir()
        (tmp_path / run / "train.json").write_text(json.dumps({"orders": orders}))
    known = try_ideas.known_orders([str(tmp_path / "tasks"), str(tmp_path / "shared")])
    a, b = Example("a", [1], [2]), Example("b", [1], [2])

    def order(*group):
        return try_ideas._known_order(lambda _trainer, _kind, examples: examples, known, None, "search", group)

    assert [order(a, a), order(b), order(a, b)] == [[1, 0], [0, 1], [2, 0]]
    new = Example("new", [1], [2])
    assert order(new) == (new,)  # searched


def test_given_orders_are_not_judged(tmp_path, monkeypatch):
    """A task gets its own order though that is worse than the one for all, which `known` would give it."""
    monkeypatch.setattr(layer_orders, "find_order", layer_orders.find_order)  # put back after the test
    monkeypatch.setattr(layer_orders, "own_or_shared", layer_orders.own_or_shared)
    monkeypatch.setattr(layer_orders, "gain_of", lambda *_: (-1.0, 0.1))
    orders = {"a": [1, 0, 2, 3, 4, 5], "b": [0, 1, 2, 3, 4, 5], "all": [2, 0, 1, 3, 4, 5]}
    (tmp_path / "found").mkdir()
    (tmp_path / "found" / "train.json").write_text(json.dumps({"orders": orders}))
    a, b = ([Example(task, e.prompt, e.response) for e in examples(2, seed=i)] for i, task in enumerate("ab"))
    for idea, expected in (("known", [orders["all"]] * 2), ("given", [orders["a"], orders["b"]])):
        run = trainer(tmp_path, idea, search_examples=[*a, *b])
        try_ideas.apply(idea, [str(tmp_path / "found")])
        layer_orders.start_orders(run, "search", False)
        assert [run.orders["a"], run.orders["b"]] == expected


def test_all_passes_are_one_step():
    """Where no weight changes between passes, they teach the routers the same one after another, and together."""
    routed, batch = make_routed(reference.make_model(SHAPES["tiny"], seed=2)), collate(examples(3))
    gradients, losses = [], []
    for kind in (Objective, try_ideas.OneStep):
        losses.append(0.0)
        routed.bank.zero_grad()
        for loss, share in kind(routed, Settings(), 1).passes(batch, 0):
            assert 0 <= share < 0.5
            losses[-1] += float(loss.detach())
            if loss.requires_grad:
                loss.backward()
        gradients.append(routed.bank.weight.grad.clone())
    assert losses[0] == pytest.approx(3 * losses[1])
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(gradients[0], 3 * gradients[1], rtol=1e-3, atol=1e-6)


def test_half_of_the_answers_borrow_a_choice():
    routed = make_routed(reference.make_model(SHAPES["tiny"], seed=2))
    objective = try_ideas.Borrow(routed, Settings(), 1)
    keep = torch.rand(200, 6)
    own = lowest(keep, 2)
    found = objective.skipped_layers(keep, 2 / 6)
    assert 0.35 < (found == own).all(1).float().mean() < 0.65  # some lend what would be chosen anyway
    assert (found.sum(1) == 2).all()
    with torch.no_grad():
        assert torch.equal(objective.skipped_layers(keep, 2 / 6), own)


def test_a_borrowed_choice_teaches_no_scores():
    routed = make_routed(reference.make_model(SHAPES["tiny"], seed=2))
    routed = try_ideas.OwnChoice(routed.model, routed.layers, routed.bank, temperature=1.0)
    keep = torch.rand(2, 6, requires_grad=True)
    skipped = lowest(keep.detach(), 2)
    skipped[1] = lowest(-keep.detach(), 2)[1]
    (routed.straight_through(keep, skipped) * torch.rand(2, 6)).sum().backward()
    assert keep.grad[0].any()
    assert not keep.grad[1].any()


def test_tails_are_taught_by_the_dense_output_alone(monkeypatch):
    """Beside the loss of the answer, as it is without a tail."""
    group = [Example("t", list(range(3, 40)), [50 + i] * (i + 2)) for i in range(3)]
    monkeypatch.setattr(Trainer, "batch_examples", lambda self, number: group)
    monkeypatch.setattr(try_ideas.objective, "AnswerLoss", AnswerLoss)
    monkeypatch.setattr(try_ideas.objective, "answer_cross_entropy", answer_cross_entropy)
    try_ideas.read_tails()
    tail = try_ideas.TAIL
    batch = collate(Trainer.batch_examples(None, 0))
    assert batch.targets[0, :tail].tolist() == group[0].prompt[-tail:]
    dense, found = torch.randn(2, 3, tail + 4, 100)
    after = collate(group)
    kl = (dense.softmax(-1) * (dense.log_softmax(-1) - found.log_softmax(-1))).sum(-1)[:, :tail].mean(1)
    expected = AnswerLoss(after, dense[:, tail:], 1.0)(found[:, tail:]) + kl
    torch.testing.assert_close(try_ideas.objective.AnswerLoss(batch, dense, 1.0)(found), expected)
    torch.testing.assert_close(
        try_ideas.objective.answer_cross_entropy(found, batch), answer_cross_entropy(found[:, tail:], after)
    )


def test_a_curriculum_lets_shares_grow():
    shares = try_ideas.objective.skip_shares
    for step, part in ((0, 0.02), (24, 0.5), (49, 1.0), (90, 1.0)):
        found = try_ideas._growing_shares(shares, step, 100, Settings())
        assert found == pytest.approx([part * share for share in shares(step, 100, Settings())])


def test_all_weights_learn_from_prompts(monkeypatch):
    monkeypatch.setattr(try_ideas.run_setup, "RoutedModel", RoutedModel)
    try_ideas.apply("all-weights")
    hf = reference.make_model(SHAPES["tiny"], seed=2)
    routed = try_ideas.run_setup.RoutedModel(hf, decoder_layers(hf), RouterBank(6, 128, 1e-5), 0.05)
    assert routed.prompt_gradient == "all"
