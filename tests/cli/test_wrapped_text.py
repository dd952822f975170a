"""Text that comes in parts, broken at words."""

from __future__ import annotations

import io
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from first_cpp.cli.wrapped_text import WrappedText


def wrapped(text, width, size=1, **options):
    """The text, written in parts of `size` signs."""
    out = WrappedText(io.StringIO(), width, **options)
    for start in range(0, len(text), size):
        out.write(text[start : start + size])
    out.end()
    return out.stream.getvalue()


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_words_wrap_as_they_come(size):
    """However the text is cut, lines are as textwrap's."""
    text = "The quick brown fox jumps over the lazy dog, and a-very-long-word-that-fits comes after it. " * 3
    expected = textwrap.fill(text, 40, initial_indent="   ", subsequent_indent="   ", break_on_hyphens=False)
    assert wrapped(text, 40, size, indent="   ") == expected + "\n"


def test_paragraphs_stay():
    assert wrapped("one\n\ntwo\nthree", 40, indent="  ", blank_lines=False) == "  one\n  two\n  three\n"
    assert wrapped("one\n\ntwo\nthree\n", 40) == "one\n\ntwo\nthree\n"


def test_code_keeps_its_spaces():
    code = "def f(x):\n    if x:\n\treturn  x\n"
    assert wrapped(code, 40) == code


def test_signs_of_two_columns_break_anywhere():
    assert wrapped("灯塔建于海边的岩石上", 8) == "灯塔建于\n海边的岩\n石上\n"


def test_signs_over_others_take_no_column():
    text = "e\u0301" * 8
    assert wrapped(f"{text} {text}", 17) == f"{text} {text}\n"


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_an_address_longer_than_a_line_is_copied_whole(size):
    """The terminal breaks it: a line feed in it would be copied."""
    address = "https://example.org/" + "a" * 70
    assert wrapped(f"see {address} there", 40, size) == f"see\n{address}\nthere\n"


def test_a_word_is_shown_as_soon_as_it_is_whole():
    out = WrappedText(io.StringIO(), 40)
    out.write("one tw")
    assert out.stream.getvalue() == "one"
    out.write("o ")
    assert out.stream.getvalue() == "one two"


@given(st.text(st.sampled_from("ab \t\n灯\u0301-"), max_size=60), st.integers(4, 20), st.integers(1, 9))
def test_nothing_is_lost(text, width, size):
    shown = wrapped(text, width, size)
    assert "".join(shown.split()) == "".join(text.split())
    if max(map(len, text.split()), default=0) < width:
        assert shown == wrapped(text, width, 1000)
        assert all(len(line.expandtabs(8)) <= width for line in shown.splitlines() if line.isascii() and line == line.lstrip())
