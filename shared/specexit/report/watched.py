"""What ``metrics.jsonl`` says of the machine: where a run's time went, how busy its chips were, and their memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from specexit.report.charts import Points, steps_chart
from specexit.report.figures import Figure, Table, over_steps
from specexit.report.verdict import percent

KINDS = {
    "step": "computing",
    "data": "waiting for data",
    "save": "saving",
    "evaluate": "evaluating",
    "compile": "compiling",
}
"""Keys of ``seconds`` in a line -> what a person calls them."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Watched:
    """What a pod owner watches."""

    time: Table | None
    """Seconds by what they were spent on; None where no line says so."""
    figures: tuple[Figure, ...]
    absent: tuple[str, ...]
    """Titles of the figures that no line has a number for."""


def watched(rows: Sequence[Row]) -> Watched:
    """Gather what the lines of ``metrics.jsonl`` say, as far as they do."""
    lines = _lines(rows)
    figures = tuple(over_steps(title, found, steps_chart(found, zero=True)) for title, found in lines.items() if found)
    return Watched(_time(rows), figures, tuple(title for title, found in lines.items() if not found))


def _lines(rows: Sequence[Row]) -> dict[str, dict[str, Points]]:
    def of(key: str, name: str, scale: float = 1.0) -> dict[str, Points]:
        points = [(row["step"], scale * row[key]) for row in rows if row.get(key) is not None]
        return {name: points} if points else {}

    timed = [row for row in rows if sum(row.get("seconds", {}).values()) > 0]
    rated = [row for row in rows if "learning_rate" in row]
    return {
        "Share of the time, %": {
            label: [(row["step"], 100 * row["seconds"].get(kind, 0.0) / sum(row["seconds"].values())) for row in timed]
            for kind, label in KINDS.items()
            if timed
        },
        "Tokens a second, without the pauses": of("tokens_per_second", "tokens a second"),
        "Goodput, %": of("goodput", "goodput", 100),
        "MFU, %": of("mfu", "MFU", 100),
        "HBM peak, GiB": of("hbm_peak_gib", "HBM peak"),
        "Learning rate": {
            name: [(row["step"], row["learning_rate"][name]) for row in rated]
            for name in (rated[0]["learning_rate"] if rated else ())
        },
    }


def _time(rows: Sequence[Row]) -> Table | None:
    """All wall time since the run began, by what it was spent on; None where no line says so.

    The whole is the time of training over goodput.
    """
    spent = {kind: sum(row.get("seconds", {}).get(kind, 0.0) for row in rows) for kind in KINDS}
    if not rows or not sum(spent.values()) or not rows[-1].get("goodput"):
        return None
    whole = rows[-1]["trained_seconds"] / rows[-1]["goodput"]
    found = {label: spent[kind] for kind, label in KINDS.items()}
    found["starting, stopped"] = max(0.0, whole - sum(spent.values()))
    return Table(
        ("spent on", "seconds", "share"),
        tuple((name, f"{seconds:,.1f}", percent(seconds / sum(found.values()))) for name, seconds in found.items()),
    )
