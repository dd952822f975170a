"""Routers: what they are, and how they stand in GGUF metadata (keys ``first.*``, docs/reference/format.md)."""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .._ext import GgufFile
from ..errors import MissingFileError, ModelFileError, RouterError, SkipError
from ..skip import layers_for_share
from .bundled import shipped_adapters
from .model_file import open_gguf

FORMAT_VERSION = 1
MAX_TEXT = 4096
"""Longest text value in bytes."""
MAX_LAYERS = 4096
"""More layers than any model has: a bound before sizes are multiplied."""


@dataclass(frozen=True)
class Base:
    """The model that routers were made for."""

    architecture: str
    n_layer: int
    n_embd: int
    fingerprint: str


@dataclass(frozen=True)
class Routers:
    """One linear router per layer (FiRST, arXiv 2410.12513).

    weight: [n_layer, n_embd] float32; bias: [n_layer] float32. The keep score of a layer at a position is
    sigmoid(weight . rmsnorm(h) + bias) with h the hidden state entering the layer, rmsnorm(h) = h / sqrt(mean(h^2) + norm_eps).
    skippable: layers that may be left out. skip: the share the file recommends ("auto").
    train: what they were trained on and how well they did, as written by their maker.
    """

    base: Base
    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    norm_eps: float
    skippable: tuple[bool, ...]
    skip: float
    writer: str = ""
    train: dict[str, str | int | float] = field(default_factory=dict)


def check_lora(path: str) -> None:
    """Raise MissingFileError, or ModelFileError for what is no LoRA: llama.cpp's loader would end the process."""
    if not os.path.isfile(path):
        raise MissingFileError(f"LoRA path does not exist: {path}")
    if not carries_lora(path):
        raise ModelFileError(f'{path} is no LoRA: a GGUF with general.type "adapter" and adapter.type "lora" is needed')


def load_routers(path: str) -> Routers:
    """Read the routers of a model or side file. Raises RouterError naming the key, what was expected and found."""
    if os.path.isdir(path) or (not os.path.exists(path) and path in shipped_adapters()):
        what = "a folder" if os.path.isdir(path) else "the name of an adapter that comes with first_cpp"
        raise RouterError(
            f"routers={path} is {what}; a file is needed: `python -m convert --routers {path} --model MODEL.gguf --sidecar "
            "--out adapter.gguf` makes one, with --merge a model that has them"
        )
    routers = read_routers(open_gguf(path), path)
    if routers is None:
        raise RouterError(f"no routers in {path}: it has no first.* metadata (make some with `python -m convert --routers`)")
    return routers


def carries_lora(path: str) -> bool:
    """Whether a side file also holds a LoRA, which llama.cpp loads by itself."""
    file = open_gguf(path)
    return file.kind("adapter.type") == "str" and file.get("adapter.type") == b"lora"


def find_lora(routers: str | None, given: str | None) -> str | None:
    """The LoRA to load: the one in the side file `routers`, or the one given.

    Raises RouterError where there are two, and what `check_lora` does.
    """
    if routers and carries_lora(routers):
        if given:
            raise RouterError(f"{routers} carries a LoRA of its own: lora_path cannot be given beside it")
        return routers
    if given:
        check_lora(given)
    return given


def read_routers(file: GgufFile, path: str) -> Routers | None:
    """The routers in an open GGUF file, None if it has none. Raises RouterError naming key, expected, found."""
    keys = [key for key in file.keys() if key.startswith("first.")]
    if not keys:
        return None
    reader = _Reader(file, path)
    version = reader.scalar("first.version", "u32")
    if version != FORMAT_VERSION:
        raise RouterError(
            f"{path}: first.version is {version}, this first_cpp reads {FORMAT_VERSION}; "
            "a newer first_cpp may be needed, or the routers converted again"
        )
    base = Base(
        architecture=reader.text("first.base.architecture"),
        n_layer=reader.size("first.base.n_layer", MAX_LAYERS),
        n_embd=reader.size("first.base.n_embd", 1 << 20),
        fingerprint=reader.text("first.base.fingerprint"),
    )
    routers = Routers(
        base=base,
        weight=reader.floats("first.router.weight", base.n_layer * base.n_embd).reshape(base.n_layer, base.n_embd),
        bias=reader.floats("first.router.bias", base.n_layer),
        norm_eps=reader.scalar("first.router.norm_eps", "f32"),
        skippable=reader.bools("first.router.skippable", base.n_layer),
        skip=reader.scalar("first.policy.skip", "f32"),
        writer=reader.text("first.writer"),
        train=reader.others("first.train."),
    )
    check_values(routers, path)
    return routers


def check_values(routers: Routers, where: str) -> None:
    """Raise RouterError for values no router may have: NaN, Inf, scores that overflow, settings out of range."""
    for name, values in (("weight", routers.weight), ("bias", routers.bias)):
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            layer, index = int(bad[0][0]), [int(i) for i in bad[0]]
            raise RouterError(f"{where}: first.router.{name} of layer {layer} is not finite: {values[tuple(index)]} at {index}")
    with np.errstate(over="ignore"):
        # |w . rmsnorm(h)| is at most |w| sqrt(n_embd); float32 must hold the sums on the way.
        reach = np.linalg.norm(routers.weight.astype(np.float64), axis=1) * math.sqrt(routers.base.n_embd)
    worst = int(np.argmax(reach + np.abs(routers.bias.astype(np.float64))))
    if reach[worst] + abs(float(routers.bias[worst])) > 1e30:
        raise RouterError(f"{where}: first.router.weight or bias of layer {worst} is too large: its score overflows float32")
    if not (math.isfinite(routers.norm_eps) and 0 < routers.norm_eps < 1):
        raise RouterError(f"{where}: first.router.norm_eps is {routers.norm_eps}, expected a number above 0 and below 1")
    if not (math.isfinite(routers.skip) and 0 <= routers.skip < 1):
        raise RouterError(f"{where}: first.policy.skip is {routers.skip}, expected a share from 0 up to 1")
    try:
        layers_for_share(routers.skip, routers.base.n_layer)
    except SkipError as error:
        raise RouterError(f"{where}: first.policy.skip: {error}") from None
    if not any(routers.skippable):
        raise RouterError(f"{where}: first.router.skippable marks no layer, expected at least one")


def check_base(routers: Routers, model: Base, where: str) -> None:
    """Raise RouterError if the routers in `where` were made for another model than `model`."""
    for name in ("architecture", "n_layer", "n_embd", "fingerprint"):
        expected, found = getattr(model, name), getattr(routers.base, name)
        if expected != found:
            hint = " (the norm weights differ)" if name == "fingerprint" else ""
            raise RouterError(
                f"the routers in {where} were made for another model: first.base.{name} is {found}, "
                f"this model's is {expected}{hint}"
            )


class _Reader:
    """Typed reads that check kind, element type and count first: ggml's getters abort the process on a mismatch."""

    def __init__(self, file: GgufFile, path: str) -> None:
        self._file = file
        self._path = path

    def _expect(self, key: str, kind: str, count: int | None = None) -> Any:
        found = self._file.kind(key)
        if not found:
            raise RouterError(f"{self._path}: {key} is missing, expected {kind}")
        if found != kind:
            raise RouterError(f"{self._path}: {key} is {found}, expected {kind}")
        if count is not None and self._file.count(key) != count:
            raise RouterError(f"{self._path}: {key} has {self._file.count(key)} elements, expected {count}")
        return self._file.get(key)

    def scalar(self, key: str, kind: str) -> Any:
        return self._expect(key, kind)

    def size(self, key: str, limit: int) -> int:
        value = int(self._expect(key, "u32"))
        if not 0 < value <= limit:
            raise RouterError(f"{self._path}: {key} is {value}, expected 1 to {limit}")
        return value

    def floats(self, key: str, count: int) -> npt.NDArray[np.float32]:
        return self._expect(key, "arr[f32]", count)  # type: ignore[no-any-return]

    def bools(self, key: str, count: int) -> tuple[bool, ...]:
        return tuple(bool(value) for value in self._expect(key, "arr[bool]", count))

    def text(self, key: str) -> str:
        raw: bytes = self._expect(key, "str")
        stored = _stored_length(self._path, key)
        if stored is not None and stored != len(raw):
            raise RouterError(f"{self._path}: {key} contains a NUL byte at {len(raw)}, expected text of {stored} bytes")
        if len(raw) > MAX_TEXT:
            raise RouterError(f"{self._path}: {key} has {len(raw)} bytes, expected at most {MAX_TEXT}")
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise RouterError(f"{self._path}: {key} is not UTF-8 text: {raw[:40]!r}") from None

    def others(self, prefix: str) -> dict[str, str | int | float]:
        """Scalars whose keys begin with `prefix`, for people to read."""
        found: dict[str, str | int | float] = {}
        for key in self._file.keys():
            if key.startswith(prefix) and not self._file.kind(key).startswith("arr"):
                found[key[len(prefix) :]] = self.text(key) if self._file.kind(key) == "str" else self._file.get(key)
        return found


def _stored_length(path: str, key: str) -> int | None:
    """Length of a text value as stored; ggml's C getter ends it at the first NUL."""
    name = key.encode()
    pattern = struct.pack("<Q", len(name)) + name + struct.pack("<I", 8)
    with open(path, "rb") as file, contextlib.closing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) as view:
        at = view.find(pattern)
        return None if at < 0 else int(struct.unpack_from("<Q", view, at + len(pattern))[0])
