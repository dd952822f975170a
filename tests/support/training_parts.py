"""A tiny model with routers, examples for it, and a trainer."""

from __future__ import annotations

import numpy as np
import reference
import torch
from helpers import tokens

from first_cpp.gguf.synthetic import SHAPES
from first_cpp.train.data import Example
from first_cpp.train.loop import Trainer
from first_cpp.train.model import decoder_layers
from first_cpp.train.objective import Settings
from first_cpp.train.rule import Routed, RouterBank


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


def trainer(tmp_path, name, order_on=(), **settings):
    hf = reference.make_model(SHAPES["tiny"], seed=2).requires_grad_(False)
    out = tmp_path / name
    out.mkdir(exist_ok=True)
    values = {"batch_size": 4, "checkpoint": 3, "epochs": 1.0, **settings}
    return Trainer(make_routed(hf), hf, examples(40), Settings(**values), str(out), order_on=order_on)


def answer(hf, prompt, n):
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
def mean_loss(routed, prompts, lessons, left_out):
    """Mean loss of the answers with the same layers left out for all, every layer computed."""
    losses = []
    for one, lesson in zip(prompts, lessons, strict=True):
        run = torch.ones_like(one.keep)
        run[:, list(left_out)] = 0
        losses.append(lesson.loss(routed.logits(one, run)))
    return float(torch.cat(losses).mean())
