r"""Several boxes that state one answer: ``$x=\boxed{1}$ and $x=\boxed{-2}$``."""

from __future__ import annotations

import re

from specexit.data.answers.base import opened_box

_MOST = 32
"""Boxes of one answer; a model in a loop writes thousands."""
_NAME_LENGTH = 16
"""Characters in which the name of a box is looked for."""

_BOX = re.compile(r"\\(?:boxed|fbox)")
_NAME = re.compile(r"([A-Za-z](?:_\w)?) ?= *\Z")
_NOTHING = re.compile(r"\$|\\[()\[\],;:! ]|\\q?quad|\*\*")
_SEPARATOR = re.compile(r"[ \t]*|\s*(?:[,;]\s*(?:and|or)?|and|or)\s*")


def last_boxes(text: str) -> list[str]:
    r"""The contents of the last box and of those in front of it that only a comma, "and" or "or" keeps apart.

    Each of several has the name that stands in front of it.

    Example:
      >>> last_boxes(r"$x=\boxed{1}$ and $x=\boxed{-2}$"), last_boxes(r"\boxed{1} is wrong, \boxed{2}")
      (['x=1', 'x=-2'], ['2'])
    """
    contents: list[str] = []
    named: list[str] = []
    next_start = len(text)
    for command in reversed(list(_BOX.finditer(text))[-_MOST:]):
        content, end = opened_box(text, command.end()) or (None, 0)
        # A box around another one is the same answer.
        if not content or (contents and (end > next_start or not _separates(text[end:next_start]))):
            break
        next_start = command.start()
        contents.insert(0, content)
        name = _NAME.search(text[max(0, next_start - _NAME_LENGTH) : next_start])
        named.insert(0, f"{name.group(1)}={content}" if name else content)
    return named if len(contents) > 1 else contents


def _separates(between: str) -> bool:
    """Whether what stands between two boxes only keeps them apart."""
    words = _NOTHING.sub("", re.sub(r"\\text ?\{([^{}]*)\}", r"\1", between))
    return _SEPARATOR.fullmatch(_NAME.sub("", words)) is not None
