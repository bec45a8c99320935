"""The signals a draft predicts beside its tokens, in their fixed order. A fifth one is added here and nowhere else.

By column, for the token that it belongs to (activation, loss):

0. confidence: geometric mean of the probabilities of the answer's tokens, given at this step's end (sigmoid, MSE)
1. progress: share of the needed thinking that is done (sigmoid, MSE)
2. remaining: tokens of needed thinking still to come (exp, MSLE)
3. validity: probability that the answer given at this step's end is the answer of the whole trace (sigmoid, BCE)

The first three are the paper's (arXiv 2509.24248); validity is ours, because a threshold on it *is* a statement about
risk, and because on our study target the paper's thresholds cost nearly all accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

RAW_LIMIT = 15.0
"""Raw values are clamped to +-15 before the activation: exp stays finite, and in float32 a sigmoid never reaches 0 or
1, so a threshold of 1 switches exits off for certain."""


@dataclass(frozen=True)
class Signal:
    """One column of the signal head."""

    name: str
    activation: Literal["sigmoid", "exp"]
    loss: Literal["mse", "msle", "bce"]
    unit: str

    @property
    def exits_above(self) -> bool:
        """Whether a *large* value speaks for an exit; `remaining` is the one where a small one does."""
        return self.activation == "sigmoid"

    def holds(self, value: Any, threshold: float) -> Any:
        """Whether a value, or each of an array of them, reaches a threshold."""
        return value >= threshold if self.exits_above else value <= threshold


SIGNALS = (
    Signal("confidence", "sigmoid", "mse", "probability"),
    Signal("progress", "sigmoid", "mse", "share"),
    Signal("remaining", "exp", "msle", "tokens"),
    Signal("validity", "sigmoid", "bce", "probability"),
)

NAMES = tuple(signal.name for signal in SIGNALS)

_EXPONENTIAL = np.array([signal.activation == "exp" for signal in SIGNALS])


def column(name: str) -> int:
    """Column of a signal.

    Raises:
      ValueError: there is no such signal.
    """
    if name not in NAMES:
        raise ValueError(f"signal {name!r} does not exist, expected one of {', '.join(NAMES)}")
    return NAMES.index(name)


def activate(raw: Float[np.ndarray, "*batch signals"]) -> Float[np.ndarray, "*batch signals"]:
    """Turn raw head outputs into signal values, in float32. The oracle of the JAX, torch and Triton versions.

    Infinities are clamped like other numbers; NaN stays NaN, and passes no threshold.

    Example:
      >>> activate(np.zeros((1, 4), np.float32)).tolist()
      [[0.5, 0.5, 1.0, 0.5]]
    """
    clamped = np.clip(raw.astype(np.float32), -RAW_LIMIT, RAW_LIMIT)
    sigmoid = np.float32(1) / (np.float32(1) + np.exp(-clamped))
    return np.where(_EXPONENTIAL, np.exp(clamped), sigmoid)
