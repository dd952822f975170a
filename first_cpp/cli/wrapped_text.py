"""Writes a text as it comes, broken at words."""

from __future__ import annotations

from typing import TextIO

from rich.cells import cell_len

_TAB = 8


class WrappedText:
    r"""Writes text as it comes, no line longer than `width` columns, unless one word alone is.

    A word is held back until it is known to be whole. Signs of two columns, as Chinese is written with, may go to the next line
    each. Spaces stay, but for those where a line is broken.

    stream: where to. indent: before each line. blank_lines: whether lines without a word are kept.

    >>> import io
    >>> out = WrappedText(io.StringIO(), width=12, indent="  ")
    >>> for part in ("one tw", "o three", " four"):
    ...     out.write(part)
    >>> out.end()
    >>> out.stream.getvalue()
    '  one two\n  three four\n'
    """

    def __init__(self, stream: TextIO, width: int, indent: str = "", blank_lines: bool = True) -> None:
        self.stream = stream
        self._width, self._indent, self._blank_lines = width, indent, blank_lines
        self._column, self._spaces, self._word = 0, "", ""
        self._begun = False  # of a word longer than a line, of which a part stands there: the terminal breaks it

    def write(self, text: str) -> None:
        """Add text; its last word is held back until it is known to be whole, or as long as a line."""
        for sign in text:
            if sign == "\n":
                self._put_word()
                self._end_line()
            elif sign in " \t":
                self._put_word()
                self._spaces += sign
            elif cell_len(sign) == 2:
                self._put_word()
                self._word = sign
            else:
                self._word += sign
        if self._begun or cell_len(self._word) >= self._width:
            self._put_word(whole=False)
        self.stream.flush()

    def end(self) -> None:
        """Write what is held back, and end a line that has been begun."""
        self._put_word()
        if self._column:
            self._end_line()
        self._spaces = ""
        self.stream.flush()

    def _end_line(self) -> None:
        if self._column or self._blank_lines:
            self.stream.write("\n")
        self._column, self._spaces = 0, ""

    def _put_word(self, whole: bool = True) -> None:
        begun, self._begun = self._begun, not whole
        if not self._word:
            return
        if self._column and not begun and self._column + self._n_spaces() + cell_len(self._word) > self._width:
            self.stream.write("\n")
            self._column, self._spaces = 0, ""
        before = self._spaces if self._column else self._indent + self._spaces
        self._column += len(self._indent) * (not self._column) + self._n_spaces() + cell_len(self._word)
        self.stream.write(before + self._word)
        self._spaces = self._word = ""

    def _n_spaces(self) -> int:
        column = self._column or len(self._indent)
        return len((column * "." + self._spaces).expandtabs(_TAB)) - column
