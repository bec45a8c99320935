"""Whether requests look like the prompts of the calibration; where they do not, its certificate says nothing of them.

``policy.json`` holds what was calibrated on, as far as it can be seen on a server: how long prompts are, of every
request; and of requests whose exits are not made (shadow mode, audits), how long whole thinking is, how many boundaries
it has, and at which split tokens. What an exit has cut says nothing about the latter.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from specexit.drafts.policy import TRAFFIC_LEVELS, PolicyFile, Traffic
from specexit.method.splits import ThinkTokens
from specexit.method.statistics import chance_distance, chance_share_distance, quantile_distance, share_distance
from torch_specexit.plugin.frontend.operation import Operation
from torch_specexit.plugin.worker.openings import begin_of

logger = logging.getLogger("vllm.specexit")

FEATURES: tuple[str, ...] = ("prompt_tokens", "thinking_tokens", "boundaries", "split_tokens")
WINDOW = 1000
"""How many of the latest requests are compared."""
LEAST = 100
"""Requests that it takes before anything is said."""
EVERY = 50
"""Requests between two looks."""
LEVEL = 1e-4
"""Probability at which one look takes chance for a change."""


def splits_of(prompt: Sequence[int], output: Sequence[int], n_think: int, tokens: ThinkTokens) -> list[int]:
    """The split tokens of a request's thinking, one for each boundary.

    Args:
      prompt: tokens of the request's prompt, which may have opened the thinking.
      output: all that the model has written.
      n_think: of these, how many are its thinking.
      tokens: of the draft.

    Example:
      >>> splits_of([9], [1, 7, 5, 8, 5, 2, 5], 4, ThinkTokens(start=1, end=2, split=frozenset({5})))
      [5, 5]
    """
    begin = begin_of(prompt, output, tokens.start, tokens.end_marker)
    return [token for token in output[begin : begin + n_think] if token in tokens.split]


class TrafficWatch:
    """Compares the latest requests of a server with its calibration.

    Args:
      operation: of the server; its policy file says how the calibration looked, and that of another one begins anew.
    """

    def __init__(self, operation: Operation):
        self.operation = operation
        self._begin()

    def _begin(self) -> None:
        self._file: PolicyFile = self.operation.file
        self._seen: dict[str, deque[Any]] = {feature: deque(maxlen=WINDOW) for feature in FEATURES}
        self._counts = dict.fromkeys(FEATURES, 0)
        self.distance = dict.fromkeys(FEATURES, 0.0)
        """How far today's requests are from the calibration: of lengths, the largest gap of the distribution functions;
        of split tokens, the share of a request's boundaries, on average, that would have to be at others."""
        self.moved = dict.fromkeys(FEATURES, False)
        """Whether that is more than chance explains."""

    def add_prompt(self, tokens: int) -> None:
        """Take in the length of a request's prompt."""
        self._add("prompt_tokens", tokens)

    def add_thinking(self, tokens: int, splits: Sequence[int] | None) -> None:
        """Take in the thinking of a request that came to its end without an exit.

        Args:
          tokens: its length.
          splits: see `splits_of`; None where nobody knows. Thinking that has none is left out, as in a calibration:
            there was nowhere to exit.
        """
        if splits is not None and not splits:
            return
        self._add("thinking_tokens", tokens)
        if splits is not None:
            self._add("boundaries", len(splits))
            self._add("split_tokens", Counter(splits))

    def _add(self, feature: str, value: Any) -> None:
        if (file := self.operation.file) is not self._file:
            known, self._file = self._file, file
            if (file.traffic, file.population) != (known.traffic, known.population):
                self._begin()
        self._seen[feature].append(value)
        self._counts[feature] += 1
        if self._counts[feature] % EVERY == 0 and len(self._seen[feature]) >= LEAST:
            self._look(feature)

    def _look(self, feature: str) -> None:
        traffic, population = self._file.traffic, self._file.population
        if traffic is None or population is None or (feature == "split_tokens" and not traffic.split_shares):
            return
        compare = _compare_shares if feature == "split_tokens" else _compare_lengths
        distance, chance, how = compare(feature, self._seen[feature], traffic, population.prompts)
        moved = distance > chance
        if moved and not self.moved[feature]:
            logger.warning(
                "specexit: %s of the last %d requests are not those of the calibration (distance %.2f, %s): its "
                "certificate is of other prompts",
                feature,
                len(self._seen[feature]),
                distance,
                how,
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


def _compare_lengths(feature: str, seen: Iterable[int], traffic: Traffic, prompts: int) -> tuple[float, float, str]:
    """The distance, the largest that chance explains, and in words what has changed."""
    values, quantiles = np.array(list(seen), np.float64), getattr(traffic, feature)
    distance = quantile_distance(values, quantiles, TRAFFIC_LEVELS)
    how = f"median {np.median(values):.0f}, calibrated at {quantiles[len(TRAFFIC_LEVELS) // 2]:.0f}"
    return distance, chance_distance(len(values), prompts, LEVEL), how


def _compare_shares(
    feature: str, seen: Iterable[Counter[int]], traffic: Traffic, prompts: int
) -> tuple[float, float, str]:
    """As `_compare_lengths`; all tokens that the calibration has not seen are one kind."""
    kinds = [int(token) for token in traffic.split_shares]
    rows = [[count[kind] for kind in kinds] + [count.total()] for count in seen]
    counts, shares = np.array(rows, np.int64), np.array([*traffic.split_shares.values(), 0.0])
    counts[:, -1] -= counts[:, :-1].sum(axis=1)
    today = (counts / counts.sum(axis=1, keepdims=True)).mean(axis=0)
    most = int(np.abs(today - shares).argmax())
    name = f"token {kinds[most]}" if most < len(kinds) else "tokens that no calibration trace has"
    how = f"{name} at {today[most]:.0%} of a request's boundaries, calibrated at {shares[most]:.0%}"
    return share_distance(counts, shares), chance_share_distance(counts, shares, prompts, LEVEL), how
