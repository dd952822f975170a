"""A tiny random CLIP with LLaVA's projector, and images, for tests of multimodal prompts."""

from __future__ import annotations

import base64
import os
import struct
import zlib

import gguf
import numpy as np

SIZE, PATCH, WIDTH, N_FF, N_LAYER = 28, 14, 32, 64, 2
N_IMAGE_TOKENS = (SIZE // PATCH) ** 2


def write_clip(path: str | os.PathLike[str], n_embd: int, seed: int = 0) -> str:
    """Write the vision part (mmproj) that belongs to a language model of width `n_embd`."""
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(os.fspath(path), "clip")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "mlp")
    writer.add_bool("clip.use_gelu", True)
    for key, number in {
        "image_size": SIZE,
        "patch_size": PATCH,
        "embedding_length": WIDTH,
        "feed_forward_length": N_FF,
        "projection_dim": n_embd,
        "block_count": N_LAYER,
        "attention.head_count": 4,
    }.items():
        writer.add_uint32(f"clip.vision.{key}", number)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
    writer.add_array("clip.vision.image_mean", [0.5, 0.5, 0.5])
    writer.add_array("clip.vision.image_std", [0.25, 0.25, 0.25])

    def add(name: str, *shape: int) -> None:
        values = rng.uniform(0.5, 1.5, shape) if "ln" in name and "weight" in name else rng.normal(0, 0.3, shape)
        writer.add_tensor(name, values.astype(np.float32))

    add("v.class_embd", WIDTH)
    add("v.patch_embd.weight", WIDTH, 3, PATCH, PATCH)
    add("v.position_embd.weight", N_IMAGE_TOKENS + 1, WIDTH)
    linear = [("mm.0", n_embd, WIDTH), ("mm.2", n_embd, n_embd)]
    norms = ["v.pre_ln"]
    for layer in range(N_LAYER):
        block = f"v.blk.{layer}"
        linear += [(f"{block}.attn_{part}", WIDTH, WIDTH) for part in ("q", "k", "v", "out")]
        linear += [(f"{block}.ffn_down", N_FF, WIDTH), (f"{block}.ffn_up", WIDTH, N_FF)]  # LLaVA's files have the two swapped
        norms += [f"{block}.ln1", f"{block}.ln2"]
    for name, n_out, n_in in linear:
        add(f"{name}.weight", n_out, n_in)
        add(f"{name}.bias", n_out)
    for name in norms:
        add(f"{name}.weight", WIDTH)
        add(f"{name}.bias", WIDTH)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return os.fspath(path)


def image_url(seed: int, size: int = 40) -> str:
    """A PNG of noise as a data URL."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(png).decode()
