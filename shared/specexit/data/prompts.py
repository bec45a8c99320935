"""What is asked of a target: prompts from a JSONL file, or the tiny reasoner's own problems."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specexit import tiny
from specexit.errors import InputError


class PromptError(InputError):
    """A prompt file that cannot be used; the message names the file, the line and what was expected."""


@dataclass(frozen=True)
class Prompt:
    """One user turn, and its right answer where that is known."""

    id: str
    text: str
    reference: str | None


def split_prompts(split: str, n: int, seed: int = 0) -> list[Prompt]:
    """The first ``n`` problems of one of the tiny reasoner's splits.

    Raises:
      ValueError: there is no such split.
    """
    problems = tiny.problems(split, n, seed=seed)
    return [Prompt(f"{split}-{seed}-{i:05d}", p.question, str(p.answer)) for i, p in enumerate(problems)]


def read_prompts(path: Path) -> list[Prompt]:
    """Read a JSONL file with the strings ``id``, ``prompt`` and, optionally, ``reference`` in each line.

    Raises:
      PromptError: not there, not JSON, a field is missing or no string, an id occurs twice, or there is no prompt.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"{path}: cannot be read: {error}") from error
    prompts: dict[str, Prompt] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            prompt = _parse(line, f"{path}, line {number}")
            if prompt.id in prompts:
                raise PromptError(f"{path}, line {number}: id {prompt.id!r} occurs twice, expected unique ids")
            prompts[prompt.id] = prompt
    if not prompts:
        raise PromptError(f"{path}: holds no prompt")
    return list(prompts.values())


def _parse(line: str, where: str) -> Prompt:
    try:
        row: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise PromptError(f"{where}: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise PromptError(f"{where}: holds a {type(row).__name__}, expected an object with id and prompt")
    for key in ("id", "prompt"):
        if not isinstance(row.get(key), str):
            raise PromptError(f"{where}: {key} is {row.get(key)!r}, expected a string")
    reference = row.get("reference")
    if reference is not None and not isinstance(reference, str):
        raise PromptError(f"{where}: reference is {reference!r}, expected a string or nothing")
    return Prompt(row["id"], row["prompt"], reference)
