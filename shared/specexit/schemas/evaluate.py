"""Schema of ``specexit evaluate``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from specexit.buckets import Location
from specexit.config import Config
from specexit.outputs import refuse_no_file


class EvaluateConfig(Config):
    """Judge a training run on traces that it was not trained on."""

    run: Location = Field(description="run folder that `specexit train` wrote")
    target: str | None = Field(
        default=None, description="name or YAML file of the target; by default the one that the run names"
    )
    which: Literal["latest", "best"] = Field(
        default="latest", description="the newest checkpoint, or the best by the run's best_by"
    )
    traces: Location = Field(description="labelled traces of held-out problems, from `annotate`")
    out: Annotated[Location, AfterValidator(refuse_no_file)] = Field(description="JSON file to write")
    n: int | None = Field(default=None, gt=0, description="the first n traces; all by default")
    ttt_steps: int | None = Field(
        default=None, gt=0, description="draft steps to judge; by default as many as the run was trained with"
    )
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        default=None, description="of target and draft; by default float32 on a CPU, the target's on a TPU or GPU"
    )
