"""The format of routers: the metadata keys ``first.*`` of a GGUF file, and the safetensors file that training leaves.

Both are written and read here and nowhere else; docs/reference/format.md describes them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from .._ext import GgufFile
from .._version import __version__
from ..errors import MissingFileError, RouterError
from ..skip import needs_order
from .bundled import bundled_adapters
from .cost_format import add_cost_probes, cost_as_json, cost_from_json, read_cost_probes
from .cost_probes import CostProbes
from .model_file import normal_path, open_gguf
from .new_file import new_file
from .printable import printable
from .routers import MAX_LAYERS, Base, Routers, check_values
from .typed_reader import MAX_TEXT, TypedReader

FORMAT_VERSION = 2
"""The newest version: with cost probes. Files without are written as version 1, for earlier readers."""
DEFAULT_SKIP = 0.25
"""The share to recommend where a safetensors file names none."""
WRITER = f"first_cpp {__version__}"
_FILE = "routers.safetensors"
"""The name of the safetensors file in the folder of a training run."""


# -- GGUF metadata -------------------------------------------------------------------------------------------------


def load_routers(path: str) -> Routers:
    """Read the routers of a model or side file.

    Raises RouterError naming the key, what was expected and found, and as `open_gguf` does.

    >>> load_routers("model-first.gguf").base.n_layer
    6
    """
    if os.path.isdir(path) or (not os.path.exists(path) and path in bundled_adapters()):
        what = "a folder" if os.path.isdir(path) else "the name of an adapter that is bundled with first_cpp"
        raise RouterError(
            f"routers={path} is {what}; a file is needed: `python -m convert --routers {path} --model MODEL.gguf --sidecar "
            "--out adapter.gguf` makes one, with --merge a model that has them"
        )
    routers = read_routers(open_gguf(path), path)
    if routers is None:
        raise RouterError(
            f"no routers in {path}: it has no first.* metadata (`first-cpp calibrate` or `python -m convert` makes some)"
        )
    return routers


def read_routers(file: GgufFile, path: str) -> Routers | None:
    """The routers in an open GGUF file, None where it has none. Raises RouterError naming key, expected, found."""
    if not router_keys(file):
        return None
    reader = TypedReader(file, path)
    version = reader.scalar("first.version", "u32")
    if not 1 <= version <= FORMAT_VERSION:
        raise RouterError(
            f"{path}: first.version is {version}, this first_cpp reads 1 to {FORMAT_VERSION}; "
            "a newer first_cpp may be needed, or the routers converted again"
        )
    base = Base(
        architecture=reader.text("first.base.architecture"),
        n_layer=reader.size("first.base.n_layer", MAX_LAYERS),
        n_embd=reader.size("first.base.n_embd", 1 << 20),
        fingerprint=reader.text("first.base.fingerprint"),
    )
    by_routers = version == 1 or _kind(reader.text("first.kind"), path) == "layers"
    n_router = base.n_layer if by_routers else 0
    cost = None if version == 1 else read_cost_probes(reader, base.n_layer, base.n_embd, by_routers)
    no_router = np.empty(0, np.float32)
    routers = Routers(
        base=base,
        weight=(reader.floats("first.router.weight", n_router * base.n_embd) if by_routers else no_router).reshape(
            n_router, base.n_embd
        ),
        bias=reader.floats("first.router.bias", n_router) if by_routers else no_router,
        norm_eps=reader.scalar("first.router.norm_eps", "f32") if cost is None or by_routers else cost.norm_eps,
        skippable=reader.bools("first.router.skippable", base.n_layer),
        skip=reader.scalar("first.policy.skip", "f32"),
        writer=reader.text("first.writer"),
        train=reader.scalars("first.train."),
        cost=cost,
    )
    check_values(routers, path)
    return routers


def _kind(kind: str, path: str) -> str:
    if kind not in ("layers", "sets"):
        raise RouterError(f"{path}: first.kind is {kind!r:.40}, expected layers or sets")
    return kind


def add_routers(file: GgufFile, routers: Routers) -> None:
    """Put routers into the metadata of a GGUF in memory, as texts what `Routers.train` says, cut to what a reader takes."""
    file.set_u32("first.version", 1 if routers.cost is None else 2)
    file.set_str("first.writer", routers.writer)
    file.set_str("first.base.architecture", routers.base.architecture)
    file.set_u32("first.base.n_layer", routers.base.n_layer)
    file.set_u32("first.base.n_embd", routers.base.n_embd)
    file.set_str("first.base.fingerprint", routers.base.fingerprint)
    if routers.kind == "layers":
        file.set_f32_array("first.router.weight", routers.weight.reshape(-1))  # layer by layer
        file.set_f32_array("first.router.bias", routers.bias)
        file.set_f32("first.router.norm_eps", routers.norm_eps)
    if routers.cost is not None:
        file.set_str("first.kind", routers.kind)
        add_cost_probes(file, routers.cost)
    file.set_bool_array("first.router.skippable", list(routers.skippable))
    file.set_f32("first.policy.skip", routers.skip)
    for key, value in sorted(routers.train.items()):  # safetensors keeps no order: the same routers make the same file
        file.set_str(f"first.train.{key}", _cut(str(value)))


def router_keys(file: GgufFile) -> list[str]:
    """The keys of a file's routers; none where it has no routers."""
    return [key for key in file.keys() if key.startswith("first.")]


def carries_routers(path: str) -> bool:
    """Whether there is a model file that has routers in its metadata."""
    return os.path.isfile(path) and bool(router_keys(open_gguf(path)))


# -- safetensors ---------------------------------------------------------------------------------------------------


def routers_file(path: str) -> str:
    """The safetensors file meant by `path`: itself, or the one in the folder of a training run."""
    path = normal_path(path)
    return os.path.join(path, _FILE) if os.path.isdir(path) else path


def read_safetensors(path: str, base: Base, norm_eps: float, skip: float | None = None) -> Routers:
    """Routers for `base` from `path`, a file or a folder with routers.safetensors.

    Tensors: weight [n_layer, n_embd], bias [n_layer], float32 or float16; cost.weight [n_set, n_read, n_embd] and cost.bias
    [n_set] where metadata `cost` has the rest of cost probes. Metadata, all text: norm_eps (default: `norm_eps`,
    the base's), skip (share to recommend, default 0.25; `skip` where given), skippable (JSON list of bools, default all),
    base.fingerprint (checked when present), train.* (free). Raises RouterError naming what is wrong, MissingFileError.
    """
    path = routers_file(path)
    tensors, metadata = _load(path)
    _check_texts(metadata, path)
    if metadata.get("base.fingerprint", base.fingerprint) != base.fingerprint:
        raise RouterError(
            f"{path}: made for another model: base.fingerprint is {metadata['base.fingerprint']!r:.80}, "
            f"this model's {base.fingerprint}"
        )
    cost, by_routers = _cost(tensors, metadata, path), "weight" in tensors or "cost" not in metadata
    routers = Routers(
        base=base,
        weight=_tensor(tensors, "weight", path) if by_routers else np.empty((0, base.n_embd), np.float32),
        bias=_tensor(tensors, "bias", path) if by_routers else np.empty(0, np.float32),
        norm_eps=_number(metadata, "norm_eps", norm_eps, path),
        skippable=_skippable(metadata, base.n_layer, path),
        skip=_number(metadata, "skip", DEFAULT_SKIP, path) if skip is None else skip,
        writer=WRITER,
        train={key.removeprefix("train."): metadata[key] for key in sorted(metadata) if key.startswith("train.")},
        cost=cost,
    )
    check_values(routers, path)
    return routers


def _cost(tensors: dict[str, Any], metadata: dict[str, str], path: str) -> CostProbes | None:
    """The cost probes of a safetensors file, None where it has none."""
    if "cost" not in metadata:
        return None
    return cost_from_json(metadata["cost"], _tensor(tensors, "cost.weight", path), _tensor(tensors, "cost.bias", path), path)


def write_safetensors(path: str, routers: Routers) -> None:
    """Write routers for `read_safetensors`: `path` is a file, or the folder of a training run.

    Longer texts of `Routers.train` are cut to what a reader takes. Raises RouterError for values that no router may have,
    OutputError as `new_file` does.

    >>> from first_cpp import load_routers
    >>> write_safetensors("routers.safetensors", load_routers("model-first.gguf"))
    """
    from safetensors.numpy import save

    check_values(routers, path)
    metadata = {"norm_eps": repr(routers.norm_eps), "skip": repr(routers.skip), "skippable": json.dumps(routers.skippable)}
    if routers.base.fingerprint:
        metadata["base.fingerprint"] = routers.base.fingerprint
    metadata |= {f"train.{key}": _cut(str(value)) for key, value in routers.train.items()}
    tensors = {"weight": routers.weight, "bias": routers.bias} if routers.kind == "layers" else {}
    if routers.cost is not None:
        metadata["cost"] = cost_as_json(routers.cost)
        tensors |= {"cost.weight": routers.cost.weight, "cost.bias": routers.cost.bias}
    tensors = {name: np.ascontiguousarray(values) for name, values in tensors.items()}
    with new_file(routers_file(path)) as file:
        file.write(save(tensors, metadata=metadata))


def _cut(text: str) -> str:
    """As much of a text as metadata may hold, without NUL; what is not UTF-8, as in a path, becomes question marks."""
    raw = text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace")
    text = raw.decode()
    return text if len(raw) <= MAX_TEXT else raw[: MAX_TEXT - 3].decode("utf-8", "ignore") + "..."


def _check_texts(metadata: dict[str, str], path: str) -> None:
    """The limits that readers of the GGUF set."""
    for key, value in metadata.items():
        if key.startswith("train.") and ("\0" in key + value or len(value.encode()) > MAX_TEXT):
            raise RouterError(f"{path}: metadata {key} has a NUL byte or more than {MAX_TEXT} bytes")


def _load(path: str) -> tuple[dict[str, Any], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    if not os.path.exists(path):
        raise MissingFileError(f"router file does not exist: {path}")
    if not os.path.isfile(path):
        raise RouterError(f"{path} is no regular file")
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except (SafetensorError, TypeError) as error:
        with open(path, "rb") as stream:
            head = stream.read(4)
        if head[:2] == b"PK" or head[:1] == b"\x80":
            raise RouterError(
                f"{path} is a pickle (.pt) file: loading one can run code, so only safetensors are read"
            ) from None
        raise RouterError(f"{path} is not a readable safetensors file: {error}") from None


def _tensor(tensors: dict[str, Any], name: str, path: str) -> Any:
    if name not in tensors:
        raise RouterError(f"{path}: tensor {name!r} is missing; found {sorted(tensors)}")
    tensor = tensors[name]
    if tensor.dtype not in (np.float32, np.float16):
        raise RouterError(f"{path}: tensor {name!r} is {tensor.dtype}, expected float32 or float16")
    return np.ascontiguousarray(tensor, dtype=np.float32)


def _number(metadata: dict[str, str], key: str, default: float, path: str) -> float:
    try:
        return float(metadata.get(key, default))
    except ValueError:
        raise RouterError(f"{path}: metadata {key} is {metadata[key]!r}, expected a number") from None


def _skippable(metadata: dict[str, str], n_layer: int, path: str) -> tuple[bool, ...]:
    if "skippable" not in metadata:
        return (True,) * n_layer
    try:
        value = json.loads(metadata["skippable"])
    except json.JSONDecodeError:
        value = None
    if not isinstance(value, list) or len(value) != n_layer or not all(isinstance(v, bool) for v in value):
        raise RouterError(
            f"{path}: metadata skippable is {metadata['skippable']!r:.80}, expected a JSON list of {n_layer} bools"
        )
    return tuple(value)


# -- the fixed set that a LoRA was trained for -----------------------------------------------------------------------


def set_record(kind: str, order: Sequence[int], seed: int) -> dict[str, str | int | float]:
    """What `Routers.train` says of a LoRA that was trained with one set of layers skipped; `trained_set` reads it.

    kind: as `first_cpp.skip.fixed_layers` takes it. order: all layers in the order in which growing shares skip them, or none.

    >>> set_record("search", [2, 0, 1], seed=7)
    {'layers': 'search', 'seed': '7', 'order': '2,0,1'}
    """
    record: dict[str, str | int | float] = {"layers": kind, "seed": str(seed)}
    return record | ({"order": ",".join(map(str, order))} if order else {})


def trained_set(routers: Routers | None, kind: str, n_layer: int, where: str) -> tuple[list[int], int] | None:
    """The order of layers (empty where its kind has none) and the seed of the fixed set that a file's LoRA was trained for.

    None for files without, and for sets of another kind than `kind`. where: the file, which errors name. Raises RouterError for
    an order that is not of the `n_layer` layers, and for what are no numbers.
    """
    found = routers.train if routers else {}
    if found.get("layers") != kind:
        return None
    try:
        order = [int(layer) for layer in str(found.get("order", "")).split(",") if layer]
        seed = int(found.get("seed", 0))
    except ValueError as error:
        raise RouterError(f"{where}: first.train.order and first.train.seed are not whole numbers: {error}") from None
    if sorted(order) != list(range(n_layer if order or needs_order(kind) else 0)):
        shown = printable(str(found.get("order", "missing")), 80)
        raise RouterError(f"{where}: first.train.order is {shown}, expected each of {n_layer} layers once")
    return order, seed
