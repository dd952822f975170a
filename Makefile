# The two commands of the README, `make demo` and `make test`, and what developers need. Each installs what it needs into
# .venv first; pip's wheel cache keeps llama.cpp from being compiled twice.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := pyproject.toml CMakeLists.txt constraints.txt $(wildcard cpp_ext/*)
# Warnings in our C++ are errors here.
INSTALL := $(PIP) install -c constraints.txt -C cmake.define.FIRST_CPP_WERROR=ON -e

.PHONY: demo test test-slow test-archs bench lint format clean

demo: .venv/installed-demo
	$(BIN)/first-cpp demo

test: .venv/installed-test
	$(BIN)/pytest -m "not slow"

test-slow: .venv/installed-test
	$(BIN)/pytest -m slow

test-archs: .venv/installed-test
	cd tests && ../$(BIN)/python -m architectures --out ../docs/ARCHITECTURES.md

bench: .venv/installed-test
	$(BIN)/python benchmarks/all.py

lint: .venv/installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror cpp_ext/*.cpp cpp_ext/*.h

format: .venv/installed-lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i cpp_ext/*.cpp cpp_ext/*.h

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

.venv/installed-lint: .venv/installed-test
	$(PIP) install -c constraints.txt "ruff>=0.14,<1" "mypy>=1.15,<3" "clang-format>=20,<24"
	touch $@
