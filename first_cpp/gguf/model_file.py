"""Opening GGUF files: what is wrong with a file is said before llama.cpp tries it."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import struct
from pathlib import Path

from .._ext import GgufFile, GgufTensor
from ..errors import MissingFileError, ModelFileError

_SHARD = re.compile(r"^(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")
_NEWEST_GGUF = 3
MOST_CONTEXT = 4096
"""Tokens: a longer context is taken only where it is asked for."""


def normal_path(path: str | bytes | os.PathLike[str]) -> str:
    """The path as text, with ``~`` expanded. Raises TypeError for what is no path."""
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
    """
    _check_header(path)
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


def _check_header(path: str) -> None:
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        target = " (a broken link)" if os.path.islink(path) else ""
        raise MissingFileError(f"Model path does not exist: {path}{target}") from None
    except OSError as error:
        raise ModelFileError(f"{path}: {error.strerror}") from error
    if stat.S_ISDIR(mode):
        raise ModelFileError(f"{path} is a directory, not a GGUF file")
    if not stat.S_ISREG(mode):
        raise ModelFileError(f"{path} is not a regular file")
    with open(path, "rb") as file:
        head = file.read(64)
    if not head:
        raise ModelFileError(f"{path} is empty")
    if head.startswith(b"version https://git-lfs"):
        raise ModelFileError(f"{path} is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise ModelFileError(f"{path} is a web page, not a GGUF file; the download went wrong")
    if head[:4] != b"GGUF":
        raise ModelFileError(f"{path} is not a GGUF file: it begins with {head[:4]!r}, expected b'GGUF'")
    if len(head) < 24:
        raise ModelFileError(f"{path} is truncated: a GGUF header has 24 bytes, the file {len(head)}")
    (version,) = struct.unpack("<I", head[4:8])
    if version > 0xFFFF:
        raise ModelFileError(f"{path} is a big-endian GGUF file; this machine needs a little-endian one")
    if not 2 <= version <= _NEWEST_GGUF:
        raise ModelFileError(f"{path} has GGUF version {version}; supported are 2 and {_NEWEST_GGUF}")


def check_strings(file: GgufFile, path: str) -> None:
    """Raise ModelFileError if a text value is not UTF-8: llama_cpp would drop all metadata, chat template included."""
    for key in file.keys():
        if file.kind(key) == "str":
            try:
                file.get(key).decode("utf-8")
            except UnicodeDecodeError as error:
                raise ModelFileError(f"{path}: the value of {key} is not UTF-8 text ({error})") from None


def shards(path: str) -> list[str]:
    """All files of a split GGUF, in order; the file itself if it is whole."""
    name = _SHARD.match(os.path.basename(path))
    if name is None:
        return [path]
    folder = Path(path).parent
    return [str(folder / f"{name['stem']}-{i:05d}-of-{name['count']}.gguf") for i in range(1, int(name["count"]) + 1)]


def check_first_shard(file: GgufFile, path: str) -> None:
    """Raise ModelFileError when a later part of a split model is given: llama.cpp loads them by the first."""
    if file.kind("split.no") == "u16" and file.get("split.no") != 0:
        raise ModelFileError(f"{path} is part {file.get('split.no') + 1} of a split model; give the first: {shards(path)[0]}")


def open_model(path: str) -> list[tuple[str, GgufFile]]:
    """Open a model file, and the other parts if it is split. Raises as `open_gguf` does."""
    first = open_gguf(path)
    if first.kind("general.type") == "str" and first.get("general.type") == b"adapter":
        raise ModelFileError(f"{path} is an adapter (routers, a LoRA) and no model, which it goes beside (routers=FILE)")
    check_first_shard(first, path)
    check_strings(first, path)
    return [(path, first), *((shard, open_gguf(shard)) for shard in shards(path)[1:])]


def fingerprint(parts: list[tuple[str, GgufFile]]) -> str:
    """sha256 over a model's F32 norm weights by tensor name: the same for every quantisation of one model."""
    digest = hashlib.sha256()
    norms = [(tensor.name, tensor, path) for path, file in parts for tensor in file.tensors() if _is_norm(tensor)]
    for name, tensor, path in sorted(norms, key=lambda norm: norm[0]):
        digest.update(name.encode())
        with open(path, "rb") as stream:
            stream.seek(tensor.offset)
            digest.update(stream.read(tensor.n_bytes))
    return digest.hexdigest()


def _is_norm(tensor: GgufTensor) -> bool:
    return tensor.type == "f32" and tensor.name.endswith("norm.weight")


def context_length(model: str) -> int:
    """The context in tokens that a model's file tells, at most 4096. Raises as `open_gguf` does."""
    file = open_gguf(normal_path(model))
    architecture = file.get("general.architecture").decode() if file.kind("general.architecture") == "str" else ""
    key = f"{architecture}.context_length"
    trained = int(file.get(key)) if file.kind(key) in ("u32", "u64") else MOST_CONTEXT
    return min(trained, MOST_CONTEXT)
