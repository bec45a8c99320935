r"""Marks behind a number: ``5^\circ 30'`` are degrees and minutes, ``6'2''`` may be feet and inches."""

from __future__ import annotations

import re
from fractions import Fraction

from specexit.data.answers.math_numbers import number

_NUMBER = r"\d+(?:\.\d+)?"
_ANGLE = re.compile(rf"(.*=|)(-?)(\d+) ?\^ ?(?:\\circ|\{{ ?\\circ ?\}}) ?({_NUMBER}) ?'(?: ?({_NUMBER}) ?'')?")
_MARKED = re.compile(rf"(.*(?<![\w.}}'])|)({_NUMBER}) ?('{{1,2}})")
_ANY_MARKED = re.compile(rf"(?<![\w.}}])({_NUMBER}) ?('+)")
_UNITS = {"'": {"min", "ft", "arcminute", "arcmin"}, "''": {"s", "in", "arcsecond", "arcsec"}}


def in_degrees(text: str) -> str | None:
    r"""An angle in degrees, minutes and perhaps seconds as a fraction of degrees; None where a text is no such.

    Example:
      >>> in_degrees(r"5^\circ 30'"), in_degrees(r"\theta=-5^\circ 30'"), in_degrees("5'")
      ('11/2', '\\theta=-11/2', None)
    """
    if not (found := _ANGLE.fullmatch(text)):
        return None
    name, sign, degrees, minutes, seconds = found.groups()
    value = int(degrees) + Fraction(minutes) / 60 + Fraction(seconds or 0) / 3600
    return f"{name}{sign}{value}"


def marked(text: str) -> tuple[str, str] | None:
    r"""What stands in front of the only mark, which is a text's end, and the mark; None where there is no such mark.

    Example:
      >>> marked("5'"), marked(r"2\frac12'"), marked("2+3''"), marked("6'2''"), marked("y_1'")
      (('5', "'"), ('2\\frac12', "'"), ('2+3', "''"), None, None)
    """
    head = text.rstrip("'")
    if text[len(head) :] in _UNITS and number(head.rstrip()) is not None:
        return head.rstrip(), text[len(head) :]
    found = _MARKED.fullmatch(text)
    return (found[1] + found[2], found[3]) if found and "'" not in found[1] else None


def may_be(mark: str, unit: str) -> bool:
    """Whether a mark may stand for a unit.

    Example:
      >>> may_be("'", "ft"), may_be("'", "min"), may_be("'", "''"), may_be("''", "min")
      (True, True, False, False)
    """
    return unit.split()[0] in _UNITS.get(mark, ())


def with_names(text: str) -> str:
    r"""A text whose numbers with marks are names of their own; a parser reads over the marks.

    Example:
      >>> with_names("6'2''"), with_names("f'(5)")
      ('M_{\\prime 6}M_{\\prime\\prime 2}', "f'(5)")
    """
    return _ANY_MARKED.sub(lambda found: "M_{" + len(found[2]) * r"\prime" + f" {found[1]}}}", text)
