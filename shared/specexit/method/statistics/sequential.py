"""Statements that hold at every look: test martingales for the mean of values in [0, 1].

Waudby-Smith and Ramdas 2024 (arXiv 2010.09686). Somebody who bets against "the mean is m", at odds that are fair if it
is, ever turns the stake into 1/delta times as much with probability at most delta (Ville 1939). So the capital may be
looked at after every observation, and once it has reached 1/delta the claim is rejected at level delta, for good. The
capital is spread over a few bets that are fixed beforehand, from timid to bold, so no bet has to be guessed right.

While the mean is not beyond m, bets lose capital, and a bettor who has lost it all notices nothing of a change that
begins later. So `Capital` holds a part of its stake back and puts it in bit by bit. Let E(j, t) be what one unit that
is put in before observation j has become after observation t, and u(t) the part that is still held back. The capital is

  W(t) = sum over j <= t of w(j) E(j, t) + u(t),  w(j) = u(j - 1) - u(j),  w(1) = 1 - u(1),  u falling to 0.

Moving capital from one place to another wins and loses nothing, so W, with W(0) = 1, meets the condition of Ville's
inequality: delta holds over the whole life, wherever a change begins. Shin, Ramdas and Rinaldo 2023 (arXiv 2203.03532)
add up such E(j, t) without weights, which bounds how often there is a false alarm; weights that sum to 1 bound whether
there ever is one. The price is time: where a change begins at t, a factor of 1 / (w(t) delta) has to be won. With w(t)
of about 1 / (t ln(t)^2) its logarithm grows as ln(t), and no weights that sum to 1 let it grow more slowly than that.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from jaxtyping import Float

Side = Literal["above", "below"]

SHARES = 2.0 ** -np.arange(10)
"""Bets as shares of the boldest one: 1, 1/2, ... 1/512. For a mean of 1 % the most timid one is just right where
the true mean is 1.15 %."""

BOLDEST_ABOVE = 0.75
"""Betting on "above" with everything is ruined by the first zero, and zeros are what a small mean is made of."""

AT_ONCE = 0.5
"""Share of the stake of `Capital` that is bet from the first observation on. A change that is there from the start
takes a gain of ln(2) more than if all were bet at once; a later one takes as much more than if none were."""

UNHURRIED = 1000
"""Observations over which the rest is put in roughly evenly; after them, less and less of it is."""


def kept_back(observations: int | np.ndarray) -> float | np.ndarray:
    """Share of the stake that is still held back after so many observations; it is never 0."""
    return (1 - AT_ONCE) * math.log(UNHURRIED) / np.log(UNHURRIED + observations)


def stakes(mean: float, side: Side) -> Float[np.ndarray, " bets"]:
    """How much of the capital each bet wins per unit that an observation lies above the mean."""
    return SHARES * BOLDEST_ABOVE / mean if side == "above" else -SHARES / (1 - mean)


def played(
    log_capital: Float[np.ndarray, "*streams bets"],
    observations: int,
    values: Float[np.ndarray, "*streams"] | float,
    mean: float,
    side: Side,
) -> Float[np.ndarray, "*streams bets"]:
    """One round: all bets get an equal part of what is held back, then one more observation is bet on.

    Args:
      log_capital: logarithm of what each bet has, in units of its share of the stake.
      observations: how many there were before.
      values: one more observation of each stream, in [0, 1].
      mean, side: see `Capital`.

    Returns:
      What `log_capital` is afterwards.
    """
    put_in = kept_back(observations) - kept_back(observations + 1)
    gains = stakes(mean, side) * (np.asarray(values)[..., None] - mean)
    with np.errstate(divide="ignore"):  # the boldest bet may lose everything, and begins anew
        return np.logaddexp(log_capital, np.log(put_in)) + np.log1p(gains)


class Capital:
    """The capital of somebody who bets that the mean of a stream is above (or below) a given value.

    While the mean is not beyond the value, the capital is expected not to grow, and reaches ``1 / delta`` at any time
    with probability at most ``delta``, whatever is looked at and when. The observations may depend on one another as
    long as the mean of each, given those before it, is not beyond the value. A mean that goes beyond it after a long
    good time is found, too: the stake is put in over time.

    Args:
      mean: the value, between 0 and 1.
      side: what is betted on.

    Raises:
      ValueError: the mean is not between 0 and 1.

    Example:
      >>> watch = Capital(0.02)
      >>> for changed in [1, 1, 0, 1]:
      ...     watch.add(changed)
      >>> watch.rejects(0.1)
      True
    """

    def __init__(self, mean: float, side: Side = "above"):
        if not 0 < mean < 1:
            raise ValueError(f"mean is {mean}, expected a value between 0 and 1")
        self.mean = mean
        self.side: Side = side
        self.log_capital = np.full(len(SHARES), math.log(AT_ONCE))
        """Logarithm of what each bet has, in units of its share of the stake. With `observations` it is all that the
        next round needs."""
        self.observations = 0
        self.peak = 1.0
        """The most that the capital has been; `rejects` goes by it."""

    def add(self, value: float) -> None:
        """Take one observation in.

        Raises:
          ValueError: it is not within [0, 1].
        """
        if not 0 <= value <= 1:
            raise ValueError(f"observation is {value}, expected a value in [0, 1]")
        self.log_capital = played(self.log_capital, self.observations, value, self.mean, self.side)
        self.observations += 1
        self.peak = max(self.peak, self.value)

    @property
    def value(self) -> float:
        """The capital with what is kept back, in units of the stake."""
        betted = np.exp(np.logaddexp.reduce(self.log_capital)) / len(SHARES)
        return float(betted + kept_back(self.observations))

    def rejects(self, delta: float) -> bool:
        """Whether it has ever been shown at level ``delta`` that the mean is beyond the value."""
        return self.peak >= 1 / delta
