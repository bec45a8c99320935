"""What the tests of the report share: its configuration, a reader of its tags and tables, and a run folder."""

import json
import re
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from specexit.bench.requests import Request
from specexit.data.scores import Scores, write_scores
from specexit.data.traces import Trace
from specexit.method.decision import Policy
from specexit.method.simulate import Point, Simulation
from specexit.schemas.report import ReportConfig

STEPS = ("First I add.\n\n", "So it is 8.\n\n", "Wait, it is 7.\n\n", "Yes, 7 again.\n\n")


def config(bench: Path, **more: Path | str) -> ReportConfig:
    return ReportConfig.model_validate(
        {"bench": bench, "traces": bench / "traces.parquet", "out": bench / "report.html"} | more
    )


def everything(bench: Path, trace: Trace) -> ReportConfig:
    """A report with all its optional parts."""
    signals = np.linspace(0.1, 0.9, 4 * len(trace.think_ids), dtype=np.float32).reshape(-1, 4)
    write_scores(bench / "scores.parquet", Scores("draft", "hash", {"a": signals}))
    point = Point(
        policy=Policy(), setting="half", thinking_cut=0.5, total_cut=0.4, agreement=0.9, accuracy=0.9, exits=0.8
    )
    other = point.model_copy(update={"setting": "more", "thinking_cut": 0.6, "accuracy": 0.8})
    simulation = Simulation(
        n=1, prompts=1, full_accuracy=1, oracle=point, named={}, curves={"validity": (point, other)}
    )
    (bench / "simulation.json").write_text(simulation.model_dump_json())
    lines = [
        {"step": 10, "token_loss": [3.0], "top1": [0.1], "signal_loss": {"validity": 0.7}},
        {"step": 20, "token_loss": [1.0, 2.0], "top1": [0.6, 0.4], "signal_loss": {"validity": 0.1}},
    ]
    judged = {"top1": [0.6, 0.4], "hard_boundaries": {"auroc": 0.98765}}
    write_run(bench / "train", lines, judged)
    return config(
        bench,
        scores=bench / "scores.parquet",
        simulation=bench / "simulation.json",
        run=bench / "train",
    )


class Outline(HTMLParser):
    """Tags with their attributes."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def exited(trace: Trace, behind: int, *, correct: bool = True) -> Request:
    kept = trace.boundaries[behind] if behind < len(trace.boundaries) else len(trace.think_ids)
    reason = "exit" if kept < len(trace.think_ids) else "natural_end"
    return Request(trace.id, trace.think_ids[:kept], kept, reason, "7", correct, {})


def write_run(folder: Path, lines: Sequence[Mapping[str, Any]], evaluation: Mapping[str, Any] | None = None) -> Path:
    """What `train` leaves of itself in its folder, as far as a page reads it."""
    folder.mkdir()
    (folder / "target.yaml").write_text("name: tiny-reasoner\n")
    (folder / "status.json").write_text(json.dumps({"status": "running", "step": 30, "steps": 1500}))
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    if evaluation is not None:
        (folder / "evaluation.json").write_text(json.dumps(evaluation))
    return folder


def cells(html: str, title: str) -> list[list[str]]:
    """Rows of the table behind a figure, its heading first."""
    region = html.replace("\N{NARROW NO-BREAK SPACE}", " ").split(f'aria-label="Numbers behind: {title}"')[1]
    rows = re.findall(r"<tr>(.*?)</tr>", region.split("</table>")[0], re.DOTALL)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
