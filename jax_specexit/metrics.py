"""Where a run's numbers go: ``metrics.jsonl``, TensorBoard, and one progress bar."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter

from specexit.signals import NAMES


def acceptance_estimate(top1: np.ndarray) -> float:
    r"""Tokens per decoding step if drafts were accepted independently: :math:`1 + \sum_k \prod_{j \le k} a_j`.

    ``a_j`` is the token top-1 of TTT step j. An estimate: measured acceptance is printed by `specexit bench`.

    Example:
      >>> acceptance_estimate(np.array([0.5, 0.5]))
      1.75
    """
    return float(1 + np.cumprod(top1).sum())


class Metrics:
    """Writes metric lines and drives the progress bar; use as a context manager."""

    def __init__(self, run: Path, *, total: int, start: int):
        self.file = (run / "metrics.jsonl").open("a")
        self.board = SummaryWriter(str(run / "tensorboard"))
        self.progress = Progress(
            TextColumn("train"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self.task = self.progress.add_task("train", total=total, completed=start, note="compiling")
        self.tokens, self.clock = 0, time.perf_counter()

    def __enter__(self) -> Metrics:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
        self.board.close()
        self.file.close()

    def advance(self, step: int, metrics: dict[str, Any] | None) -> None:
        """Move the bar to ``step``; log ``metrics`` (device arrays) where given."""
        if metrics is None:
            self.progress.update(self.task, completed=step)
            return
        host = {key: np.asarray(value) for key, value in metrics.items()}
        self.tokens += int(host["tokens"])
        now = time.perf_counter()
        rate, self.tokens, self.clock = self.tokens / (now - self.clock), 0, now
        line = {
            "step": step,
            "loss": float(host["loss"]),
            "token_loss": [round(float(x), 5) for x in host["token_loss"]],
            "top1": [round(float(x), 5) for x in host["top1"]],
            "signal_loss": {name: float(x) for name, x in zip(NAMES, host["signal_loss"], strict=True)},
            "weights": {name: float(x) for name, x in zip(NAMES, host["weights"], strict=True)},
            "tokens_per_second": round(rate, 1),
        }
        self.write(line)
        note = f"loss {line['loss']:.3f}  {rate:,.0f} tok/s"
        if len(host["top1"]):  # a frozen trunk drafts what it always did
            note += f"  acceptance ~{acceptance_estimate(host['top1']):.2f}"
        self.progress.update(self.task, completed=step, note=note)

    def count(self, tokens: int) -> None:
        """Count the tokens of a step that is not logged."""
        self.tokens += tokens

    def write(self, line: dict[str, Any]) -> None:
        """Append one line to ``metrics.jsonl`` and its numbers to TensorBoard."""
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        for name, value in _flatten(line):
            if name != "step":
                self.board.add_scalar(name, value, line["step"])


def _flatten(value: Any, prefix: str = "") -> list[tuple[str, float]]:
    if isinstance(value, dict):
        return [pair for key, inner in value.items() for pair in _flatten(inner, f"{prefix}/{key}".lstrip("/"))]
    if isinstance(value, list):
        return [pair for i, inner in enumerate(value) for pair in _flatten(inner, f"{prefix}/{i}")]
    return [(prefix, float(value))] if isinstance(value, (int, float)) else []
