"""What can be said of a file before ggml reads it: that it is there, a regular file, and begins as a GGUF does."""

from __future__ import annotations

import os
import stat
import struct

from ..errors import MissingFileError, ModelFileError
from .new_file import kind_of

_NEWEST_GGUF = 3
_MOST = (1 << 15, 1 << 12)
"""Tensors and metadata keys, several times those of the largest models: ggml compares each with all others."""


def check_header(path: str) -> None:
    """Raise MissingFileError, PermissionError, or ModelFileError that says what the file is. Nothing is waited for.

    >>> check_header("/dev/zero")
    Traceback (most recent call last):
    first_cpp.errors.ModelFileError: /dev/zero is a device, not a regular file
    """
    _check_regular(path)
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
    _check_numbers(head, path)


def _check_regular(path: str) -> None:
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
        raise ModelFileError(f"{path} is {kind_of(mode)}, not a regular file")


def _check_numbers(head: bytes, path: str) -> None:
    version, *counts = struct.unpack_from("<IQQ", head, 4)
    if version > 0xFFFF:
        raise ModelFileError(f"{path} is a big-endian GGUF file; this machine needs a little-endian one")
    if not 2 <= version <= _NEWEST_GGUF:
        raise ModelFileError(f"{path} has GGUF version {version}; supported are 2 and {_NEWEST_GGUF}")
    for count, what, most in zip(counts, ("tensors", "metadata keys"), _MOST, strict=True):
        if count > most:
            raise ModelFileError(f"{path} is malformed: it declares {count} {what}, expected at most {most}")
