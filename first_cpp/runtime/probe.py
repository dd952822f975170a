"""How a model's graphs are laid out, learnt from graphs that are built and not computed."""

from __future__ import annotations

import llama_cpp

from ..errors import ModelFileError
from .layers import Layers
from .llama_batch import decode, empty_memory


def check_answers(llm: llama_cpp.Llama) -> None:
    """Raise ModelFileError for a model that cannot continue a text: for some llama.cpp would end the process."""
    why = ""
    if not llama_cpp.llama_get_memory(llm.ctx):
        why = "it has no KV cache: it makes embeddings of texts"
    elif llama_cpp.llama_model_has_encoder(llm.model):
        why = "it has an encoder, which would have to read the prompt"
    if why:
        raise ModelFileError(f"{llm.model_path} cannot continue a text: {why}")


def learn_layout(llm: llama_cpp.Llama, layers: Layers, n_layer: int, micro_batch: int, offload: bool) -> None:
    """Look at the graphs of a step and of a micro-batch; where no layer can be skipped at all, say why in `layers`."""
    for unsupported, why in (
        (offload, "it has layers on a GPU"),
        (not llama_cpp.llama_get_memory(llm.ctx), "it has no KV cache"),
        (llama_cpp.llama_model_has_encoder(llm.model), "it has an encoder"),
        (llama_cpp.llama_model_is_diffusion(llm.model), "it generates by diffusion"),
    ):
        if unsupported:
            layers.declare_dense(n_layer, why)
            return
    for n_tokens in sorted({1, micro_batch}):  # where ggml puts nodes in memory depends on their size
        with empty_memory(llm), layers.probing(n_layer):
            decode(llm, [0] * n_tokens)
    llama_cpp.llama_perf_context_reset(llm.ctx)
