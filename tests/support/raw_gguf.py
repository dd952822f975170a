"""GGUF files byte by byte, malformed ones too."""

from __future__ import annotations

import pathlib
import struct

from first_cpp._ext import GgufFile

U8, I32, U32, F32, BOOL, STR, ARR, U64, F64 = 0, 5, 4, 6, 7, 8, 9, 10, 12
PACK = {U8: "B", I32: "i", U32: "I", F32: "f", BOOL: "?", U64: "Q", F64: "d"}


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def scalar(kind: int, value) -> bytes:
    return struct.pack("<I", kind) + (text(value) if kind == STR else struct.pack("<" + PACK[kind], value))


def array(kind: int, values, count: int | None = None) -> bytes:
    head = struct.pack("<IIQ", ARR, kind, len(values) if count is None else count)
    return head + b"".join(text(v) if kind == STR else struct.pack("<" + PACK[kind], v) for v in values)


def gguf_bytes(pairs: list[tuple[str, bytes]], n_kv: int | None = None, version: int = 3) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, 0, len(pairs) if n_kv is None else n_kv)
    return head + b"".join(text(key.encode()) + value for key, value in pairs)


def with_metadata(model, out, **changes) -> str:
    """Copy a GGUF to `out` with other metadata: u32 for an int, f32 for a float, else str; None removes a key.

    A key's "." is written "__" in the keyword.
    """
    file = GgufFile(str(model))
    start = file.data_offset
    for name, value in changes.items():
        key = name.replace("__", ".")
        file.remove(key)
        if value is not None:
            setter = {int: file.set_u32, float: file.set_f32}.get(type(value), file.set_str)
            setter(key, value)
    pathlib.Path(out).write_bytes(file.metadata() + pathlib.Path(model).read_bytes()[start:])
    return str(out)
