"""The training loop: what a step does to the weights, and that it learns what is there to learn."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import reference
import torch
from training import answer, examples, lora_trainer, trainer

from first_cpp.gguf.synthetic import SHAPES
from first_cpp.train.batch import collate
from first_cpp.train.examples import Example
from first_cpp.train.model import decoder_layers, native_precision
from first_cpp.train.result import share_below_half
from first_cpp.train.routed_model import RoutedModel
from first_cpp.train.router_bank import RouterBank, lowest
from first_cpp.train.settings import Settings
from first_cpp.train.trainer import Trainer


@pytest.mark.parametrize("part", [1.0, 0.4])
def test_the_result_is_the_mean_of_the_last_weights(tmp_path, part):
    """Over updates, three a step, the same after a kill; training goes on from the last weights, not from their mean."""

    def seen(run, stop_after=None):
        update = run._update

        def watched():
            update()
            weights.append([p.detach().clone() for p in run.parameters])

        run._update = watched
        run.run([], quiet=True, stop_after=stop_after)

    weights = []
    run = trainer(tmp_path, "whole", average=part)
    seen(run)
    last = weights[-round(part * 30) :]
    for i, found in enumerate(run.parameters):
        torch.testing.assert_close(found.detach(), torch.stack([one[i] for one in last]).mean(0))
    assert not torch.equal(run.parameters[0], weights[-1][0])
    unbroken, weights = weights, []
    seen(trainer(tmp_path, "part", average=part), stop_after=8)
    for _ in range(2):  # the second has nothing left to do
        again = trainer(tmp_path, "part", average=part)
        again.resume()
        seen(again)
        assert all(torch.equal(one, two) for one, two in zip(run.parameters, again.parameters, strict=True))
    assert all(torch.equal(one, two) for one, two in zip(weights[-1], unbroken[-1], strict=True))


def test_bf16_training_is_close_to_float32(tmp_path):
    assert native_precision() in ("bf16", "float32")
    one, two = (trainer(tmp_path, precision, precision=precision, epochs=0.3) for precision in ("float32", "bf16"))
    losses = [run._learn()[0] for run in (one, two)]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    two.run([], quiet=True)
    assert all(p.dtype == torch.float32 for p in two.parameters)


def test_large_gradients_of_routers_do_not_shrink_those_of_lora(tmp_path):
    run = lora_trainer(tmp_path, Settings(), examples(4))
    for parameter in run.parameters:
        parameter.grad = torch.full_like(parameter, 1e3 if parameter is run.routed.bank.weight else 1e-6)
    seen = []
    run.optimizer.step = lambda: seen.extend(float(p.grad.abs().max()) for p in run.lora_weights)
    run._update()
    assert seen == pytest.approx([1e-6] * len(run.lora_weights))


@pytest.mark.parametrize("gradient", ["keys", "all"])
@pytest.mark.parametrize(("settings", "n"), [({}, 3), ({"passes": 1}, 1), ({"passes": 2}, 2), ({"max_share": 0.0}, 1)], ids=str)
def test_every_pass_is_an_optimizer_step(tmp_path, settings, n, gradient):
    """Routers and LoRA learn; every pass answers with the weights that the one before left, and the rate falls over all."""
    bank = RouterBank(6, 128, 1e-5)
    torch.nn.init.normal_(bank.weight, std=0.3)
    run = lora_trainer(tmp_path, Settings(batch_size=4, lr=1e-2, **settings), examples(20), bank, prompt_gradient=gradient)
    start = bank.weight.detach().clone()
    seen, update = [], run._update

    def watched():
        routers_learn = any(p.grad is not None for p in bank.parameters())
        seen.append((run.step, [p.detach().clone() for p in run.lora_weights], routers_learn))
        update()

    run._update = watched
    run.run([], quiet=True)
    assert [step for step, _, _ in seen] == [step for step in range(5) for _ in range(n)]
    for (_, before, _), (_, after, _) in itertools.pairwise(seen):
        assert not all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    learned = [i for i, (_, _, routers) in enumerate(seen) if routers]  # none where a share is less than half a layer
    assert all(i % n == n - 1 for i in learned)
    assert bool(learned) is (settings.get("max_share") != 0.0)
    assert torch.equal(start, bank.weight) is not bool(learned)
    assert run.schedule.get_last_lr()[0] == pytest.approx(1e-3, rel=0.01)


def learn_once(run):
    """A step's loss, share and tokens, and the gradients of its last update, those of the routers."""
    gradients, update = [], run._update

    def watched():
        gradients[:] = [p.grad.clone() for p in run.parameters if p.grad is not None]
        update()

    run._update = watched
    return (*run._learn(), gradients)


def test_micro_batches_have_the_same_gradient(tmp_path):
    whole, parts = (
        trainer(tmp_path, "whole", batch_size=8, accumulate=2),
        trainer(tmp_path, "parts", batch_size=8, accumulate=2),
    )
    parts.objective.settings = parts.settings = dataclasses.replace(parts.settings, part_tokens=60)
    found = [learn_once(run) for run in (whole, parts)]
    assert found[0][:3] == pytest.approx(found[1][:3], rel=1e-4)
    assert found[0][2] == sum(len(e.prompt) + len(e.response) for i in (0, 1) for e in whole.batch_examples(i))
    for one, two in zip(found[0][3], found[1][3], strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-6)


def test_two_step_trains_routers_then_lora(tmp_path):
    settings = Settings(recipe="two-step", router_part=0.5, batch_size=4, epochs=1, alpha=20.0, router_lr=0.05)
    run = lora_trainer(tmp_path, settings, examples(40))
    start = [p.detach().clone() for p in run.parameters]
    n_lora, middle = len(run.lora_weights), []
    update = run._update

    def watched():
        update()
        if run.step + 1 == run.n_steps // 2:
            middle.extend(p.detach().clone() for p in run.parameters)

    run._update = watched
    run.run([], quiet=True)
    same = [[torch.equal(a, b) for a, b in zip(x, y, strict=True)] for x, y in ((start, middle), (middle, run.parameters))]
    assert all(same[0][:n_lora])
    assert not any(same[0][n_lora:])
    assert not all(same[1][:n_lora])
    assert all(same[1][n_lora:])
    # so high a penalty skips all layers but the one that must stay
    assert share_below_half(run.scores()) == pytest.approx(5 / 6)


@pytest.mark.slow
def test_learns_to_skip_the_harmless_layers(tmp_path):
    """Two of six layers do nothing at all: routers that start from zero find them."""
    hf = reference.make_model(SHAPES["tiny"], seed=2)
    with torch.no_grad():
        for il in (1, 4):
            hf.model.layers[il].self_attn.o_proj.weight.zero_()
            hf.model.layers[il].mlp.down_proj.weight.zero_()
    hf.requires_grad_(False)
    group = examples(32, seed=70)
    answered = [Example("t", e.prompt, answer(hf, e.prompt, 6)) for e in group]
    routed = RoutedModel(hf, decoder_layers(hf), RouterBank(6, 128, 1e-5))
    settings = Settings(batch_size=8, epochs=20, router_lr=0.02)
    Trainer(routed, hf, answered, settings, str(tmp_path)).run([], quiet=True)
    chosen = lowest(routed.scores(collate(answered)), 2).float().mean(0)
    assert chosen[[1, 4]].min() > 0.75
    assert chosen[[0, 2, 3, 5]].max() < 0.25
