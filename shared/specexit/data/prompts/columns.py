"""Rows whose columns are named by the config, as prompts."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from specexit.data.answers.choice import MOST_OPTIONS
from specexit.data.prompts.prompt import Prompt, PromptError, Row, conversation, optional_text, text_of
from specexit.schemas.prompts import ColumnsConfig


def to_prompt(row: Row, where: str, columns: ColumnsConfig) -> Prompt:
    """A row, `without_ignored`, as a prompt.

    Raises:
      PromptError: a column is missing, of another type, or not one of those that are known.
    """
    _check_names(row, where, columns)
    messages = _listed(row.get(columns.messages))
    if messages is not None:
        messages = conversation(messages, where)
        if row.get(columns.prompt) is not None and columns.prompt != columns.messages:
            raise PromptError(f"{where}: has {columns.prompt} and {columns.messages}, expected one of them")
        text = messages[-1]["content"]
    else:
        asked = row.get(columns.prompt)
        if isinstance(asked, list):
            raise PromptError(
                f"{where}: {columns.prompt} is {asked!r:.200}, expected a string; a conversation, messages of role and "
                f"content, is named by columns.messages={columns.prompt}"
            )
        text = text_of(asked, where, columns.prompt)
    return Prompt(
        id=_id(row[columns.id], where, columns.id) if columns.id in row else _id_of(messages or text),
        text=text,
        reference=optional_text(_tests(row.get(columns.reference)), where, columns.reference),
        messages=messages,
        task=optional_text(row.get(columns.task), where, columns.task),
        answer_kind=optional_text(row.get(columns.answer_kind), where, columns.answer_kind),
        group=optional_text(row.get(columns.group), where, columns.group),
        choices=_choices(_listed(row.get(columns.choices)), where, columns.choices),
    )


def without_ignored(row: Row, columns: ColumnsConfig) -> Row:
    """A row without the columns that ``columns.ignore`` names, even those that would mean something."""
    return {name: value for name, value in row.items() if name not in columns.ignore}


def check_seen(columns: ColumnsConfig, seen: Container[str], path: Path) -> None:
    """Check that every column that the config names is in some row: a misspelt one would be empty everywhere.

    Raises:
      PromptError: one is not.
    """
    for field in sorted(columns.model_fields_set - {"ignore"}):
        name = getattr(columns, field)
        if name not in seen:
            raise PromptError(f"{path}: columns.{field} is {name!r}, expected a column that some row has")


def _check_names(row: Row, where: str, columns: ColumnsConfig) -> None:
    known = [getattr(columns, name) for name in type(columns).model_fields if name != "ignore"]
    unknown = [] if "*" in columns.ignore else [key for key in row if key not in known]
    if not unknown:
        return
    close = difflib.get_close_matches(unknown[0], known, n=1, cutoff=0.5)
    meant = f" (did you mean {close[0]!r}?)" if close else ""
    listed = ", ".join(map(repr, unknown))
    if "" in unknown:  # in a shell's words `columns.ignore=` leaves out no column
        raise PromptError(
            f"{where}: of the columns {listed} one has no name, as pandas writes its index: leave it out with "
            "columns.ignore='[\"\"]', or all that are not named with columns.ignore='*'"
        )
    asked = "messages" if isinstance(_listed(row[unknown[0]]), list) else "prompt"
    meaning = "reference" if columns.prompt in row or columns.messages in row else asked
    raise PromptError(
        f"{where}: unknown column {unknown[0]!r}{meant}; of {listed}, name those that are meant, as in "
        f"columns.{meaning}={unknown[0]}, and leave the others out with columns.ignore, a name, a list or *"
    )


def _id(value: Any, where: str, name: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value:
        raise PromptError(f"{where}: {name} is {value!r:.200}, expected a string or an integer")
    return value


def _id_of(asked: str | Sequence[dict[str, str]]) -> str:
    """Id of a prompt whose file has none: a hash of the question, so that the file may grow or be sorted."""
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]


def _listed(value: Any) -> Any:
    """A list that is written as JSON, as CSV has no other way; anything else as it is."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        with suppress(ValueError, RecursionError):
            return json.loads(value)
    return value


def _tests(value: Any) -> Any:
    """A program's tests that are written as an object, as the text that a reference is; anything else as it is."""
    if not isinstance(value, Mapping) or "test" not in value:
        return value
    try:
        return json.dumps(dict(value))
    except TypeError:  # bytes or dates, which are no tests
        return value


def _choices(value: Any, where: str, name: str) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(v, str) for v in value):
        raise PromptError(f"{where}: {name} are {value!r:.200}, expected a list of strings")
    if len(value) > MOST_OPTIONS:
        raise PromptError(f"{where}: {name} are {len(value)}, expected {MOST_OPTIONS} at most: answers are A to J")
    return tuple(value)
