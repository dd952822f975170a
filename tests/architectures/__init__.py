"""For every architecture that llama.cpp can run tiny: proves that leaving layers out of it is exact.

`python -m architectures` (`make test-archs`) checks all of them and writes docs/reference/architectures.md.
"""
