"""Typed reads of GGUF metadata: kind, element type and count are checked before a value is taken."""

from __future__ import annotations

import contextlib
import mmap
import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from .._ext import GgufFile
from ..errors import RouterError

MAX_TEXT = 4096
"""Longest text value in bytes."""


class TypedReader:
    """Reads values of known kinds from an open file; raises RouterError naming the key, what was expected and found."""

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
        """A number of GGUF's `kind`, "u32" or "f32"."""
        return self._expect(key, kind)

    def size(self, key: str, limit: int) -> int:
        """A u32 from 1 to `limit`."""
        value = int(self._expect(key, "u32"))
        if not 0 < value <= limit:
            raise RouterError(f"{self._path}: {key} is {value}, expected 1 to {limit}")
        return value

    def floats(self, key: str, count: int) -> npt.NDArray[np.float32]:
        """An array of `count` f32: float32 [count]."""
        return self._expect(key, "arr[f32]", count)  # type: ignore[no-any-return]

    def some_floats(self, key: str, most: int) -> npt.NDArray[np.float32]:
        """An array of at most `most` f32, however many there are: float32 [n]."""
        return self._at_most(key, "arr[f32]", most)  # type: ignore[no-any-return]

    def ints(self, key: str, count: int) -> tuple[int, ...]:
        """An array of `count` u32."""
        return tuple(int(value) for value in self._expect(key, "arr[u32]", count))

    def some_ints(self, key: str, most: int) -> tuple[int, ...]:
        """An array of at most `most` u32, however many there are."""
        return tuple(int(value) for value in self._at_most(key, "arr[u32]", most))

    def _at_most(self, key: str, kind: str, most: int) -> Any:
        if self._file.kind(key) == kind and self._file.count(key) > most:
            raise RouterError(f"{self._path}: {key} has {self._file.count(key)} elements, expected at most {most}")
        return self._expect(key, kind)

    def has(self, key: str) -> bool:
        """Whether the file has this key."""
        return bool(self._file.kind(key))

    def bools(self, key: str, count: int) -> tuple[bool, ...]:
        """An array of `count` bools."""
        return tuple(bool(value) for value in self._expect(key, "arr[bool]", count))

    def text(self, key: str) -> str:
        """UTF-8 text of at most MAX_TEXT bytes, without NUL."""
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

    def scalars(self, prefix: str) -> dict[str, str | int | float]:
        """Texts and numbers whose keys begin with `prefix`, by the rest of the key."""
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
