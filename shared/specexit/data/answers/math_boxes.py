r"""Several boxes that state one answer: ``$x=\boxed{1}$ and $x=\boxed{-2}$``."""

from __future__ import annotations

import re

from specexit.data.answers.base import opened_box
from specexit.data.answers.math_inequalities import INEQUALITY
from specexit.data.answers.math_text import normal

_MOST = 32
"""Boxes of one answer; a model in a loop writes thousands."""
_NAME_LENGTH = 16
"""Characters in which the name of a box is looked for."""

_BOX = re.compile(r"\\(?:boxed|fbox)")
_NAME = re.compile(r"([A-Za-z](?:_\w)?) ?= *\Z")
_NOTHING = re.compile(r"\$|\\[()\[\],;:! ]|\\q?quad|\*\*")
_SEPARATOR = re.compile(r"[ \t]*|\s*[,;]\s*|\s*(?:[,;]\s*)?(and|or)\s*")


def last_boxes(text: str) -> tuple[list[str], str]:
    r"""The contents of the last box and of those in front of it that only a comma, "and" or "or" keeps apart.

    Each of several has the name that stands in front of its box. With them comes the last "and" or "or" between two of
    them, or an empty text.

    Example:
      >>> last_boxes(r"$x=\boxed{1}$ and $x=\boxed{-2}$"), last_boxes(r"\boxed{1} is wrong, \boxed{2}")
      ((['x=1', 'x=-2'], 'and'), (['2'], ''))
    """
    contents: list[str] = []
    named: list[str] = []
    word = ""
    next_start = len(text)
    for command in reversed(list(_BOX.finditer(text))[-_MOST:]):
        content, end = opened_box(text, command.end()) or (None, 0)
        # A box around another one is the same answer.
        separator = _separator(text[end:next_start]) if contents and end <= next_start else None
        if not content or (contents and not separator):
            break
        word = word or (separator and separator.group(1)) or ""
        next_start = command.start()
        contents.insert(0, content)
        name = _NAME.search(text[max(0, next_start - _NAME_LENGTH) : next_start])
        named.insert(0, f"{name.group(1)}={content}" if name else content)
    return (named, word) if len(contents) > 1 else (contents, "")


def _separator(between: str) -> re.Match[str] | None:
    """What stands between two boxes, where it only keeps them apart."""
    words = _NOTHING.sub("", re.sub(r"\\text ?\{([^{}]*)\}", r"\1", between))
    return _SEPARATOR.fullmatch(_NAME.sub("", words))


def joined(boxes: list[str], word: str) -> str:
    """Boxes as one answer: several as a list, or as inequalities that a word joins.

    Example:
      >>> joined(["1,000", "2"], "or"), joined(["x<1", "x>3"], "or")
      ('1000, 2', 'x<1 or x>3')
    """
    if len(boxes) < 2:
        return "".join(boxes)
    members = [normal(box) for box in boxes]
    # A space tells a list of numbers from one number with separators of thousands.
    return (f" {word} " if word and any(map(INEQUALITY.search, members)) else ", ").join(members)
