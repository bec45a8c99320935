r"""What an answer names beside its quantity: a unit, money, a base, a modulus, a title, a condition."""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import accumulate

from specexit.data.answers.math_bases import in_base
from specexit.data.answers.math_inequalities import INEQUALITY
from specexit.data.answers.math_latex import GREEK, WRAPPER
from specexit.data.answers.math_marks import in_degrees, marked
from specexit.data.answers.math_numbers import abbreviated, number
from specexit.data.answers.math_readable import OF_ANGLES
from specexit.data.answers.math_text import COMMA, apart, squeezed, without_and_or
from specexit.data.answers.math_unit_names import UNIT_OF, canonical, is_unit

_LONGEST = 1000
"""Characters of an answer in which a unit is looked for."""

_MONEY = {r"\$": "dollar", "€": "euro", "£": "lb"}
"""The unit of £ is that of a weight, as the word "pound" names both."""
_MAGNITUDES = {"dozen": 12, "hundred": 100, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_MAGNITUDES |= dict.fromkeys(("thousand", "k"), 10**3)
_ABBREVIATED = r"\d[kKMB](?= [a-z]{2}|/)"
_TEXT = r"\\(?:text|mathrm|mbox|operatorname) ?\{(?:[^{}]|\{[^{}]*\})*\}"
_EXPONENT = r"(?:\^(?:-?\d|\{-?\d\}))?"
_WRITTEN = rf"{_TEXT}{_EXPONENT}"
_PRODUCT = rf"(?:{_WRITTEN}|\\cdot(?![A-Za-z])| )+"
_TAIL = re.compile(
    rf"(?:{_WRITTEN}|\\frac ?\{{{_PRODUCT}\}}\{{{_PRODUCT}\}}|\^(?:\\circ|\{{\\circ\}})(?: ?[CFK]\b)?"
    r"|\\?%|\\mu|\\Omega|[/ ]|\\cdot)+\Z"
)
_DEGREES = re.compile(r"\^(?:\\circ|\{\\circ\})")
_PLAIN = re.compile(
    rf"(.*(?:{_ABBREVIATED}|[\d}})]|\\pi(?! ?hr\b)))( ?)"
    rf"((?:[A-Za-z][A-Za-z. ]*{_EXPONENT})(?:/ ?[A-Za-z]+{_EXPONENT})*)"
)
"""A quantity and what may be its unit; behind pi, an hr is a height and a radius."""
_VARIABLE = re.compile(
    rf"(?:\\{GREEK}|(?<![A-Za-z\\])(?!sqrt\()[A-Za-df-z])(?!.*(?:[=<>]|\\(?:[lg]e|neq?|approx)(?![A-Za-z])))"
)
"""A variable, but no e, and not one that an equation or inequality says the value of."""
_UNIT_VECTOR = re.compile(r"\\(?:hat ?\{[ijknrxyz]\}|(?:vec|mathbf) ?\{[ijk]\})")
"""None without a sign that it is one: an i, j or k may be a number, and the m behind it a factor."""
_PLAIN_FRACTION = re.compile(r"(.*\d) ?\\frac ?\{([A-Za-z]+)\}\{([A-Za-z]+)\}")
_NUMBERS = re.compile(r"[+-]?[\d.,:/ ]*\d")
_FUNCTION = re.compile(r"\b(?:sin|cos|tan|cot|sec(?!\Z)|csc|log|ln|exp|sqrt|pi|mod)\b")
_MODULUS = re.compile(r"\\mod[ ({]*(\\?\w+)")
_REMAINDER = re.compile(rf"((?:[\d+\-*^(){{}}! ]|\\(?:times|cdot)(?![A-Za-z]))+){_MODULUS.pattern}[)}}]*")
_MEMBER = r"(?:[a-z]|,)+ ?\\in\b.+"
_CONDITION = re.compile(
    rf"(.+?)(?: ?\(({_MEMBER})\)|(?:,|,? ?{WRAPPER}\{{ ?(?:where|for|with) ?\}} ?|,? (?:where|for|with) )({_MEMBER}))"
)
_TITLE = re.compile(rf"{WRAPPER}\{{([^{{}}:]+)(?:\}} ?[=:]|: ?\}})(.+)")
_LETTER = re.compile(rf"(?<![A-Za-z])[A-Za-z]{_EXPONENT}\Z")
_PER = re.compile(rf"(.*(?:{_ABBREVIATED}|\d)) ?(/ ?([A-Za-z]{{2,}}))")
_BRACKET = re.compile(r"([(\[]|\\\{)(.+?)([)\]]|\\\})")
_EITHER = re.compile(r"(?<![A-Za-z])(and|or)(?![A-Za-z])")
_ANOTHER_QUANTITY = re.compile(
    r"\bor (?:more|less|fewer|greater|higher|lower|above|below|over|under)\b|\band an? "
    r"|^[ {]*(?:squared|cubed|factorial|and|or|halves|thirds|(?:four|fif|six|seven|eigh|nin|ten|hundred|thousand)ths)\b"
)
"""Words behind a number after which it is another one."""


def split_list(text: str) -> tuple[str, str | None]:
    r"""`split` of an answer that may be a list, a tuple, an interval or a set, where each member names the same.

    Example:
      >>> split_list("5 cm, 7 centimeters"), split_list(r"30^\circ and 60^\circ"), split_list("1,2")
      (('5,7', 'cm'), ('30,60', 'degree'), ('1,2', None))
      >>> split_list(r"(5\text{ cm},7\text{ cm})"), split_list(r"(3,30^\circ)")
      (('(5,7)', 'cm'), ('(3,30^\\circ)', None))
    """
    if len(text) <= _LONGEST:
        before, inside, behind = _in_bracket(text)
        members = apart(without_and_or(inside), COMMA)
        quantities, units = zip(*map(split, members), strict=True)
        # In a bracket, each percentage may be meant as the hundredth, and a letter is a coordinate's parameter.
        unclear = before and (units[0] == "%" or any(map(_LETTER.search, members)))
        if units[0] and len(units) > 1 and len(set(units)) == 1 and not unclear:
            return before + ",".join(quantities) + behind, units[0]
    return split(text)


def _in_bracket(text: str) -> tuple[str, str, str]:
    r"""A bracket around all, what stands in it, and the bracket's end; two empty texts where there is none.

    Example:
      >>> _in_bracket("[1,2)"), _in_bracket("(1,2),(3,4)")
      (('[', '1,2', ')'), ('', '(1,2),(3,4)', ''))
    """
    found = _BRACKET.fullmatch(text)
    if not found or any(depth < 0 for depth in accumulate(map(_nesting, found[2]))):
        return "", text, ""
    return found[1], found[2], found[3]


def _nesting(character: str) -> int:
    return (character in "([{") - (character in ")]}")


def split(text: str) -> tuple[str, str | None]:
    r"""The quantity of an answer in normal form, and what it names beside it, None where it names nothing.

    Example:
      >>> split(r"30\text{ km per hour}"), split(r"\$5"), split("6 square centimeters"), split("52_8"), split("2x")
      (('30', 'km / h'), ('5', 'dollar'), ('6', 'cm ^2'), ('52', 'base 8'), ('2x', None))
      >>> split(r"\$7.5\text{ million}"), split("2 dozen eggs"), split("12 or more")
      (('7500000', 'dollar'), ('24', 'egg'), ('12 or more', None))
      >>> split(r"2^{10}-1\mod{7}")
      ('(2^{10}-1)\\mod 7', 'mod 7')
    """
    if len(text) > _LONGEST:
        return text, None
    named = [unit for sign, unit in _MONEY.items() if sign in text]
    for sign in _MONEY:
        text = text.replace(sign, "")
    if title := _TITLE.fullmatch(text):
        text, unit = split(title.group(2))
        return text, " ".join([f"{title.group(1).strip().casefold()} =", *named, *filter(None, [unit])])
    if (either := _EITHER.search(text)) and INEQUALITY.search(text):
        named.append(either.group())
    if condition := _CONDITION.fullmatch(text):
        text = condition.group(1)
        named.append(squeezed(condition.group(2) or condition.group(3)))
    if found := in_base(squeezed(text)):
        text, base = found
        named.append(f"base {base}")
    named += [f"mod {modulus}" for modulus in _MODULUS.findall(text)]
    if remainder := _REMAINDER.fullmatch(text):  # of all that stands in front; a parser takes the last term
        text = rf"({remainder[1]})\mod {remainder[2]}"
    text, tail = _tail(text)
    text, tail = _multiplied(text.strip(), canonical(tail))
    named.append(tail)
    return text, " ".join(dict.fromkeys(filter(None, named))) or None


def without_symbol(text: str, unit: str) -> str | None:
    r"""The number in front of a capital letter that may be a variable, where it may stand for a unit; else None.

    Example:
      >>> without_symbol("3 L", "l"), without_symbol("3 L", "m"), without_symbol("2x L", "l")
      ('3', None, None)
    """
    head, letter = text[:-1].rstrip(), text[-1:]
    return head if "A" <= letter <= "Z" and canonical(letter) == unit and number(head) is not None else None


def in_full(text: str, unit: str | None) -> Fraction | None:
    r"""The number that 25k abbreviates, unless what is named beside it says that its letter is a variable; else None.

    Example:
      >>> str(in_full("25k", "dollar")), in_full("25k", r"k\in\mathbb{Z}"), in_full("25k+1", None)
      ('25000', None, None)
    """
    is_variable = re.search(rf"(?<![A-Za-z]){text[-1:]}(?![A-Za-z])", unit or "") if text[-1:].isalpha() else None
    return None if is_variable else abbreviated(text)


def _multiplied(text: str, unit: str) -> tuple[str, str]:
    """A quantity and its unit, without the words that multiply it."""
    factor, words = 1, unit.split()
    while words and words[0] in _MAGNITUDES:
        factor *= _MAGNITUDES[words.pop(0)]
    if factor == 1:
        return text, unit
    value = number(text)
    return rf"({text})\cdot {factor}" if value is None else str(value * factor), " ".join(words)


def _tail(text: str) -> tuple[str, str]:
    """A text and the unit behind it."""
    head, unit = _cut(text)
    return (text, "") if _ANOTHER_QUANTITY.search(re.sub(WRAPPER, "", unit)) else (head, unit)


def _cut(text: str) -> tuple[str, str]:
    if degrees := in_degrees(text):
        return degrees, "degrees"
    if number_and_mark := marked(text):
        return number_and_mark
    if (found := _TAIL.search(text)) and re.search(r"[\w})\]!'.]$", head := text[: found.start()]):
        of_angle = _DEGREES.match(text, found.start()) if OF_ANGLES.search(head) else None
        start = of_angle.end() if of_angle else found.start()
        return text[:start], text[start:]
    if (found := _PER.fullmatch(text)) and is_unit(found[3]):
        return found[1], found[2]
    if found := _PLAIN_FRACTION.fullmatch(text):
        head, top, bottom = found.groups()
        if top in UNIT_OF and bottom in UNIT_OF:
            return head, f"{top}/{bottom}"
    if (found := _PLAIN.fullmatch(text)) and not _FUNCTION.search(found.group(3)):
        head, space, words = found.groups()
        names = re.findall("[A-Za-z]+", words)
        # A single letter may be a variable, as it is behind others, and so may letters right behind a number.
        lone = len(words.partition("^")[0]) == 1 and number(head) is None
        listed = all(map(is_unit, names)) and not (lone and _VARIABLE.search(_UNIT_VECTOR.sub("", head)))
        is_number = _NUMBERS.fullmatch(head) or number(head) is not None or abbreviated(head) is not None
        if listed or (space and len(words) > 1 and is_number):
            return head, words
    return text, ""
