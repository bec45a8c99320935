"""Schema of ``specexit convert``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from specexit.buckets import Location
from specexit.config import Config
from specexit.schemas.train import MeshConfig


class ConvertConfig(Config):
    """Turn a checkpoint of a run into a draft directory, or a draft directory into a checkpoint."""

    run: Location | None = Field(default=None, description="run folder that `specexit train` wrote; or say draft")
    which: Literal["latest", "best"] = Field(
        default="latest", description="the newest checkpoint, or the best by the run's best_by"
    )
    draft: Location | None = Field(
        default=None, description="draft directory, to be written as a run folder's checkpoint"
    )
    target: str | None = Field(
        default=None, description="name or YAML file of the target; by default the one that the run or the draft names"
    )
    out: Location = Field(description="new draft directory, or with draft= a new run folder")
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        default=None,
        description="of the draft directory's weights; by default what the target is served in (float32 where that "
        "would round a trunk that the run left as it was), and of a run that was made of a draft directory, each "
        "tensor's own",
    )
    max_file_gib: float | None = Field(
        default=None,
        gt=0,
        le=1 << 20,
        allow_inf_nan=False,
        description="weights are split into files of at most this size; by default 5, and for a run that was made of a "
        "draft directory, as that was split",
    )
    mesh: MeshConfig = Field(default=MeshConfig(), description="the mesh that a checkpoint is written from")

    @model_validator(mode="after")
    def _one_way(self) -> ConvertConfig:
        if (self.run is None) == (self.draft is None):
            raise ValueError("expected either run= or draft=")
        return self
