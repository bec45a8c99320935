"""Schema of ``specexit status``."""

from __future__ import annotations

from pydantic import Field

from specexit.buckets import Location
from specexit.config import Config


class StatusConfig(Config):
    """Say how far a training run is.

    Exits with 0 where it is finished, with 75 where the same command goes on, with 78 where a NaN has stopped it.
    """

    run: Location = Field(description="run folder of `specexit train`, on disk or in a bucket")
