"""What a training run needs: a recipe, compiled for a TPU slice that need not be there."""

from __future__ import annotations

from pydantic import Field

from specexit.schemas.train import TrainConfig


class PlanConfig(TrainConfig):
    """A recipe and everything in it, so that each key can be tried out: ``batch_size=32 mesh.fsdp=8 topology=v6e:4x4``.

    ``plan.json`` is written into ``out``. Data and weights are not read.
    """

    as_json: bool = Field(default=False, alias="json", description="print one JSON object in place of a table")
