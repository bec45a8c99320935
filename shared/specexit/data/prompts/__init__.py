"""Questions to a target, from files, benchmarks and generators.

A source is a file (JSONL, JSON, CSV, TSV, Parquet), a folder as Hugging Face ``datasets`` writes it, a benchmark's file
by its name (``gsm8k:FILE``), or a task of reasoning-gym (``reasoning-gym:TASK``).

`prompt` says what a question is; `sources` reads rows, and `columns` makes questions of them; `formats` has the
benchmarks and `generated` the tasks that are called by a name.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

from specexit import tiny
from specexit.data.answers import AnswerError, kind
from specexit.data.prompts.columns import check_seen, to_prompt, without_ignored
from specexit.data.prompts.formats import FORMATS
from specexit.data.prompts.generated import PREFIX, read_task
from specexit.data.prompts.prompt import Prompt, PromptError
from specexit.data.prompts.sources import read_rows
from specexit.schemas.prompts import ColumnsConfig
from specexit.tiny import families

__all__ = ["FORMATS", "Prompt", "PromptError", "read_prompts", "split_prompts"]


def split_prompts(split: str, n: int, seed: int = 0, *, mixed: bool = False) -> list[Prompt]:
    """The first ``n`` problems of one of an embedded target's splits.

    Args:
      split: its name.
      n: how many.
      seed: of the problems.
      mixed: whether the problems are tiny-mixed's, of all families, or the tiny reasoner's.

    Raises:
      ValueError: there is no such split.
    """
    if mixed:
        return [
            Prompt(f"mixed-{split}-{seed}-{i:05d}", e.question, e.answer, None, e.family, e.kind, None, e.choices)
            for i, e in enumerate(families.exercises(split, n, seed=seed))
        ]
    problems = tiny.problems(split, n, seed=seed)
    return [Prompt(f"{split}-{seed}-{i:05d}", p.question, str(p.answer), task=p.family) for i, p in enumerate(problems)]


def read_prompts(
    source: str | Path, columns: ColumnsConfig | None = None, *, n: int | None = None, seed: int = 0
) -> list[Prompt]:
    """Read prompts.

    Args:
      source: see the package; a path, or ``NAME:PATH`` with a benchmark's name.
      columns: what the columns of a file mean; those of a benchmark's file have their own names.
      n: how many, from the first on; by default all, or 500 of a reasoning-gym task.
      seed: of generated problems and shuffled options.

    Raises:
      PromptError: not there, not of its format or not UTF-8, a column is missing, unknown or of another type, an id
        occurs twice or is not in every row, a reference is no answer of its kind, or there is no prompt.
    """
    source = os.path.expanduser(source)
    name, colon, rest = source.partition(":")
    if colon and name == PREFIX:
        return read_task(rest, n, seed)
    known = FORMATS.get(name) if colon else None
    if (rest if known else source).startswith("gs:/"):
        raise PromptError(
            f"prompts is {source!r}: is an address, expected a path on disk: copy it, or mount the bucket"
        )
    if colon and known is None and not Path(source).exists():
        names = ", ".join([*FORMATS, PREFIX])
        raise PromptError(f"{source}: cannot be read: no such file, and {name!r} is none of the formats {names}")
    if not (rest if known else source):
        raise PromptError(f"prompts is {source!r}, expected a file or folder{f' behind {name}:' if known else ''}")
    path = Path(os.path.expanduser(rest) if known else source)
    columns = columns or ColumnsConfig()
    prompts: dict[str, Prompt] = {}
    named: bool | None = None
    seen: set[str] = set()
    asked = Counter[str]()
    for number, (where, row) in enumerate(islice(read_rows(path), n)):
        row = row if known else without_ignored(row, columns)
        prompt = known(row, where, number, seed) if known else to_prompt(row, where, columns)
        seen |= row.keys()
        has_id = known is not None or columns.id in row
        if named not in (None, has_id):
            here, before = ("missing", "have one") if named else ("there", "have none")
            raise PromptError(f"{where}: {columns.id} is {here}, but the rows before it {before}")
        named = has_id
        if not has_id:
            asked[prompt.id] += 1
            if asked[prompt.id] > 1:  # the file has the same question again
                prompt = replace(prompt, id=f"{prompt.id}-{asked[prompt.id]}")
        if prompt.id in prompts:
            raise PromptError(f"{where}: id {prompt.id!r} occurs twice, expected unique ids")
        _check_characters(prompt, where)
        _check_answer(prompt, where)
        prompts[prompt.id] = prompt
    if not prompts:
        raise PromptError(f"{path}: holds no prompt")
    if known is None:
        check_seen(columns, seen, path)
    return list(prompts.values())


def _check_characters(prompt: Prompt, where: str) -> None:
    """Check that all text of a prompt is Unicode: JSON can write half a character, which no tokenizer reads."""
    try:
        json.dumps(asdict(prompt), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise PromptError(f"{where}: holds {half!r}, half of a surrogate pair, expected whole characters") from error


def _check_answer(prompt: Prompt, where: str) -> None:
    """Check that a prompt's answer kind exists here, and that its reference is an answer of that kind."""
    if prompt.answer_kind is None:
        return
    try:
        answers = kind(prompt.answer_kind)
    except AnswerError as error:
        raise PromptError(f"{where}: {error}") from error
    why = None if prompt.reference is None else answers.why_no_reference(prompt.reference, prompt.choices)
    if why:
        raise PromptError(f"{where}: reference {prompt.reference!r:.200} {why} (answer kind {prompt.answer_kind})")
