"""The early threshold that calibration gives a policy, as commands that calibrate one or replay many of them ask."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

EARLY = 0.5
"""What `calibrate` takes where nothing is said."""

EarlyShare = Annotated[
    float,
    Field(
        ge=0,
        le=1,
        description="share of the threshold that validity must have reached 8 tokens before a boundary already; where "
        "it has not, serving passes the boundary over at no cost. 0: every boundary is judged, and ends a step; so it "
        "is with source fc, where no step waits",
    ),
]
