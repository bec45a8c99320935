"""Schema of `specexit report`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from specexit.config import Config


class ReportConfig(Config):
    """One HTML file about a benchmark, complete in itself. What is not given is left out of it."""

    bench: Path = Field(description="folder that `specexit bench` wrote")
    traces: Path = Field(description="the traces it ran on")
    out: Path = Field(description="HTML file to write")
    target: str | None = Field(default=None, description="name or YAML; by default the name in the results")
    draft: Path | None = Field(default=None, description="draft directory, for its policy and guarantee")
    scores: Path | None = Field(default=None, description="its signals on the traces, from `score`")
    simulation: Path | None = Field(default=None, description="JSON file of `simulate`: the curve of each method")
    ablations: Path | None = Field(default=None, description="ablations.json of `ablate`: what each choice is worth")
    replay: Path | None = Field(default=None, description="JSON file of `bench-replay`: its counts")
    full_size: Path | None = Field(default=None, description="JSON file of `bench-full-size`: its counts and speed-ups")
    metrics: Path | None = Field(default=None, description="metrics.jsonl of the training run: its curves")
    evaluation: Path | None = Field(default=None, description="JSON file of `evaluate`: its figures")
    trace_id: str | None = Field(default=None, description="the trace to show in place of the three chosen by rule")
    readme: Path | None = Field(default=None, description="Markdown file whose table, between two marks, is replaced")
    images: Path | None = Field(default=None, description="folder for the drawings as SVG files of their own")
