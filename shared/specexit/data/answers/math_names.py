r"""Equations that say what a name, a sum of names or a function is: ``x=5``, ``m+n=204``, ``(r,\theta)=(3,\pi)``."""

from __future__ import annotations

import re

from specexit.data.answers.math_latex import GREEK, WRAPPER
from specexit.data.answers.math_numbers import is_decimal, number
from specexit.data.answers.math_text import COMMA, apart

_FUNCTION_ARGUMENT = r"(?:\([^()]*\)|\[[^\[\]]*\])?"
_WRAPPED = rf"(?:{WRAPPER}\{{[^{{}}]*\}}|\\(?:vec|hat|overline|overrightarrow) ?\{{\w+\}})"
_INDEX = r"_(?:\w|\{[^{}]*\})"
_NAME = (
    rf"(?:m?\\(?!sqrt)[a-zA-Z]+ ?[A-Za-z]{{0,4}}|{_WRAPPED}|\\(?:bar|d?dot|tilde)\{{\w+\}}"
    rf"|[A-Za-z]|[A-Z]{{2,4}}|[a-z]{{3,}})(?:{_INDEX})?'*(?:\^\{{-1\}})?{_FUNCTION_ARGUMENT}"
)
_NAMED = re.compile(rf"({_NAME}|\({_NAME}(?:,{_NAME})+\))(?:=|\\in\b ?|\\approx\b ?)(.+)")
_INDEXED = re.compile(r"(\\?[A-Za-z]+)_(?:\{(\d+)\}|(\d))=([^=]+)")
_EQUALS = re.compile(r"(?<![<>!:\\])=")
_ABOUT = re.compile(r" ?\\approx(?![A-Za-z]) ?")
_FACTORIAL_IS = re.compile(r"(?<=\d!)=")
_PLUS_MINUS = re.compile(r" ?\\pm(?![A-Za-z]) ?")
_POINT = re.compile(r"[A-Z]'?(\(.+,.+\))")

_APPLIED = re.compile(rf"(?<![A-Za-z\\])(\\?[A-Za-z]+)(?:{_INDEX})?'*(?:\^\{{-1\}})?\((?![^()]*\1)[^()=]*\)")
"""A function of something; in x(x+1) the x is a factor."""
_OF_NAMES = re.compile(
    r"\|(?:[A-Z]+|[zw]|\\[a-z]+ ?(?:\{[A-Za-z]+\})?)\|"  # a length
    r"|\[(?:\\triangle ?)?[A-Z]{3,}\]"  # an area
    rf"|(?:{_WRAPPED}|[A-Z]{{2,}})\^\{{?\d+\}}?|{_WRAPPED}"  # the square of a length, the power of a matrix
    rf"|{_INDEX}|\^\{{-1\}}|\\(?:sin|cos|tan) ?\d+(?:\^\\circ)?"
    r"|\\(?!(?:sqrt|pm|mp|in|to|[lgn]eq?)(?![A-Za-z]))[A-Za-z]+|[A-Za-z'+\-*/(){} ]"
)
"""What a sum, a difference, a product or a quotient of names is made of: no number, no root, no power of an unknown."""
_OF_NUMBERS = re.compile(
    r"(?:[^A-Za-z<>\\]|\\%"
    r"|\\(?:frac|sqrt|binom|times|cdot|div|pi|log|ln|(?:arc)?(?:sin|cos|tan)|circ|[lr](?:floor|ceil))(?![A-Za-z]))+"
)


def equation(text: str) -> list[str]:
    """The sides of an equation; one where a text is none."""
    return apart(text, _EQUALS)


def says_names(text: str) -> bool:
    r"""Whether a text is an equation that has names on its left side, rather than a number in several forms.

    Example:
      >>> says_names("x=12"), says_names("m+n=12"), says_names(r"3\times 4=12"), says_names("12")
      (True, True, False, False)
    """
    left, *right = equation(text)
    return bool(right) and not _is_of_numbers(left)


def value(text: str, other: str) -> str:
    r"""The values that a text gives to its names, as a list; of several names as a tuple where ``other`` is a tuple.

    An equation that is still to be solved gives none, and stays as it is.

    Example:
      >>> value("x=5", "5"), value("x=1,x=2", "1,2"), value("y=3,x=2", "(2,3)"), value("m+n=7", "7")
      ('5', '1,2', '(2,3)', '7')
      >>> value("x^2=4", "4"), value("2x+y=3", "3"), value("P(1,2)", "(1,2)")
      ('x^2=4', '2x+y=3', '(1,2)')
      >>> value(r"3!=\frac{12}{2}", "6"), value("0=x-4", "x-4")
      ('\\frac{12}{2}', '0=x-4')
      >>> value(r"\sqrt2\approx 1.41", "1.41"), value(r"\sqrt2\approx 1.41", r"\sqrt2")
      ('1.41', '\\sqrt2')
    """
    *sides, last = equation(_FACTORIAL_IS.sub(" =", text))
    exact = _ABOUT.split(last)[0]
    if (sides or exact != last) and all(map(_is_of_numbers, sides or [exact])) and _is_number(last):
        return _exact(last, other)
    found = [_NAMED.fullmatch(part) for part in apart(text, COMMA)]
    if len(found) > 1 and all(found):
        names, values = zip(*(one.groups() for one in found if one), strict=True)
        if len(set(names)) == 1:
            return ",".join(values)
        values = [said for _, said in sorted(zip(names, values, strict=True))]
        return f"({','.join(values)})" if other.startswith("(") else text
    if named := _NAMED.fullmatch(text):
        # In x=1/2=0.5 the last is the value; in x=2,y=3 it is not.
        return named.group(2) if "," in text else _exact(equation(named.group(2))[-1], other)
    if (point := _POINT.fullmatch(text)) and other.startswith("("):
        return point.group(1)
    return _exact(last, other) if sides and _is_of_names(sides[0]) and _is_number(last) else text


def _exact(text: str, other: str) -> str:
    """A number without the decimal that approximates it, unless the other is a decimal and not the exact number."""
    exact, *about = _ABOUT.split(text)
    value = number(other)
    return exact if not about or value in (None, number(exact)) or not is_decimal(value) else about[-1]


def without_index(text: str, other: str) -> tuple[str, str]:
    r"""Two lists as they are, or, where names in the one differ by their index alone, as lists or tuples of values.

    The other's values are in the order of the index, unless it is of the same name without one, as solutions are.

    Example:
      >>> without_index("x_1=1,x_2=2", "1,2"), without_index("x_1=1,x_2=2", "x=2,x=1")
      (('(1,2)', '(1,2)'), ('1,2', '2,1'))
      >>> without_index("x_1=1,y_2=2", "1,2"), without_index("x_1=1,x_2=2", "y=1,y=2")
      (('x_1=1,y_2=2', '1,2'), ('x_1=1,x_2=2', 'y=1,y=2'))
    """
    found = [_INDEXED.fullmatch(part) for part in apart(text, COMMA)]
    said = {int(one[2] or one[3]): one[4] for one in found if one}
    names = {f"{one[1]}=" if one else "" for one in found}
    others = apart(other, COMMA)
    if "" in names or len(names) > 1 or not 1 < len(said) == len(found) == len(others):
        return text, other
    values = ",".join(said[index] for index in sorted(said))
    name = names.pop()
    if all(part.startswith(name) for part in others):
        return values, ",".join(part.removeprefix(name) for part in others)
    return (text, other) if "=" in other else (f"({values})", f"({other})")


def _is_of_names(text: str) -> bool:
    if re.fullmatch(r"-[^-+]*", text):  # what the negative of a name is, the name is not
        return False
    rest, applied = text, 1
    while applied:
        rest, applied = _APPLIED.subn("", rest)
    return re.search("[A-Za-z]", text) is not None and not _OF_NAMES.sub("", rest)


def _is_of_numbers(text: str) -> bool:
    return _OF_NUMBERS.fullmatch(text) is not None and len(apart(text, COMMA)) == 1


def _is_number(text: str) -> bool:
    """Whether a text has no letter but those of constants, and is no list."""
    letters = re.sub(rf"\\(?!{GREEK})[A-Za-z]+(?:\{{[a-z]*matrix\}})?|(?<![A-Za-z])[ie](?![A-Za-z])", "", text)
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
