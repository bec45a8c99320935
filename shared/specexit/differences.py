"""What tells one run of a command from another, for folders in which a run may go on or be found done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SHOWN = 12
"""Digits of a hash in messages."""


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hex; the file may be larger than the memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fields_sha256(fields: Mapping[str, Any]) -> str:
    """SHA-256 of what can be written as JSON, in hex; the order of the keys does not matter."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def differences(there: Any, asked: Any) -> str:
    """What differs between two nested mappings, in words; empty where nothing does. Under ``inputs`` are hashes.

    None counts as absent: a record from before there was a setting does not differ where that is not set.

    Example:
      >>> differences({"config": {"seed": 0, "n": 3}}, {"config": {"seed": 1, "n": 3}})
      'config.seed 0 (now 1)'
      >>> differences({"config": {"seed": 0}}, {"config": {"seed": 0, "tasks": None}})
      ''
    """
    old, new = dict(leaves("", there)), dict(leaves("", asked))
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return ", ".join(f"{key} {_shown(key, old)} (now {_shown(key, new)})" for key in keys)


def leaves(prefix: str, value: Any) -> list[tuple[str, Any]]:
    """Dotted key and value of everything in nested mappings."""
    if not isinstance(value, Mapping):
        return [(prefix, value)]
    return [leaf for key, inside in value.items() for leaf in leaves(f"{prefix}.{key}".strip("."), inside)]


def _shown(key: str, values: Mapping[str, Any]) -> str:
    said = str(values.get(key, "not told"))
    return said[:SHOWN] if key.startswith("inputs.") else said
