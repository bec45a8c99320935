"""Schema of `specexit report`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from specexit.buckets import Location
from specexit.config import Config
from specexit.outputs import OutputFile


class ReportConfig(Config):
    """One HTML file about a benchmark, a training run or both, complete in itself. What is not given is left out."""

    out: OutputFile = Field(description="HTML file to write")
    bench: Path | None = Field(default=None, description="folder that `specexit bench` wrote")
    traces: Path | None = Field(default=None, description="the traces it ran on; needed with bench")
    run: Location | None = Field(
        default=None,
        description="run folder of `specexit train`, finished or not, on disk or in a bucket: its curves, where its "
        "time went, its evaluation",
    )
    target: str | None = Field(
        default=None,
        description="name or YAML; by default the copy that lies with the traces (target.yaml), else the one that the "
        "results name",
    )
    draft: Path | None = Field(default=None, description="draft directory, for its policy and guarantee")
    scores: Path | None = Field(default=None, description="its signals on the traces, from `score`")
    simulation: Path | None = Field(default=None, description="JSON file of `simulate`: the curve of each method")
    ablations: Path | None = Field(default=None, description="ablations.json of `ablate`: what each choice is worth")
    replay: Path | None = Field(default=None, description="JSON file of `bench-replay`: its counts")
    full_size: Path | None = Field(default=None, description="JSON file of `bench-full-size`: its counts and speed-ups")
    trace_id: str | None = Field(default=None, description="the trace to show in place of the three chosen by rule")
    readme: Path | None = Field(default=None, description="Markdown file whose table, between two marks, is replaced")
    images: Path | None = Field(default=None, description="folder for the drawings as SVG files of their own")

    @model_validator(mode="after")
    def _of_something(self) -> ReportConfig:
        if self.bench is None:
            if self.run is None:
                raise ValueError(
                    "neither bench nor run is given: expected a folder of `specexit bench`, a run's, or both"
                )
            of_bench = sorted(self.model_fields_set - {"out", "run", "bench"})
            if of_bench:
                raise ValueError(
                    f"{', '.join(of_bench)} without bench: expected the folder of `specexit bench` as well"
                )
        elif self.traces is None:
            raise ValueError("bench without traces: expected the traces that it ran on")
        return self
