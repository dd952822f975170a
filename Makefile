# The two commands of the README, `make demo` and `make test`, and what developers need. Each installs what it needs into
# .venv first; pip's wheel cache keeps llama.cpp from being compiled twice.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := pyproject.toml CMakeLists.txt constraints.txt $(wildcard cpp_ext/*)
CPP := $(wildcard cpp_ext/*.cpp cpp_ext/*.h tests/cpp/*.cpp tests/cpp/*.h tests/fuzz/*.cpp)
# GCC 12 optimises away the tile configuration of ggml's AMX code, which then ends the process on CPUs that have AMX (docs/internals/faults.md, 106):
# llama.cpp is compiled without it.
export CFLAGS += -U__AMX_INT8__
export CXXFLAGS += -U__AMX_INT8__
# Warnings in our C++ are errors here.
INSTALL := $(PIP) install -c constraints.txt -C cmake.define.FIRST_CPP_WERROR=ON -e

.PHONY: demo test test-slow test-archs test-cpp test-sanitize test-aarch64 fuzz coverage bench docs lint format clean

demo: .venv/installed-demo
	$(BIN)/first-cpp demo

test: .venv/installed-test
	$(BIN)/pytest -m "not slow and not timed" -n auto --maxprocesses 4 --dist loadfile
	$(BIN)/pytest -m "timed and not slow"

test-slow: .venv/installed-test
	$(BIN)/pytest -m slow

test-archs: .venv/installed-test
	cd tests && PYTHONPATH=support ../$(BIN)/python -m architectures --out ../docs/reference/architectures.md

# The C++ tests alone; docs/internals/testing.md says what each target below does.
CMAKE_TESTS = $(BIN)/cmake -G Ninja -D CMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -D FIRST_CPP_EXTENSION=OFF \
	-D FIRST_CPP_WERROR=ON -D Python_EXECUTABLE=$(CURDIR)/$(BIN)/python
QUIET := GGML_NO_BACKTRACE=1 OMP_WAIT_POLICY=passive

test-cpp: .venv/installed-native
	$(CMAKE_TESTS) -B build/cpp-tests -D FIRST_CPP_TESTS=ON
	$(BIN)/cmake --build build/cpp-tests
	$(QUIET) build/cpp-tests/tests/cpp/first_cpp_tests

test-sanitize: .venv/installed-native
	$(CMAKE_TESTS) -B build/sanitize-address -D FIRST_CPP_TESTS=ON -D FIRST_CPP_SANITIZE=address,undefined -D CMAKE_BUILD_TYPE=RelWithDebInfo
	$(BIN)/cmake --build build/sanitize-address
	$(QUIET) UBSAN_OPTIONS=print_stacktrace=1 build/sanitize-address/tests/cpp/first_cpp_tests
	$(CMAKE_TESTS) -B build/sanitize-thread -D FIRST_CPP_TESTS=ON -D FIRST_CPP_SANITIZE=thread -D CMAKE_BUILD_TYPE=RelWithDebInfo
	$(BIN)/cmake --build build/sanitize-thread
	$(QUIET) OMP_THREAD_LIMIT=1 TSAN_OPTIONS=halt_on_error=1 build/sanitize-thread/tests/cpp/first_cpp_tests threads
	PYTHON=$(BIN)/python tests/instrumented.sh sanitize

test-aarch64: .venv/installed-native
	PATH="$(CURDIR)/$(BIN):$$PATH" PYTHON=$(BIN)/python tests/aarch64.sh

# Seconds for each of the fuzzers.
SECONDS ?= 600
fuzz: .venv/installed-native
	@command -v clang++ >/dev/null || { echo "make fuzz needs clang++ (Debian: apt install clang)" >&2; exit 2; }
	$(CMAKE_TESTS) -B build/fuzz -D FIRST_CPP_FUZZ=ON -D FIRST_CPP_SANITIZE=address,undefined -D CMAKE_BUILD_TYPE=RelWithDebInfo -D CMAKE_CXX_COMPILER=clang++
	$(BIN)/cmake --build build/fuzz
	@set -e; for target in patch gguf scores; do \
		mkdir -p build/fuzz/corpus/$$target; \
		$(QUIET) build/fuzz/tests/fuzz/fuzz_$$target -max_total_time=$(SECONDS) -print_final_stats=1 -rss_limit_mb=4000 \
			-artifact_prefix=build/fuzz/$$target- build/fuzz/corpus/$$target tests/fuzz/seeds/$$target; \
	done
	$(BIN)/python tests/fuzz/fuzz_convert.py --seconds $(SECONDS) 2>build/fuzz/convert.log || { tail -n 40 build/fuzz/convert.log; exit 1; }
	$(BIN)/python tests/fuzz/fuzz_policy.py --seconds $(SECONDS)
	$(BIN)/python tests/fuzz/fuzz_open.py --seconds $(SECONDS) --cases 1000000

coverage: .venv/installed-native
	PYTHON=$(BIN)/python tests/instrumented.sh coverage

bench: .venv/installed-native
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python benchmarks/all.py
	$(BIN)/python tools/what_else_page.py

# The generated parts of documents; the transcript of README.md is `python tools/transcript.py`.
docs: .venv/installed-test
	$(BIN)/python benchmarks/document.py
	$(BIN)/python tools/command_line.py
	$(BIN)/python tools/errors_page.py
	$(BIN)/python tools/results_page.py
	$(BIN)/python tools/what_else_page.py

lint: .venv/installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP)

format: .venv/installed-lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

clean:
	rm -rf .venv build dist

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed-demo: .venv/bin/python $(SOURCES)
	$(INSTALL) ".[demo]"
	touch $@

.venv/installed-test: .venv/bin/python $(SOURCES)
	$(INSTALL) ".[demo,test]"
	touch $@ .venv/installed-demo

.venv/installed-native: .venv/installed-test
	$(PIP) install -q "cmake>=3.18" ninja "nanobind>=2.4,<4" "scikit-build-core>=0.10,<2" "coverage>=7.10,<8" "gcovr>=7,<9"
	touch $@

.venv/installed-lint: .venv/installed-test
	$(PIP) install -c constraints.txt "ruff>=0.14,<1" "mypy>=1.15,<3" "clang-format>=20,<24"
	touch $@
