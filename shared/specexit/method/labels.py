"""From trial answers to training labels: the exit point of a trace, and what each signal should say at each token.

A trace has thinking tokens 0..n-1 and boundaries ``b_1 < ... < b_m``: offsets just *behind* a split token. A token
belongs to the step that ends at the next boundary at or after it, its split token included. ``T*`` is the offset of
the exit point, so token ``i`` has used ``t = i + 1`` of the ``T*`` tokens that are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from specexit.method.signals import SIGNALS, column

ExitKind = Literal["earliest", "stable"]


def exit_point(
    boundaries: Sequence[int],
    agrees: Sequence[bool],
    n_think: int,
    kind: ExitKind = "earliest",
    decided: Sequence[bool] | Bool[np.ndarray, " boundaries"] | None = None,
) -> int:
    """The offset behind which further thinking changes nothing.

    Args:
      boundaries: offsets of the step boundaries, rising.
      agrees: whether the trial answer behind each boundary equals the answer of the full trace.
      n_think: length of the thinking; the exit point where no boundary qualifies.
      kind: ``earliest`` is the first boundary that agrees (the paper), ``stable`` the first from which all later ones
        agree as well.
      decided: where the trial behind a boundary came to its end; everywhere by default. One that was cut off agrees
        with nothing, and does not interrupt a stable answer.

    Example:
      >>> exit_point([4, 8, 12], [True, False, True], 14), exit_point([4, 8, 12], [True, False, True], 14, "stable")
      (4, 12)
      >>> exit_point([4, 8, 12], [True, False, True], 14, "stable", [True, False, True])
      4
    """
    found = n_think
    ended = decided if decided is not None else [True] * len(boundaries)
    for boundary, agree, is_decided in zip(reversed(boundaries), reversed(agrees), reversed(ended), strict=True):
        if agree:
            found = boundary
        elif is_decided and kind == "stable":
            break
    return found


def step_of(boundaries: Sequence[int] | Int[np.ndarray, " boundaries"], n_think: int) -> Int[np.ndarray, " time"]:
    """Index of the boundary that ends each token's step; ``len(boundaries)`` behind the last one."""
    return np.searchsorted(np.asarray(boundaries, np.int64), np.arange(1, n_think + 1), side="left")


def token_labels(
    boundaries: Sequence[int] | Int[np.ndarray, " boundaries"],
    agrees: Sequence[bool] | Bool[np.ndarray, " boundaries"],
    confidence: Sequence[float] | Float[np.ndarray, " boundaries"],
    n_think: int,
    exit_at: int,
    decided: Sequence[bool] | Bool[np.ndarray, " boundaries"] | None = None,
) -> tuple[Float[np.ndarray, "time signals"], Bool[np.ndarray, "time signals"]]:
    r"""Labels of every thinking token, saturated behind the exit point.

    With ``t = i + 1`` for token ``i``: remaining is :math:`\max(T^*-t, 0)`, progress :math:`\min(t/T^*, 1)`; validity
    and confidence are those of the trial answer at the end of the token's step.

    Args:
      boundaries, agrees, confidence: one entry per boundary.
      n_think: number of thinking tokens.
      exit_at: ``T*``, from `exit_point`.
      decided: where a trial stands behind a boundary's verdict; everywhere by default.

    Returns:
      labels [n_think, signals], and a mask of those that exist: a token behind the last boundary has no trial answer,
      hence neither validity nor confidence, and the same goes for one whose step has no verdict.
    """
    labels = np.zeros((n_think, len(SIGNALS)), np.float32)
    mask = np.ones((n_think, len(SIGNALS)), bool)
    used = np.arange(1, n_think + 1)
    labels[:, column("remaining")] = np.maximum(exit_at - used, 0)
    labels[:, column("progress")] = np.minimum(used / exit_at, 1)
    step = step_of(boundaries, n_think)
    known = step < len(boundaries)
    judged = known.copy()
    if decided is not None:
        judged[known] = np.asarray(decided, bool)[step[known]]
    mask[:, [column("validity"), column("confidence")]] = judged[:, None]
    labels[known, column("validity")] = np.asarray(agrees, np.float32)[step[known]]
    labels[known, column("confidence")] = np.asarray(confidence, np.float32)[step[known]]
    return labels, mask


def answer_confidence(logprobs: Sequence[float]) -> float:
    r"""Geometric mean of the probabilities of an answer's tokens, :math:`\exp(\frac1n\sum\log p_i)` (the paper's).

    Example:
      >>> round(answer_confidence([np.log(0.5), np.log(0.125)]), 6)
      0.25
    """
    return float(np.exp(np.mean(logprobs))) if len(logprobs) else 0.0
