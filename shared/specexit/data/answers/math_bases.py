r"""Numbers in a base: ``52_8``, ``1F_{16}``, ``101_b``, ``52 in base eight``, ``0x1F``."""

from __future__ import annotations

import re

_WORDS = "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
_SYSTEMS = {"2": "bin binary", "8": "oct octal", "10": "dec decimal", "16": "hex hexadecimal"}
_SYSTEM = {name: base for base, names in _SYSTEMS.items() for name in names.split()}
_CALLED = {word: str(base) for base, word in enumerate(_WORDS.split(), 2)} | _SYSTEM
_PREFIXES = {"x": "16", "o": "8", "b": "2"}
_DIGITS = r"(?=[A-F]*\d)[\dA-F]+"
_LETTERS = "[A-F]{2,}"
"""Letters alone are digits where an index says so; a single one is a name with an index."""
_BASE = rf"(\d{{1,2}}|[A-Za-z]|{'|'.join(_CALLED)})"
_WITH_BASE = re.compile(
    rf"\(?\{{?(-?(?:{_DIGITS}(?:\.[\dA-F]+)?|{_LETTERS}))\}}?\)?"
    rf"(?:_\{{?\(?(?:base)?{_BASE}\)?\}}?|\(?(?:in)?base{_BASE}\)?|\(?(?:in)?({'|'.join(_SYSTEM)})\)?)"
)
_PREFIXED = re.compile(r"(-?)0([xob])([\dA-Fa-f]+)")
_ANY_PREFIXED = re.compile(r"(?<![\w.])0([xob])([\dA-Fa-f]*\d[\dA-Fa-f]*)(?![\w^])")
_INDEXED = re.compile(rf"(?<![\w.^}}])({_DIGITS})_(?:(\d{{1,2}}|[A-Za-z])(?!\d)|\{{([^{{}}]*)\}})")
_RUN = re.compile(r"(?<![A-Za-z\\])[\dA-F]+(?![A-Za-z])")


def in_base(text: str) -> tuple[str, str] | None:
    """The digits and the base of a text without spaces and text commands; None where it is no number with a base.

    Example:
      >>> in_base("52_8"), in_base("A5_{sixteen}"), in_base("0x1f"), in_base("101_b"), in_base("52")
      (('52', '8'), ('A5', '16'), ('1F', '16'), ('101', 'b'), None)
      >>> in_base("5C_2"), in_base("2A_n"), in_base("A_{16}"), in_base("FF_{hex}"), in_base("101inbinary")
      (None, None, None, ('FF', '16'), ('101', '2'))
    """
    if prefixed := _PREFIXED.fullmatch(text):
        sign, prefix, digits = prefixed.groups()
        digits, base = sign + digits.upper(), _PREFIXES[prefix]
    elif found := _WITH_BASE.fullmatch(text):
        digits, *written = found.groups()
        name = next(filter(None, written))
        base = _CALLED.get(name, name)
    else:
        return None
    return (digits, base) if _has_digits(base, digits) else None


def has_letters(digits: str) -> bool:
    """Whether some digits are letters, so that a parser would take a product for the number."""
    return re.search("[A-F]", digits) is not None


def _has_digits(base: str, digits: str) -> bool:
    """Whether a base has the letters among some digits; 5C_2 is a binomial coefficient, and A_n one of a sequence."""
    letters = re.findall("[A-F]", digits)
    return not letters or (base.isdecimal() and int(max(letters), 16) < int(base))


def with_names(text: str) -> str:
    r"""A text whose numbers with an index, or with a prefix, are names of their own.

    Example:
      >>> with_names("52_8,A5_{16}"), with_names("3_n+1"), with_names("0x1f+1"), with_names("2A_n")
      ('B_{52\\prime 8},B_{A5\\prime 16}', 'B_{3\\prime n}+1', 'B_{1F\\prime 16}+1', '2A_n')
    """
    text = _ANY_PREFIXED.sub(lambda found: f"{found[2].upper()}_{{{_PREFIXES[found[1]]}}}", text)
    return _INDEXED.sub(_name, text)


def _name(found: re.Match[str]) -> str:
    digits, base = found[1], found[2] or found[3]
    return rf"B_{{{digits}\prime {base}}}" if _has_digits(base, digits) else found[0]


def digits_as_names(text: str) -> str:
    r"""A text in which each number is a name, as numbers whose digits are letters are no products.

    Example:
      >>> digits_as_names(r"\{1F,A5\}")
      '\\{B_{1F},B_{A5}\\}'
    """
    return _RUN.sub(lambda found: f"B_{{{found[0]}}}", text)
