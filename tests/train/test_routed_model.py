"""Training follows inference's rule: the reference decodes, llama.cpp chooses, and the gradient goes where it should."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
from helpers import greedy, tokens
from training import examples, make_routed

from first_cpp.gguf.embed import write_sidecar
from first_cpp.gguf.synthetic import SHAPES
from first_cpp.train.batch import collate
from first_cpp.train.examples import Example
from first_cpp.train.model import hold_in_bf16
from first_cpp.train.objective import Objective
from first_cpp.train.router_bank import RouterBank, lowest
from first_cpp.train.settings import Settings


@pytest.mark.parametrize("count", [0, 1, 3, 5])
@pytest.mark.parametrize("gradient", ["all", "keys"])
def test_gated_forward_is_decoding_that_skips_layers(hf, count, gradient):
    """One padded batch in one pass gives the logits of the reference, which decodes token by token with a cache."""
    group = [*examples(3), Example("t", tokens(1), tokens(4, seed=5))]
    routed = make_routed(hf, prompt_gradient=gradient)
    batch = collate(group)
    prefilled = routed.prefill(batch)
    keep = prefilled.keep.detach()
    skipped = lowest(keep, count)
    gate = routed.straight_through(prefilled.keep, skipped)
    found = routed.answer_logits(prefilled, gate).detach().numpy()
    prefilled.cache = None  # models whose state is more than keys and values read the prompt again
    np.testing.assert_allclose(routed.answer_logits(prefilled, gate).detach().numpy(), found, rtol=0, atol=1e-5)
    routed.remove()
    for row, example in enumerate(group):
        layers = set(torch.nonzero(skipped[row]).flatten().tolist())
        expected = reference.run(hf, example.prompt, example.response[:-1], layers)
        np.testing.assert_allclose(found[row, : len(expected)], expected, rtol=0, atol=1e-4)
        scores = reference.keep_scores(hf, example.prompt, routed.bank.weight.detach().numpy(), np.zeros(6), 1e-5)
        np.testing.assert_allclose(keep[row], scores, rtol=0, atol=1e-5)


def test_training_and_inference_choose_the_same_layers(hf, tmp_path, load):
    """The routers that training scores with, through safetensors and GGUF, decide the same in llama.cpp."""
    from safetensors.torch import save_file

    routed = make_routed(hf)
    base, routers, side = (str(tmp_path / name) for name in ("base.gguf", "routers.safetensors", "side.gguf"))
    reference.write_gguf(base, hf, SHAPES["tiny"])
    save_file({"weight": routed.bank.weight.detach(), "bias": routed.bank.bias.detach()}, routers, {"norm_eps": "1e-5"})
    write_sidecar(routers, base, side)
    llm = load(base, routers=side, skip=0.5, type_k=0, type_v=0)
    for example in examples(5, seed=40):
        greedy(llm, example.prompt, 2)
        keep = routed.scores(collate([example]))
        np.testing.assert_allclose(llm.routing.keep, keep[0], rtol=0, atol=1e-4)
        assert llm.routing.skipped == tuple(torch.nonzero(lowest(keep, 3)[0]).flatten().tolist())


def test_gradient_reaches_routers_only_through_the_choice(hf):
    routed = make_routed(hf)
    batch = collate(examples(3))
    prefilled = routed.prefill(batch)
    skipped = lowest(prefilled.keep.detach(), 3)
    routed.answer_logits(prefilled, routed.straight_through(prefilled.keep, skipped)).sum().backward()
    assert routed.bank.weight.grad.abs().sum() > 0
    routed.bank.zero_grad()
    next(Objective(routed, Settings(max_share=0), 1).passes(batch, 0))[0].backward()
    assert routed.bank.weight.grad is None or not routed.bank.weight.grad.any()


def test_straight_through_gradient_is_the_slope_at_the_border(hf):
    """Forward 0 and 1; backward, a ramp as steep as a sigmoid's middle, less the mean over the layers that are on it."""
    routed = make_routed(hf)
    keep = torch.tensor([[0.9, 0.40, 0.50, 0.1, 0.8, 0.7]], requires_grad=True)
    gate = routed.straight_through(keep, lowest(keep.detach(), 2))
    assert gate.tolist() == [[1, 0, 1, 0, 1, 1]]
    gate[0, 1].backward()
    slope = 1 / (4 * 0.05)  # the temperature is 0.05, the border 0.45: only scores from 0.35 to 0.55 are on the ramp
    np.testing.assert_allclose(keep.grad[0], [0, slope / 2, -slope / 2, 0, 0, 0], rtol=1e-5)


def test_layers_far_from_the_border_keep_their_place(hf):
    """No gradient reaches them, which Adam, however small it were, would make steps of full size of."""
    routed = make_routed(hf, temperature=0.03)
    keep = torch.tensor([[0.9, 0.40, 0.50, 0.3, 0.8, 0.7]], requires_grad=True)
    gate = routed.straight_through(keep, lowest(keep.detach(), 2))
    (gate * torch.rand(1, 6)).sum().backward()
    assert (keep.grad[0] == 0).tolist() == [True, False, False, True, True, True]


def test_scores_do_not_rise_all_together(hf):
    """Only differences choose: a gradient that wants every layer to run moves no score's mean."""
    routed = make_routed(hf)
    prefilled = routed.prefill(collate(examples(3)))
    prefilled.keep.retain_grad()
    gate = routed.straight_through(prefilled.keep, lowest(prefilled.keep.detach(), 3))
    (gate * torch.rand(3, 6)).sum().backward()
    assert prefilled.keep.grad.abs().max() > 0.1
    np.testing.assert_allclose(prefilled.keep.grad.sum(1), 0, atol=1e-5)


def test_prompts_teach_their_keys_and_values(hf):
    """Same logits and scores; beneath keys and values, no gradient from prompt positions but the last."""
    found = {}
    for gradient in ("all", "keys"):
        model = reference.make_model(SHAPES["tiny"], seed=2)
        routed = make_routed(model, prompt_gradient=gradient)
        prefilled = routed.prefill(collate(examples(3)))
        logits = routed.answer_logits(prefilled, (~lowest(prefilled.keep, 2)).float())
        logits.pow(2).sum().backward()
        found[gradient] = (logits, prefilled.keep, [layer.self_attn for layer in model.model.layers])
    for one, two in zip(found["all"][:2], found["keys"][:2], strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-5)
    whole, keys = found["all"][2], found["keys"][2]
    torch.testing.assert_close(whole[5].k_proj.weight.grad, keys[5].k_proj.weight.grad, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(whole[5].v_proj.weight.grad, keys[5].v_proj.weight.grad, rtol=1e-3, atol=1e-4)
    assert keys[0].k_proj.weight.grad.abs().sum() > 0
    assert not torch.allclose(whole[0].k_proj.weight.grad, keys[0].k_proj.weight.grad, rtol=1e-2)


def test_scores_are_float32_in_bf16_training(hf):
    bank = RouterBank(6, 128, 1e-5)
    torch.nn.init.normal_(bank.weight, std=0.3)
    hidden, mask = torch.randn(2, 7, 128).bfloat16(), torch.ones(2, 7, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16):
        found = bank.score_sums(3, hidden, mask)
    assert torch.equal(found, bank.score_sums(3, hidden.float(), mask))


def test_padding_changes_nothing(hf):
    routed = make_routed(hf)
    group = examples(4)

    def logits(some):
        prefilled = routed.prefill(collate(some))
        return routed.answer_logits(prefilled, (~lowest(prefilled.keep, 2)).float())

    whole = logits(group)
    for row, example in enumerate(group):
        torch.testing.assert_close(whole[row, : len(example.response)], logits([example])[0], rtol=0, atol=1e-4)


def test_answers_of_one_token_depend_on_no_skipped_layer(hf):
    routed = make_routed(hf)
    prefilled = routed.prefill(collate([Example("t", tokens(7), [5]), Example("t", tokens(9), [6])]))
    assert torch.equal(routed.answer_logits(prefilled, torch.zeros(2, 6)), routed.answer_logits(prefilled))


def test_exact_counts_and_ties():
    assert lowest(torch.tensor([[0.5, 0.5, 0.1, 0.5]]), 2).tolist() == [[True, False, True, False]]
    assert lowest(torch.rand(5, 30), 7).sum(1).tolist() == [7] * 5


def test_prompts_that_are_not_scored_have_the_same_answers(hf):
    routed, batch = make_routed(hf), collate(examples(3))
    scored = routed.prefill(batch)
    gate = (~lowest(scored.keep, 2)).float()
    wanted = routed.answer_logits(scored, gate)
    routed.scores_prompts = False
    found = routed.prefill(batch)
    assert not found.keep.any()
    assert torch.equal(routed.answer_logits(found, gate), wanted)


def test_weights_held_in_bf16_compute_as_autocast_does():
    """The same numbers, bit for bit: what is saved is their conversion at every use."""
    hf = reference.make_model(SHAPES["tiny"], seed=3)
    batch = collate(examples(3))
    ids, mask = batch.ids, batch.mask.long()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        wanted = hf(input_ids=ids, attention_mask=mask).logits
        hold_in_bf16(hf.requires_grad_(False))
        found = hf(input_ids=ids, attention_mask=mask).logits
    assert torch.equal(found, wanted)
    assert hf.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    assert hf.model.embed_tokens.weight.dtype == hf.model.norm.weight.dtype == torch.float32
