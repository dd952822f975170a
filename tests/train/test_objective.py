"""The losses of a batch: shares, targets, and the layers that passes skip."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from training import examples, make_routed

from first_cpp.skip import fixed_layers
from first_cpp.train.batch import collate
from first_cpp.train.dense_outputs import Outputs
from first_cpp.train.losses import AnswerLoss, RecordedLoss, answer_cross_entropy
from first_cpp.train.objective import Objective, below_half, skip_shares
from first_cpp.train.router_bank import lowest
from first_cpp.train.settings import Settings


def only(objective, batch):
    """Loss and share of an objective with one pass a batch."""
    (one,) = objective.passes(batch, 0)
    return one


def test_shares_follow_the_settings():
    for step in range(200):
        dense, low, high = skip_shares(step, 1000, Settings(max_share=0.4))
        assert dense == 0 <= low <= 0.2 <= high <= 0.4
    one = [skip_shares(step, 1000, Settings(max_share=0.4, passes=1)) for step in range(1000)]
    assert {len(shares) for shares in one} == {1}
    assert 0.18 < sum(shares[0] for shares in one) / 1000 < 0.22
    assert skip_shares(3, 10, Settings(max_share=0)) == [0.0]
    assert skip_shares(5, 10, Settings(seed=1)) == skip_shares(5, 10, Settings(seed=1)) != skip_shares(5, 10, Settings(seed=2))


def test_every_answer_counts_the_same(hf):
    """The loss of a batch is the mean of its rows' losses, whatever their lengths."""
    objective = Objective(make_routed(hf), Settings(max_share=0.0), 1)
    group = examples(4)
    alone = [float(only(objective, collate([example]))[0].detach()) for example in group]
    assert float(only(objective, collate(group))[0].detach()) == pytest.approx(sum(alone) / 4, abs=1e-4)


def test_distillation_is_kl_to_the_dense_output(hf):
    from scipy.stats import entropy

    routed = make_routed(hf)
    group = examples(3)
    prefilled = routed.prefill(collate(group))
    dense, other = routed.answer_logits(prefilled), routed.answer_logits(prefilled, (~lowest(prefilled.keep, 3)).float())
    found = (AnswerLoss(prefilled.batch, dense, 0.5)(other) - answer_cross_entropy(other, prefilled.batch)) / 0.5
    for row, example in enumerate(group):
        p, q = (x[row, : len(example.response)].detach().softmax(-1).numpy() for x in (dense, other))
        assert float(found[row]) == pytest.approx(float(np.mean(entropy(p, q, axis=1))), rel=1e-3, abs=1e-6)
    same = AnswerLoss(prefilled.batch, dense, 0.5)(dense) - answer_cross_entropy(dense, prefilled.batch)
    assert float(same.detach().abs().max()) < 1e-6
    kl_only = AnswerLoss(prefilled.batch, dense, 0.5, kl_only=True)(other) / 0.5
    torch.testing.assert_close(kl_only, found, rtol=1e-3, atol=1e-5)


def recorded(logits, tokens_of, k):
    """What a dense model would have recorded, of logits [b, a, v] of a batch."""
    rows = [logits[row, : len(tokens)].detach().log_softmax(-1).topk(k) for row, tokens in enumerate(tokens_of)]
    return [Outputs(row.indices.int().numpy(), row.values.numpy()) for row in rows]


def test_recorded_outputs_are_matched_by_kl(hf):
    """Of the whole vocabulary it is the KL of the outputs; of a part, that of the part and the rest as one."""
    from scipy.stats import entropy

    routed, group = make_routed(hf), examples(3)
    prefilled = routed.prefill(collate(group))
    dense, other = routed.answer_logits(prefilled), routed.answer_logits(prefilled, (~lowest(prefilled.keep, 3)).float())
    for k in (dense.shape[-1], 5):
        batch = dataclasses.replace(prefilled.batch, outputs=recorded(dense, [one.response for one in group], k))
        found = RecordedLoss(batch, 0.5)(other) / 0.5
        for row, example in enumerate(group):
            p, q = (x[row, : len(example.response)].detach().double().softmax(-1).numpy() for x in (dense, other))
            top = np.argsort(-p, axis=1)[:, :k]
            p, q = (np.take_along_axis(x, top, 1) for x in (p, q))
            if k == 5:
                p, q = (np.concatenate([x, 1 - x.sum(1, keepdims=True)], 1) for x in (p, q))
            assert float(found[row].detach()) == pytest.approx(float(np.mean(entropy(p, q, axis=1))), rel=1e-3, abs=1e-5)
        assert float(RecordedLoss(batch)(dense).detach().abs().max()) < 1e-5


def test_a_run_taught_by_recorded_outputs_has_no_teacher(hf):
    """All passes match them: of a model that gives the same, the first one has nothing to learn."""
    routed, group = make_routed(hf), examples(3)
    prefilled = routed.prefill(collate(group))
    dense = routed.answer_logits(prefilled)
    own = recorded(dense, [one.response for one in group], 8)
    group = [dataclasses.replace(one, outputs=outputs) for one, outputs in zip(group, own, strict=True)]
    objective = Objective(routed, Settings(teacher="answers", layers="even", max_share=0.5, passes=2), 1)
    (first, _), (second, share) = objective.passes(collate(group), 0)
    assert abs(float(first.detach())) < 1e-5
    assert share > 0
    assert float(second.detach()) > 0.01


@pytest.mark.parametrize("kind", ["search", "influence", "given", "even", "random", "last"])
def test_fixed_layers_are_the_same_for_all_prompts(hf, kind):
    """What the baselines train: the set of `skip.fixed_layers`, nothing for the routers to learn."""
    routed = make_routed(hf)
    order = [1, 3, 0, 2, 5, 4]
    objective = Objective(routed, Settings(layers=kind), 1, order)
    chosen = objective.skipped_layers(torch.rand(3, 6), 0.34)
    assert [tuple(torch.nonzero(row).flatten().tolist()) for row in chosen] == [fixed_layers(kind, 0.34, 6, order)] * 3
    assert objective.learns(0) == (False, True)
    shares = []
    for loss, share in objective.passes(collate(examples(3)), 0):
        shares.append(share)
        if share:
            loss.backward()
    assert shares[0] == 0 < shares[1] < shares[2] < 0.5
    assert routed.bank.weight.grad is None


def test_two_step_keeps_a_layer_and_weighs_by_probability(hf):
    assert below_half(torch.tensor([[0.1, 0.3, 0.2], [0.6, 0.4, 0.5]])).tolist() == [[True, False, True], [False, True, False]]
    routed = make_routed(hf)
    batch = collate(examples(3))
    objective = Objective(routed, Settings(recipe="two-step", alpha=0.5, regulariser=0.25), 10)
    p = routed.prefill(batch).keep
    plain = Objective(routed, Settings(recipe="two-step", alpha=0.0, regulariser=0.0), 10)
    expected = only(plain, batch)[0] + 0.5 * p.mean() + 0.25 * (p * (1 - p)).mean()
    torch.testing.assert_close(only(objective, batch)[0], expected)
