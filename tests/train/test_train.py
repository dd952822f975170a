"""The training loop resumes exactly, learns what is there to learn, and refuses what cannot work."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import reference
import torch
from helpers import tokens
from training_parts import answer, examples, make_routed, trainer

from first_cpp.errors import MissingFileError, ModelFileError
from first_cpp.gguf.synthetic import SHAPES
from first_cpp.skip import fixed_layers
from first_cpp.train.data import Example
from first_cpp.train.loop import Trainer, TrainingError, native_precision, read_scores, validate
from first_cpp.train.model import add_lora, decoder_layers, linear_names, start_from
from first_cpp.train.objective import Lesson, Objective, Settings, answer_loss, below_half, shares_of
from first_cpp.train.result import share_below_half
from first_cpp.train.rule import Routed, RouterBank, collate, lowest
from first_cpp.train.start import begin

# -- the loop ------------------------------------------------------------------------------------------------------


def test_resumed_run_ends_as_an_unbroken_one(tmp_path, monkeypatch):
    whole = trainer(tmp_path, "whole")
    whole.run([], quiet=True)
    broken = trainer(tmp_path, "broken")
    update = Trainer._update

    def dies(self):
        if self.step == 7:
            raise KeyboardInterrupt
        update(self)

    monkeypatch.setattr(Trainer, "_update", dies)
    with pytest.raises(KeyboardInterrupt):
        broken.run([], quiet=True)
    monkeypatch.undo()
    again = trainer(tmp_path, "broken")
    again.resume()
    assert again.step == 6
    again.run([], quiet=True)
    for one, two in zip(whole.parameters, again.parameters, strict=True):
        assert torch.equal(one, two)
    rows = [[line.split(",")[:3] for line in (tmp_path / name / "log.csv").read_text().split()] for name in ("whole", "broken")]
    assert rows[0] == rows[1]


def test_a_run_that_stops_early_goes_on_as_an_unbroken_one(tmp_path):
    whole, part = trainer(tmp_path, "whole"), trainer(tmp_path, "part")
    whole.run([], quiet=True)
    part.run([], quiet=True, stop_after=4)
    assert part.step == 4
    again = trainer(tmp_path, "part")
    again.resume()
    again.run([], quiet=True)
    assert again.step == whole.step
    for one, two in zip(whole.parameters, again.parameters, strict=True):
        assert torch.equal(one, two)


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


def test_resume_keeps_the_order_of_layers(tmp_path):
    run = trainer(tmp_path, "run", layers="search")
    begin(run, None, False)
    run.run([], quiet=True, stop_after=2)
    again = trainer(tmp_path, "run", layers="search")
    again.resume()
    assert again.objective.order == run.objective.order != []


def test_bf16_training_is_close_to_float32(tmp_path):
    assert native_precision() in ("bf16", "float32")
    one, two = (trainer(tmp_path, precision, precision=precision, epochs=0.3) for precision in ("float32", "bf16"))
    losses = [run._learn()[0] for run in (one, two)]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    two.run([], quiet=True)
    assert all(p.dtype == torch.float32 for p in two.parameters)


def test_resume_of_another_run_is_refused(tmp_path):
    trainer(tmp_path, "a", epochs=0.5).run([], quiet=True)
    with pytest.raises(TrainingError, match="other settings: seed"):
        trainer(tmp_path, "a", epochs=0.5, seed=1).resume()
    with pytest.raises(TrainingError, match="no checkpoint"):
        trainer(tmp_path, "b").resume()
    other = trainer(tmp_path, "a", epochs=0.5)
    other.routed.temperature = 0.2
    with pytest.raises(TrainingError, match=r"other settings: temperature$"):
        other.resume()
    other = trainer(tmp_path, "a", epochs=0.5)
    other.train = other.train[1:]
    with pytest.raises(TrainingError, match=r"other settings: examples$"):
        other.resume()
    other = trainer(tmp_path, "a", epochs=0.5)
    other.parameters.append(torch.zeros(3))
    with pytest.raises(TrainingError, match=r"other settings: rank or model$"):
        other.resume()


def test_logs_hold_one_run(tmp_path):
    """Neither what was written after the checkpoint, nor what a run that left none wrote."""
    valid = examples(4, seed=70)
    run = trainer(tmp_path, "run", epochs=0.5)
    run.run(valid, validate_every=2, quiet=True)
    path = tmp_path / "run" / "valid.jsonl"
    whole = [line["step"] for line in map(json.loads, path.read_text().splitlines())]
    assert whole == [2, 4, 5]
    run.step = 3
    run.save()
    log = tmp_path / "run" / "log.csv"
    logged = log.read_bytes().splitlines(keepends=True)
    assert len(logged) == 1 + 5
    log.write_bytes(b"".join([*logged, b"1"]))  # of a row 10, killed
    again = trainer(tmp_path, "run", epochs=0.5)
    again.resume()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [2]
    assert log.read_bytes().splitlines(keepends=True) == logged[:4]
    log.write_bytes(b"step,lo")  # killed amid the very first
    again.resume()
    again._log(4, 1.0, 0.5, 2.0)
    assert log.read_bytes().splitlines(keepends=True) == [logged[0], b"4,1.000000,0.5000,2.0\r\n"]
    again.start_log()
    assert not path.exists()
    assert not log.exists()


def test_a_run_starts_from_an_earlier_one(tmp_path):
    from safetensors.torch import save_file

    torch.manual_seed(3)
    loras, banks = [], []
    for _ in range(2):
        hf = reference.make_model(SHAPES["tiny"], seed=2)
        loras.append(add_lora(hf, decoder_layers(hf), 2, 4))
        banks.append(RouterBank(6, 128, 1e-5))
    for parameter in [*banks[0].parameters(), *(p for p in loras[0].parameters() if p.requires_grad)]:
        torch.nn.init.normal_(parameter, std=0.2)
    with pytest.raises(MissingFileError, match="--init"):
        start_from([str(tmp_path)], loras[1], banks[1])
    save_file(dict(banks[0].state_dict()), tmp_path / "routers.safetensors")
    loras[0].save_pretrained(tmp_path / "adapter")
    start_from([str(tmp_path)], loras[1], banks[1])
    ids = torch.tensor([tokens(9)])
    assert torch.equal(loras[0](ids).logits, loras[1](ids).logits)
    assert torch.equal(banks[0].weight, banks[1].weight)
    hf = reference.make_model(SHAPES["tiny"], seed=2)
    with pytest.raises(ModelFileError, match="another model or LoRA rank"):
        start_from([str(tmp_path)], add_lora(hf, decoder_layers(hf), 4, 8), banks[1])


def test_a_run_starts_from_the_mean_of_earlier_ones(tmp_path):
    """Of LoRA; an order that routers started from has no mean: they are those of the last."""
    from safetensors.torch import save_file

    seen = []
    for seed in range(4):
        torch.manual_seed(seed)
        hf = reference.make_model(SHAPES["tiny"], seed=2)
        lora, bank = add_lora(hf, decoder_layers(hf), 2, 4), RouterBank(6, 128, 1e-5)
        weights = [p for p in lora.parameters() if p.requires_grad]
        if seed < 3:
            for parameter in [*bank.parameters(), *weights]:
                torch.nn.init.normal_(parameter)
            lora.save_pretrained(tmp_path / str(seed) / "adapter")
            save_file(dict(bank.state_dict()), tmp_path / str(seed) / "routers.safetensors")
        else:
            start_from([str(tmp_path / str(run)) for run in range(3)], lora, bank)
        seen.append(([weight.detach().clone() for weight in weights], bank.weight.clone()))
    *runs, (mean, routers) = seen
    for i, weight in enumerate(mean):
        torch.testing.assert_close(weight, sum(one[i] for one, _ in runs) / 3)
    assert torch.equal(routers, runs[2][1])


def test_large_gradients_of_routers_do_not_shrink_those_of_lora(tmp_path):
    hf = reference.make_model(SHAPES["tiny"], seed=2)
    layers = decoder_layers(hf)
    lora = add_lora(hf, layers, 2, 4)
    run = Trainer(Routed(lora, layers, RouterBank(6, 128, 1e-5)), lora, examples(4), Settings(), str(tmp_path))
    for parameter in run.parameters:
        parameter.grad = torch.full_like(parameter, 1e3 if parameter is run.routed.bank.weight else 1e-6)
    seen = []
    run.optimizer.step = lambda: seen.extend(float(p.grad.abs().max()) for p in run.weights)
    run._update()
    assert seen == pytest.approx([1e-6] * len(run.weights))


@pytest.mark.parametrize("gradient", ["keys", "all"])
@pytest.mark.parametrize(("settings", "n"), [({}, 3), ({"passes": 1}, 1), ({"passes": 2}, 2), ({"max_share": 0.0}, 1)], ids=str)
def test_every_pass_is_an_optimizer_step(tmp_path, settings, n, gradient):
    """Routers and LoRA learn; every pass answers with the weights that the one before left, and the rate falls over all."""
    hf = reference.make_model(SHAPES["tiny"], seed=2)
    layers = decoder_layers(hf)
    lora = add_lora(hf, layers, 2, 4)
    bank = RouterBank(6, 128, 1e-5)
    torch.nn.init.normal_(bank.weight, std=0.3)
    routed = Routed(lora, layers, bank, prompt_gradient=gradient)
    run = Trainer(routed, lora, examples(20), Settings(batch_size=4, lr=1e-2, **settings), str(tmp_path))
    start = bank.weight.detach().clone()
    seen, update = [], run._update

    def watched():
        seen.append((run.step, [p.detach().clone() for p in run.weights], any(p.grad is not None for p in bank.parameters())))
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


def test_a_batch_in_parts_has_the_same_gradient(tmp_path):
    whole, parts = (
        trainer(tmp_path, "whole", batch_size=8, accumulate=2),
        trainer(tmp_path, "parts", batch_size=8, accumulate=2),
    )
    parts.objective.s = parts.s = dataclasses.replace(parts.s, part_tokens=60)
    found = [learn_once(run) for run in (whole, parts)]
    assert found[0][:3] == pytest.approx(found[1][:3], rel=1e-4)
    assert found[0][2] == sum(len(e.prompt) + len(e.response) for i in (0, 1) for e in whole._examples(i))
    for one, two in zip(found[0][3], found[1][3], strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path):
    """Each process takes half of a batch's rows, and the weights are those of one process."""
    code = """
import pathlib, sys, torch
from training_parts import trainer
run = trainer(pathlib.Path(sys.argv[1]), "many", epochs=0.5)
assert run.accelerator.num_processes == 2
run.run([], quiet=True)
if run.accelerator.is_main_process:
    torch.save([p.detach() for p in run.parameters], sys.argv[2])
"""
    script, out = tmp_path / "script.py", tmp_path / "weights.pt"
    script.write_text(code)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        str(script),
        str(tmp_path),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run([*command, str(out)], env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    one = trainer(tmp_path, "one", epochs=0.5)
    start = [p.detach().clone() for p in one.parameters]
    one.run([], quiet=True)
    for begun, alone, shared in zip(start, one.parameters, torch.load(out, weights_only=True), strict=True):
        assert not torch.equal(begun, alone)
        torch.testing.assert_close(alone.detach(), shared, rtol=0, atol=1e-4)


def test_nan_loss_stops_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    run = trainer(tmp_path, "nan")
    passes = Objective.passes
    nan = (torch.tensor(math.nan), 0.0)
    monkeypatch.setattr(Objective, "passes", lambda *a: iter([nan]) if run.step == 5 else passes(*a))
    with pytest.raises(TrainingError, match="loss is nan at step 6"):
        run.run([], quiet=True)
    assert torch.load(tmp_path / "nan" / "checkpoint.pt", weights_only=True)["step"] == 3


def only(objective, batch):
    """Loss and share of an objective with one pass a batch."""
    (one,) = objective.passes(batch, 0)
    return one


def test_shares_follow_the_settings():
    for step in range(200):
        dense, low, high = shares_of(step, 1000, Settings(max_share=0.4))
        assert dense == 0 <= low <= 0.2 <= high <= 0.4
    one = [shares_of(step, 1000, Settings(max_share=0.4, passes=1)) for step in range(1000)]
    assert {len(shares) for shares in one} == {1}
    assert 0.18 < sum(shares[0] for shares in one) / 1000 < 0.22
    assert shares_of(3, 10, Settings(max_share=0)) == [0.0]
    assert max(max(shares_of(step, 1000, Settings(curriculum=1.0))) for step in range(100)) < 0.06
    assert shares_of(5, 10, Settings(seed=1)) == shares_of(5, 10, Settings(seed=1)) != shares_of(5, 10, Settings(seed=2))


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
    prompts = routed.read(collate(group))
    dense, other = routed.logits(prompts), routed.logits(prompts, (~lowest(prompts.keep, 3)).float())
    found = (Lesson(prompts.batch, dense, 0.5).loss(other) - answer_loss(other, prompts.batch)) / 0.5
    for row, example in enumerate(group):
        p, q = (x[row, : len(example.response)].detach().softmax(-1).numpy() for x in (dense, other))
        assert float(found[row]) == pytest.approx(float(np.mean(entropy(p, q, axis=1))), rel=1e-3, abs=1e-6)
    same = Lesson(prompts.batch, dense, 0.5).loss(dense) - answer_loss(dense, prompts.batch)
    assert float(same.detach().abs().max()) < 1e-6
    alone = Lesson(prompts.batch, dense, 0.5, alone=True).loss(other) / 0.5
    torch.testing.assert_close(alone, found, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["search", "influence", "given", "even", "random", "last"])
def test_fixed_layers_are_the_same_for_all_prompts(hf, kind):
    """What the baselines train: the set of `policy.fixed_layers`, nothing for the routers to learn."""
    routed = make_routed(hf)
    order = [1, 3, 0, 2, 5, 4]
    objective = Objective(routed, Settings(layers=kind), 1, order)
    chosen = objective.left_out(torch.rand(3, 6), 0.34)
    assert [tuple(torch.nonzero(row).flatten().tolist()) for row in chosen] == [fixed_layers(kind, 0.34, 6, order)] * 3
    assert objective.learns(0) == (False, True)
    shares = []
    for loss, share in objective.passes(collate(examples(3)), 0):
        shares.append(share)
        if share:
            loss.backward()
    assert shares[0] == 0 < shares[1] < shares[2] < 0.5
    assert routed.bank.weight.grad is None


def test_two_step_trains_routers_then_lora(tmp_path):
    hf = reference.make_model(SHAPES["tiny"], seed=2)
    torch.manual_seed(0)
    layers = decoder_layers(hf)
    lora = add_lora(hf, layers, 2, 4)
    routed = Routed(lora, layers, RouterBank(6, 128, 1e-5))
    settings = Settings(recipe="two-step", router_part=0.5, batch_size=4, epochs=1, alpha=20.0, router_lr=0.05)
    run = Trainer(routed, lora, examples(40), settings, str(tmp_path))
    start = [p.detach().clone() for p in run.parameters]
    n_lora, middle = len(run.weights), []
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
    # so high a penalty leaves out all that may be left out, and one layer stays
    assert share_below_half(run.scores()) == pytest.approx(5 / 6)


def test_two_step_keeps_a_layer_and_weighs_by_probability(hf):
    assert below_half(torch.tensor([[0.1, 0.3, 0.2], [0.6, 0.4, 0.5]])).tolist() == [[True, False, True], [False, True, False]]
    routed = make_routed(hf)
    batch = collate(examples(3))
    objective = Objective(routed, Settings(recipe="two-step", alpha=0.5, regulariser=0.25), 10)
    p = routed.read(batch).keep
    plain = Objective(routed, Settings(recipe="two-step", alpha=0.0, regulariser=0.0), 10)
    expected = only(plain, batch)[0] + 0.5 * p.mean() + 0.25 * (p * (1 - p)).mean()
    torch.testing.assert_close(only(objective, batch)[0], expected)


def test_validation_while_training(tmp_path):
    run = trainer(tmp_path, "valid")
    found = run.run(examples(6), validate_every=4)
    rows = [json.loads(line) for line in (tmp_path / "valid" / "valid.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [4, 8, 10]
    assert rows[-1]["loss"]["mean"] == {str(share): loss for share, loss in found["mean"].items()}


def test_validation_is_by_task_and_share(hf):
    objective = Objective(make_routed(hf), Settings(), 1)
    group = [Example(f"t{i % 2}", e.prompt, e.response) for i, e in enumerate(examples(7))]
    found, scores = validate(objective, group, 3, lambda batch: batch)
    assert set(found) == {"mean", "t0", "t1"}
    for share in (0.0, 0.1, 0.25, 0.4):
        assert found["mean"][share] == pytest.approx((found["t0"][share] + found["t1"][share]) / 2)
    alone, _ = validate(objective, group[1::2], 1, lambda batch: batch)
    assert alone["t1"] == pytest.approx(found["t1"], abs=1e-4)
    assert found["mean"][0.4] != found["mean"][0.0]
    assert {task: len(keep) for task, keep in scores.items()} == {"t0": 4, "t1": 3}
    torch.testing.assert_close(
        scores["t1"].sort(0)[0], read_scores(objective.routed, group[1::2], 2, lambda batch: batch)["t1"].sort(0)[0]
    )


def test_a_dense_run_is_validated_dense(hf):
    found, _ = validate(Objective(make_routed(hf), Settings(max_share=0), 1), examples(3), 3, lambda batch: batch)
    assert list(found["mean"]) == [0.0]


def test_learns_to_leave_the_harmless_layers_out(tmp_path):
    """Two of six layers do nothing at all: routers that start from zero find them."""
    hf = reference.make_model(SHAPES["tiny"], seed=2)
    with torch.no_grad():
        for il in (1, 4):
            hf.model.layers[il].self_attn.o_proj.weight.zero_()
            hf.model.layers[il].mlp.down_proj.weight.zero_()
    hf.requires_grad_(False)
    group = examples(32, seed=70)
    answered = [Example("t", e.prompt, answer(hf, e.prompt, 6)) for e in group]
    routed = Routed(hf, decoder_layers(hf), RouterBank(6, 128, 1e-5))
    settings = Settings(batch_size=8, epochs=20, router_lr=0.02)
    Trainer(routed, hf, answered, settings, str(tmp_path)).run([], quiet=True)
    chosen = lowest(routed.scores(collate(answered)), 2).float().mean(0)
    assert chosen[[1, 4]].min() > 0.75
    assert chosen[[0, 2, 3, 5]].max() < 0.25


ARCHITECTURES = {
    "llama": ("LlamaConfig", {}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 16}),
    "gemma2": ("Gemma2Config", {"head_dim": 16, "sliding_window": 4}),
    "gemma3": ("Gemma3TextConfig", {"head_dim": 16, "sliding_window": 4}),
    "phi3": ("Phi3Config", {"pad_token_id": 0}),
    "mistral": ("MistralConfig", {"sliding_window": 4}),
    "qwen35": ("Qwen3_5TextConfig", {"head_dim": 16, "layer_types": ["full_attention", "linear_attention"] * 2}),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures(name):
    """The masked pass of every architecture: nothing left out is dense; a layer left out equals the model without it."""
    import transformers

    config_name, extra = ARCHITECTURES[name]
    cached = name != "qwen35"  # has a recurrent state
    shape = {"vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
             "num_key_value_heads": 2, "max_position_embeddings": 128, **extra}  # fmt: skip
    torch.manual_seed(0)
    config = getattr(transformers, config_name)(**shape)
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    layers = decoder_layers(model)
    assert len(linear_names(layers)) >= 4
    batch = collate([Example("", [5, 6, 7, 8, 9], [10, 11, 12]), Example("", [5, 6, 7], [20, 21])])
    routed = Routed(model, layers, RouterBank(4, 64, 1e-5))
    prompts = routed.read(batch)
    dense = routed.logits(prompts)
    torch.testing.assert_close(routed.logits(prompts, torch.ones(2, 4)), dense)
    run = torch.tensor([[1.0, 0.0, 1.0, 1.0]] * 2)
    masked = routed.logits(prompts, run)
    assert (masked[:, 1] - dense[:, 1]).abs().max() > 1e-6
    torch.testing.assert_close(masked[:, 0], dense[:, 0])  # predicted by the prompt's last position, which runs all layers
    masked.sum().backward()
    assert layers[0].self_attn.o_proj.weight.grad.abs().sum() > 0  # through the keys and values of the prompt, too
    assert (prompts.cache is not None) is cached
    prompts.cache = None
    torch.testing.assert_close(routed.logits(prompts, run), masked)
