"""What a user can get wrong. The command line shows these as one line; anything else is a bug, with its traceback."""

from __future__ import annotations

from pydantic import ValidationError


class InputError(ValueError):
    """Input that cannot be used; the message names the file, the field, the value and what was expected."""


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
    where = ".".join(str(part) for part in problem["loc"])
    return f"{where} is {problem['input']!r}: {problem['msg']}"
