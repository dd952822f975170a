"""Training follows inference's rule, resumes exactly, and refuses bad data by file and line."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import reference
import torch
from helpers import greedy, tokens
from safetensors.torch import load_file

from convert.embed import write_sidecar
from first_cpp.cli import main
from first_cpp.errors import MissingFileError, ModelFileError
from first_cpp.policy import fixed_layers
from first_cpp.synthetic import SHAPES
from first_cpp.training.data import DataError, Example, batches, draw, encode_prompt, in_parts, read_examples
from first_cpp.training.loop import Trainer, TrainingError, native_precision, validate
from first_cpp.training.model import add_lora, decoder_layers, linear_names, start_from
from first_cpp.training.objective import Lesson, Objective, Settings, answer_loss, below_half, shares_of
from first_cpp.training.result import share_below_half
from first_cpp.training.rule import Routed, RouterBank, collate, lowest
from first_cpp.training.search import mean_loss, removal_order
from first_cpp.training.start import begin, find_order, mean_inputs, ridge, sample, sample_by_task, teach_orders


class Words:
    """A tokenizer of words, enough for the data checks."""

    chat_template = None
    eos_token_id = 2

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [3 + len(word) % 300 for word in text.split()]}


@pytest.fixture
def hf():
    return reference.make_model(SHAPES["tiny"], seed=2)


def make_routed(hf, seed=0, **settings):
    torch.manual_seed(seed)
    bank = RouterBank(6, 128, 1e-5)
    torch.nn.init.normal_(bank.weight, std=0.3)
    return Routed(hf, decoder_layers(hf), bank, **settings)


def examples(n, seed=0):
    rng = np.random.default_rng(seed)
    return [
        Example("t", tokens(int(rng.integers(5, 20)), seed=seed + i), tokens(int(rng.integers(2, 9)), seed=900 + i))
        for i in range(n)
    ]


# -- the rule ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 3, 5])
@pytest.mark.parametrize("gradient", ["all", "keys"])
def test_masked_forward_is_decoding_with_layers_left_out(hf, count, gradient):
    """One padded batch in one pass gives the logits of the reference, which decodes token by token with a cache."""
    group = [*examples(3), Example("t", tokens(1), tokens(4, seed=5))]
    routed = make_routed(hf, prompt_gradient=gradient)
    batch = collate(group)
    prompts = routed.read(batch)
    keep = prompts.keep.detach()
    left_out = lowest(keep, count)
    run = routed.straight_through(prompts.keep, left_out)
    found = routed.logits(prompts, run).detach().numpy()
    prompts.cache = None  # models whose state is more than keys and values read the prompt again
    np.testing.assert_allclose(routed.logits(prompts, run).detach().numpy(), found, rtol=0, atol=1e-5)
    routed.remove()
    for row, example in enumerate(group):
        skipped = set(torch.nonzero(left_out[row]).flatten().tolist())
        expected = reference.run(hf, example.prompt, example.response[:-1], skipped)
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
    prompts = routed.read(batch)
    left_out = lowest(prompts.keep.detach(), 3)
    routed.logits(prompts, routed.straight_through(prompts.keep, left_out)).sum().backward()
    assert routed.bank.weight.grad.abs().sum() > 0
    routed.bank.zero_grad()
    Objective(routed, Settings(max_share=0), 1).loss(batch, 0)[0].backward()
    assert routed.bank.weight.grad is None or not routed.bank.weight.grad.any()


def test_straight_through_gradient_is_the_slope_at_the_border(hf):
    """Forward 0 and 1; backward, a score near the border moves its layer's update as the sigmoid there does."""
    routed = make_routed(hf)
    keep = torch.tensor([[0.9, 0.40, 0.50, 0.1, 0.8, 0.7]], requires_grad=True)
    run = routed.straight_through(keep, lowest(keep.detach(), 2))
    assert run.tolist() == [[1, 0, 1, 0, 1, 1]]
    run[0, 1].backward()
    y = 1 / (1 + math.exp(0.05 / 0.05))  # the border is 0.45, the temperature 0.05
    slope = y * (1 - y) / 0.05
    np.testing.assert_allclose(keep.grad[0], [-slope / 6, slope * 5 / 6, *[-slope / 6] * 4], rtol=1e-5)


def test_scores_do_not_rise_all_together(hf):
    """Only differences choose: a gradient that wants every layer to run moves no score's mean."""
    routed = make_routed(hf)
    prompts = routed.read(collate(examples(3)))
    prompts.keep.retain_grad()
    run = routed.straight_through(prompts.keep, lowest(prompts.keep.detach(), 3))
    (run * torch.rand(3, 6)).sum().backward()
    assert prompts.keep.grad.abs().max() > 0.1
    np.testing.assert_allclose(prompts.keep.grad.sum(1), 0, atol=1e-5)


def test_prompts_teach_their_keys_and_values(hf):
    """Same logits and scores; beneath keys and values, no gradient from prompt positions but the last."""
    found = {}
    for gradient in ("all", "keys"):
        model = reference.make_model(SHAPES["tiny"], seed=2)
        routed = make_routed(model, prompt_gradient=gradient)
        prompts = routed.read(collate(examples(3)))
        logits = routed.logits(prompts, (~lowest(prompts.keep, 2)).float())
        logits.pow(2).sum().backward()
        found[gradient] = (logits, prompts.keep, [layer.self_attn for layer in model.model.layers])
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
        found = bank.sum(3, hidden, mask)
    assert torch.equal(found, bank.sum(3, hidden.float(), mask))


# -- where routers start -------------------------------------------------------------------------------------------


def test_routers_start_from_one_order_for_all(tmp_path):
    run = trainer(tmp_path, "run")
    order = [4, 0, 5, 2, 1, 3]
    teach_orders(run, {"t": order}, {"t": examples(3)})
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
    teach_orders(run, orders, {"10": kind(10, 1), "200": kind(200, 2)})
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
    found = mean_inputs(hf, decoder_layers(hf), bank, group, "cpu")
    for row, example in enumerate(group):
        states = hf(torch.tensor([example.prompt]), output_hidden_states=True).hidden_states
        torch.testing.assert_close(found[row, 2], bank.normed(states[2][0]).mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("distill", [0.0, 1.0])
def test_search_is_greedy_by_the_loss_of_answers(hf, distill):
    """Against the plain search, which tries every layer in every round; layers that do nothing come first."""
    with torch.no_grad():
        for il in (1, 4):
            hf.model.layers[il].self_attn.o_proj.weight.zero_()
            hf.model.layers[il].mlp.down_proj.weight.zero_()
    group = examples(6)
    answered = [Example("t", e.prompt, answer(hf, e.prompt, 6)) for e in group]
    routed, chosen = make_routed(hf), []
    found = removal_order(routed, [collate(answered[:3]), collate(answered[3:])], 4, distill)
    assert sorted(found) == list(range(6))
    assert set(found[:2]) == {1, 4}
    prompts = [routed.read(collate(answered))]
    lessons = [Lesson(prompts[0].batch, routed.logits(prompts[0]), distill)]
    for layer in found[:4]:
        loss = {il: mean_loss(routed, prompts, lessons, [*chosen, il]) for il in range(6) if il not in chosen}
        assert loss[layer] <= min(loss.values()) + 0.02  # costs grow with what is left out, nearly always
        chosen.append(layer)


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
    orders = begin(run, start, initialised)
    assert sorted(run.objective.order) == (list(range(6)) if found else [])
    assert torch.equal(run.routed.bank.weight, before) is (found is None)
    if found:
        name = "t" if found == "search" and run.s.layers == "routers" else "all"
        assert orders == {name: find_order(run, found, sample(run.train, 0))}


def test_padding_changes_nothing(hf):
    routed = make_routed(hf)
    group = examples(4)

    def logits(some):
        prompts = routed.read(collate(some))
        return routed.logits(prompts, (~lowest(prompts.keep, 2)).float())

    whole = logits(group)
    for row, example in enumerate(group):
        torch.testing.assert_close(whole[row, : len(example.response)], logits([example])[0], rtol=0, atol=1e-4)


def test_answers_of_one_token_depend_on_no_layer_left_out(hf):
    routed = make_routed(hf)
    prompts = routed.read(collate([Example("t", tokens(7), [5]), Example("t", tokens(9), [6])]))
    assert torch.equal(routed.logits(prompts, torch.zeros(2, 6)), routed.logits(prompts))


def test_exact_counts_and_ties():
    assert lowest(torch.tensor([[0.5, 0.5, 0.1, 0.5]]), 2).tolist() == [[True, False, True, False]]
    assert lowest(torch.rand(5, 30), 7).sum(1).tolist() == [7] * 5


# -- data ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"prompt": "a b"}', "2: response is missing"),
        (b'{"prompt": "a", "response": ""}', "2: response is empty"),
        (b'{"prompt": "a", "response": "  "}', "2: response is empty"),
        (b'{"prompt": 3, "response": "b"}', "2: prompt is 3"),
        (b'["a", "b"]', "2: expected an object"),
        (b'{"prompt": "a", ', "2: not JSON"),
        (b'{"prompt": "\xff", "response": "b"}', "2: not UTF-8"),
        (b'{"prompt": "a a a a a a a a a a a", "response": "b"}', "2: the prompt has 11 tokens, at most 10"),
        (b'{"prompt": "a", "response": "b b b b b b"}', "2: the response has 6 tokens, at most 5"),
        (b"", "2: not JSON"),
    ],
)
def test_bad_data_names_file_and_line(tmp_path, line, said):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"prompt": "a", "response": "b"}\n' + line + b"\n")
    with pytest.raises(DataError, match=rf"data\.jsonl:{said}"):
        read_examples([str(path)], Words(), 10, 6)


def test_missing_and_empty_data(tmp_path):
    with pytest.raises(MissingFileError, match=r"none\.jsonl"):
        read_examples(["none.jsonl"], Words(), 10, 6)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match="no examples"):
        read_examples([str(tmp_path / "empty.jsonl")], Words(), 10, 6)


def test_every_epoch_has_every_example_once():
    group = examples(50)
    found = [example for batch in batches(group, 4, 0, 1) for example in batch]
    assert sorted(map(id, found)) == sorted(map(id, group))
    assert [b[0].prompt for b in batches(group, 4, 0, 1)] != [b[0].prompt for b in batches(group, 4, 0, 2)]


@pytest.mark.smollm2
def test_tokens_are_llama_cpps(smollm2, load):
    from transformers import AutoTokenizer

    from first_cpp.demo import chat_prompt

    folder, name = os.path.split(smollm2)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name, local_files_only=True)
    text = "Translate: Hello  wörld\n\nagain 😀 12345"
    assert encode_prompt(tokenizer, text) == chat_prompt(load(smollm2), text)


# -- the loop ------------------------------------------------------------------------------------------------------


def trainer(tmp_path, name, **settings):
    hf = reference.make_model(SHAPES["tiny"], seed=2).requires_grad_(False)
    out = tmp_path / name
    out.mkdir(exist_ok=True)
    values = {"batch_size": 4, "checkpoint": 3, "epochs": 1.0, **settings}
    return Trainer(make_routed(hf), hf, examples(40), Settings(**values), str(out))


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
    losses = [run._gradients()[0] for run in (one, two)]
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
        start_from(str(tmp_path), loras[1], banks[1])
    save_file(dict(banks[0].state_dict()), tmp_path / "routers.safetensors")
    loras[0].save_pretrained(tmp_path / "adapter")
    start_from(str(tmp_path), loras[1], banks[1])
    ids = torch.tensor([tokens(9)])
    assert torch.equal(loras[0](ids).logits, loras[1](ids).logits)
    assert torch.equal(banks[0].weight, banks[1].weight)
    hf = reference.make_model(SHAPES["tiny"], seed=2)
    with pytest.raises(ModelFileError, match="another model or LoRA rank"):
        start_from(str(tmp_path), add_lora(hf, decoder_layers(hf), 4, 8), banks[1])


def test_a_batch_in_parts_has_the_same_gradient(tmp_path):
    whole, parts = (
        trainer(tmp_path, "whole", batch_size=8, accumulate=2),
        trainer(tmp_path, "parts", batch_size=8, accumulate=2),
    )
    parts.objective.s = parts.s = dataclasses.replace(parts.s, part_tokens=60)
    found = [run._gradients() for run in (whole, parts)]
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert found[0][2] == sum(len(e.prompt) + len(e.response) for i in (0, 1) for e in whole._examples(i))
    for one, two in zip(whole.parameters, parts.parameters, strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-3, atol=1e-6)


def test_parts_are_as_large_as_allowed():
    group = [Example("t", [1] * n, [1] * 2) for n in (2, 3, 4, 9, 30, 1)]
    assert [[len(e.prompt) for e in part] for part in in_parts(group, 18)] == [[2, 3, 4], [9], [30], [1]]


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path):
    """Each process takes half of a batch's rows, and the weights are those of one process."""
    code = """
import pathlib, sys, torch
from test_train import trainer
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
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(__file__), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
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
    loss = Objective.loss
    monkeypatch.setattr(Objective, "loss", lambda *a: (torch.tensor(math.nan), 0.0) if run.step == 5 else loss(*a))
    with pytest.raises(TrainingError, match="loss is nan at step 6"):
        run.run([], quiet=True)
    assert torch.load(tmp_path / "nan" / "checkpoint.pt", weights_only=True)["step"] == 3


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
    alone = [float(objective.loss(collate([example]), 0)[0].detach()) for example in group]
    assert float(objective.loss(collate(group), 0)[0].detach()) == pytest.approx(sum(alone) / 4, abs=1e-4)


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


def test_a_limit_draws_tasks_in_equal_parts():
    group = [Example("many" if i % 5 else "few", [i], [0]) for i in range(50)]
    found = draw(group, 30, 3)
    assert [sum(one.task == task for one in found) for task in ("few", "many")] == [10, 20]
    assert found == draw(group, 30, 3) != draw(group, 30, 4)
    assert draw(group, None, 0) == draw(group, 50, 0) == group


@pytest.mark.parametrize("kind", ["search", "influence", "even", "random", "last"])
def test_fixed_layers_are_the_same_for_all_prompts(hf, kind):
    """What the baselines train: the set of `policy.fixed_layers`, nothing for the routers to learn."""
    routed = make_routed(hf)
    order = [1, 3, 0, 2, 5, 4]
    objective = Objective(routed, Settings(layers=kind), 1, order)
    chosen = objective.left_out(torch.rand(3, 6), 0.34)
    assert [tuple(torch.nonzero(row).flatten().tolist()) for row in chosen] == [fixed_layers(kind, 0.34, 6, order)] * 3
    assert objective.learns(0) == (False, True)
    loss, share = objective.loss(collate(examples(3)), 0)
    loss.backward()
    assert 0 < share < 0.5
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
    assert share_below_half(run, examples(10)) == pytest.approx(5 / 6)


def test_two_step_keeps_a_layer_and_weighs_by_probability(hf):
    assert below_half(torch.tensor([[0.1, 0.3, 0.2], [0.6, 0.4, 0.5]])).tolist() == [[True, False, True], [False, True, False]]
    routed = make_routed(hf)
    batch = collate(examples(3))
    objective = Objective(routed, Settings(recipe="two-step", alpha=0.5, regulariser=0.25), 10)
    p = routed.read(batch).keep
    plain = Objective(routed, Settings(recipe="two-step", alpha=0.0, regulariser=0.0), 10).loss(batch, 0)[0]
    expected = plain + 0.5 * p.mean() + 0.25 * (p * (1 - p)).mean()
    torch.testing.assert_close(objective.loss(batch, 0)[0], expected)


def test_validation_while_training(tmp_path):
    run = trainer(tmp_path, "valid")
    found = run.run(examples(6), validate_every=4)
    rows = [json.loads(line) for line in (tmp_path / "valid" / "valid.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [4, 8, 10]
    assert rows[-1]["loss"]["mean"] == {str(share): loss for share, loss in found["mean"].items()}


def test_validation_is_by_task_and_share(hf):
    objective = Objective(make_routed(hf), Settings(), 1)
    group = [Example(f"t{i % 2}", e.prompt, e.response) for i, e in enumerate(examples(7))]
    found = validate(objective, group, 3, lambda batch: batch)
    assert set(found) == {"mean", "t0", "t1"}
    for share in (0.0, 0.1, 0.25, 0.4):
        assert found["mean"][share] == pytest.approx((found["t0"][share] + found["t1"][share]) / 2)
    alone = validate(objective, group[1::2], 1, lambda batch: batch)
    assert alone["t1"] == pytest.approx(found["t1"], abs=1e-4)
    assert found["mean"][0.4] != found["mean"][0.0]


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


def answer(hf, prompt, n):
    ids = torch.tensor([prompt])
    with torch.no_grad():
        for _ in range(n):
            ids = torch.cat([ids, hf(ids).logits[:, -1:].argmax(-1)], 1)
    return ids[0, len(prompt) :].tolist()


# -- the command ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.smollm2
def test_command_from_gguf_to_an_answer(smollm2, tmp_path, load, capsys):
    data, run, side = tmp_path / "data.jsonl", tmp_path / "run", str(tmp_path / "side.gguf")
    records = [{"task": f"t{i % 2}", "prompt": f"Say the number {i}.", "response": f"The number is {i}."} for i in range(8)]
    data.write_text("\n".join(map(json.dumps, records)))
    arguments = ["train", "--model", smollm2, "--data", str(data), "--valid", str(data), "--out", str(run), "--rank", "4",
                 "--batch-size", "4", "--quiet"]  # fmt: skip
    assert main(arguments) == 0, capsys.readouterr().err
    assert {p.name for p in run.iterdir()} >= {"routers.safetensors", "adapter", "train.json", "log.csv", "layers.png"}
    assert load_file(run / "routers.safetensors")["weight"].shape == (30, 576)
    record = json.loads((run / "train.json").read_text())
    assert set(record["valid_loss"]) == {"mean", "t0", "t1"}
    assert set(record["valid_loss"]["mean"]) == {"0.0", "0.1", "0.25", "0.4"}
    write_sidecar(str(run), smollm2, side)
    llm = load(smollm2, routers=side)
    greedy(llm, tokens(20), 2)
    assert len(llm.routing.skipped) == 8
    assert main(arguments) == 2
    assert "holds a run already" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        ["--max-share", "1"],
        ["--skip", "-0.1"],
        ["--batch-size", "0"],
        ["--rank", "-1"],
        ["--epochs", "0"],
        ["--passes", "0"],
        ["--distill", "-1"],
        ["--temperature", "0"],
        ["--recipe", "two-step", "--rank", "0"],
        ["--start", "influence", "--layers", "even"],
        ["--start", "search", "--max-share", "0"],
    ],
)
def test_bad_options_are_refused_before_anything_is_loaded(tmp_path, capsys, change):
    assert main(["train", "--model", "none.gguf", "--data", "none", "--out", str(tmp_path), *change]) == 2
    assert change[0] in capsys.readouterr().err


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
