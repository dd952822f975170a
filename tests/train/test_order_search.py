"""The search for an order of layers, by the loss of answers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from training import answer, examples, make_routed, mean_loss
from transformers import AutoModelForCausalLM, BloomConfig, Gemma3TextConfig, LlamaConfig, MambaConfig

from first_cpp.train import order_search
from first_cpp.train.batch import collate
from first_cpp.train.examples import Example
from first_cpp.train.losses import AnswerLoss
from first_cpp.train.model import decoder_layers
from first_cpp.train.order_search import GrowingSet, losses_by_order, skip_order
from first_cpp.train.routed_model import RoutedModel
from first_cpp.train.router_bank import RouterBank


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
    found = skip_order(routed, [collate(answered[:3]), collate(answered[3:])], 4, distill)
    assert sorted(found) == list(range(6))
    assert set(found[:2]) == {1, 4}
    prefilled = [routed.prefill(collate(answered))]
    losses = [AnswerLoss(prefilled[0].batch, routed.answer_logits(prefilled[0]), distill)]

    def loss(skipped):
        return mean_loss(routed, prefilled, losses, skipped)

    for n in range(1, 5):  # what a layer adds grows with what is skipped, nearly always
        others = [loss(list(others)) for others in itertools.combinations(range(6), n)]
        assert sum(other < loss(found[:n]) - 1e-4 for other in others) <= len(others) / 5


def test_search_tries_few_layers_again(hf, monkeypatch):
    """Where layers add to the loss on their own, every round after the first tries one."""
    alone, tried = [0.3, 0.1, 0.6, 0.2, 0.5, 0.4], []

    class Sums(GrowingSet):
        def _read(self, skipped, first):
            tried.append(list(skipped))
            return np.full(2, 1.5 + sum(alone[layer] for layer in skipped)), []

    monkeypatch.setattr(order_search, "GrowingSet", Sums)
    assert skip_order(make_routed(hf), [collate(examples(2))], 3) == [1, 3, 0, 5, 4, 2]
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
    routed = RoutedModel(hf, layers, RouterBank(5, 32, 1e-5))
    with torch.no_grad():
        prefilled = [routed.prefill(collate(examples(3, seed=seed))) for seed in (0, 40)]
        losses = [AnswerLoss(one.batch, routed.answer_logits(one), 1.0) for one in prefilled]
        growing = GrowingSet(routed, prefilled, losses)
        computed, skipped = [], []
        for il, layer in enumerate(layers):  # by what a layer is made of: a skipped layer does not call it
            next(layer.children()).register_forward_hook(lambda *_, il=il: computed.append(il))
        for chosen in (3, 1, 4):
            for layer in sorted(set(range(5)) - set(skipped)):
                computed.clear()
                found = growing.without(layer, 6).mean()
                assert set(computed) == set(range(layer if prefilled[0].cache is not None else 0, 5))
                assert found == pytest.approx(mean_loss(routed, prefilled, losses, [*skipped, layer]), rel=1e-5)
            growing.skip(chosen)
            skipped.append(chosen)
            assert growing.cost(6).mean() == pytest.approx(mean_loss(routed, prefilled, losses, skipped), rel=1e-5)


def test_orders_cost_what_the_first_layers_do(hf):
    """Of each example, mean over how many are skipped; against every example alone."""
    group, orders = examples(5), [[3, 1, 0, 2, 5, 4], [2, 4, 5, 0, 1, 3]]
    routed = make_routed(hf)
    found = losses_by_order(routed, [collate(group[:2]), collate(group[2:])], orders, [1, 3], 1.0)
    for row, order in zip(found.tolist(), orders, strict=True):
        for one, loss in zip(group, row, strict=True):
            with torch.no_grad():
                prefilled = [routed.prefill(collate([one]))]
                losses = [AnswerLoss(prefilled[0].batch, routed.answer_logits(prefilled[0]), 1.0)]
            expected = [mean_loss(routed, prefilled, losses, order[:count]) for count in (1, 3)]
            assert loss == pytest.approx(sum(expected) / 2, rel=1e-4)
