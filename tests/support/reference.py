"""The rule in PyTorch, on transformers' Llama: prompt positions run every layer, answer positions pass by the chosen ones."""

from __future__ import annotations

import numpy as np
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from first_cpp.gguf.synthetic import Shape, write_model


def make_model(shape: Shape, seed: int = 0) -> LlamaForCausalLM:
    """A random float32 Llama of `shape`."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=shape.n_vocab,
        hidden_size=shape.n_embd,
        intermediate_size=shape.n_ff,
        num_hidden_layers=shape.n_layer,
        num_attention_heads=shape.n_head,
        num_key_value_heads=shape.n_head_kv,
        max_position_embeddings=shape.n_ctx,
        rms_norm_eps=shape.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_freq_base},
        initializer_range=0.1,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
    return model


def write_gguf(path: str, model: LlamaForCausalLM, shape: Shape) -> None:
    """The same weights as an F32 GGUF; llama.cpp's Llama wants the rows of q and k in another order (its RoPE pairs
    neighbours, transformers' pairs halves)."""
    weights = {name: value.detach().numpy() for name, value in model.state_dict().items()}

    def rows(w: np.ndarray, n_head: int) -> np.ndarray:
        return w.reshape(n_head, 2, w.shape[0] // n_head // 2, -1).swapaxes(1, 2).reshape(w.shape)

    def tensors():
        yield "token_embd.weight", weights["model.embed_tokens.weight"]
        for il in range(shape.n_layer):
            hf, gg = f"model.layers.{il}.", f"blk.{il}."
            yield gg + "attn_norm.weight", weights[hf + "input_layernorm.weight"]
            yield gg + "attn_q.weight", rows(weights[hf + "self_attn.q_proj.weight"], shape.n_head)
            yield gg + "attn_k.weight", rows(weights[hf + "self_attn.k_proj.weight"], shape.n_head_kv)
            yield gg + "attn_v.weight", weights[hf + "self_attn.v_proj.weight"]
            yield gg + "attn_output.weight", weights[hf + "self_attn.o_proj.weight"]
            yield gg + "ffn_norm.weight", weights[hf + "post_attention_layernorm.weight"]
            for part in ("gate", "up", "down"):
                yield gg + f"ffn_{part}.weight", weights[hf + f"mlp.{part}_proj.weight"]
        yield "output_norm.weight", weights["model.norm.weight"]
        yield "output.weight", weights["lm_head.weight"]

    write_model(path, shape, ((name, w.shape, np.ascontiguousarray(w)) for name, w in tensors()))


@torch.no_grad()
def run(model: LlamaForCausalLM, prompt: list[int], answer: list[int], left_out: set[int]) -> np.ndarray:
    """Logits after the prompt and after each answer token: float32 [1 + len(answer), n_vocab]."""
    cache = DynamicCache(config=model.config)
    rows = [model(torch.tensor([prompt]), past_key_values=cache, use_cache=True).logits[0, -1]]
    for i, token in enumerate(answer):
        position = torch.tensor([[len(prompt) + i]])
        hidden = model.model.embed_tokens(torch.tensor([[token]]))
        rotary = model.model.rotary_emb(hidden, position)
        for il, layer in enumerate(model.model.layers):
            if il not in left_out:
                hidden = layer(
                    hidden,
                    attention_mask=None,
                    position_ids=position,
                    past_key_values=cache,
                    position_embeddings=rotary,
                )
                hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        rows.append(model.lm_head(model.model.norm(hidden))[0, -1])
    return torch.stack(rows).numpy()


@torch.no_grad()
def keep_scores(
    model: LlamaForCausalLM, prompt: list[int], weight: np.ndarray, bias: np.ndarray, norm_eps: float
) -> np.ndarray:
    """Mean over the prompt of sigmoid(w . rmsnorm(h) + b): float64 [n_layer]."""
    states = model(torch.tensor([prompt]), output_hidden_states=True).hidden_states
    keep = []
    for il in range(len(bias)):
        h = states[il][0].double()
        normed = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + norm_eps)
        logit = normed @ torch.from_numpy(weight[il]).double() + float(bias[il])
        keep.append(torch.sigmoid(logit).mean())
    return torch.stack(keep).numpy()
