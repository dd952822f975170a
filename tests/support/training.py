"""For tests of training: a tiny model with routers and LoRA, examples for it, and a trainer."""

from __future__ import annotations

import numpy as np
import reference
import torch
from helpers import tokens

from first_cpp.gguf.synthetic import SHAPES
from first_cpp.train.examples import Example
from first_cpp.train.model import add_lora, decoder_layers
from first_cpp.train.routed_model import RoutedModel
from first_cpp.train.router_bank import RouterBank
from first_cpp.train.settings import Settings
from first_cpp.train.trainer import Trainer


def make_routed(hf, seed=0, **settings):
    """The model with random routers."""
    torch.manual_seed(seed)
    bank = RouterBank(6, 128, 1e-5)
    torch.nn.init.normal_(bank.weight, std=0.3)
    return RoutedModel(hf, decoder_layers(hf), bank, **settings)


def examples(n, seed=0):
    rng = np.random.default_rng(seed)
    return [
        Example("t", tokens(int(rng.integers(5, 20)), seed=seed + i), tokens(int(rng.integers(2, 9)), seed=900 + i))
        for i in range(n)
    ]


def trainer(tmp_path, name, search_examples=(), model_seed=2, order=(), **settings):
    """Of routers alone: the model is frozen."""
    hf = reference.make_model(SHAPES["tiny"], seed=model_seed).requires_grad_(False)
    out = tmp_path / name
    out.mkdir(exist_ok=True)
    values = {"batch_size": 4, "epochs": 1.0, **settings}
    made = Trainer(make_routed(hf), hf, examples(40), Settings(**values), str(out), order, search_examples)
    made.is_due = lambda: made.step % 3 == 0  # a checkpoint every third step, however fast they are
    return made


def tiny_lora(rank=2, seed=None):
    """The tiny model with a new LoRA (a peft model)."""
    hf = reference.make_model(SHAPES["tiny"], seed=2)
    if seed is not None:
        torch.manual_seed(seed)
    return add_lora(hf, decoder_layers(hf), rank, 2 * rank)


def lora_trainer(out, settings, group, bank=None, **routed_settings):
    """Of LoRA and routers, which are zero unless a bank is given."""
    lora = tiny_lora()
    routed = RoutedModel(lora, decoder_layers(lora), bank or RouterBank(6, 128, 1e-5), **routed_settings)
    return Trainer(routed, lora, group, settings, str(out))


def answer(hf, prompt, n):
    """The model's own greedy answer of n tokens."""
    ids = torch.tensor([prompt])
    with torch.no_grad():
        for _ in range(n):
            ids = torch.cat([ids, hf(ids).logits[:, -1:].argmax(-1)], 1)
    return ids[0, len(prompt) :].tolist()


class Words:
    """A tokenizer of words, enough for the data checks."""

    chat_template = None
    eos_token_id = 2

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [3 + len(word) % 300 for word in text.split()]}


@torch.no_grad()
def mean_loss(routed, prefilled, losses, skipped):
    """Mean loss of the answers with the same layers skipped for all, every layer computed."""
    found = []
    for one, loss in zip(prefilled, losses, strict=True):
        gate = torch.ones_like(one.keep)
        gate[:, list(skipped)] = 0
        found.append(loss(routed.answer_logits(one, gate)))
    return float(torch.cat(found).mean())
