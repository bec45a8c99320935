"""``specexit features``: a target's hidden states on packed rows, computed once by vLLM and stored."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from specexit.config import Config
from specexit.data.features import StoredType
from specexit.schemas.engine import EngineConfig
from specexit.schemas.target import Layers


class FeaturesConfig(Config):
    """Store what `train` needs of a target's forward pass; goes on where an earlier run into the same folder ended."""

    data: Path = Field(description="folder that `specexit pack` wrote")
    out: Path = Field(description="folder for the shards; one that is not finished is continued")
    target: str | None = Field(
        default=None, description="name or YAML file of the target; by default the one that the data was packed for"
    )
    aux_layers: Layers | None = Field(
        default=None, description="layers that the draft will read; the target's own choice unless given"
    )
    dtype: StoredType = Field(
        default="bfloat16", description="of what is stored; float8 is e4m3 with one scale per token and layer"
    )
    shard_rows: int | None = Field(
        default=None, gt=0, description="packed rows in a shard, which is what a kill can lose; by default about 1 GiB"
    )
    engine: EngineConfig = EngineConfig()
