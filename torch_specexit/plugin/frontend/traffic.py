"""Whether requests look like the prompts of the calibration; where they do not, its certificate says nothing of them.

``policy.json`` holds quantiles of what was calibrated on. Two of them can be seen on a server: how long prompts are, of
every request, and how long whole thinking is, of requests whose exits are not made (shadow mode, audits). What an exit
has cut says nothing about the latter.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import Any

import numpy as np

from specexit.drafts.policy import TRAFFIC_LEVELS, PolicyFile
from specexit.method.statistics import chance_distance, quantile_distance
from torch_specexit.plugin.frontend.operation import Operation

logger = logging.getLogger("vllm.specexit")

FEATURES: tuple[str, ...] = ("prompt_tokens", "thinking_tokens")
WINDOW = 1000
"""Requests that count, the latest."""
LEAST = 100
"""Requests before which nothing is said."""
EVERY = 50
"""Requests between two looks."""
LEVEL = 1e-4
"""Probability at which one look takes chance for a change."""


class TrafficWatch:
    """Compares the latest requests of a server with its calibration.

    Args:
      operation: of the server; its policy file has the quantiles, and another file begins anew.
    """

    def __init__(self, operation: Operation):
        self.operation = operation
        self._begin()

    def _begin(self) -> None:
        self._file: PolicyFile = self.operation.file
        self._seen: dict[str, deque[int]] = {feature: deque(maxlen=WINDOW) for feature in FEATURES}
        self._counts = dict.fromkeys(FEATURES, 0)
        self.distance = dict.fromkeys(FEATURES, 0.0)
        """The largest gap between today's distribution function and the calibration's."""
        self.moved = dict.fromkeys(FEATURES, False)
        """Whether that is more than chance explains."""

    def add(self, feature: str, tokens: int) -> None:
        """Take in one request."""
        if self.operation.file is not self._file:
            self._begin()
        self._seen[feature].append(tokens)
        self._counts[feature] += 1
        if self._counts[feature] % EVERY == 0 and len(self._seen[feature]) >= LEAST:
            self._look(feature)

    def _look(self, feature: str) -> None:
        traffic, population = self._file.traffic, self._file.population
        if traffic is None or population is None:
            return
        values = np.array(self._seen[feature], np.float64)
        distance = quantile_distance(values, getattr(traffic, feature), TRAFFIC_LEVELS)
        moved = distance > chance_distance(len(values), population.prompts, LEVEL)
        if moved and not self.moved[feature]:
            logger.warning(
                "specexit: %s of the last %d requests are not those of the calibration (distance %.2f, median %d, "
                "calibrated at %d): its certificate is of other prompts",
                feature,
                len(values),
                distance,
                np.median(values),
                getattr(traffic, feature)[len(TRAFFIC_LEVELS) // 2],
            )
        self.distance[feature], self.moved[feature] = distance, moved

    def summary(self) -> dict[str, Any]:
        """What ``GET /v1/specexit`` says."""
        return {
            feature: {
                "requests": len(self._seen[feature]),
                "distance": self.distance[feature],
                "moved": self.moved[feature],
            }
            for feature in FEATURES
        }
