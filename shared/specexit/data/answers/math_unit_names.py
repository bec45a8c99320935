r"""The names of units: which words are some, and when two say the same."""

from __future__ import annotations

import re

from specexit.data.answers.math_latex import WRAPPER
from specexit.data.answers.math_marks import may_be

_NAMES = {
    "mm millimeter millimeters millimetre millimetres": "mm",
    "cm centimeter centimeters centimetre centimetres": "cm",
    "m meter meters metre metres": "m",
    "km kilometer kilometers kilometre kilometres": "km",
    "in inch inches": "in",
    "foot feet ft": "ft",
    "mi mile miles": "mi",
    "yd yard yards": "yd",
    "mg milligram milligrams": "mg",
    "g gram grams": "g",
    "kg kilogram kilograms": "kg",
    "lb lbs pound pounds": "lb",
    "ml milliliter milliliters millilitre millilitres": "ml",
    "l liter liters litre litres": "l",
    "s sec secs second seconds": "s",
    "min mins minute minutes": "min",
    "h hr hrs hour hours": "h",
    "day days": "day",
    "week weeks": "week",
    "year years yr yrs": "year",
    "oz ounce ounces": "oz",
    "gal gallon gallons": "gal",
    "person persons people": "person",
    "mph": "mi / h",
    "kph kmh kmph": "km / h",
    "newton newtons": "N",
    "joule joules": "J",
    "watt watts": "W",
    "volt volts": "V",
    "hertz hz": "Hz",
    "ohm ohms": "Ω",
    "celsius": "C",
    "fahrenheit": "F",
    "kelvin": "K",
    "rad radian radians": "rad",
    "am": "am",
    "pm": "pm",
    "dollar dollars usd": "dollar",
    "cent cents": "cent",
    "euro euros": "euro",
    "degree degrees deg": "degree",
    "percent percentage pct": "%",
    "per": "/",
}
UNIT_OF = {name: unit for names, unit in _NAMES.items() for name in names.split()}
_CAPITALS = {"L": "l"}
"""Letters that are a unit only where it is clear that they are one: as a text, or beside a unit's name."""
_TABLE = set(UNIT_OF.values())
_JOINS = {"and", "or", "of", "no", "not"}
_NOT_COUNTED = _TABLE | _JOINS
_LONGEST_SYMBOL = 3
"""Letters of a unit that is not in the table, such as kJ and mol."""
_MONEY = {"dollar", "cent", "euro", "lb"}
_AGES = {"day", "week", "month", "year"}
_POWERS = {"square": "^2", "sq": "^2", "cubic": "^3", "cu": "^3", "squared": "^2", "cubed": "^3"}
_SIGNS = {r"\circ": " degree ", r"\%": "%", r"\mu": "µ", r"\Omega": "Ω", r"\cdot": " ", ".": ""}


def same_unit(one: str, other: str) -> bool:
    """Whether two names are one, or the one says more of the same.

    Red marbles are marbles. What a quantity is may be left out in front of its unit, and what money is paid for behind.

    Example:
      >>> same_unit("red marble", "marble"), same_unit("square cm", "cm"), same_unit("boy and girl", "girl")
      (True, False, False)
      >>> same_unit("area = cm ^2", "cm ^2"), same_unit("area =", "length ="), same_unit("dollar / h", "dollar")
      (True, False, True)
    """
    if _powers(one) == _powers(other) or may_be(one, other) or may_be(other, one):
        return True
    (quantity, unit), (other_quantity, other_unit) = _quantity_and_unit(one), _quantity_and_unit(other)
    if quantity or other_quantity:
        same_quantity = not (quantity and other_quantity) or quantity == other_quantity
        return same_quantity and (not (unit and other_unit) or same_unit(unit, other_unit))
    words, others = sorted((one.split(), other.split()), key=len)
    if len(words) == 1 and words[0] in _MONEY:
        return others[:2] == [*words, "/"]
    counted = all(word.isalpha() and word not in _NOT_COUNTED for word in others)
    return counted and len(words) < len(others) and others[-len(words) :] == words


def _powers(name: str) -> dict[str, int] | str:
    """The power of each unit in a product of units, where what stands behind a slash divides; any other name as it is.

    Example:
      >>> _powers("m / s ^2"), _powers("N m") == _powers("m N"), _powers("boy and girl")
      ({'m': 1, 's': -2}, True, 'boy and girl')
    """
    powers: dict[str, int] = {}
    sign, last = 1, ""
    for word in name.split():
        if word == "/":
            sign = -1
        elif last and re.fullmatch(r"\^-?\d+", word):
            powers[last] += sign * (int(word[1:]) - 1)
        elif word.isalpha() and word not in _JOINS and (word in _TABLE or len(word) <= _LONGEST_SYMBOL):
            powers[word] = powers.get(word, 0) + sign
            last = word
        else:
            return name
    return powers


def _quantity_and_unit(name: str) -> tuple[str, str]:
    before, equals, unit = f"{name} ".partition(" = ")
    return (before, unit.strip()) if equals else ("", name)


def is_unit(word: str) -> bool:
    """Whether a word is a unit in the table, or a power of one."""
    return (word if len(word) == 1 else word.lower()) in UNIT_OF.keys() | _POWERS.keys()


def canonical(unit: str) -> str:
    r"""A unit with the names of the table, for words that it has.

    Example:
      >>> canonical(r"\text{ square feet}"), canonical("km/h"), canonical("red marbles"), canonical("years old")
      ('ft ^2', 'km / h', 'red marble', 'year')
    """
    unit = re.sub(r"\\frac ?\{(.*)\}\{(.*)\}", r"\1/\2", unit)
    unit = re.sub(rf"{WRAPPER}|[{{}}()]", "", unit)
    unit = re.sub(r"(?<=[A-Za-z]{2})\.(?=[A-Za-z])", " ", unit)
    for sign, plain in _SIGNS.items():
        unit = unit.replace(sign, plain)
    words: list[str] = []
    power = ""
    for word in re.findall(r"[^\W\d_]+|\^-?\d+|\d+|'+|[^\s^]", unit):
        if word in ("square", "sq", "cubic", "cu"):
            power = _POWERS[word]
            continue
        if word == "old" and _AGES.intersection(words[-1:]):
            continue
        words += [_POWERS.get(word) or _name(word), *filter(None, [power])]
        power = ""
    return " ".join([*words, *filter(None, [power])])


def _name(word: str) -> str:
    if word in _CAPITALS:
        return _CAPITALS[word]
    if word in UNIT_OF:
        return UNIT_OF[word]
    if len(word) > 1 and word.lower() in UNIT_OF:
        return UNIT_OF[word.lower()]
    return word.casefold().removesuffix("s") if len(word) > 3 else word
