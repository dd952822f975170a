"""The hyper-parameters of a tiny model of every architecture: enough layers that each kind of layer occurs."""

from __future__ import annotations

import re

Value = bool | int | float | str | list[int] | list[float] | list[bool]

N_LAYER, N_EMBD, N_HEAD, N_FF, N_VOCAB, N_CTX = 6, 128, 4, 192, 320, 256
HEAD = N_EMBD // N_HEAD

# llama.cpp's names (src/llama-arch.cpp), in its order.
_NAMES = (
    "clip llama llama4 deci falcon grok gpt2 gptj gptneox mpt baichuan starcoder refact bert modern-bert nomic-bert "
    "nomic-bert-moe neo-bert jina-bert-v2 jina-bert-v3 eurobert bloom stablelm qwen qwen2 qwen2moe qwen2vl qwen3 qwen3moe "
    "qwen3next qwen3vl qwen3vlmoe qwen35 qwen35moe qwen4exp phi2 phi3 phimoe plamo plamo2 plamo3 codeshell orion internlm2 "
    "minicpm minicpm3 gemma gemma2 gemma3 gemma3n gemma4 gemma4-assistant gemma-embedding starcoder2 mamba mamba2 maple jamba "
    "falcon-h1 xverse command-r cohere2 cohere2moe dbrx olmo olmo2 olmoe muse-glimmer openelm arctic deepseek deepseek2 "
    "deepseek2-ocr deepseek32 deepseek4 chatglm glm4 glm4moe glm-dsa bitnet t5 t5encoder jais jais2 nemotron nemotron_h "
    "nemotron_h_moe exaone exaone4 exaone-moe rwkv6 rwkv6qwen2 rwkv7 arwkv7 granite granitemoe granitehybrid graniteswitch "
    "granite_swa chameleon wavtokenizer-dec plm bailingmoe bailingmoe2 bailingmoe3 dots1 dots3note arcee afmoe laguna ernie4_5 "
    "ernie4_5-moe hunyuan-moe hunyuan-dense hunyuan_vl hy_v3 hy_v4 smollm3 gpt-oss lfm2 lfm2moe dream smallthinker llada "
    "llada-moe seed_oss grovemoe apertus minimax-01 hrm_text minimax-m2 minimax-m3 cogvlm rnd1 pangu-embedded mistral3 eagle3 "
    "dflash mistral4 paddleocr mimo2 step35 spark2_5 llama-embed maincoder kimi-linear kimi-k3 glm5-next talkie mellum "
    "nanbeige qwen3tts pockettts"
)
ARCHITECTURES = tuple(_NAMES.split())


def _every(n: int, value: int, otherwise: int, n_layer: int = N_LAYER) -> list[int]:
    """`value` for each n-th layer."""
    return [value if layer % n == n - 1 else otherwise for layer in range(n_layer)]


# Keys that an architecture does not know are ignored, so most share one set.
_COMMON: dict[str, Value] = {
    "vocab_size": N_VOCAB,
    "context_length": N_CTX,
    "embedding_length": N_EMBD,
    "block_count": N_LAYER,
    "feed_forward_length": N_FF,
    "attention.head_count": N_HEAD,
    "attention.head_count_kv": 2,
    "attention.layer_norm_epsilon": 1e-5,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "attention.sliding_window": 8,
    "attention.sliding_window_pattern": 2,
    "attention.clamp_kqv": 8.0,
    "attention.max_alibi_bias": 8.0,
    "attention.group_norm_epsilon": 1e-5,
    "attention.group_norm_groups": 8,
    "attention.relative_buckets_count": 8,
    "use_parallel_residual": False,
    "logit_scale": 1.0,
    "residual_scale": 0.8,
    "full_attention_interval": 3,
    "rope.dimension_sections": [HEAD // 8, HEAD // 8, HEAD // 8, HEAD // 8],
    "attention.q_lora_rank": 48,
    "attention.kv_lora_rank": 64,
    "attention.indexer.head_count": N_HEAD,
    "attention.indexer.key_length": 64,
    "attention.indexer.top_k": 16,
    "attention.indexer.block_size": 4,
    "attention.indexer.local_blocks": 1,
    "attention.indexer.kpool": 4,
    "attention.indexer.kpool_select_tail": True,
    "ssm.conv_kernel": 4,
    "ssm.inner_size": 2 * N_EMBD,
    "ssm.state_size": 16,
    "ssm.time_step_rank": N_HEAD,
    "ssm.group_count": 2,
    "kda.head_dim": 32,
    "kda.safe_gate": True,
    "kda.gate_lower_bound": -5.0,
    "shortconv.l_cache": 3,
    "wkv.head_size": HEAD,
    "time_mix_extra_dim": 16,
    "time_decay_extra_dim": 16,
    "token_shift_count": 2,
    "rescale_every_n_layers": 0,
    "attention.decay_lora_rank": 16,
    "attention.iclr_lora_rank": 16,
    "attention.value_residual_mix_lora_rank": 16,
    "attention.gate_lora_rank": 16,
    "hyper_connection.count": 4,
    "hyper_connection.sinkhorn_iterations": 2,
    "hyper_connection.epsilon": 1e-6,
    "hyper_connection.low_rank": 8,
    "hyper_connection.magnitude": 2.0,
    "activation.situ_beta": 4.0,
    "activation.situ_linear_beta": 25.0,
    "attn_res.block_size": 12,
}

_EXPERTS: dict[str, Value] = {
    "expert_count": 4,
    "expert_used_count": 2,
    "expert_feed_forward_length": 96,
    "expert_shared_feed_forward_length": 64,
    "expert_shared_count": 1,
    "expert_gating_func": 2,
    "expert_weights_scale": 1.0,
    "expert_weights_norm": True,
    "expert_group_scale": 1.0,
    "experts_per_group": 1,
    "expert_latent_length": 96,
    "interleave_moe_layer_step": 2,
    "leading_dense_block_count": 1,
    "moe_every_n_layers": 2,
    "swiglu_clamp_exp": 10.0,
}

_WITH_EXPERTS = (
    "llama4 cohere2moe grok qwen2moe qwen3moe qwen3next qwen3vlmoe qwen35moe qwen4exp phimoe dbrx olmoe arctic deepseek "
    "deepseek2 deepseek32 dots3note deepseek4 glm4moe glm-dsa exaone-moe bailingmoe bailingmoe2 bailingmoe3 dots1 afmoe "
    "ernie4_5-moe hunyuan-moe hy_v3 hy_v4 gpt-oss lfm2moe smallthinker llada-moe grovemoe minimax-01 minimax-m2 minimax-m3 "
    "rnd1 mimo2 kimi-linear kimi-k3 glm5-next step35 mistral4 mellum laguna maple granitemoe nomic-bert-moe "
    "nemotron_h_moe deepseek2-ocr jamba"
)

# Attention through a low-rank latent: the cache holds its kv_lora_rank values and the rotated ones.
_LATENT: dict[str, Value] = {
    "attention.head_count_kv": 1,
    "attention.key_length": 80,
    "attention.value_length": 64,
    "attention.key_length_mla": 48,
    "attention.value_length_mla": 32,
    "rope.dimension_count": 16,
}

_RECURRENT_THIRDS: dict[str, Value] = {"attention.head_count_kv": _every(3, 2, 0)}
_ALL_HEADS: dict[str, Value] = {"attention.head_count_kv": N_HEAD}
_ALTERNATING: dict[str, Value] = {"attention.sliding_window_pattern": _every(2, 0, 1)}

_OWN: dict[str, dict[str, Value]] = {}


def _add(names: str, *settings: dict[str, Value]) -> None:
    for name in names.split():
        for values in settings:
            _OWN.setdefault(name, {}).update(values)


_add("deepseek2 deepseek32 glm-dsa dots3note kimi-linear bailingmoe3 kimi-k3 glm5-next hy_v4 mistral4", _LATENT)
_add("jamba plamo2 granitehybrid lfm2 lfm2moe", _RECURRENT_THIRDS)
_add("kimi-linear bailingmoe3 kimi-k3 glm5-next", {"attention.head_count_kv": _every(3, 1, 0)})
_add("cohere2moe mimo2 step35 spark2_5 muse-glimmer granite_swa dots3note maple", _ALTERNATING)
_add(
    "gpt2 starcoder bloom mpt gptneox jais codeshell qwen cogvlm minicpm3 plm olmoe dots1 deepseek2-ocr t5 "
    "t5encoder jina-bert-v2",
    _ALL_HEADS,
)
_add("minicpm3 plm", {"attention.key_length": 48, "attention.value_length": 32, "rope.dimension_count": 16})
_add("glm-dsa hy_v4 dots3note", {"attention.indexer.types": _every(2, 0, 1)})
_add("rwkv6 rwkv7", {"attention.head_count": 0, "attention.head_count_kv": 0, "wkv.head_size": 64})
_add("rwkv6qwen2 arwkv7", {"token_shift_count": 1, "wkv.head_size": 64, "attention.head_count": 2})
_add("chameleon", {"vocab_size": 8448})
_add("qwen3tts", {"vocab_size": 3072})
_add("plamo2", {"ssm.group_count": 0})
_add("ernie4_5-moe", {"interleave_moe_layer_step": 1})
_add("glm5-next", {"rope.dimension_count": 0, "attention.key_length": 64, "attention.key_length_mla": 32})
_add("kimi-k3", {"attn_res.block_size": 3})
_add("llama4", {"block_count": 8})
_add(
    "gemma3n",
    {
        "block_count": 22,
        "embedding_length": 64,
        "attention.head_count": 2,
        "attention.head_count_kv": 1,
        "feed_forward_length": 96,
    },
)
_add(
    "gemma4",
    {
        "attention.sliding_window_pattern": [True, True, True, False, True, False],
        "attention.shared_kv_layers": 2,
        "attention.key_length_swa": HEAD,
        "attention.value_length_swa": HEAD,
        "embedding_length_per_layer_input": 16,
    },
)
_add("hrm_text", {"hrm.layers_per_stack": 3, "hrm.h_cycles": 1, "hrm.l_cycles": 1})  # no cycle runs a layer again
_add("qwen3next qwen35 qwen35moe qwen4exp", {"ssm.inner_size": N_EMBD, "ssm.state_size": 32})
_add(
    "nemotron_h nemotron_h_moe",
    {
        "feed_forward_length": [0, 0, N_FF, 0, 0, N_FF],
        "attention.head_count_kv": [0, 2, 0, 0, 2, 0],
    },
)
_add(
    "dots3note",
    {
        "attention.kv_lora_rank_swa": 64,
        "attention.key_length_swa": 80,
        "attention.value_length_swa": 64,
        "attention.key_length_mla_swa": 48,
        "attention.value_length_mla_swa": 32,
        "rope.freq_base_swa": 10000.0,
        "attention.indexer.types": _every(2, 1, 0),
    },
)
_add(
    "graniteswitch",
    {
        "adapters.count": 2,
        "adapters.lora_rank": 4,
        "adapters.token_ids_activate": [5, 6],
        "adapters.token_ids_substitute": [7, 8],
    },
)
_add(
    "deepseek4",
    {
        "block_count": 8,
        "attention.head_count_kv": 1,
        "rope.dimension_count": 16,
        "attention.output_group_count": N_HEAD,
        "attention.output_lora_rank": 32,
        "attention.compress_ratios": [0, 0, 4, 128, 4, 128, 4, 0],
        "attention.compress_rope_freq_base": 160000.0,
        "hash_layer_count": 0,
        "expert_gating_func": 4,
    },
)

# Keys without the architecture's prefix.
_GENERAL: dict[str, Value] = {
    "tokenizer.ggml.token_type_count": 2,
    "xielu.alpha_n": 1.0,
    "xielu.alpha_p": 1.0,
    "xielu.beta": 1.0,
    "xielu.eps": 1e-7,
}

_SCALES = r".*\.(input_)?scale"
"""One per matrix, in NVFP4 files only (and in BitNet's)."""
_ABSENT = {"bitnet": "", "rwkv6qwen2": rf"{_SCALES}|.*\.time_mix_first\..*"}

# A micro-batch without outputs ends llama.cpp.
SETTINGS = {"chameleon": {"n_ubatch": 64}}

# Here a pruned file ends llama.cpp: the number of layers is a product of other hyper-parameters.
UNPRUNABLE = {"hrm_text"}

NOT_RUN = {
    "clip": "it encodes images: no language model",
    "gptj": "llama.cpp knows its name only",
    "gemma4-assistant": "it drafts from the context of another model",
    "llama-embed": "it gives embeddings, no logits to compare",
    "eagle3": "it drafts from the context of another model",
    "dflash": "it drafts from the context of another model",
    "wavtokenizer-dec": "it turns codes into sound: no language model",
}


def is_absent(architecture: str, tensor: str) -> bool:
    """Whether files of this architecture do not have a tensor that llama.cpp takes for optional."""
    return re.fullmatch(_ABSENT.get(architecture, _SCALES), tensor) is not None


def hyperparameters(architecture: str) -> dict[str, Value]:
    """The metadata of a tiny model."""
    values = _COMMON | (_EXPERTS if architecture in _WITH_EXPERTS.split() else {}) | _OWN.get(architecture, {})
    return {f"{architecture}.{key}": value for key, value in values.items()} | _GENERAL
