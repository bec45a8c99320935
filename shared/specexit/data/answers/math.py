r"""Mathematical answers: the last ``\boxed{}``, compared by math-verify where the text does not settle it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from specexit.data.answers.base import AnswerKind
from specexit.data.answers.math_bases import digits_as_names, has_letters
from specexit.data.answers.math_boxes import joined, last_boxes
from specexit.data.answers.math_chains import same_chains
from specexit.data.answers.math_inequalities import as_intervals
from specexit.data.answers.math_names import says_names
from specexit.data.answers.math_numbers import as_decimal, is_decimal, number, same_number
from specexit.data.answers.math_text import COMMA, apart, is_word, joints, normal, prose, squeezed, without_and_or
from specexit.data.answers.math_unit_names import same_unit
from specexit.data.answers.math_units import in_full, split_list, without_symbol

_SHORT = 200
"""Characters of an answer whose reading is kept."""
_LONGEST = 1000
"""Characters of an answer that is parsed, which takes some milliseconds each; a longer one is a model in a loop."""


class Math(AnswerKind):
    """Numbers, expressions, sets, intervals, matrices."""

    name = "math"
    processor_limit = 10.0

    def extract(self, text: str, choices: Sequence[str] | None = None) -> str | None:
        r"""The last box, if it is not empty; without a box, what follows the last ``####`` (GSM8K's form).

        Several boxes that only "and", "or" or a comma keeps apart are a list. A heading is no answer.
        """
        del choices
        if r"\boxed" in text or r"\fbox" in text:
            boxes, word = last_boxes(text)
            others = [box for box in boxes[:-1] if not self.plainly_same(box, boxes[-1])]
            return joined([*others, *boxes[-1:]], word) or None
        _, hashes, rest = text.rpartition("####")
        line, *more = rest.strip().splitlines() or [""]
        return line.strip() or None if hashes and (not more or _read(line).value is not None) else None

    def why_no_reference(self, reference: str, choices: Sequence[str] | None = None) -> str | None:
        """As for any kind; a whole solution of GSM8K is refused too, as no answer would ever be equal to it."""
        if "####" in reference:
            return "is a whole solution, expected the answer alone, which prompts=gsm8k:FILE takes from behind '####'"
        return super().why_no_reference(reference, choices)

    def plainly_same(self, a: str, b: str) -> bool | None:
        """What text up to spacing, numbers, units or words settle; False for a text that is too long for a parser.

        Example:
          >>> [MATH.plainly_same(*pair) for pair in (("042", "42"), ("1/2", "0.50"), ("1,000", "999"), ("x", "y"))]
          [True, True, False, None]
        """
        one, other = _read_pair(a, b)
        if one.text == other.text:
            return True
        if one.unit and other.unit and not same_unit(one.unit, other.unit):
            return False
        if one.is_named_apart_from(other) or other.is_named_apart_from(one):
            return False
        if one.prose or other.prose:
            return one.prose == other.prose
        joined_by = joints(one.quantity), joints(other.quantity)
        if all(joined_by) and joined_by[0] != joined_by[1]:
            return False
        if is_word(one.quantity) and is_word(other.quantity):
            return one.quantity.casefold() == other.quantity.casefold()
        if max(len(one.quantity), len(other.quantity)) > _LONGEST:
            return False
        if (same := same_chains(one.quantity, other.quantity)) is not None:
            return same
        if one.value is None or other.value is None:
            return None
        if one.is_percent != other.is_percent:
            percent, plain = (one.value, other.value) if one.is_percent else (other.value, one.value)
            return same_number(percent, plain) or same_number(percent / 100, plain)
        return same_number(one.value, other.value)

    def compare(self, a: str, b: str) -> bool:
        """Whether math-verify finds their quantities equal, in both orders."""
        from specexit.data.answers import math_parsed

        one, other = _read_pair(a, b)
        pairs = [(one.expression(), other.expression())]
        if one.is_percent != other.is_percent:
            pairs.append((one.expression(hundredths=True), other.expression(hundredths=True)))
        if one.in_letters or other.in_letters:
            pairs = [(digits_as_names(left), digits_as_names(right)) for left, right in pairs]
        return any(math_parsed.same(*pair) for pair in pairs)


MATH = Math()


class _Reading(NamedTuple):
    text: str
    quantity: str
    unit: str | None
    value: Fraction | None
    prose: str | None
    in_letters: bool
    """Whether it is a number, or several, in a base where some digits are letters."""

    def is_named_apart_from(self, other: _Reading) -> bool:
        """Whether a title in words names this one, and symbols the other: ``area = 5`` and ``x = 5`` are different."""
        title, in_words, _ = (self.unit or "").partition(" =")
        if not in_words or " =" in (other.unit or "") or says_names(self.quantity):
            return False
        # A letter in another font is no word.
        return len(title) > 1 and says_names(other.quantity) and not other.text.casefold().startswith(f"{title}=")

    def in_unit_of(self, other: _Reading) -> _Reading:
        """This reading, or that of its number without the symbol of the other's unit."""
        if self.unit or not other.unit or (digits := without_symbol(self.quantity, other.unit)) is None:
            return self
        return self._replace(quantity=digits, unit=other.unit, value=number(digits))

    def beside(self, other: _Reading) -> _Reading:
        """This reading, or that of the number it abbreviates, if the other is a number: 25k is 25000; 25k+1 has a k."""
        if other.value is None or (value := in_full(self.quantity, self.unit)) is None:
            return self
        return self._replace(quantity=str(value), value=value)

    def in_dollars_of(self, other: _Reading) -> _Reading:
        """This reading, or that of its cents in dollars, if the other is in dollars."""
        if self.value is None or (self.unit, other.unit) != ("cent", "dollar"):
            return self
        return self._replace(quantity=str(self.value / 100), unit="dollar", value=self.value / 100)

    @property
    def is_percent(self) -> bool:
        """Whether it holds percentages; beside an answer that holds none, their numbers or the hundredths are meant."""
        return self.unit == "%" or "%" in self.quantity

    def expression(self, hundredths: bool = False) -> str:
        """The quantity as a parser reads it, with the numbers of its percentages, or with the hundredths."""
        if hundredths and self.unit == "%":
            return ",".join(rf"\frac{{{_improper(member)}}}{{100}}" for member in apart(self.quantity, COMMA))
        if self.value is None:  # a parser reads a percent sign as the hundredth
            return without_and_or(self.quantity if hundredths else _of_percentages(self.quantity))
        # A decimal may be the rounding of a root, as a fraction is not.
        return as_decimal(self.value) if "." in self.quantity and is_decimal(self.value) else str(self.value)


def _improper(text: str) -> str:
    """A number as one that can stand in a fraction, anything else as it is."""
    value = number(text)
    return text if value is None else str(value)


def _of_percentages(text: str) -> str:
    r"""A tuple, a set or an interval with the numbers in front of its percent signs.

    Example:
      >>> _of_percentages(r"(12.5\%,5)"), _of_percentages(r"100(1+5\%)")
      ('(12.5,5)', '100(1+5\\%)')
    """
    listed = re.fullmatch(r"(\\?[\[({])(.*?)(\\?[\])}])", text)
    if listed is None:
        return text
    return listed[1] + ",".join(re.sub(r"\\?%\Z", "", member) for member in apart(listed[2], COMMA)) + listed[3]


def _read_pair(a: str, b: str) -> tuple[_Reading, _Reading]:
    """The readings of two answers, each in the light of the other: a letter behind a number may be the other's unit, or
    abbreviate thousands, and money is in one unit."""
    one, other = _read(a), _read(b)
    one, other = one.in_unit_of(other), other.in_unit_of(one)
    one, other = one.in_dollars_of(other), other.in_dollars_of(one)
    return one.beside(other), other.beside(one)


def _read(text: str) -> _Reading:
    # Simulations compare the same answers again in each setting; a long text is not worth the memory.
    return _read_short(text) if len(text) <= _SHORT else _read_short.__wrapped__(text)


@lru_cache(maxsize=1 << 16)
def _read_short(text: str) -> _Reading:
    text = normal(text)
    quantity, unit = split_list(as_intervals(text))
    in_letters = unit is not None and unit.startswith("base ") and has_letters(quantity)
    value = None if in_letters else number(quantity)
    return _Reading(squeezed(text), quantity, unit, value, prose(quantity), in_letters)
