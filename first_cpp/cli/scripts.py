"""Scripts that put no blanks between words: each of their signs stands for one."""

from __future__ import annotations

import re

_WITHOUT_BLANKS = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
"""Signs of scripts that put no blanks between words: Thai, Lao, Burmese, Khmer, kana, Chinese."""


def words_apart(text: str) -> str:
    """The text with blanks around each sign of a script that puts none between words.

    >>> words_apart("你好 there").split()
    ['你', '好', 'there']
    """
    return _WITHOUT_BLANKS.sub(r" \g<0> ", text)
