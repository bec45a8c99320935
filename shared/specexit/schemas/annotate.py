"""Schema of ``specexit annotate``."""

from __future__ import annotations

from pydantic import Field

from specexit.buckets import Location
from specexit.config import Config


class AnnotateConfig(Config):
    """Find the exit points of collected traces, and say how much thinking they would save."""

    traces: Location = Field(description="folder or file that collect wrote")
    out: Location = Field(description="new folder for the labelled traces and their statistics")
    target: str | None = Field(
        default=None,
        description="name or YAML file of the target; by default the copy that lies with the traces (target.yaml), "
        "else the one of the name in them",
    )
    answer_word: str = Field(
        default="answer",
        min_length=1,
        description="a step that contains this word and its own trial answer states an answer",
    )
    least_cut: float = Field(
        default=0.001, ge=0, le=1, description="refuse traces of whose thinking an ideal exit would cut less"
    )
    workers: int | None = Field(
        default=None,
        gt=0,
        description="processes; by default one for each processor, 6 at most, with which memory stays within 1.5 GiB",
    )
