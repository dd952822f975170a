"""A pytest plugin: llama-cpp-python's own tests with first_cpp.Llama (or stock, to compare) and models that are at hand."""

from __future__ import annotations

import os
import sys
import types

import llama_cpp
import pytest

import first_cpp
from first_cpp.gguf.bundled import find_demo_model

if os.environ["UPSTREAM_CLASS"] == "first_cpp":
    llama_cpp.Llama = llama_cpp.llama.Llama = first_cpp.Llama

# The tests download these; no model of a kind to hand: skipped, with that reason.
AT_HAND = {"lmstudio-community/Qwen3.5-0.8B-GGUF": find_demo_model(), "ggml-org/models": find_demo_model()}


def hf_hub_download(repo_id: str, filename: str) -> str:
    if repo_id not in AT_HAND:
        pytest.skip(f"{repo_id}/{filename} cannot be downloaded, and the demo model is of another kind")
    return AT_HAND[repo_id]


hub = types.ModuleType("huggingface_hub")
hub.hf_hub_download = hf_hub_download
sys.modules["huggingface_hub"] = hub
