r"""Expressions with infinity inside, such as ``2\infty``: comparing digits does not tell them from numbers."""

from __future__ import annotations

from typing import Any


def has_infinity(expression: Any) -> bool:
    """Whether infinity is in an expression, other than as the bound of a sum, an integral or a limit.

    Example:
      >>> from sympy import Symbol, Sum, oo
      >>> n = Symbol("n")
      >>> has_infinity(n + oo), has_infinity(Sum(2**-n, (n, 0, oo))), has_infinity(n)
      (True, False, False)
    """
    from sympy import Expr, Integral, Limit, Product, Sum

    if not isinstance(expression, Expr) or isinstance(expression, Integral | Limit | Product | Sum):
        return False
    return (expression.is_infinite is True and not expression.args) or any(map(has_infinity, expression.args))


def evaluated(expression: Any) -> Any:
    """The value of an expression with infinity inside: infinite, finite as that of 1/oo, or nan where it has none.

    Example:
      >>> from sympy import Pow, oo, sqrt
      >>> evaluated(Pow(oo, 0, evaluate=False)), evaluated(30 * sqrt(oo)), evaluated(1 / oo), evaluated(oo - oo)
      (nan, oo, 0, nan)
    """
    from sympy import Pow, nan

    value = expression.doit()
    # sympy says that this is 1, but it has no limit.
    powers = [power for power in expression.atoms(Pow) if has_infinity(power.base)]
    return nan if any(power.exp.is_zero for power in powers) else value


def same_infinity(one: Any, other: Any) -> bool:
    """Whether two expressions, one of which is infinite, have the same infinite value, with the same sign.

    Example:
      >>> from sympy import Integer, oo, zoo
      >>> same_infinity(oo, oo), same_infinity(oo, -oo), same_infinity(oo, Integer(3)), same_infinity(zoo, zoo)
      (True, False, False, False)
    """
    from sympy import nan, zoo

    one, other = one.doit(), other.doit()
    return one == other and not one.has(nan, zoo)
