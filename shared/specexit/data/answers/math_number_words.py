"""Numbers in words: ``twenty-five``, ``three hundred dollars``, ``negative 5``."""

from __future__ import annotations

import re

from specexit.data.answers.math_latex import WRAPPER
from specexit.data.answers.math_unit_names import is_unit

_UNITS = "one two three four five six seven eight nine"
_TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_VALUE = {word: value for value, word in enumerate(f"zero {_UNITS} {_TEENS}".split())}
_VALUE |= {word: 10 * value for value, word in enumerate(_TENS.split(), 2)}
_POWERS = {"thousand": 10**3, "million": 10**6, "billion": 10**9}

_ONE, _TEEN, _TEN = (words.replace(" ", "|") for words in (_UNITS, _TEENS, _TENS))
_BELOW_100 = rf"(?:(?:{_TEN})(?:[- ](?:{_ONE}))?|{_TEEN}|{_ONE})"
_BELOW_1000 = rf"(?:(?:{_ONE}) hundred(?: (?:and )?{_BELOW_100})?|{_BELOW_100})"
_NUMBER = rf"(?:{_BELOW_1000}(?: (?:{'|'.join(_POWERS)})(?:(?:, ?| )(?:and )?{_BELOW_1000})?)*|zero)"
_MINUS = rf"(?:negative|minus) |{WRAPPER}\{{ ?(?:negative|minus) ?\}} ?"
_ANSWER = re.compile(rf"({_MINUS})?(?:({_NUMBER})|(\d.*))((?: (\w+))?)", re.IGNORECASE)


def in_digits(text: str) -> str:
    """An answer that is a number in words, perhaps with its unit, in digits; any other text as it is.

    Example:
      >>> in_digits("twenty-five"), in_digits("Three hundred and five dollars"), in_digits("negative 5")
      ('25', '305 dollars', '-5')
      >>> in_digits("two thousand and one"), in_digits("two thirds"), in_digits("five or six"), in_digits("one two")
      ('2001', 'two thirds', 'five or six', 'one two')
    """
    if not (found := _ANSWER.fullmatch(text)):
        return text
    sign, words, digits, rest, unit = found.groups()
    if words is None:
        return f"-{digits}{rest}" if sign else text
    if unit and not is_unit(unit):
        return text
    return f"{'-' if sign else ''}{_value(words.lower())}{rest}"


def _value(words: str) -> int:
    total = below = 0
    for word in re.findall("[a-z]+", words):
        if word in _POWERS:
            total, below = total + below * _POWERS[word], 0
        elif word == "hundred":
            below *= 100
        else:
            below += _VALUE.get(word, 0)
    return total + below
