"""What a page says of a training run, from the run's folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from specexit.report.figures import Figure, training
from specexit.report.shown import ReportError
from specexit.report.watched import Watched, watched
from specexit.schemas.target import TARGET_FILE
from specexit.status import read_status, whole_lines


@dataclass(frozen=True)
class Run:
    """A training run, finished or not."""

    folder: Path
    target: str
    """Its name."""
    says: str
    """How far it is."""
    curves: tuple[Figure, ...]
    """None where no step is on record yet."""
    watched: Watched
    left_out: tuple[int, ...]
    """Numbers of the lines of ``metrics.jsonl`` that cannot be read, from 1 on."""
    evaluation: dict[str, tuple[str, str]]
    """Name -> value, and what it is where the run's folder says that; nothing where no step was evaluated."""


def read_run(folder: Path) -> Run:
    """Read what `specexit train` has written so far.

    Raises:
      ConfigError: not a run folder.
      ReportError: a file of it is not there or cannot be read.
    """
    status, step, steps = read_status(folder)
    path = folder / "metrics.jsonl"
    lines, left_out = read_lines(path) if step or path.exists() else ([], ())
    rows = training_rows(path, lines) if step or lines else []  # of a run that has just begun there are none
    return Run(
        folder=folder,
        target=_target_of(folder / TARGET_FILE),
        says=f"{status}, step {step:,} of {steps:,}",
        curves=training(rows) if rows else (),
        watched=watched(rows),
        left_out=left_out,
        evaluation=newest_evaluation(folder / "evaluation.json", lines),
    )


def _target_of(path: Path) -> str:
    try:
        return str(yaml.safe_load(path.read_text())["name"])
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ReportError(f"{path}: cannot be read as the target of a training run: {error!r}") from error


def read_lines(path: Path) -> tuple[list[dict[str, Any]], tuple[int, ...]]:
    """The lines of ``metrics.jsonl`` as mappings, and the numbers of those that cannot be read and are left out.

    `whole_lines` says which these are.

    Raises:
      ReportError: the file is not there or cannot be read.
    """
    try:
        found = [line for _, line in whole_lines(path)]
    except OSError as error:
        raise ReportError(f"{path}: cannot be read as what train writes: {error!r}") from error
    return [line for line in found if line is not None], tuple(i for i, line in enumerate(found, 1) if line is None)


def training_rows(path: Path, lines: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The lines of ``metrics.jsonl`` that are of training steps; of a step that a resumed run has done again, the last.

    Raises:
      ReportError: there are none.
    """
    by_step = {line["step"]: line for line in lines if "token_loss" in line}
    if not by_step:
        raise ReportError(f"{path}: holds no metrics, expected one JSON object per line")
    return [by_step[step] for step in sorted(by_step)]


def newest_evaluation(path: Path, lines: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, str]]:
    """The newest evaluation: ``evaluation.json``, which is of the last step, or else the last in ``metrics.jsonl``.

    Returns:
      name -> (value, what it is; empty where the file does not say). Nested names are joined.

    Raises:
      ReportError: not a JSON object.
    """
    try:
        numbers = json.loads(path.read_text())
    except FileNotFoundError:
        numbers = next((line["evaluation"] for line in reversed(lines) if "evaluation" in line), {})
    except (OSError, ValueError) as error:
        raise ReportError(f"{path}: cannot be read as what train writes: {error!r}") from error
    if not isinstance(numbers, dict):
        raise ReportError(f"{path}: is a {type(numbers).__name__}, expected a JSON object as train writes it")
    says = dict(numbers.get("definitions", {}))
    return {
        label: (value, next((says.pop(name) for name in names if name in says), ""))
        for names, label, value in _flatten((), {name: numbers[name] for name in numbers if name != "definitions"})
    }


def _flatten(names: tuple[str, ...], values: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """Of each value the names that lead to it, the outermost first, its label and its text."""
    for name, value in values.items():
        path = (*names, name)
        label = " ".join(path).replace("_", " ")
        if isinstance(value, Mapping):
            yield from _flatten(path, value)
        elif isinstance(value, list):
            yield path, label, ", ".join(map(_shown, value))
        else:
            yield path, label, _shown(value)


def _shown(value: Any) -> str:
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
