"""Checks that a method in a file of its own is one, before anything is measured, with errors that name the mistake."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import MISSING, asdict, fields, is_dataclass
from typing import Any, get_args

from specexit.bench.methods.interface import Engine, Method, MethodError
from specexit.method.decision import Policy

ENGINES = get_args(Engine)

Rule = tuple[str, Callable[[Any], bool]]
"""What is expected of a value, and whether it is so."""

TEXT: Rule = ("a text", lambda value: isinstance(value, str) and value != "")
FLAG: Rule = ("true or false", lambda value: isinstance(value, bool))
ATTRIBUTES: dict[str, Rule] = {
    "name": (  # of a line in a figure's legend, and of a folder of the run
        "a line of text without / that begins with a letter or a digit",
        lambda value: TEXT[1](value) and "/" not in value and value[0].isalnum() and value.isprintable(),
    ),
    "engine": (f"one of {', '.join(ENGINES)}", lambda value: value in ENGINES),
    "says": TEXT,
    "reports": FLAG,
    "pauses": FLAG,
    "budgets": FLAG,
    "policy": ("a Policy or none", lambda value: value is None or isinstance(value, Policy)),
}


def check_kind(reference: str, kind: type[Method]) -> type[Method]:
    """A method's class, if it is what `Method` asks for.

    Raises:
      MethodError: it is no dataclass, an attribute is missing or wrong, or nothing chooses a parameter.
    """
    whose = f"method {reference!r}: class {kind.__name__}"
    if "__dataclass_fields__" not in vars(kind) or not is_dataclass(kind):
        raise MethodError(f"{whose} is no dataclass, expected @dataclass(frozen=True) above it")
    for name, (expected, holds) in ATTRIBUTES.items():
        if not hasattr(kind, name):
            raise MethodError(f"{whose} has no attribute {name}, expected {expected}")
        if not holds(value := getattr(kind, name)):
            raise MethodError(f"{whose}: {name} is {value!r}, expected {expected}")
    if inspect.isabstract(kind):
        raise MethodError(f"{whose} has no method respond, expected one that asks for the response")
    chooses = any("tuned" in vars(one) for one in kind.__mro__[: kind.__mro__.index(Method)])
    for field in fields(kind):
        if not chooses and field.default is MISSING and field.default_factory is MISSING:
            raise MethodError(f"{whose}: field {field.name} has no value, expected one, or a tuned() that chooses it")
    return kind


def check_parameters(reference: str, method: Method) -> Method:
    """A tuned method, if its parameters can be stored.

    Raises:
      MethodError: it is no method, or a parameter is neither a finite number nor text.
    """
    if not isinstance(method, Method):
        raise MethodError(f"method {reference!r}: tuned() gives {method!r}, expected a Method")
    for name, value in asdict(method).items():  # pyright: ignore[reportArgumentType]
        if isinstance(value, float) and not math.isfinite(value):
            raise MethodError(
                f"method {reference!r}: field {name} is {value!r}, expected a finite number: results store these"
            )
        if value is not None and not isinstance(value, (int, float, str)):
            raise MethodError(
                f"method {reference!r}: field {name} is {value!r}, expected a number, text or none: results store these"
            )
    return method
