"""What a user can get wrong. The command line shows these as one line; anything else is a bug, with its traceback."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

LASTING = 78
"""Exit code of ``specexit train`` for an error that the same command would only run into again, and of ``status`` for a
run that a NaN has stopped: sysexits.h calls it a configuration error."""


class InputError(ValueError):
    """Input that cannot be used; the message names the file, the field, the value and what was expected."""

    passes = False
    """Whether the same command, given the same, may succeed the next time."""


def lasts(error: InputError) -> bool:
    """Whether the same command would only run into an error again.

    An error that an `OSError` or a `RuntimeError` caused is a machine's, a disk's or a network's, and may not come
    twice. But a file or folder that is not there has a wrong name: jobs start once their mounts are there.
    """
    failures, cause = (OSError, RuntimeError), error.__cause__
    misnamed = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
    failed = isinstance(cause, failures) and not isinstance(cause, misnamed)
    return not (error.passes or isinstance(error, failures) or failed)


def shown(value: object, most: int = 200) -> str:
    """A value as an error says it: on one line, without control characters, and not longer than a person reads.

    Example:
      >>> shown("two\\nlines"), shown(list(range(1000)), 12)
      ("'two\\\\nlines'", '[0, 1, 2, 3,...')
    """
    return cut(repr(value), most)


def cut(text: str, most: int = 80) -> str:
    """A stranger's name, not longer than a person reads.

    Example:
      >>> cut("tiny-reasoner"), cut("x" * 1000, 4)
      ('tiny-reasoner', 'xxxx...')
    """
    return text if len(text) <= most else text[:most] + "..."


def listed(counts: Mapping[Any, int]) -> str:
    """Counts by reason as one line.

    Example:
      >>> listed({"unfinished": 3, "without an answer": 1})
      '3 unfinished, 1 without an answer'
    """
    return ", ".join(f"{n} {reason}" for reason, n in counts.items())


def printable(text: str) -> str:
    """A stranger's text for a terminal: what would move its cursor is written as an escape.

    Example:
      >>> print(printable("mine" + chr(27) + "[2J"))
      mine\\x1b[2J
    """
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def install(extra: str) -> str:
    """How an extra of ours is installed. No index has the package, so its name alone would bring nothing, or another's.
    What brings libtpu is not put beside vLLM, which would not start any more.

    Example:
      >>> install("ray")
      "pip install '.[ray]' in a checkout of SpecExit, or 'WHEEL[ray]'"
    """
    where = " (in an environment without vLLM, which does not start beside libtpu)" if extra == "tpu" else ""
    return f"pip install '.[{extra}]' in a checkout of SpecExit, or 'WHEEL[{extra}]'{where}"


def dotted(problem: Mapping[str, Any]) -> str:
    """The key that one of pydantic's problems is about, its parts joined by dots; empty where it is of several.

    What stands below ``tenants`` is said in part only: where it is wrong, it may be an API key itself.

    Example:
      >>> dotted({"loc": ("points", 0, "name")}), dotted({"loc": ("serving", "tenants", "sk-live-0123")})
      ('points.0.name', 'serving.tenants.sk-l...')
    """
    parts = [str(part) for part in problem["loc"]]
    said = len(parts) if "tenants" not in parts else parts.index("tenants") + 1
    return ".".join([*parts[:said], *(cut(part, 4) for part in parts[said:])])


def repeated(problem: Mapping[str, Any]) -> str:
    """The value that one of pydantic's problems is about, on one line. Of tenants no more than the kind, or a part.

    Example:
      >>> repeated({"loc": ("points",), "input": 3}), repeated({"loc": ("tenants",), "input": ["sk-live-0123"]})
      ('3', 'a list')
    """
    value = problem["input"]
    if "tenants" in problem["loc"]:
        value = cut(value, 4) if isinstance(value, str) else value
        return f"a {type(value).__name__}" if isinstance(value, list | tuple | dict) else shown(value)
    return shown(value)


def first_problem(error: ValidationError) -> str:
    """What the first wrong field of a file is, and what was expected of it.

    Example:
      >>> from pydantic import TypeAdapter
      >>> try:
      ...     TypeAdapter(dict[str, int]).validate_python({"n": "many"})
      ... except ValidationError as error:
      ...     first_problem(error)
      "n is 'many': Input should be a valid integer, unable to parse string as an integer"
    """
    problem = error.errors()[0]
    return f"{dotted(problem) or 'it'} is {repeated(problem)}: {problem['msg'].removeprefix('Value error, ')}"
