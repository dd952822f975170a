"""Check an installed wheel: it carries no library of llama.cpp, and one libggml-base is in the process."""

from __future__ import annotations

import importlib.metadata
import os

import psutil

import first_cpp

carried = [str(path) for path in importlib.metadata.files("first-cpp") or [] if "ggml" in path.name or "llama." in path.name]
assert not [path for path in carried if path.endswith((".so", ".dylib", ".dll"))], carried
try:
    mapped = {os.path.realpath(region.path) for region in psutil.Process().memory_maps()}
except (AttributeError, psutil.Error):  # macOS tells only root
    mapped = set()
copies = sorted(path for path in mapped if "ggml-base" in os.path.basename(path))
assert not mapped or len(copies) == 1, copies
print(f"first_cpp {first_cpp.__version__}: no library carried, {copies or 'maps not readable'}")
