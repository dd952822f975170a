"""Prints where llama-cpp-python is installed, its version and its ggml's version, separated by ';' for CMake."""

import importlib.metadata
import importlib.util
import pathlib
import re

spec = importlib.util.find_spec("llama_cpp")
if spec is None or spec.origin is None:
    raise SystemExit("llama-cpp-python is not installed in the environment that builds first_cpp")
root = pathlib.Path(spec.origin).parent.parent
config = (root / "lib" / "cmake" / "ggml" / "ggml-config-version.cmake").read_text()
found = re.search(r'PACKAGE_VERSION "([^"]+)"', config)
if found is None:
    raise SystemExit(f"no ggml version in {root / 'lib/cmake/ggml/ggml-config-version.cmake'}")
print(root.as_posix(), importlib.metadata.version("llama-cpp-python"), found[1], sep=";")
