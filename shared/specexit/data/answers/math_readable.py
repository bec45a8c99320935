r"""Puts what the parser would misread into signs that it reads: primes, bases of numbers, degrees of angles, angles,
derivatives, changes, cross products, functions of sums, powers to the T-th, I, a d in front of a command, \gamma."""

from __future__ import annotations

import re

from specexit.data.answers import math_bases, math_marks
from specexit.data.answers.math_latex import GREEK, LETTER, WRAPPER

_PRIMES = re.compile(r"(?:_(\w)|_\{([^{}]*)\}|(?<=[A-Za-z)}\]])) ?('+)")
"""Primes, and the index in front of them; those behind a number are marks."""
_DEGREES = re.compile(r"((?<![\d.])\d[\d.]*|(?<![A-Za-z\\])[A-Za-z]|\\[a-z]+) ?\^ ?(?:\\circ\b ?|\{ ?\\circ ?\})")
_ANGLE = re.compile(r"\\angle ?([A-Z])([A-Z])([A-Z])(?![A-Za-z])")
_D = rf"(?:d|\\partial|{WRAPPER}\{{d\}}) ?"
_ORDER = r"(?:\^(?:\d|\{\d\}))? ?"
_FUNCTION = r"(?:[A-Za-z]|\\[a-z]++)(?:_\w|_\{\w+\})? ?+"
_DERIVATIVE = re.compile(rf"\\frac ?\{{ ?{_D}{_ORDER}{_FUNCTION}\}} ?\{{ ?(?:{_D}{_FUNCTION}{_ORDER})+\}}")
"""The parser takes what is derived for a constant, and its derivative for nothing."""
_INDEX = r"(?:_(?:\w|\{[^{}]*\}))?"
_ACCENTED = r"\\(?:vec|hat|bar|d?dot|tilde|overline|overrightarrow|text|math[a-z]+) ?\{[^{}]*\}"
"""The parser reads it up to the first brace that is closed."""
_ANY_INDEX = rf"(?:_(?:\w|\\{GREEK}|\{{(?:[^{{}}]|\{{[^{{}}]*\}})*+\}}))?+"
_CHANGE = re.compile(rf"({_ACCENTED})|\\Delta ?(?:\\{GREEK}|[A-Za-z]){_ANY_INDEX}'*+(?! ?[_'])")
"""The parser takes it for a product, in which the deltas of a fraction cancel."""
_UNIT_VECTOR = r"\\hat ?\{[ijknrxyz]\}"
_VECTOR = rf"(?:(?:\\(?:vec|mathbf|overrightarrow) ?\{{[^{{}}]*\}}|{_UNIT_VECTOR}){_INDEX}|\\nabla(?![A-Za-z]))"
_FACTOR = rf"(?:{_VECTOR}|\((?=[^()]*{_VECTOR})[^()]*+\))"
_CROSS = re.compile(rf"{_FACTOR}(?: ?\\times(?![A-Za-z]) ?{_FACTOR})+")
"""The parser takes it for a product, which a dot product is too."""
_APPLIED = re.compile(r"((?<![A-Za-z\\])[fghFG]|\\(?:phi|psi)) ?\(([^(),]*)\)")
_FACTOR_OF = re.compile(
    rf"(?:_(?:\w|\{{[^{{}}]*\}})|(?<![A-Za-z\\])[A-Za-z]+|\\pi(?![A-Za-z])|\\{GREEK}) ?([fghFG]|\\(?:phi|psi)) ?\("
)
"""A letter behind another one, or behind an index, is a factor, as in m_1g(a+b)."""
_T = rf"(?:T|{WRAPPER}\{{T\}})"
_TRIGONOMETRIC = r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])"
_LOG_OR_ANGLE = rf"(?:\\(?:ln|log)(?![A-Za-z])|{_TRIGONOMETRIC})"
_FRACTION = r"\\frac ?(?:\d|\{[^{}]*\}) ?(?:\d|\{[^{}]*\})"
_ROOT = r"\\sqrt ?(?:\[\d+\] ?)?(?:\d|\{[^{}]*\})"
_SCRIPTS = r"(?:[_^](?:\w|\{[^{}]*\}))*"
_OF = rf"({_LOG_OR_ANGLE}{_SCRIPTS}) ?((?:[_^]?\{{[^{{}}]*\}}|{_FRACTION}|{_ROOT}|[\w.^!]|{LETTER} ?)++)"
"""A function, and what it is of where that has no brackets."""
_TIMES_NUMBER = r"(?:(?:\\cdot|\\times)(?![A-Za-z])|\*) ?\d+(?:\.\d+)?(?! ?[\w.^({\\])"
_NAME_OF_ANGLE = r"\\(?:theta|alpha|beta|phi|varphi)(?![A-Za-z])"
_VARIED = re.compile(rf"\\frac|\\circ|\\{GREEK}|(?<![A-Za-z\\])[A-Za-z]")
_FIRST = r"(?<![\w.^}])(?<!frac )(?<!binom )(?<!sqrt )"
"""Where a number begins that is no argument, power or index."""
_MISREAD = [
    (re.compile(pattern), latex)
    for pattern, latex in {
        # The parser takes what is raised to T for a transpose, which a matrix has, and that of a number for the number.
        rf"(?<!matrix\}})(?<!matrix\}} )\^ ?(?:{_T}|\{{ ?{_T} ?\}})": "^{(T)}",
        # It takes no e for an index or a power, and a d with what stands behind it, be it a root, for one name.
        rf"({_ACCENTED})|([_^]) ?([de])(?![a-z]{{2}})": lambda found: found[1] or f"{found[2]}{{{found[3]}}}",
        rf"(\\\\|\\[A-Za-z]+)|d(?= ?\\(?!{GREEK})[A-Za-z])": lambda found: found[1] or "{d}",
        # It takes a mixed number for a product where something follows.
        rf"{_FIRST}(\d+) (\d+)/(\d+)(?![\d.])": lambda found: _mixed(found),
        rf"{_FIRST}(\d+) ?\\frac ?(?:(\d)|\{{(\d+)\}}) ?(?:(\d)|\{{(\d+)\}})": lambda found: _mixed(found),
        # It takes what a function is divided or multiplied by for a part of what it is of.
        rf"{_OF} ?(?=(?:/|\\cdot|\\times|\*) ?{_LOG_OR_ANGLE})": r"\1(\2)",
        rf"{_OF} ?(?={_TIMES_NUMBER})": lambda found: _varied(found),
        rf"({_LOG_OR_ANGLE}{_SCRIPTS}) ?(\d*(?P<its>[A-Za-z]|\\{GREEK})) ?(?=/ ?(?P=its)(?![A-Za-z_']))": r"\1(\2)",
        rf"({_TRIGONOMETRIC}{_SCRIPTS}) ?(\d*(?P<its>{_NAME_OF_ANGLE})) ?(?=/(?! ?(?:\d|(?P=its)[_'])))": r"\1(\2)",
        # It takes these for the gamma function of what follows, or for Euler's constant.
        r"\\gamma(?![A-Za-z])": r"\\eth ",
        r"\\Gamma(?![A-Za-z]| ?\()": r"\\mho ",
        r"(?<!\\)I(?![a-z])": r"\\iota ",
    }.items()
]
_NAME = r"\{([CDX]_\{(?:[^{}]|\{[^{}]*\})*+\})\}"
_MEMBER = re.compile(rf"(?<=[=,{{]){_NAME}(?=[=,)\]}}]|\\\}}|\Z)|(?<![^(\[]){_NAME}(?=[=,])")
"""A name in braces as a side of an equation or a member of a list; the parser takes that for a set."""
_TWO_NUMBERS = re.compile(rf"{_FIRST}\d+(?:\.\d+)? \d(?!\d*\^)")
OF_ANGLES = re.compile(r"(?:\\|(?<![A-Za-z]))(?:sin|cos|tan|cot|sec|csc|cis)(?![a-z]| ?\^ ?\{ ?-1)")
"""A function of an angle, whose degrees are more than a unit that may be left out; not one whose value is an angle."""


def readable(text: str, functions: frozenset[str] = frozenset()) -> str | None:
    r"""A text with derivatives, images, a current I, angles and numbers in a base as names of their own, and with the
    angles of functions in radians; None where the parser would read over something.

    Args:
      functions: letters that are functions where they stand in front of a bracket; the parser takes each for a factor,
        as what stands in its own bracket is.

    Example:
      >>> readable("52_8,53_{16}")
      'B_{52\\prime 8},B_{53\\prime 16}'
      >>> readable("f'(x)"), readable("y_1''"), readable(r"\sin 30^\circ")
      ('f_{\\prime}(x)', 'y_{1\\prime\\prime}', '\\sin (30\\cdot\\frac{\\pi}{180})')
      >>> readable("I^2R+3i"), readable("2^T"), readable(r"\angle CBA")
      ('\\iota ^2R+3i', '2^{(T)}', 'A_{\\prime ABC}')
      >>> readable(r"x\frac{dy}{dx}"), readable(r"\frac{\partial^2u}{\partial x\partial t}")
      ('x{D_{\\prime dydx}}', '{D_{\\prime partial2upartialxpartialt}}')
      >>> readable(r"P\Delta V"), readable(r"\vec{a}\times\vec{b}"), readable(r"2d\sqrt3"), readable(r"\gamma-1")
      ('P{C_{\\prime DeltaV}}', '{X_{\\prime \\vec{a}\\times\\vec{b}}}', '2{d}\\sqrt3', '\\eth -1')
      >>> readable("2 1/2"), readable(r"2\frac12x"), readable(r"\ln 3/\ln 2"), readable(r"1 000\pi")
      ('(2+\\frac{1}{2})', '(2+\\frac{1}{2})x', '\\ln(3)/\\ln 2', None)
      >>> readable("f(x+1)-f(x)", frozenset("f"))
      'f(x+1,)-f(x,)'
    """
    text = _DERIVATIVE.sub(lambda found: rf"{{D_{{\prime {_letters(found[0])}}}}}", text)
    text = _CHANGE.sub(lambda found: found[1] or rf"{{C_{{\prime {_letters(found[0])}}}}}", text)
    text = _CROSS.sub(lambda found: rf"{{X_{{\prime {found[0].replace(' ', '')}}}}}", text)
    text = _APPLIED.sub(lambda found: f"{found[1]}({found[2]},)" if found[1] in functions else found[0], text)
    text = _ANGLE.sub(_as_name, text)
    for pattern, latex in _MISREAD:
        text = pattern.sub(latex, text)
    text = _MEMBER.sub(lambda found: found[1] or found[2], text)
    text = _PRIMES.sub(_as_index, math_bases.with_names(math_marks.with_names(in_radians(text))))
    return None if "'" in text or _TWO_NUMBERS.search(text) else text


def _varied(found: re.Match[str]) -> str:
    """A function with its argument in brackets, in front of a number that it is multiplied by; where the argument is a
    number as well, or one times pi, the other one is a part of it."""
    return f"{found[1]}({found[2]})" if _VARIED.search(found[2]) else found[0]


def _mixed(found: re.Match[str]) -> str:
    r"""A mixed number as a sum; in front of a ``\frac`` of one or more, a number is a factor, and in front of such a
    fraction with a slash it is another number."""
    whole, top, bottom = filter(None, found.groups())
    if int(top) < int(bottom):
        return rf"({whole}+\frac{{{top}}}{{{bottom}}})"
    return rf"{whole}\cdot\frac{{{top}}}{{{bottom}}}" if r"\frac" in found[0] else found[0]


def in_radians(text: str) -> str:
    r"""A text in which a function of an angle stands, with its degrees in radians; any other as it is.

    Example:
      >>> in_radians(r"\sin x=30^\circ"), in_radians(r"\sin^{-1}x=30^\circ")
      ('\\sin x=(30\\cdot\\frac{\\pi}{180})', '\\sin^{-1}x=30^\\circ')
    """
    return _DEGREES.sub(r"(\1\\cdot\\frac{\\pi}{180})", text) if OF_ANGLES.search(text) else text


def functions_in_both(a: str, b: str) -> frozenset[str]:
    r"""The letters, such as f, that are functions in two texts: each has them in front of several brackets, one with a
    sum. In one text alone, they are as likely a factor, such as a force F.

    Example:
      >>> functions_in_both("f(x+1)-f(x)", "f(x)-f(1+x)"), functions_in_both("g(M+m)+g(M-m)", "2gM")
      (frozenset({'f'}), frozenset())
    """
    return _functions(a) & _functions(b)


def _functions(text: str) -> frozenset[str]:
    applied = set(_APPLIED.findall(text))
    of_sums = {name for name, argument in applied if re.search("[-+]", argument)}
    of_itself = {name for name, argument in applied if name in re.findall(r"\\[A-Za-z]+|[A-Za-z]", argument)}
    names = of_sums - of_itself - set(_FACTOR_OF.findall(text))
    return frozenset(name for name in names if sum(name == other for other, _ in applied) > 1)


def _as_name(found: re.Match[str]) -> str:
    """An angle: its vertex is in the middle, and its ends may be said in either order."""
    one, vertex, other = found.groups()
    return rf"A_{{\prime {min(one, other)}{vertex}{max(one, other)}}}"


def _letters(fraction: str) -> str:
    return re.sub(rf"\\frac|{WRAPPER}|[^\w+,-]|_", "", fraction.replace("'", "prime"))


def _as_index(found: re.Match[str]) -> str:
    return "_{" + (found[1] or found[2] or "") + len(found[3]) * r"\prime" + "}"
