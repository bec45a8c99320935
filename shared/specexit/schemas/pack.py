"""Schema of ``specexit pack``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from specexit.buckets import Location
from specexit.config import Config


class PackConfig(Config):
    """Pack labelled traces into training examples of one length."""

    traces: Location = Field(description="folder or file that annotate wrote")
    out: Location = Field(description="new folder for the shards")
    target: str | None = Field(
        default=None,
        description="name or YAML file of the target; by default the copy that lies with the traces (target.yaml), "
        "else the one of the name in them",
    )
    n: int | None = Field(default=None, gt=0, description="the first n traces; by default all")
    length: int | None = Field(
        default=None,
        gt=0,
        description="tokens in an example, which holds the beginning of a longer trace; by default 8192, or the "
        "target's max_model_len where that is less",
    )
    exit_point: Literal["earliest", "stable"] = Field(
        default="earliest", description="first boundary that agrees with the full answer, or from which on all agree"
    )
    truncate: bool = Field(default=False, description="end the thinking at the exit point, as the paper does")
    seed: int = Field(default=0, ge=0, description="of the order of the examples")
    shards: int = Field(default=1, gt=0, description="files to spread the examples over")
    workers: int | None = Field(
        default=None,
        gt=0,
        description="processes; by default one for each processor, 6 at most, with which memory stays within 1.5 GiB",
    )
