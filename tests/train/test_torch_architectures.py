"""Skipping in PyTorch on every architecture whose layers transformers exposes as a list."""

from __future__ import annotations

import pytest
import torch

from first_cpp.gguf.lora import read_lora
from first_cpp.train.batch import collate
from first_cpp.train.examples import Example
from first_cpp.train.model import add_lora, decoder_layers, linear_names
from first_cpp.train.routed_model import RoutedModel
from first_cpp.train.router_bank import RouterBank

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
    """With nothing skipped the gated pass is dense; a skipped layer changes all answer logits but the first."""
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
    routed = RoutedModel(model, layers, RouterBank(4, 64, 1e-5))
    prefilled = routed.prefill(batch)
    dense = routed.answer_logits(prefilled)
    torch.testing.assert_close(routed.answer_logits(prefilled, torch.ones(2, 4)), dense)
    gate = torch.tensor([[1.0, 0.0, 1.0, 1.0]] * 2)
    masked = routed.answer_logits(prefilled, gate)
    assert (masked[:, 1] - dense[:, 1]).abs().max() > 1e-6
    torch.testing.assert_close(masked[:, 0], dense[:, 0])  # predicted by the prompt's last position, which runs all layers
    masked.sum().backward()
    assert layers[0].self_attn.o_proj.weight.grad.abs().sum() > 0  # through the keys and values of the prompt, too
    assert (prefilled.cache is not None) is cached
    prefilled.cache = None
    torch.testing.assert_close(routed.answer_logits(prefilled, gate), masked)


def test_of_a_model_that_sees_the_layers_that_read_text_are_trained(tmp_path):
    """As of Gemma 3 from 4B on: its vision has layers of the same number and names, for which a GGUF has no place."""
    import transformers

    text = {"vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 16}  # fmt: skip
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 28,
              "patch_size": 14}  # fmt: skip
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    layers = decoder_layers(model)
    assert type(layers[0]).__name__ == "Gemma3DecoderLayer"
    lora = add_lora(model, layers, 2, 4)
    assert decoder_layers(lora) is layers
    routed = RoutedModel(lora, layers, RouterBank(4, 64, 1e-5))
    batch = collate([Example("", [5, 6, 7, 8, 9], [10, 11, 12])])
    routed.answer_logits(routed.prefill(batch), torch.tensor([[1.0, 0.0, 1.0, 1.0]])).sum().backward()
    lora.save_pretrained(tmp_path)
    found = {pair.name for pair in read_lora(str(tmp_path), "gemma3", 4, 4, 2)}
    kinds = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    assert found == {f"blk.{layer}.{kind}.weight" for layer in range(4) for kind in kinds}
