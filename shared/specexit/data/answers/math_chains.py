"""Numbers that are kept apart: ``20-30`` is a range or a score, ``3:15`` a time of day, ``3/4/2024`` a date.

A parser would subtract or divide, and find 20-30 and 30-40 to be the same.
"""

from __future__ import annotations

import re
from fractions import Fraction

from specexit.data.answers.math_text import COMMA, apart

_NUMBER = r"\d+(?:\.\d+)?"
_FORMS = {
    "-": re.compile(rf"-?{_NUMBER}(?:-{_NUMBER})+"),
    ":": re.compile(r"(?:[01]?\d|2[0-4])(?::[0-5]\d){1,2}"),
    "/": re.compile(r"\d+(?:/\d+){2,}"),
}
"""A colon is a ratio's, unless both answers could be times; a single slash is a fraction's."""
_MEMBER = re.compile(rf"\A-?{_NUMBER}|{_NUMBER}")

Chain = tuple[Fraction, ...]


def same_chains(a: str, b: str) -> bool | None:
    """Whether two answers in normal form say the same numbers, in any order where each is a list of such; None where
    they are not both kept apart by the same sign.

    Example:
      >>> same_chains("20-30", "30-40"), same_chains("3:15", "6:30"), same_chains("03/04/2024", "3/4/2024")
      (False, False, True)
      >>> same_chains("20-30", "-10"), same_chains("1:15", "1:5"), same_chains("3:15,6:30", "6:30,3:15")
      (None, None, True)
    """
    one, other = _chains(a), _chains(b)
    return None if one is None or other is None or one[0] != other[0] else one == other


def _chains(text: str) -> tuple[str, list[Chain]] | None:
    """The sign, and the numbers of each member of a list; None where a member is no chain, or signs differ."""
    members = apart(text, COMMA)
    for sign, form in _FORMS.items():
        if all(map(form.fullmatch, members)):
            return sign, sorted(tuple(map(Fraction, _MEMBER.findall(member))) for member in members)
    return None
