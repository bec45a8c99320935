r"""Equations that say what a name, a sum of names or a function is: ``x=5``, ``m+n=204``, ``(r,\theta)=(3,\pi)``."""

from __future__ import annotations

import re

from specexit.data.answers.math_latex import WRAPPER
from specexit.data.answers.math_text import COMMA, apart

_FUNCTION_ARGUMENT = r"(?:\([^()=]*\))?"
_WRAPPED = rf"(?:{WRAPPER}\{{[^{{}}]*\}}|\\(?:vec|hat|overline|overrightarrow) ?\{{\w+\}})"
_INDEX = r"_(?:\w|\{[^{}]*\})"
_NAME = (
    rf"(?:m?\\[a-zA-Z]+ ?[A-Za-z]{{0,4}}|{_WRAPPED}"
    rf"|[A-Za-z]|[A-Z]{{2,4}}|[a-z]{{3,}})(?:{_INDEX})?'*(?:\^\{{-1\}})?{_FUNCTION_ARGUMENT}"
)
_NAMED = re.compile(rf"({_NAME}|\({_NAME}(?:,{_NAME})+\)|[^A-Za-z=<>\\]+)(?:=|\\in\b ?|\\approx\b ?)(.+)")
_EQUALS = re.compile(r"(?<![<>!:\\])=")
_PLUS_MINUS = re.compile(r" ?\\pm(?![A-Za-z]) ?")
_POINT = re.compile(r"[A-Z]'?(\(.+,.+\))")

_APPLIED = re.compile(rf"(?<![A-Za-z\\])(\\?[A-Za-z]+)(?:{_INDEX})?'*(?:\^\{{-1\}})?\((?![^()]*\1)[^()=]*\)")
"""A function of something; in x(x+1) the x is a factor."""
_OF_NAMES = re.compile(
    r"\|(?:[A-Z]+|[zw]|\\[a-z]+ ?(?:\{[A-Za-z]+\})?)\|"  # a length
    rf"|(?:{_WRAPPED}|[A-Z]{{2,}})\^\{{?\d+\}}?|{_WRAPPED}"  # the square of a length, the power of a matrix
    rf"|{_INDEX}|\^\{{-1\}}|\\(?:sin|cos|tan) ?\d+(?:\^\\circ)?"
    r"|\\(?!(?:sqrt|pm|mp|in|to|[lgn]eq?)(?![A-Za-z]))[A-Za-z]+|[A-Za-z'+\-*/(){} ]"
)
"""What a sum, a difference, a product or a quotient of names is made of: no number, no root, no power of an unknown."""


def equation(text: str) -> list[str]:
    """The sides of an equation; one where a text is none."""
    return apart(text, _EQUALS)


def value(text: str, other: str) -> str:
    r"""What a text says that its names are, as a list; of several names as a tuple where the other is one.

    An equation that is still to be solved says nothing of the kind.

    Example:
      >>> value("x=5", "5"), value("x=1,x=2", "1,2"), value("y=3,x=2", "(2,3)"), value("m+n=7", "7")
      ('5', '1,2', '(2,3)', '7')
      >>> value("x^2=4", "4"), value("2x+y=3", "3"), value("P(1,2)", "(1,2)")
      ('x^2=4', '2x+y=3', '(1,2)')
    """
    found = [_NAMED.fullmatch(part) for part in apart(text, COMMA)]
    if len(found) > 1 and all(found):
        names, values = zip(*(one.groups() for one in found if one), strict=True)
        if len(set(names)) == 1:
            return ",".join(values)
        values = [said for _, said in sorted(zip(names, values, strict=True))]
        return f"({','.join(values)})" if other.startswith("(") else text
    if named := _NAMED.fullmatch(text):
        # In x=1/2=0.5 the last is the value; in x=2,y=3 it is not.
        return named.group(2) if "," in text else equation(named.group(2))[-1]
    if (point := _POINT.fullmatch(text)) and other.startswith("("):
        return point.group(1)
    left, *rest = equation(text)
    return rest[-1] if rest and _is_of_names(left) and _is_number(rest[-1]) else text


def _is_of_names(text: str) -> bool:
    rest, applied = text, 1
    while applied:
        rest, applied = _APPLIED.subn("", rest)
    return re.search("[A-Za-z]", text) is not None and not _OF_NAMES.sub("", rest)


def _is_number(text: str) -> bool:
    """Whether a text has no letter but those of constants, and is no list."""
    letters = re.sub(r"\\[A-Za-z]+(?:\{[a-z]*matrix\})?|(?<![A-Za-z])[ie](?![A-Za-z])", "", text)
    return not re.search("[A-Za-z<>]", letters) and len(apart(text, COMMA)) == 1


def with_both_signs(text: str) -> str:
    r"""A list in which each member with one plus-minus sign is two.

    Example:
      >>> with_both_signs(r"\frac{1\pm\sqrt5}{2}"), with_both_signs(r"\{\pm 2,0\}")
      ('\\frac{1+\\sqrt5}{2},\\frac{1-\\sqrt5}{2}', '+2,-2,0')
    """
    if r"\pm" not in text:
        return text
    inside = text.removeprefix(r"\{").removesuffix(r"\}")
    members = apart(text if r"\}" in inside else inside, COMMA)
    found: list[str] = []
    for member in members:
        signs = "+-" if len(_PLUS_MINUS.findall(member)) == 1 else ""
        found += [_PLUS_MINUS.sub(sign, member) for sign in signs] or [member]
    return ",".join(found)
