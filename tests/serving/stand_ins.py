"""What stands for vLLM's objects in tests: it has what a test gives, and fails where anything else of it is used."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")

OPERATORS = {name for kind in (int, float, list, dict) for name in dir(kind) if name.startswith("__")} - {*dir(object)}
USES = OPERATORS | {
    *("__call__", "__await__", "__aiter__", "__enter__", "__aenter__", "__setattr__", "__delattr__"),
    *("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__hash__", "__str__", "__format__"),
}


class NotGiven:
    """A member of a protocol that a test has not given: whatever is done with it is an AssertionError. It may be handed
    on, and that it is not None can be seen."""

    def __init__(self, kind: type, name: str):
        vars(self)["member"] = f"{kind.__name__}.{name}"

    def __repr__(self) -> str:
        return f"<{vars(self)['member']}, not given>"

    def __getattr__(self, name: str) -> NoReturn:
        self._fail()

    def _fail(self, *_: object, **__: object) -> NoReturn:
        raise AssertionError(f"{vars(self)['member']} is used, and the test has not given it")


for use in USES:
    setattr(NotGiven, use, NotGiven._fail)


def members(kind: type) -> Iterator[str]:
    """Names of a protocol's attributes and methods, with those of the protocols that it extends."""
    for base in kind.__mro__:
        yield from inspect.get_annotations(base)
        yield from (name for name, value in vars(base).items() if _is_member(name, value))


def _is_member(name: str, value: object) -> bool:
    return not name.startswith("__") and (inspect.isfunction(value) or isinstance(value, property))


def filled(kind: type[T], made: Any) -> T:
    """An object with each member of a protocol that it lacks set to a `NotGiven`."""
    for name in members(kind):
        if inspect.getattr_static(made, name, made) is made:
            setattr(made, name, NotGiven(kind, name))
    assert isinstance(made, kind)
    return made


def stand_in(kind: type[T], **given: Any) -> Any:
    """What stands for an object of vLLM's.

    Args:
      kind: the protocol that says what the plug-in uses of it.
      given: its attributes. Other members of the protocol are there, and fail where they are used.
    """
    return filled(kind, SimpleNamespace(**given))
