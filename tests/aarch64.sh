#!/usr/bin/env bash
# Builds ggml, the core library and the C++ tests for aarch64 and runs the tests under qemu. ggml is llama-cpp-python's, of
# the pinned version, from its source package: CPU only, no OpenMP, no instructions beyond the base architecture.
# Needs aarch64-linux-gnu-g++ and qemu-aarch64 (Debian: apt install g++-aarch64-linux-gnu qemu-user).
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
out=build/aarch64
for tool in aarch64-linux-gnu-g++ qemu-aarch64; do
    command -v "$tool" >/dev/null || {
        echo "$tool is missing (Debian: apt install g++-aarch64-linux-gnu qemu-user)" >&2
        exit 2
    }
done
version=$(sed -n 's/.*"llama-cpp-python==\([0-9.]*\)".*/\1/p' pyproject.toml | head -n 1)
source=$out/llama_cpp_python-$version
if [ ! -d "$source" ]; then
    mkdir -p "$out"
    "$python" -m pip --disable-pip-version-check download -q --no-deps --no-binary llama-cpp-python -d "$out" "llama-cpp-python==$version"
    tar -xzf "$out/llama_cpp_python-$version.tar.gz" -C "$out"
fi
cross=(-D CMAKE_SYSTEM_NAME=Linux -D CMAKE_SYSTEM_PROCESSOR=aarch64 -D CMAKE_BUILD_TYPE=Release
    -D CMAKE_C_COMPILER=aarch64-linux-gnu-gcc -D CMAKE_CXX_COMPILER=aarch64-linux-gnu-g++)
if [ ! -f "$out/ggml/lib/libggml-cpu.so" ]; then
    cmake -S tests/cpp/ggml -B "$out/ggml-build" -D GGML_SOURCE="$PWD/$source/vendor/llama.cpp/ggml" "${cross[@]}" -D BUILD_SHARED_LIBS=ON -D GGML_NATIVE=OFF \
        -D GGML_OPENMP=OFF -D GGML_BUILD_TESTS=OFF -D GGML_BUILD_EXAMPLES=OFF -D CMAKE_INSTALL_PREFIX="$PWD/$out/ggml" \
        -D CMAKE_INSTALL_LIBDIR=lib >"$out/ggml.log"
    cmake --build "$out/ggml-build" --parallel "${JOBS:-2}" >>"$out/ggml.log"
    cmake --install "$out/ggml-build" >>"$out/ggml.log"
fi
cmake -B "$out/tests" "${cross[@]}" -D FIRST_CPP_EXTENSION=OFF -D FIRST_CPP_TESTS=ON -D FIRST_CPP_WERROR=ON \
    -D LLAMA_CPP_ROOT="$PWD/$out/ggml" -D Python_EXECUTABLE="$(command -v "$python")" >"$out/tests.log"
cmake --build "$out/tests" --parallel "${JOBS:-2}" >>"$out/tests.log"
qemu-aarch64 -L /usr/aarch64-linux-gnu -E LD_LIBRARY_PATH="$PWD/$out/ggml/lib" "$out/tests/tests/cpp/first_cpp_tests"
