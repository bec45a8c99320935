"""What ``specexit COMMAND --help`` prints: every key of a schema, in words, with the default that is in force."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

WORDS = {int: "whole number", float: "number", str: "text", bool: "true | false", Path: "path", type(None): "null"}
PLURALS = {int: "whole numbers", float: "numbers", Path: "paths"}
REQUIRED = "required"


def kind_of(annotation: Any) -> str:
    """A type as a person reads it.

    Example:
      >>> kind_of(int), kind_of(Path | None), kind_of(Literal["draft", "fc"]), kind_of(tuple[str, ...])
      ('whole number', 'path, or null', 'draft | fc', 'list of text')
    """
    origin, inside = get_origin(annotation), get_args(annotation)
    if annotation in WORDS:
        return WORDS[annotation]
    if origin is Annotated:
        return kind_of(inside[0])
    if origin is Literal:
        return " | ".join(str(value) for value in inside)
    if origin in (Union, types.UnionType):
        return ", or ".join(kind_of(choice) for choice in inside)
    if origin in (tuple, list):
        return f"list of {PLURALS.get(inside[0]) or kind_of(inside[0])}"
    if origin in (dict, Mapping):
        return "mapping"
    return "mapping" if isinstance(annotation, type) and issubclass(annotation, (BaseModel, dict)) else str(annotation)


SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


def limits_of(field: FieldInfo) -> str:
    """The range of a number, as in ``>= 0, < 1``; empty where there is none."""
    found = [
        (sign, getattr(rule, name)) for rule in field.metadata for name, sign in SIGNS.items() if hasattr(rule, name)
    ]
    return ", ".join(f"{sign} {value:.15g}" for sign, value in found)


@dataclass(frozen=True)
class Row:
    """One key of a command."""

    key: str
    kind: str
    default: str
    meaning: str


def rows(schema: type[BaseModel], values: Mapping[str, Any] | None = None, prefix: str = "") -> Iterator[Row]:
    """Every leaf key of a schema, nested schemas opened.

    Args:
      schema: of the command.
      values: what is in force in place of the schema's own defaults: of a config file, or of the schema around it.
      prefix: dotted key of the schema around it.
    """
    for name, field in schema.model_fields.items():
        key, given = field.alias or name, (values or {}).get(field.alias or name)
        default = None if field.is_required() else field.get_default(call_default_factory=True, validated_data={})
        nested = field.annotation
        if isinstance(nested, type) and issubclass(nested, BaseModel):
            inner = default.model_dump(mode="json") if isinstance(default, BaseModel) else {}
            inside = list(rows(nested, {**inner, **(given if isinstance(given, Mapping) else {})}, f"{prefix}{key}."))
            if field.description:  # of a section, which has no row of its own
                inside[0] = replace(inside[0], meaning=f"{inside[0].meaning} ({field.description})")
            yield from inside
            continue
        kind, optional, _ = kind_of(nested).partition(", or null")
        kind = " ".join(part for part in (kind, limits_of(field)) if part) + optional
        shown = REQUIRED if given is None and field.is_required() else written(default if given is None else given)
        yield Row(f"{prefix}{key}", kind, shown, field.description or "")


def written(value: Any) -> str:
    """A value as one writes it on the command line.

    Example:
      >>> [written(value) for value in (None, True, 0.5, ("a", "b"), {}, "\\n\\n")]
      ['null', 'true', '0.5', '[a, b]', '{}', "'\\\\n\\\\n'"]
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(written(one) for one in value)}]"
    if isinstance(value, str) and (not value or not value.isprintable() or value.isspace()):
        return repr(value)
    return str(value)


def show(
    name: str, help: str, schema: type[BaseModel], values: Mapping[str, Any] | None = None, first: str = "[config.yaml]"
) -> None:
    """Print a command's usage and its keys, those of a nested schema apart from the others.

    Args:
      name: of the command.
      help: what it does.
      schema: its keys.
      values: of the config file that was named, if one was.
      first: what may stand before the keys.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    console.print(help)
    console.print(f"\nspecexit {name} {first} [key=value ...]   (--key value means the same)\n", markup=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("key", no_wrap=True)
    # The types wrap well, and leave the room to values and meanings, whose long words would be broken.
    found = list(rows(schema, values))
    table.add_column("type", overflow="fold", max_width=max(len(word) for row in found for word in row.kind.split()))
    for column in ("default", "meaning"):
        table.add_column(column, overflow="fold")
    group = None
    for row in found:
        before, group = group, row.key.rpartition(".")[0]
        if before not in (None, group):
            table.add_row()
        # As text: a value such as [a, b] is no markup.
        default = Text(row.default, "bold" if row.default == REQUIRED else "")
        table.add_row(Text(row.key), Text(row.kind), default, Text(row.meaning))
    console.print(table)
