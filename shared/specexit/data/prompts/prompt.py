"""One question to a target, and what is known about it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from specexit.errors import InputError

Row = Mapping[str, Any]
"""One row of a file of prompts, values as JSON has them."""

ROLES = ("system", "user", "assistant", "tool")


class PromptError(InputError):
    """Prompts that cannot be used; the message names the file, the row and what was expected."""


@dataclass(frozen=True)
class Prompt:
    """What is asked, and its right answer where that is known."""

    id: str
    text: str
    """The last user turn."""
    reference: str | None
    messages: tuple[dict[str, str], ...] | None = None
    """The whole conversation, ``role`` and ``content`` each; None where it is ``text`` alone."""
    task: str | None = None
    """What kind of question it is, such as a benchmark's name."""
    answer_kind: str | None = None
    """How it is answered, see `specexit.data.answers`; None is the target's default."""
    group: str | None = None
    """The part of the population it is counted in; the task where it is None."""
    choices: tuple[str, ...] | None = None
    """The options of a multiple-choice question, in the order in which they are asked."""


def text_of(value: Any, where: str, what: str) -> str:
    """A string that must be there.

    Raises:
      PromptError: it is something else, or empty.
    """
    if not isinstance(value, str):
        raise PromptError(f"{where}: {what} is {value!r:.200}, expected a string")
    if not value.strip():
        raise PromptError(f"{where}: {what} is empty, expected text")
    return value


def optional_text(value: Any, where: str, what: str) -> str | None:
    """A string, a number as a string, or None.

    A float that is a whole number is written without its ``.0``: a column of integers with a gap has become floats.

    Raises:
      PromptError: it is something else.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool) and math.isfinite(value):
        return str(value).removesuffix(".0") if isinstance(value, float) else str(value)
    raise PromptError(f"{where}: {what} is {value!r:.200}, expected a string, a number or nothing")


def conversation(value: Any, where: str) -> tuple[dict[str, str], ...]:
    """Messages as a chat template takes them, the last one the user's.

    A field that is None is left out: where one message of an Arrow file has a ``name``, all of them have the field.

    Raises:
      PromptError: they are no list of role and content, a role is unknown, or the user does not come last or is silent.
    """
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise PromptError(f"{where}: messages are {value!r:.200}, expected a list of objects with role and content")
    messages = tuple(_without_nothing(message) for message in value)
    for message in messages:
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise PromptError(
                f"{where}: message {message!r:.200}, expected an object with role and content, both strings"
                + (", and not ShareGPT's from and value" if isinstance(message, dict) and "from" in message else "")
            )
        if message["role"] not in ROLES or not isinstance(message["content"], str):
            raise PromptError(f"{where}: message {message!r:.200}, expected a role of {', '.join(ROLES)} and a string")
    if messages[-1]["role"] != "user":
        raise PromptError(f"{where}: the last message is from {messages[-1]['role']!r}, expected 'user'")
    text_of(messages[-1]["content"], where, "the last message")
    return messages


def _without_nothing(message: Any) -> Any:
    if not isinstance(message, Mapping):
        return message
    return {key: value for key, value in message.items() if value is not None}
