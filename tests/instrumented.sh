#!/usr/bin/env bash
# Runs Python tests on an instrumented extension, in an environment of its own under build/ that shares the packages of
# $PYTHON's: `sanitize` some of them under AddressSanitizer and UndefinedBehaviorSanitizer, `coverage` all but the slow ones,
# counting lines, those of the C++ tests and of processes that tests start too.
set -euo pipefail
cd "$(dirname "$0")/.."
mode=$1
python=${PYTHON:-python3}
out=build/$mode
bin=$out/venv/bin
tools=$(cd "$(dirname "$(command -v "$python")")" && pwd)
tests=(tests/llama/test_{llama,skip_settings,one_llama_cpp,no_models,detokenize,misuse,layers_left_out}.py
    tests/llama/test_{second_turns,read_again,answers_broken_off,images,kv_keep}.py tests/cli/test_ending.py
    tests/gguf/test_{convert,router_faults}.py tests/runtime/test_{kv_record,policy}.py)

packages() { "$bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }

if [ ! -x "$bin/python" ]; then
    "$python" -m venv --without-pip "$out/venv"
    # all folders of packages that $python sees; read first, since the .pth file of coverage imports from them
    "$python" -c 'import site, sys; print(*[p for p in sys.path if p.endswith("site-packages")], sep="\n")' >"$(packages)/shared.pth"
fi

install() { # with these CMake definitions
    local options=()
    for definition in "$@"; do options+=(-C "cmake.define.$definition"); done
    PATH="$tools:$PATH" "$python" -m pip --disable-pip-version-check --python "$bin/python" install -q \
        --no-build-isolation --no-deps --force-reinstall -C "build-dir=$out/extension" "${options[@]}" .
}

export GGML_NO_BACKTRACE=1 OMP_WAIT_POLICY=passive PYTHONSAFEPATH=1
case $mode in
sanitize)
    install FIRST_CPP_SANITIZE=address,undefined
    # Python itself leaks by design, and keeps what is freed out of reach of tests that measure memory.
    LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)" \
        ASAN_OPTIONS=detect_leaks=0:halt_on_error=1:abort_on_error=1 \
        UBSAN_OPTIONS=halt_on_error=1:abort_on_error=1:print_stacktrace=1 \
        "$bin/python" -m pytest -x -s -p no:cacheprovider -m "not slow and not smollm2" -k "not leave_nothing_behind" "${tests[@]}"
    ;;
coverage)
    install FIRST_CPP_COVERAGE=ON
    PATH="$tools:$PATH" cmake -B "$out/tests" -D FIRST_CPP_EXTENSION=OFF -D FIRST_CPP_TESTS=ON \
        -D FIRST_CPP_COVERAGE=ON -D CMAKE_BUILD_TYPE=Debug -D Python_EXECUTABLE="$tools/$(basename "$python")" >"$out/cmake.log"
    PATH="$tools:$PATH" cmake --build "$out/tests" --parallel 2 >>"$out/cmake.log"
    find "$out" -name '*.gcda' -delete
    "$out/tests/tests/cpp/first_cpp_tests"
    # in processes that tests start; coverage puts such a file beside itself, where this environment does not look
    echo 'import coverage; coverage.process_startup()' >"$(packages)/zz_coverage.pth"
    rm -f "$out"/python*
    "$bin/python" -m coverage run --data-file="$PWD/$out/python" -m pytest -p no:cacheprovider -m "not slow" || failed=$?
    "$bin/python" -m coverage combine -q --data-file="$out/python" "$out"
    "$bin/python" -m coverage report --data-file="$out/python" --skip-empty --skip-covered --show-missing
    "$bin/python" -m gcovr --root . --filter cpp_ext/ --exclude-throw-branches --gcov-ignore-errors=no_working_dir_found "$out"
    exit "${failed:-0}"
    ;;
*)
    echo "usage: tests/instrumented.sh sanitize|coverage" >&2
    exit 2
    ;;
esac
