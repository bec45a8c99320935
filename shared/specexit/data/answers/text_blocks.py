"""What stands at the beginning of a text: the rest of a line, or the block that begins there."""

from __future__ import annotations

import re

_RULE = re.compile(r"(?:[-*_] ?){3,}(?:\n|\Z)|\*{1,3}[^\S\n]*(?=\n)")
"""A line across the page, or an emphasis whose words begin below."""
_LEAD = re.compile(
    r"(?:sure\b|okay\b|certainly\b|here\b|as follows|the following|(?:given |shown )?below)[^:\n]*:\s*\n", re.I
)
"""What only says that the answer comes on the next line."""
_BLOCKS = [
    re.compile(opens + r"(?P<content>.*?)" + closes, re.S | re.I)
    for opens, closes in (
        (r"(?P<fence>`{3,}|~{3,})(?:[^\S\n]*[\w+#.-]*[^\S\n]*\n)?", r"(?:(?P=fence)|\Z)"),
        (r'(?P<quotes>"{3}|\'{3})', r"(?:(?P=quotes)|\Z)"),
        (r"\$\$", r"(?:\$\$|\Z)"),
        (r"\\\[", r"(?:\\\]|\Z)"),
        (r"\\begin\{(?P<environment>[^{}\n]*)\}(?:\{[^{}\n]*\})?", r"(?:\\end\{(?P=environment)\}|\Z)"),
        (r"<(?P<tag>pre|code|blockquote|p|div)\b[^<>\n]*>", r"(?:</(?P=tag)>|\Z)"),
    )
]
_DEEPEST = 4
"""Blocks in one another that anybody writes: a formula in an environment in a fence."""


def first_statement(text: str) -> str:
    r"""The first line of a text, or all of the block that begins there, on one line.

    A block is a fence, a displayed formula, an environment, a literal of HTML, or a list in brackets that is closed on
    another line; one that is never closed goes to the end. What introduces them is not the statement: a rule, a lead
    ("Here it is:"), the opening sign of an emphasis. Empty where nothing stands there.

    Example:
      >>> first_statement("Paris.\nIt is in France"), first_statement("```python\n[1,\n 2]\n```\nDone")
      ('Paris.', '[1, 2]')
      >>> first_statement("$$\n\\begin{aligned}\nx\n\\end{aligned}\n$$"), first_statement("Here it is:\n\n{\n  1\n}\n2")
      ('x', '{ 1 }')
    """
    text, emphasis = _without_lead(text)
    if (content := _content(text)) is None:
        content = text.partition("\n")[0] if (bracketed := _bracketed(text)) is None else bracketed
    return " ".join(content.split()).removesuffix(emphasis)


def _without_lead(text: str) -> tuple[str, str]:
    """A text without what only introduces it, and the sign of an emphasis that was opened there."""
    text, emphasis = text.strip(), ""
    while skipped := _RULE.match(text) or _LEAD.match(text):
        emphasis = skipped[0].strip() if skipped[0].startswith("*") else emphasis
        text = text[skipped.end() :].lstrip()
    return text, emphasis


def _content(text: str) -> str | None:
    """What the block holds that the text begins with, or the block in it; None where it begins with none."""
    content = None
    for _ in range(_DEEPEST):
        block = next(filter(None, (opened.match(text) for opened in _BLOCKS)), None)
        if block is None:
            break
        content = text = block["content"].strip()
    return content


def _bracketed(text: str) -> str | None:
    """The lines up to the one that closes the bracket that the text begins with; None where that is the first line, or
    none closes it and something stands behind the bracket.

    Example:
      >>> _bracketed("[1,\\n2] all\\n3"), _bracketed("[1, 2"), _bracketed("{")
      ('[1,\\n2] all', None, '')
    """
    if text[:1] not in {"[", "{", "("}:
        return None
    depth = 0
    lines = text.split("\n")
    for count, line in enumerate(lines, start=1):
        depth += sum((char in "[{(") - (char in "]})") for char in line)
        if depth <= 0:
            return None if count == 1 else "\n".join(lines[:count])
    return "" if lines[0].strip() in {"[", "{", "("} else None
