r"""Mathematical answers: the last ``\boxed{}``, compared by math-verify where the text does not settle it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

from specexit.data.answers.base import AnswerKind, last_box

_SYMBOLS = {
    "−": "-",
    "–": "-",
    "×": r"\times ",
    "·": r"\cdot ",
    "÷": "/",
    "π": r"\pi ",
    "√": r"\sqrt ",
    "∞": r"\infty ",
    "≤": r"\le ",
    "≥": r"\ge ",
    "∪": r"\cup ",
    "°": r"^\circ ",
}
_NAMES = {"infinity": r"\infty", "inf": r"\infty", "oo": r"\infty"}
_UNITS = {
    "mm millimeter millimeters millimetre millimetres": "mm",
    "cm centimeter centimeters centimetre centimetres": "cm",
    "m meter meters metre metres": "m",
    "km kilometer kilometers kilometre kilometres": "km",
    "inch inches": "in",
    "foot feet ft": "ft",
    "mile miles": "mi",
    "mg milligram milligrams": "mg",
    "g gram grams": "g",
    "kg kilogram kilograms": "kg",
    "s sec second seconds": "s",
    "min minute minutes": "min",
    "h hr hour hours": "h",
    "day days": "day",
    "week weeks": "week",
    "year years": "year",
    "dollar dollars": "dollar",
    "cent cents": "cent",
    "euro euros": "euro",
    "degree degrees": "degree",
    "percent": "%",
}
_UNIT_OF = {name: unit for names, unit in _UNITS.items() for name in names.split()}

_SPACE = r"(?<!\\)\\[,;: ]|~"
"""A backslash behind a backslash is no space: a matrix's rows end in ``\\\\``."""
_NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)"
_LITERAL = re.compile(rf"({_NUMBER})(?:/(\d+))?")
_MIXED = re.compile(r"([+-]?)(\d+) (\d+)/(\d+)")
_SCIENTIFIC = re.compile(rf"({_NUMBER})[eE]([+-]?\d{{1,2}})")
_WITH_UNIT = re.compile(rf"({_NUMBER}(?:/\d+)?) ?([a-zA-Z][a-zA-Z ]*)\.?")
_LONGEST_NUMBER = 1000
"""Digits up to which numbers are computed with; a longer one is compared as text."""
_SHORT = 200
"""Characters of an answer whose reading is kept."""


class Math(AnswerKind):
    """Numbers, expressions, sets, intervals, matrices."""

    name = "math"

    def extract(self, text: str, choices: Sequence[str] | None = None) -> str | None:
        r"""The last box; where there is none, what follows the last ``####`` (GSM8K's form). An empty box states none."""
        del choices
        if r"\boxed" in text or r"\fbox" in text:
            return last_box(text) or None
        _, hashes, rest = text.rpartition("####")
        return (rest.strip().splitlines() or [""])[0].strip() or None if hashes else None

    def plainly_same(self, a: str, b: str) -> bool | None:
        """Equal text up to spacing, or two numbers.

        A fraction and a decimal that differ by little are left to math-verify, which rounds.

        Example:
          >>> [MATH.plainly_same(*pair) for pair in (("042", "42"), ("1/2", "0.50"), ("1,000", "999"), ("x", "y"))]
          [True, True, False, None]
        """
        (a, unit_a, one), (b, unit_b, other) = _read(a), _read(b)
        if a == b:
            return True
        if unit_a and unit_b and unit_a != unit_b:
            return False
        if one is None or other is None:
            return None
        if one == other or (one.denominator == other.denominator == 1):
            return one == other
        return None if abs(one - other) <= max(abs(one), abs(other), 1) / 1000 else False

    def compare(self, a: str, b: str) -> bool:
        """Whether math-verify finds them equal, in either order."""
        import math_verify

        one, other = (math_verify.parse(f"${_without_unit(normal(text))}$", parsing_timeout=2) for text in (a, b))
        return any(math_verify.verify(*pair, timeout_seconds=3) for pair in ((one, other), (other, one)))


MATH = Math()


def _read(text: str) -> tuple[str, str | None, Fraction | None]:
    """The normal form of an answer, its unit, and its value where it is a number."""
    # Simulations compare the same answers again in each setting; a long text is not worth the memory.
    return _read_short(text) if len(text) <= _SHORT else _read_short.__wrapped__(text)


@lru_cache(maxsize=1 << 16)
def _read_short(text: str) -> tuple[str, str | None, Fraction | None]:
    text = normal(text)
    return text, _unit(text), _value(_without_unit(text))


def normal(text: str) -> str:
    r"""An answer without what changes nothing: dollar signs, spacing, thousands separators, a full stop at its end.

    Example:
      >>> normal(r"\$1{,}000\,"), normal("2 1/2"), normal(r"\boxed{1e3}"), normal("(1, 2)")
      ('1000', '5/2', '1000', '(1,2)')
    """
    text = last_box(text) or text
    for symbol, latex in _SYMBOLS.items():
        text = text.replace(symbol, latex)
    text = re.sub(r"\\\$|\$|\\!|\\displaystyle\b|\\limits\b", "", text).replace("{,}", ",")
    text = re.sub(rf"(?<=\d)(?:{_SPACE})(?=\d{{3}}(?!\d))", "", text)
    text = re.sub(rf"{_SPACE}|\\q?quad\b", " ", text)
    text = re.sub(r"\s+", " ", text).strip().removesuffix(".").strip()
    # A space stays where it keeps two words, two numbers or a command and its argument apart.
    text = re.sub(r"(?<![\w}]) | (?![\w\\])", "", text)
    if re.fullmatch(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?\D*", text):
        text = text.replace(",", "")
    if mixed := _MIXED.fullmatch(text):
        sign, whole, top, bottom = mixed.groups()
        if max(map(len, (whole, top, bottom))) <= _LONGEST_NUMBER:
            text = f"{sign}{int(whole) * int(bottom) + int(top)}/{int(bottom)}"
    if scientific := _SCIENTIFIC.fullmatch(text):
        mantissa, exponent = scientific.groups()
        value = Fraction(mantissa) * Fraction(10) ** int(exponent) if len(mantissa) <= _LONGEST_NUMBER else None
        text = str(value) if value is not None else text
    return _NAMES.get(text.lower(), text)


def _unit(text: str) -> str | None:
    found = _WITH_UNIT.fullmatch(
        re.sub(r"\\(?:text|mathrm|textrm|mbox) ?\{([^{}]*)\}", r" \1", text).replace("  ", " ")
    )
    return _UNIT_OF.get(found.group(2).strip().lower()) if found else None


def _without_unit(text: str) -> str:
    """A number without the words behind it; a single letter may be a variable and stays."""
    found = _WITH_UNIT.fullmatch(text)
    return found.group(1) if found and len(found.group(2)) > 1 else text


def _value(text: str) -> Fraction | None:
    found = _LITERAL.fullmatch(text)
    if found is None or len(text) > _LONGEST_NUMBER:
        return None
    top, bottom = found.groups()
    return None if bottom is not None and int(bottom) == 0 else Fraction(top) / int(bottom or 1)
