r"""Two expressions, parsed by latex2sympy and compared by math-verify, in both orders.

math-verify's own reading of a text takes what it finds first where it cannot parse all of it, and knows no capital
letters; its comparison takes an equation for its right side in one of the two orders.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from itertools import starmap
from typing import Any, NamedTuple

from specexit.data.answers.math_infinity import evaluated, has_infinity, same_infinity
from specexit.data.answers.math_names import equation, value, with_both_signs, without_index
from specexit.data.answers.math_numbers import same_number
from specexit.data.answers.math_readable import functions_in_both, in_radians, readable
from specexit.data.answers.math_text import apart

_LONGEST = 1000
"""Digits of a number that is computed with."""
_DIGITS = 6
"""Digits to which numbers are compared, the zeros that a small one begins with left out."""

_COLON = re.compile(":")
_FLIPPED = {">": "<", r"\ge": r"\le ", r"\geq": r"\le "}


def same(a: str, b: str) -> bool:
    """Whether two expressions are equal; False where one cannot be parsed."""
    a, b = without_index(_rising(a), _rising(b))
    b, a = without_index(b, a)
    # The degrees of an equation's right side are those of the function on its left.
    (left_a, *right_a), (left_b, *right_b) = equation(in_radians(a)), equation(in_radians(b))
    if not (right_a and right_b):
        a, b = value(a, b), value(b, a)
        if any(len(equation(text)) > 1 for text in (a, b)):
            return False
    elif left_a == left_b and len(right_a) == len(right_b) == 1 and _equal(right_a[0], right_b[0]):
        return True
    return _equal(a, b)


def _rising(text: str) -> str:
    r"""A chain of inequalities from the least to the greatest.

    Example:
      >>> _rising(r"2>x\ge 1"), _rising("x>1")
      ('1\\le x<2', 'x>1')
    """
    parts = re.split(r"(>|\\geq?\b) ?", text)
    if len(parts) < 5 or re.search(r"<|\\leq?\b|,", text):
        return text
    return "".join(_FLIPPED.get(part, part) for part in reversed(parts))


def _as_tuple(text: str, other: str) -> str:
    r"""A column as a tuple, where the other is one.

    Example:
      >>> column = r"\begin{pmatrix}1\\-2\end{pmatrix}"
      >>> _as_tuple(column, "(1,2)"), _as_tuple(column, column) == column
      ('(1,-2)', True)
    """
    column = re.fullmatch(r"\\begin\{[pb]?matrix\}([^&]*?)(?:\\\\)?\\end\{[pb]?matrix\}", text)
    if column is None or r"\begin" in column[1] or not other.startswith("("):
        return text
    return "(" + column[1].replace(r"\\", ",") + ")"


def _ratio(text: str) -> str:
    r"""A ratio of three numbers or more as a tuple, what the first is to each; any other text as it is.

    Example:
      >>> _ratio("2:4:6"), _ratio("4:6")
      ('(\\frac{4}{2},\\frac{6}{2})', '4:6')
    """
    first, *others = apart(text, _COLON)
    return text if len(others) < 2 else "(" + ",".join(rf"\frac{{{part}}}{{{first}}}" for part in others) + ")"


def _equal(a: str, b: str) -> bool:
    from sympy import And, Eq, FiniteSet, Ge, Gt, Interval, Le, Lt, Tuple
    from sympy.logic.boolalg import BooleanAtom

    one, other = _ratio(a), _ratio(b)
    if (one == a) != (other == b):  # a ratio is no point, though it is compared as one
        return False
    a, b = with_both_signs(one), with_both_signs(other)
    a, b = _as_tuple(a, b), _as_tuple(b, a)
    how = _Parsing.of_both(a, b)
    one, other = pair = [_as_one_value(_parsed(text, how)) for text in (a, b)]
    if any(each is None or isinstance(each, BooleanAtom) for each in pair):
        return False
    # For math-verify an open interval, or an inequality that it is solved by, is the set of its end points.
    ranges = Tuple | Interval | And | Gt | Ge | Lt | Le
    if any(isinstance(each, FiniteSet) for each in pair) and any(isinstance(each, ranges) for each in pair):
        return False
    if len({_holds_sets(each) for each in pair}) > 1:  # math-verify takes a set of one number for the number
        return False
    # Two equations without solutions have the same ones, which says nothing.
    if isinstance(one, Eq) and isinstance(other, Eq) and not (_has_solutions(one) and _has_solutions(other)):
        return _say_the_same(one, other)
    inequalities = And | Gt | Ge | Lt | Le
    if isinstance(one, inequalities) and isinstance(other, inequalities):
        return _verified(one, other) or _solved_alike(one, other)
    return _verified(one, other)


def _solved_alike(one: Any, other: Any) -> bool:
    """Whether two inequalities of one real letter, or chains of them, are solved by the same numbers."""
    if one.free_symbols != other.free_symbols or len(one.free_symbols) != 1:
        return False
    try:
        return one.as_set() == other.as_set()
    except Exception:  # sympy's solvers raise what they like
        return False


def _say_the_same(one: Any, other: Any) -> bool:
    """Whether two equations differ by their order, or by terms on the other side.

    Of equations that hold whatever their letters are, and of those without letters, both sides have to be the other's.
    """
    from sympy import Expr, Integer

    if all(isinstance(side, Expr) for side in (*one.args, *other.args)):
        difference, its = one.lhs - one.rhs, other.lhs - other.rhs
        if all(each.free_symbols and not _verified(each, Integer(0)) for each in (difference, its)):
            return _verified(difference, its) or _verified(difference, -its)
    return any(_verified(one.lhs, left) and _verified(one.rhs, right) for left, right in (other.args, other.args[::-1]))


def _holds_sets(expression: Any) -> bool:
    from sympy import FiniteSet

    return isinstance(expression, FiniteSet) and any(isinstance(member, FiniteSet) for member in expression.args)


def _as_one_value(expression: Any) -> Any:
    """Of a list that says one value in several forms, the first; anything else as it is."""
    from sympy import Expr, FiniteSet

    members = expression.args if isinstance(expression, FiniteSet) else ()
    if len(members) < 2 or not all(isinstance(member, Expr) for member in members):
        return expression
    return members[0] if all(_verified(members[0], member) for member in members[1:]) else expression


def _verified(one: Any, other: Any) -> bool:
    """Whether math-verify finds two values equal in both orders; False where they cannot be compared, such as 0/0.

    Of two numbers each digit counts, as in `same_number`.
    """
    import math_verify
    from sympy import Float, Rational

    # Its own limit is one of the clock, and tells a time-out as a difference.
    how: dict[str, Any] = {"allow_set_relation_comp": True, "timeout_seconds": None}
    try:
        if _is_complex(one) or _is_complex(other):
            return all(starmap(_verified, zip(one.as_real_imag(), other.as_real_imag(), strict=True)))
        how["float_rounding"] = max(_digits(one), _digits(other))
        one, other = _exact(one), _exact(other)
        if has_infinity(one) or has_infinity(other):  # its difference from a number is no number
            return same_infinity(one, other)
        if isinstance(one, Rational | Float) and isinstance(other, Rational | Float):
            return same_number(Fraction(str(one)), Fraction(str(other)))
        return all(math_verify.verify(*pair, **how) for pair in ((one, other), (other, one))) and _close(one, other)
    except Exception:  # sympy's evaluation raises what it likes
        return False


def _close(one: Any, other: Any) -> bool:
    """Whether two numbers, be it in an equation, a set or a tuple, differ by their rounding alone; for math-verify all
    below 1e-15 are equal. True of others."""
    from sympy import And, Eq, FiniteSet, Interval, Tuple

    if one == other:
        return True
    if isinstance(one, Eq) and isinstance(other, Eq):
        return one.lhs != other.lhs or _close(one.rhs, other.rhs)
    if isinstance(one, Tuple | Interval) and isinstance(other, type(one)):
        return all(map(_close, one.args, other.args))
    if isinstance(one, FiniteSet | And) and isinstance(other, type(one)):
        ways = ((one.args, other.args), (other.args, one.args))
        return all(_has_close(member, others) for members, others in ways for member in members)
    return _rounded_alike(one, other)


def _rounded_alike(one: Any, other: Any) -> bool:
    from sympy import Float, UnevaluatedExpr

    if not all(getattr(each, "is_number", False) and not each.has(UnevaluatedExpr) for each in (one, other)):
        return True
    digits = _DIGITS - 1 if one.has(Float) or other.has(Float) else 2 * _DIGITS
    one, other = one.evalf(30), other.evalf(30)
    nothing = Float("1e-90")  # what is left of a difference of equal numbers
    return bool(abs(one - other) <= max(abs(one), abs(other)) / 10**digits + nothing)


def _has_close(member: Any, others: tuple[Any, ...]) -> bool:
    """Whether one of a set is close to a member; in an equation, one of those that say what the same thing is."""
    from sympy import Eq

    if isinstance(member, Eq):
        others = tuple(other for other in others if isinstance(other, Eq) and other.lhs == member.lhs)
    return not others or member in others or any(_close(member, other) for other in others)


def _is_complex(expression: Any) -> bool:
    from sympy import I

    return getattr(expression, "is_number", False) and expression.has(I)


def _exact(expression: Any) -> Any:
    """A rational number, or a set or tuple of such, evaluated: math-verify rounds what is unevaluated to 15 decimals.

    A number that is too large or too small to write down is left as it is.
    """
    from sympy import FiniteSet, Float, Intersection, Interval, Mod, Tuple, UnevaluatedExpr

    if isinstance(expression, Intersection):
        expression = expression.doit()
    if isinstance(expression, FiniteSet | Interval | Tuple):
        return expression.func(*map(_exact, expression.args))
    if has_infinity(expression):
        expression = evaluated(expression)
    if not getattr(expression, "is_number", False) or expression.has(UnevaluatedExpr):
        return expression
    as_written, expression = expression, _in_fractions(expression)
    if expression.has(Float):
        return as_written
    if expression.has(Mod):  # has no size before it is computed
        expression = expression.doit()
    if not 1 < abs(expression.evalf()) * 10**_LONGEST < 10 ** (2 * _LONGEST):
        return as_written
    value = expression.doit()
    return value if value.is_Rational else as_written


def _in_fractions(number: Any) -> Any:
    """A number that is computed from decimals, with fractions in their place: in binary, 0.1 * 3 is not 0.3.

    A decimal alone is left, as it may be the other's rounding, and so is a power of too many digits.
    """
    from sympy import Float, Pow, Rational

    powers = number.atoms(Pow)
    if number.is_Float or not all(power.exp.is_Rational and abs(power.exp) <= _LONGEST for power in powers):
        return number
    return number.xreplace({found: Rational(str(found)) for found in number.atoms(Float)})


def _has_solutions(equation: Any) -> bool:
    from sympy import solve

    try:
        return bool(equation.free_symbols) and bool(solve(equation, equation.free_symbols))
    except Exception:  # sympy's solvers raise what they like
        return False


class _Parsing(NamedTuple):
    """How two expressions are parsed, so that a letter is the same in both."""

    tells_cases: bool
    """Whether a capital letter is another name than the small one."""
    is_real: bool
    functions: frozenset[str]

    @classmethod
    def of_both(cls, a: str, b: str) -> _Parsing:
        from math_verify.grader import should_treat_as_complex

        pair = (a, b)
        is_real = not any(map(should_treat_as_complex, pair))
        return cls(any(map(_has_both_cases, pair)), is_real, functions_in_both(a, b))


def _parsed(text: str, how: _Parsing) -> Any:
    """The expression that a text is; None where it cannot be parsed."""
    from latex2sympy2_extended import NormalizationConfig, latex2sympy, normalize_latex
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig

    if (latex := readable(text, how.functions)) is None:
        return None
    normalization = NormalizationConfig(units=False, malformed_operators=True, nits=True, boxed="none")
    try:
        # No separators of thousands are left, but the parser would take 12,144 for a number.
        expression = latex2sympy(
            normalize_latex(latex.replace(",", ", "), normalization),
            is_real=how.is_real,
            normalization_config=None,
            conversion_config=ConversionConfig(lowercase_symbols=not how.tells_cases),
        )
        return _with_imaginary_unit(expression)
    except Exception:
        return None


def _with_imaginary_unit(expression: Any) -> Any:
    """An expression whose i is a number; in an equation it may be what is said to be one, as in i=5."""
    from sympy import I, Interval, Tuple
    from sympy.core.relational import Relational

    found = {symbol: I for symbol in expression.free_symbols if symbol.name == "i"}
    if not found or expression.has(Relational):
        return expression
    if isinstance(expression, Interval) and expression.left_open and expression.right_open:
        expression = Tuple(expression.start, expression.end)
    return expression.subs(found)


def _has_both_cases(text: str) -> bool:
    """Whether a letter, Latin or Greek, is there as a capital and as a small one, or an I is, which is no small i."""
    names = {*re.sub(r"\\[A-Za-z]+", "", text), *re.findall(r"\\[A-Za-z]+", text)}
    return "I" in names or any(name != name.lower() and name.lower() in names for name in names)


def _digits(expression: Any) -> int:
    """Decimals that tell the smallest number in an expression from its neighbours."""
    from sympy import MatrixBase, Set, Tuple

    if isinstance(expression, MatrixBase | Set | Tuple):
        members = expression.flat() if isinstance(expression, MatrixBase) else expression.args
        return max(map(_digits, members), default=_DIGITS)
    try:
        size = abs(float(expression)) if expression.is_number else 0.0
    except Exception:  # sympy's arithmetic raises what it likes
        return _DIGITS
    return _DIGITS + max(0, -1 - math.floor(math.log10(size))) if 0 < size < 1 else _DIGITS
