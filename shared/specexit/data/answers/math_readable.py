r"""Puts what the parser would misread into signs that it reads: primes, bases of numbers, degrees of angles, angles,
derivatives, powers to the T-th, I."""

from __future__ import annotations

import re

from specexit.data.answers import math_bases, math_marks
from specexit.data.answers.math_latex import WRAPPER

_PRIMES = re.compile(r"(?:_(\w)|_\{([^{}]*)\}|(?<=[A-Za-z)}\]])) ?('+)")
"""Primes, and the index in front of them; those behind a number are marks."""
_DEGREES = re.compile(r"((?<![\d.])\d[\d.]*|(?<![A-Za-z\\])[A-Za-z]|\\[a-z]+) ?\^ ?(?:\\circ\b ?|\{ ?\\circ ?\})")
_CAPITAL_I = re.compile(r"(?<!\\)I(?![a-z])")
_ANGLE = re.compile(r"\\angle ?([A-Z])([A-Z])([A-Z])(?![A-Za-z])")
_D = rf"(?:d|\\partial|{WRAPPER}\{{d\}}) ?"
_ORDER = r"(?:\^(?:\d|\{\d\}))? ?"
_FUNCTION = r"(?:[A-Za-z]|\\[a-z]+)(?:_\w|_\{\w+\})? ?"
_DERIVATIVE = re.compile(rf"\\frac ?\{{ ?{_D}{_ORDER}{_FUNCTION}\}} ?\{{ ?(?:{_D}{_FUNCTION}{_ORDER})+\}}")
"""The parser takes what is derived for a constant, and its derivative for nothing."""
_T = rf"(?:T|{WRAPPER}\{{T\}})"
_TO_THE_T = re.compile(rf"(?<!matrix\}})(?<!matrix\}} )\^ ?(?:{_T}|\{{ ?{_T} ?\}})")
"""The parser takes what is raised to T for a transpose, which a matrix has, and that of a number for the number."""
OF_ANGLES = re.compile(r"(?:\\|(?<![A-Za-z]))(?:sin|cos|tan|cot|sec|csc|cis)(?![a-z]| ?\^ ?\{ ?-1)")
"""A function of an angle, whose degrees are more than a unit that may be left out; not one whose value is an angle."""


def readable(text: str) -> str:
    r"""A text with derivatives, images, a current I, angles and numbers in a base as names of their own, and with the
    angles of functions in radians.

    Example:
      >>> readable("52_8,53_{16}")
      'B_{52\\prime 8},B_{53\\prime 16}'
      >>> readable("f'(x)"), readable("y_1''"), readable(r"\sin 30^\circ")
      ('f_{\\prime}(x)', 'y_{1\\prime\\prime}', '\\sin (30\\cdot\\frac{\\pi}{180})')
      >>> readable("I^2R+3i"), readable("2^T"), readable(r"\angle CBA")
      ('\\iota ^2R+3i', '2^{(T)}', 'A_{\\prime ABC}')
      >>> readable(r"x\frac{dy}{dx}"), readable(r"\frac{\partial^2u}{\partial x\partial t}")
      ('xD_{\\prime dydx}', 'D_{\\prime partial2upartialxpartialt}')
    """
    text = _DERIVATIVE.sub(lambda found: rf"D_{{\prime {_letters(found[0])}}}", text)
    text = _CAPITAL_I.sub(r"\\iota ", _ANGLE.sub(_as_name, _TO_THE_T.sub("^{(T)}", text)))
    return _PRIMES.sub(_as_index, math_bases.with_names(math_marks.with_names(in_radians(text))))


def in_radians(text: str) -> str:
    r"""A text in which a function of an angle stands, with its degrees in radians; any other as it is.

    Example:
      >>> in_radians(r"\sin x=30^\circ"), in_radians(r"\sin^{-1}x=30^\circ")
      ('\\sin x=(30\\cdot\\frac{\\pi}{180})', '\\sin^{-1}x=30^\\circ')
    """
    return _DEGREES.sub(r"(\1\\cdot\\frac{\\pi}{180})", text) if OF_ANGLES.search(text) else text


def _as_name(found: re.Match[str]) -> str:
    """An angle: its vertex is in the middle, and its ends may be said in either order."""
    one, vertex, other = found.groups()
    return rf"A_{{\prime {min(one, other)}{vertex}{max(one, other)}}}"


def _letters(fraction: str) -> str:
    return re.sub(rf"\\frac|{WRAPPER}|\W|_", "", fraction)


def _as_index(found: re.Match[str]) -> str:
    return "_{" + (found[1] or found[2] or "") + len(found[3]) * r"\prime" + "}"
