"""A GGUF file taken apart, changed, and put together again, malformed where that is asked for."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
U16, U32, I32, F32, BOOL, STR, ARR = 2, 4, 5, 6, 7, 8, 9


@dataclass
class Value:
    """kind: GGUF's number of the type. of: that of an array's elements."""

    kind: int
    value: Any
    of: int = 0


@dataclass
class Tensor:
    """dims: fastest first. kind: ggml's number of the type."""

    name: bytes
    dims: list[int]
    kind: int
    data: bytes
    offset: int | None = None
    """None: where it belongs."""


@dataclass
class Parts:
    """All of a file."""

    pairs: dict[str, Value] = field(default_factory=dict)
    tensors: list[Tensor] = field(default_factory=list)
    alignment: int = 32

    def dump(self) -> bytes:
        """The file's bytes."""
        head = [b"GGUF", struct.pack("<IQQ", 3, len(self.tensors), len(self.pairs))]
        for key, value in self.pairs.items():
            head += [_text(key.encode()), struct.pack("<I", value.kind), _value(value)]
        data = bytearray()
        for tensor in self.tensors:
            data += b"\0" * (-len(data) % self.alignment)
            offset = len(data) if tensor.offset is None else tensor.offset
            head += [
                _text(tensor.name),
                struct.pack(f"<I{len(tensor.dims)}QIQ", len(tensor.dims), *tensor.dims, tensor.kind, offset),
            ]
            data += tensor.data
        start = b"".join(head)
        return start + b"\0" * (-len(start) % self.alignment) + bytes(data) + b"\0" * (-len(data) % self.alignment)


def _text(raw: bytes) -> bytes:
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Value) -> bytes:
    if value.kind == STR:
        return _text(value.value)
    if value.kind != ARR:
        return _scalar(value.kind, value.value)
    head = struct.pack("<IQ", value.of, len(value.value))
    if value.of == STR:
        return head + b"".join(map(_text, value.value))
    return head + b"".join(_scalar(value.of, one) for one in value.value)


def _scalar(kind: int, value: Any) -> bytes:
    """Numbers beyond the type's range wrap around."""
    character = SCALARS[kind]
    if character in "fd":
        return struct.pack("<" + character, value)
    size = struct.calcsize(character)
    return struct.pack("<Q", int(value) % (1 << 64))[:size]


def take_apart(raw: bytes) -> Parts:
    """The parts of a good file."""
    at = 4

    def take(form: str) -> Any:
        nonlocal at
        found = struct.unpack_from("<" + form, raw, at)
        at += struct.calcsize("<" + form)
        return found[0] if len(found) == 1 else list(found)

    def text() -> bytes:
        nonlocal at
        n = take("Q")
        at += n
        return raw[at - n : at]

    def value(kind: int) -> Any:
        return text() if kind == STR else take(SCALARS[kind])

    _, n_tensors, n_pairs = take("IQQ")
    parts = Parts()
    for _ in range(n_pairs):
        key, kind = text().decode(), take("I")
        if kind == ARR:
            of, n = take("IQ")
            parts.pairs[key] = Value(kind, [value(of) for _ in range(n)], of)
        else:
            parts.pairs[key] = Value(kind, value(kind))
    infos = []
    for _ in range(n_tensors):
        name, n_dims = text(), take("I")
        dims = [take("Q") for _ in range(n_dims)]
        infos.append((name, dims, take("I"), take("Q")))
    parts.alignment = parts.pairs["general.alignment"].value if "general.alignment" in parts.pairs else 32
    start = at + -at % parts.alignment
    ends = [offset for *_, offset in infos[1:]] + [len(raw) - start]
    for (name, dims, kind, offset), end in zip(infos, ends, strict=True):
        parts.tensors.append(Tensor(name, dims, kind, raw[start + offset : start + end]))
    return parts
