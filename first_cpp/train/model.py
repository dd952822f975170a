"""The model to train: a Hugging Face folder or a GGUF, its decoder layers, LoRA on their linear layers."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import MissingFileError, ModelFileError
from ..gguf.lora import AS_IS, PERMUTED
from ..gguf.model_file import ModelFile
from .same_output import TEXT, check_same_output

if TYPE_CHECKING:
    from .router_bank import RouterBank


def load_model(path: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """A causal language model and its tokenizer from a Hugging Face folder or a GGUF file.

    Raises MissingFileError, or ModelFileError for an architecture that transformers cannot read, and for a GGUF that is split,
    has scaled rotary embeddings, or has other outputs in llama.cpp: transformers reads one file, no scaling, and not all
    settings and tensors, and would train another model than the one that runs. Also for a folder that lacks weights.

    >>> load_model("none.gguf")
    Traceback (most recent call last):
    first_cpp.errors.MissingFileError: model does not exist: none.gguf
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not os.path.exists(path):
        raise MissingFileError(f"model does not exist: {path}")
    if not os.path.isdir(path):
        check_whole(path)
        check_rotary(path)
    folder, file = (path, {}) if os.path.isdir(path) else (os.path.dirname(path) or ".", {"gguf_file": os.path.basename(path)})
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, **file)
        model, found = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, local_files_only=True, output_loading_info=True, **file
        )
    except Exception as error:  # what it raises of files that it cannot read is of many kinds
        raise ModelFileError(f"transformers cannot read {path}: {error}") from error
    if missing := sorted(found["missing_keys"]):
        raise ModelFileError(
            f"{path} lacks {len(missing)} of the model's weights, which transformers makes up: {', '.join(missing[:3])}"
        )
    if file:
        check_same_output(path, model, tokenizer(TEXT)["input_ids"])
    return model, tokenizer


def check_whole(path: str) -> None:
    """Raise ModelFileError for a GGUF that is split: the weights of its other files would be random ones."""
    if (n_files := len(ModelFile.open(path).files)) > 1:
        raise ModelFileError(
            f"{path} is split in {n_files} files, and PyTorch would read the first alone: merge it with llama-gguf-split, "
            "or train from the model's Hugging Face folder"
        )


def check_foldable(path: str) -> None:
    """Raise ModelFileError for a GGUF or folder of an architecture that `convert` folds no LoRA into: known before hours of
    training."""
    architecture: str | None
    if os.path.isfile(path):
        architecture, known = ModelFile.open(path).architecture, PERMUTED | AS_IS
    else:
        architecture, known = _kind_of_folder(path), PERMUTED | AS_IS | IN_FOLDERS
    if architecture and architecture not in known:
        raise ModelFileError(
            f"no LoRA can be folded into {architecture} models; --rank 0 trains routers alone. Models that one can be folded "
            f"into: {', '.join(sorted(known))}"
        )


IN_FOLDERS = {"mistral", "mixtral", "gemma3_text"}
"""Kinds of models that transformers calls otherwise than llama.cpp (llama, llama, gemma3)."""


def _kind_of_folder(path: str) -> str | None:
    """The kind of the model in a Hugging Face folder; None where its configuration does not say."""
    try:
        with open(os.path.join(path, "config.json"), encoding="utf-8") as file:
            kind = json.load(file)["model_type"]
    except (OSError, ValueError, KeyError, TypeError):  # transformers says what is wrong
        return None
    return kind if isinstance(kind, str) else None


def check_rotary(path: str) -> None:
    """Raise ModelFileError for a GGUF whose rotary embeddings are scaled (llama3, linear, yarn, longrope)."""
    model = ModelFile.open(path)
    key = model.key("rope.scaling.type")
    kind = model.first.get(key).decode() if model.first.kind(key) == "str" else "none"
    factors = [tensor.name for _, tensor in model.tensors() if tensor.name.startswith("rope_f")]
    if factors or kind != "none":
        why = f"tensor {factors[0]}" if factors else f"{key} = {kind}"
        raise ModelFileError(
            f"{path} scales its rotary embeddings ({why}), and a GGUF's scaling is lost on the way into PyTorch: "
            "train from the model's Hugging Face folder, and convert with this file"
        )


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The model's list of decoder layers, with or without LoRA on it: of a model that sees, too, those that read text.

    Raises ModelFileError if there is no list as long as the config says.
    """
    n_layer = model.config.get_text_config().num_hidden_layers  # type: ignore[union-attr,operator]
    reads_text = model.get_decoder() if hasattr(model, "get_decoder") else model  # type: ignore[operator]
    for module in (*reads_text.modules(), *model.modules()):
        if isinstance(module, nn.ModuleList) and len(module) == n_layer:
            return module
    raise ModelFileError(f"{type(model).__name__} has no list of {n_layer} decoder layers")


def linear_names(layers: nn.ModuleList) -> list[str]:
    """The last names of the linear layers inside the decoder layers, as peft matches them: "q_proj", "up_proj", ..."""
    names = {name.rsplit(".", 1)[-1] for name, module in layers.named_modules() if isinstance(module, nn.Linear)}
    return sorted(names)


def lora_targets(model: nn.Module, layers: nn.ModuleList) -> list[str]:
    """The linear layers inside the decoder layers as peft is told of them: by their last names, or by whole ones where layers
    elsewhere, as of what sees, are called alike."""
    last, inside = linear_names(layers), {id(module) for module in layers.modules()}
    of_name = {name: module for name, module in model.named_modules() if name.rsplit(".", 1)[-1] in last}
    if all(id(module) in inside for module in of_name.values()):
        return last
    return [name for name, module in of_name.items() if id(module) in inside and isinstance(module, nn.Linear)]


def add_lora(model: nn.Module, layers: nn.ModuleList, rank: int, alpha: int) -> Any:
    """The model frozen, with a new LoRA of `rank` on all linear layers inside its decoder layers (a peft model).

    alpha: peft's `lora_alpha`; the LoRA's update is scaled by alpha / rank.
    """
    from peft import LoraConfig, get_peft_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    targets = lora_targets(model, layers)
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, bias="none", target_modules=targets, task_type="CAUSAL_LM")
    lora = get_peft_model(model, config)
    for module in lora.modules():
        if isinstance(module, BaseTunerLayer):
            module.cast_input_dtype_enabled = False  # autocast does, and once is enough
    return lora


@torch.no_grad()
def hold_in_bf16(model: nn.Module) -> None:
    """Keep the frozen weights of linear layers in bf16: autocast computes with that, and would convert them at every use.

    An output head that shares its weight with the embedding gets a copy of its own; norms and embeddings stay as they are.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear) and not module.weight.requires_grad and module.weight.dtype == torch.float32:
            module.weight = nn.Parameter(module.weight.to(torch.bfloat16), requires_grad=False)


@torch.no_grad()
def start_from(runs: Sequence[str], lora: Any, bank: RouterBank | None) -> None:
    """Load into `lora` the mean of the LoRA weights of earlier runs' folders, and into `bank` the routers of the last.

    bank: None where the sets of a file choose, and no router of a layer does. Raises MissingFileError, or ModelFileError
    where a run is of another model or rank, or the last one skips sets and has no router of each layer.
    """
    weights = [p for p in lora.parameters() if p.requires_grad]
    found = list[list[Tensor]]()
    for run in runs:
        _load_lora(run, lora)
        found.append([weight.clone() for weight in weights])
    for weight, of_runs in zip(weights, zip(*found, strict=True), strict=True):
        weight.copy_(torch.stack(of_runs).mean(0))
    if bank is not None:
        _load_routers(runs[-1], bank)


def _load_lora(run: str, lora: Any) -> None:
    from peft import set_peft_model_state_dict

    weights = _read_weights(run, os.path.join("adapter", "adapter_model.safetensors"))
    try:
        found = set_peft_model_state_dict(lora, weights)
    except RuntimeError as error:  # torch's, for shapes
        raise ModelFileError(f"--init {run} is of another model or LoRA rank: {error}") from error
    missing = [name for name in found.missing_keys if "lora_" in name]
    if missing or found.unexpected_keys:
        raise ModelFileError(
            f"--init {run} is of another model: its adapter lacks {missing[:2]}, has {found.unexpected_keys[:2]}"
        )
    _check_scale(run, lora)


def _check_scale(run: str, lora: Any) -> None:
    """Raise ModelFileError for an adapter whose weights count otherwise than this run's: alone they would be another LoRA."""
    path, mine = os.path.join(run, "adapter", "adapter_config.json"), lora.peft_config["default"]
    try:
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
        values = {key: config.get(key) for key in ("lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern")}
    except FileNotFoundError:
        return
    except (ValueError, AttributeError) as error:
        raise ModelFileError(f"--init {run}: {path} is no configuration of an adapter: {error}") from error
    for key, value in values.items():
        if (value or None) != ((expected := getattr(mine, key)) or None):
            raise ModelFileError(f"--init {run}: its adapter has {key}={value!r:.80}, this run's {expected!r}: another LoRA")


def _load_routers(run: str, bank: RouterBank) -> None:
    weights = _read_weights(run, "routers.safetensors")
    if "weight" not in weights:
        raise ModelFileError(
            f"--init {run} skips the sets of a calibrated file and has no router of each layer: add --sets FILE to go on with "
            "sets, or begin with a run that trained routers"
        )
    try:
        bank.load_state_dict(weights)
    except RuntimeError as error:
        raise ModelFileError(f"--init {run} is of another model: {error}") from error


def _read_weights(run: str, name: str) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    path = os.path.join(run, name)
    if not os.path.exists(path):
        raise MissingFileError(f"--init {run}: there is no {path}")
    weights: dict[str, Tensor] = load_file(path)
    return weights


def native_precision() -> str:
    """ "bf16" where the hardware computes with it, else "float32": emulated, it is slower."""
    if torch.cuda.is_available():
        return "bf16"
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "float32"
