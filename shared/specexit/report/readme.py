"""The README's table and the pictures of the documentation, from the same results as the page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from specexit.bench.results import (
    ALL_ALIKE,
    BASELINE,
    NO_INTERVAL,
    Comparison,
    MethodResult,
    Results,
    Triple,
    is_interval,
)
from specexit.config import write_text
from specexit.errors import InputError
from specexit.report.charts import standalone
from specexit.report.figures import Figure
from specexit.report.shown import Shown

BEGIN, END = "<!-- results: specexit report readme=... -->", "<!-- end of results -->"

NAMES = {
    "none": "no speculation",
    "eagle3": "EAGLE-3",
    "specexit": "**SpecExit**",
    "specexit-fc": "SpecExit, `source: fc`",
    "budget": "fixed thinking budget",
}


class ReadmeError(InputError):
    """A file that is not there, or without the marks between which the table goes."""


def write_table(path: Path, results: Results) -> None:
    """Replace what stands between the marks of a Markdown file by the table of these results.

    Raises:
      ReadmeError: see `write_between`.
    """
    write_between(path, BEGIN, END, table(results))


def write_between(path: Path, begin: str, end: str, text: str) -> None:
    """Replace what stands between two marks of a file.

    Raises:
      ReadmeError: the file cannot be read, or the marks are not there, once each and in that order.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            whole = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise ReadmeError(f"{path}: cannot be read, expected a Markdown file with a line {begin!r}: {error}") from error
    if whole.count(begin) != 1 or whole.count(end) != 1 or whole.index(begin) > whole.index(end):
        raise ReadmeError(f"{path}: expected one line {begin!r} and, below it, one line {end!r}")
    before, rest = whole.split(begin)
    ending = "\r\n" if "\r\n" in whole else "\n"  # of every line, as the file has them
    between = f"{begin}\n{text}{end}".replace("\n", ending)
    write_text(path, f"{before}{between}{rest.split(end)[1]}")


def table(results: Results) -> str:
    """The comparison as Markdown."""
    batches = list(results.n_seconds)
    headings = ["method", "accuracy", "thinking tokens", f"{results.oracle.at_most}of the {results.oracle_name}'s cut"]
    headings += [f"speed-up, batch {batch}" for batch in batches]
    lines = [headings, ["---"] * len(headings)]
    for name, method in results.methods.items():
        versus = results.against_eagle3.get(name)
        row = [NAMES.get(name, name), _accuracy(method, versus), f"{method.thinking_tokens:.1f}"]
        if versus is None:
            row += ["0 %" if results.oracle.thinking_cut else "–", *["1x"] * len(batches)]
        else:
            if any(versus.thinking_cut):
                row[2] += f" ({_cut(versus.thinking_cut)})"
            row.append(_share(results.oracle.fraction_reached[name]))
            row += [_times(versus.speedup[batch]) for batch in batches]
        lines.append(row)
    return _rows(lines)


def family_table(results: Results) -> str:
    """What each task gains, as Markdown; tokens and accuracy without exits and with them, where both were measured."""
    batches = list(results.n_seconds)
    headings = ["family", "problems", "thinking cut", "accuracy", *(f"speed, batch {batch}" for batch in batches)]
    lines = [headings, ["---"] * len(headings)]
    for name, found in results.tasks.items():
        ours, theirs = found.get("specexit"), found[BASELINE]
        if ours is None:
            continue
        cut = 1 - ours.thinking_tokens / theirs.thinking_tokens if theirs.thinking_tokens else None
        row = [
            f"`{name}`",
            str(ours.n),
            "–" if cut is None else f"{100 * cut:.0f} %",
            f"{100 * theirs.accuracy:.0f} % -> {100 * ours.accuracy:.0f} %",
        ]
        lines.append(row + [_family_speed(ours.speedup.get(batch)) for batch in batches])
    return _rows(lines)


def _rows(lines: Sequence[Sequence[str]]) -> str:
    """Rows of a Markdown table; a bar in a cell, as a method's name may have it, divides nothing."""
    cells = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def _family_speed(triple: Triple | None) -> str:
    """A family that was not timed at a batch size has no speed."""
    return "not measured" if triple is None else _times(triple)


def write_images(folder: Path, figures: tuple[Figure, ...], shown: tuple[Shown, ...]) -> list[Path]:
    """Every drawing as a file of its own that follows the reader's light or dark; returns their paths."""
    named = {re.sub(r"[^a-z]+", "-", figure.title.lower()).strip("-"): figure.svg for figure in figures}
    named |= {re.sub(r"[^a-z]+", "-", one.title.lower()): one.chart.svg for one in shown if one.chart}
    paths = []
    for name, svg in named.items():
        write_text(folder / f"{name}.svg", standalone(svg))
        paths.append(folder / f"{name}.svg")
    return paths


def _accuracy(method: MethodResult, versus: Comparison | None) -> str:
    """With its own interval, where it is known, and the difference to EAGLE-3, where there is one."""
    said = []
    if method.accuracy_interval:
        said.append(_between(method.accuracy_interval))
    if versus and any(versus.accuracy_delta):
        said.append(_points(versus.accuracy_delta))
    return f"{100 * method.accuracy:.1f} %" + (f" ({'; '.join(said)})" if said else "")


def _share(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _points(triple: Triple) -> str:
    return f"{_signed(triple[0])} points, {_between(triple)}"


def _cut(triple: Triple) -> str:
    """As the change that it is: the ends change sign, and places, with the value."""
    value, low, high = triple
    return f"{_signed(-value)} %, {_between((-value, -high, -low))}"


def _signed(difference: float) -> str:
    """In percent or points; what rounds to nothing is neither more nor less."""
    text = f"{100 * difference:+z.1f}"
    return "0.0" if text == "+0.0" else text


def _between(triple: Triple) -> str:
    """The interval of a share, in percent."""
    _, low, high = (100 * x for x in triple)
    return f"{low:z.1f}..{high:z.1f}" if is_interval(triple) else ALL_ALIKE


def _times(triple: Triple) -> str:
    value, low, high = triple
    return f"{value:.2f}x ({f'{low:.2f}..{high:.2f}' if is_interval(triple) else NO_INTERVAL})"
