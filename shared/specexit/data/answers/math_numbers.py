r"""Numbers as people and models write them, read exactly: decimals, fractions, powers of ten, repeating decimals."""

from __future__ import annotations

import re
from decimal import Decimal, localcontext
from fractions import Fraction

_LONGEST = 1000
"""Characters up to which numbers are computed with; a longer one is compared as text."""
_DIGITS = 6
"""Digits to which a fraction and its rounding are compared, the zeros that it begins with left out."""

_DECIMAL = r"(?:\d+(?:\.\d*)?|\.\d+)"
_RATIO = re.compile(rf"({_DECIMAL})(?:/(\d+))?")
_HOUR = re.compile(r"(\d{1,2}):00")
"""Between two numbers a colon is a ratio's, and no ratio is one to 00."""
_MIXED = re.compile(r"(\d+) (\d+)/(\d+)")
_FRACTION = re.compile(r"(\d*) ?\\frac ?(?:\{(-?\d+)\}|(\d)) ?(?:\{(\d+)\}|(\d))")
_POWER = re.compile(rf"({_DECIMAL})[eE]([+-]?\d{{1,2}})")
_POWER_OF_TEN = re.compile(
    rf"(?:({_DECIMAL}) ?(?:\\times|\\cdot|\*) ?)?10 ?\^ ?(?:\{{ ?([+-]?\d{{1,3}}) ?\}}|(\d)(?!\d))"
)
_ABBREVIATED = re.compile(r"([+-]?\d+(?:\.\d+)?)([kKMB])")
_LETTERS = {"k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9}
_DOT = r"\\dot ?\{?(\d)\}?"
_REPEATING = re.compile(rf"(\d*)\.(\d*)(?:\\(?:overline|bar) ?(?:\{{(\d+)\}}|(\d))|{_DOT}(?:(\d*){_DOT})?)")


def number(text: str) -> Fraction | None:
    r"""The value of a text that is one number, None where it is anything else.

    Example:
      >>> [str(number(text)) for text in ("-2 1/2", r"2\frac12", "1e3", r"6.0\times 10^{-3}", "5:00", "1/0")]
      ['-5/2', '5/2', '1000', '3/500', '5', 'None']
    """
    if len(text) > _LONGEST:
        return None
    sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
    try:
        value = _unsigned(digits)
    except ZeroDivisionError:
        return None
    return None if value is None else sign * value


def abbreviated(text: str) -> Fraction | None:
    """The value of a number whose thousands, millions or billions are a letter right behind it, None where it has none.

    The letter may also be a variable or a unit: it is for the caller to say that it is neither.

    Example:
      >>> [str(abbreviated(text)) for text in ("25k", "2.5M", "25 k", "25m", "25k+1")]
      ['25000', '2500000', 'None', 'None', 'None']
    """
    found = _ABBREVIATED.fullmatch(text) if len(text) <= _LONGEST else None
    return Fraction(found[1]) * _LETTERS[found[2]] if found else None


def same_number(one: Fraction, other: Fraction) -> bool:
    """Whether two numbers are equal, or one is the other's rounding to six digits.

    Only a fraction that is no decimal has a rounding; of two decimals each digit counts.

    Example:
      >>> same_number(Fraction(1, 3), Fraction("0.333333")), same_number(Fraction("1.0000001"), Fraction(1))
      (True, False)
    """
    if one == other or is_decimal(one) == is_decimal(other) or not (one and other):
        return one == other
    smaller = min(abs(one), abs(other))
    zeros = len(str(smaller.denominator // smaller.numerator)) - 1
    return round(one, _DIGITS + zeros) == round(other, _DIGITS + zeros)


def is_decimal(value: Fraction) -> bool:
    """Whether a number has finitely many decimals."""
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest == 1


def as_decimal(value: Fraction) -> str:
    """A number that has finitely many decimals, written with all of them.

    Example:
      >>> as_decimal(Fraction(-5, 4)), as_decimal(Fraction(1, 10**9))
      ('-1.25', '0.000000001')
    """
    with localcontext(prec=4 * _LONGEST):
        return f"{Decimal(value.numerator) / value.denominator:f}"


def _unsigned(text: str) -> Fraction | None:
    if ratio := _RATIO.fullmatch(text):
        top, bottom = ratio.groups()
        return Fraction(top) / int(bottom or 1)
    if hour := _HOUR.fullmatch(text):
        return Fraction(hour.group(1))
    if mixed := _MIXED.fullmatch(text):
        return _mixed(*map(int, mixed.groups()))
    if fraction := _FRACTION.fullmatch(text):
        whole, *parts = fraction.groups()
        top, bottom = (int(part) for part in parts if part)
        return _mixed(int(whole), top, bottom) if whole else Fraction(top, bottom)
    if power := _POWER.fullmatch(text):
        return Fraction(power.group(1)) * Fraction(10) ** int(power.group(2))
    if power := _POWER_OF_TEN.fullmatch(text):
        return Fraction(power.group(1) or 1) * Fraction(10) ** int(power.group(2) or power.group(3))
    return None


def _mixed(whole: int, top: int, bottom: int) -> Fraction | None:
    """A mixed number's value; None where its fraction is no part of one, as in 2 5/2: what stands in front is a factor,
    or another number."""
    return whole + Fraction(top, bottom) if 0 <= top < bottom else None


def with_repeating_as_fractions(text: str) -> str:
    r"""A text with its repeating decimals as the fractions they are; no parser reads them.

    Example:
      >>> with_repeating_as_fractions(r"-0.1\overline{6}"), with_repeating_as_fractions(r"0.\dot{1}4\dot{2}")
      ('-\\frac{1}{6}', '\\frac{142}{999}')
    """
    return _REPEATING.sub(_as_fraction, text) if len(text) <= _LONGEST else text


def _as_fraction(found: re.Match[str]) -> str:
    whole, fixed, *repeated = (group or "" for group in found.groups())
    cycle = "".join(repeated)
    value = int(f"0{whole}{fixed}") + Fraction(int(cycle), 10 ** len(cycle) - 1)
    value /= 10 ** len(fixed)
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
