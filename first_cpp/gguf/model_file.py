"""GGUF files and the models they hold: what is wrong with a file is said before llama.cpp tries to load it."""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from .._ext import GgufFile, GgufTensor
from ..errors import ModelFileError
from .file_header import check_header
from .model_limits import Hyperparameters, Spelling, check_tensor, check_vocabulary
from .printable import printable
from .routers import Base

_PART = re.compile(r"^(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")
DEFAULT_CONTEXT = 4096
"""Tokens: a longer context is taken only where it is asked for."""
_WITHOUT_NEXTN = {"deepseek4"}
"""Architectures for which llama.cpp does not read nextn_predict_layers."""


def normal_path(path: str | bytes | os.PathLike[str]) -> str:
    """The path as text, with ``~`` expanded. Raises TypeError for what is no path, ModelFileError where it is not UTF-8.

    >>> normal_path(Path("models") / "model.gguf")
    'models/model.gguf'
    """
    if not isinstance(path, (str, bytes, os.PathLike)):
        raise TypeError(f"a model path is str, bytes or os.PathLike, not {type(path).__name__}: {path!r}")
    text = os.path.expanduser(os.fsdecode(path))
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ModelFileError(f"the path {text!r} is not UTF-8; llama.cpp cannot open it") from None
    return text


def open_gguf(path: str) -> GgufFile:
    """Read a GGUF file's metadata.

    Raises MissingFileError, PermissionError, or ModelFileError that names the file and what is wrong with it.

    >>> file = open_gguf("model.gguf")
    >>> file.kind("llama.block_count"), file.get("llama.block_count")
    ('u32', 6)
    """
    check_header(path)
    try:
        file = GgufFile(path)
        file.keys()
        tensors = file.tensors()
        for tensor in tensors:
            tensor.name  # noqa: B018  # decoded when it is asked for
    except UnicodeDecodeError as error:
        raise ModelFileError(f"{path}: a key or tensor name is not UTF-8 text ({error})") from None
    except ValueError as error:
        raise ModelFileError(f"{path}: {error}") from None
    size = os.path.getsize(path)
    needed = max((tensor.offset + tensor.n_bytes for tensor in tensors), default=0)
    if needed > size:
        raise ModelFileError(f"{path} is truncated: its tensors need {needed} bytes, the file has {size}")
    return file


class ModelFile:
    """A model's GGUF: its files, architecture, layers, width and fingerprint, each found once, when it is first asked for.

    path: as given, `~` expanded. paths: all files of a split model, in order; files: the same, opened. The properties raise
    ModelFileError, naming the key, for a file that does not say what is asked for.

    >>> model = ModelFile.open("model.gguf")
    >>> model.architecture, model.n_layer, model.n_embd
    ('llama', 6, 128)
    """

    def __init__(self, path: str, files: dict[str, GgufFile]) -> None:
        self.path = path
        self.paths = tuple(files)
        self.files = tuple(files.values())

    @classmethod
    def open(cls, path: str | bytes | os.PathLike[str]) -> ModelFile:
        """Open a model file, and the other parts if it is split.

        Raises as `open_gguf` does, and ModelFileError for a side file, a later part of a split model, text that is not UTF-8,
        and hyper-parameters or tensors over which llama.cpp would end the process.
        """
        path = normal_path(path)
        first = open_gguf(path)
        if first.kind("general.type") == "str" and first.get("general.type") == b"adapter":
            raise ModelFileError(f"{path} is an adapter (routers, a LoRA), not a model: give it beside one, as routers=FILE")
        _check_first_part(first, path)
        _check_texts(first, path)
        model = cls(path, {path: first} | {part: open_gguf(part) for part in parts_of(path)[1:]})
        if first.kind("general.architecture") == "str":
            Hyperparameters(first, model.architecture, path).check()
        for part, tensor in model.tensors():
            check_tensor(tensor, part)
        return model

    @property
    def first(self) -> GgufFile:
        """The file that holds the model's metadata."""
        return self.files[0]

    @functools.cached_property
    def architecture(self) -> str:
        """llama.cpp's name for it, "llama"."""
        if self.first.kind("general.architecture") != "str":
            raise ModelFileError(f"{self.path}: general.architecture is missing: not a model")
        return str(self.first.get("general.architecture").decode())

    @functools.cached_property
    def n_layer(self) -> int:
        """The layers that answers run. Next-token-prediction blocks stand after them and are not counted."""
        further = 0 if self.architecture in _WITHOUT_NEXTN else int(self._number("nextn_predict_layers", "u32", 0))
        return int(self._number("block_count", "u32")) - further

    @functools.cached_property
    def n_embd(self) -> int:
        """Values in a hidden state."""
        return int(self._number("embedding_length", "u32"))

    @functools.cached_property
    def norm_eps(self) -> float:
        """The epsilon of its RMS norms; 1e-5 where the file names none."""
        return self._number("attention.layer_norm_rms_epsilon", "f32", 1e-5)

    @functools.cached_property
    def context_length(self) -> int:
        """Tokens it was trained on at once; DEFAULT_CONTEXT where the file does not say."""
        kind = self.first.kind(self.key("context_length"))
        return int(self.first.get(self.key("context_length"))) if kind in ("u32", "u64") else DEFAULT_CONTEXT

    @property
    def default_context(self) -> int:
        """The context in tokens where none is asked for: the model's, at most DEFAULT_CONTEXT."""
        return min(self.context_length, DEFAULT_CONTEXT)

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256, hex, over the F32 norm weights by tensor name: the same for every quantisation of one model."""
        digest = hashlib.sha256()
        norms = [(tensor.name, tensor, path) for path, tensor in self.tensors() if _is_norm(tensor)]
        for name, tensor, path in sorted(norms, key=lambda norm: norm[0]):
            digest.update(name.encode())
            with open(path, "rb") as stream:
                stream.seek(tensor.offset)
                digest.update(stream.read(tensor.n_bytes))
        return digest.hexdigest()

    @property
    def base(self) -> Base:
        """What routers for this model must have been made for."""
        return Base(self.architecture, self.n_layer, self.n_embd, self.fingerprint)

    def tensors(self) -> Iterator[tuple[str, GgufTensor]]:
        """Each tensor with the path of the file that holds it."""
        for path, file in zip(self.paths, self.files, strict=True):
            for tensor in file.tensors():
                yield path, tensor

    @property
    def head_sizes(self) -> tuple[int, int]:
        """Numbers that a key, and that a value, has in a head.

        >>> ModelFile.open("model.gguf").head_sizes
        (32, 32)
        """
        return Hyperparameters(self.first, self.architecture, self.path).head_sizes()

    def spelling(self) -> Spelling | None:
        """What the vocabulary can spell, None where that is every text. Raises ModelFileError for one with which llama.cpp
        would end the process, or none.

        >>> ModelFile.open("model.gguf").spelling() is None
        True
        """
        return check_vocabulary(self.first, self.path)

    def key(self, name: str) -> str:
        """The metadata key of a hyper-parameter, "block_count" to "llama.block_count"."""
        return f"{self.architecture}.{name}"

    def _number(self, name: str, kind: str, default: float | None = None) -> float:
        key = self.key(name)
        found = self.first.kind(key)
        if not found and default is not None:
            return default
        if found != kind:
            raise ModelFileError(f"{self.path}: {printable(key)} is {found or 'missing'}, expected {kind}")
        return float(self.first.get(key))


def context_length(model: str) -> int:
    """`ModelFile.default_context` of a model file. Raises as `ModelFile.open` does.

    >>> context_length("model.gguf")
    2048
    """
    return ModelFile.open(model).default_context


def _is_norm(tensor: GgufTensor) -> bool:
    return tensor.type == "f32" and tensor.name.endswith("norm.weight")


def parts_of(path: str) -> list[str]:
    """All files of a split GGUF, in order; the file itself if it is whole.

    >>> parts_of("m-00002-of-00002.gguf")
    ['m-00001-of-00002.gguf', 'm-00002-of-00002.gguf']
    """
    name = _PART.match(os.path.basename(path))
    if name is None:
        return [path]
    folder = Path(path).parent
    return [str(folder / f"{name['stem']}-{i:05d}-of-{name['count']}.gguf") for i in range(1, int(name["count"]) + 1)]


def weights_fingerprint(path: str) -> str:
    """Of the sizes of a file's parts and of 64 pieces spread over each: other weights, other routers, another fingerprint.

    What depends on weights is kept under this: merges of two LoRAs into one model are equally large, and their norms alike.

    >>> len(weights_fingerprint("model.gguf"))
    64
    """
    return "+".join(map(_of_pieces, parts_of(path)))


def _of_pieces(path: str) -> str:
    size, piece = os.path.getsize(path), 1 << 16
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        for i in range(64):
            file.seek(max(0, size - piece) * i // 63)
            digest.update(file.read(piece))
    return digest.hexdigest()


def _check_first_part(file: GgufFile, path: str) -> None:
    """llama.cpp loads the parts of a split model by the first."""
    if file.kind("split.no") == "u16" and file.get("split.no") != 0:
        raise ModelFileError(f"{path} is part {file.get('split.no') + 1} of a split model; give the first: {parts_of(path)[0]}")


def _check_texts(file: GgufFile, path: str) -> None:
    """With one text that is not UTF-8, llama_cpp would drop all metadata, the chat template included."""
    for key in file.keys():
        if file.kind(key) == "str":
            try:
                file.get(key).decode("utf-8")
            except UnicodeDecodeError as error:
                raise ModelFileError(f"{path}: the value of {printable(key)} is not UTF-8 text ({error})") from None
