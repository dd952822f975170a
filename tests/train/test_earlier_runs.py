"""Runs that start from earlier ones: their LoRA and routers."""

from __future__ import annotations

import json

import pytest
import torch
from helpers import tokens
from training import tiny_lora

from first_cpp.errors import MissingFileError, ModelFileError
from first_cpp.train.model import start_from
from first_cpp.train.router_bank import RouterBank


def test_a_run_starts_from_an_earlier_one(tmp_path):
    from safetensors.torch import save_file

    torch.manual_seed(3)
    loras, banks = [], []
    for _ in range(2):
        loras.append(tiny_lora())
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
    with pytest.raises(ModelFileError, match="another model or LoRA rank"):
        start_from([str(tmp_path)], tiny_lora(rank=4), banks[1])


@pytest.mark.parametrize(
    ("change", "said"),
    [({"lora_alpha": 1}, "lora_alpha=1, this run's 4"), ({"use_rslora": True}, "use_rslora=True"),
     ({"alpha_pattern": {"q_proj": 9}}, "alpha_pattern="), (None, "no configuration")],
)  # fmt: skip
def test_an_adapter_that_counts_otherwise_is_no_start(tmp_path, change, said):
    """Its weights alone, under this run's scale, would be another LoRA."""
    tiny_lora().save_pretrained(tmp_path / "adapter")
    start_from([str(tmp_path)], tiny_lora(), None)
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text("[" if change is None else json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelFileError, match=said):
        start_from([str(tmp_path)], tiny_lora(), None)


def test_a_run_starts_from_the_mean_of_earlier_ones(tmp_path):
    """Of LoRA; an order that routers started from has no mean: they are those of the last."""
    from safetensors.torch import save_file

    seen = []
    for seed in range(4):
        lora, bank = tiny_lora(seed=seed), RouterBank(6, 128, 1e-5)
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


def test_a_run_on_sets_goes_on_from_one_on_sets(tmp_path):
    """Such a run has costs of sets for routers: with sets again the LoRA is all that is taken, without them it is said."""
    from safetensors.torch import save_file

    loras = [tiny_lora(seed=0), tiny_lora(seed=1)]
    for parameter in (p for p in loras[0].parameters() if p.requires_grad):
        torch.nn.init.normal_(parameter, std=0.2)
    loras[0].save_pretrained(tmp_path / "adapter")
    save_file({"cost.weight": torch.zeros(3, 5), "cost.bias": torch.zeros(3)}, tmp_path / "routers.safetensors")
    start_from([str(tmp_path)], loras[1], None)
    ids = torch.tensor([tokens(9)])
    assert torch.equal(loras[0](ids).logits, loras[1](ids).logits)
    with pytest.raises(ModelFileError, match="--sets FILE"):
        start_from([str(tmp_path)], loras[1], RouterBank(6, 128, 1e-5))
