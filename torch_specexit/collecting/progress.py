"""The bar that a person watches while traces are collected."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class Bar:
    """Progress of all engines: half a trace for its text, half for its trials.

    Args:
      n: traces to be there in the end.
      done: those that are there already.
    """

    def __init__(self, n: int, done: int):
        self.counts = {"generated": done, "judged": done, "tokens": 0}
        columns = (
            TextColumn("collect"),
            BarColumn(),
            TextColumn("{task.fields[judged]}/{task.fields[n]} traces"),
            TextColumn("{task.fields[rate]:.0f} tokens/s"),
            TimeRemainingColumn(),
        )
        console = Console(stderr=True)
        self.progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self.task = self.progress.add_task("collect", total=2 * n, completed=2 * done, judged=done, n=n, rate=0.0)

    def __enter__(self) -> Bar:
        self.progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.progress.stop()

    def add(self, counts: dict[str, int]) -> None:
        """Count what an engine has done: traces ``generated`` and ``judged``, and ``tokens``."""
        for key, value in counts.items():
            self.counts[key] += value
        elapsed = self.progress.tasks[0].elapsed or 0.0
        self.progress.update(
            self.task,
            completed=self.counts["generated"] + self.counts["judged"],
            judged=self.counts["judged"],
            rate=self.counts["tokens"] / elapsed if elapsed else 0.0,
        )
