"""How many drafted tokens a target would accept, read off text that is already there.

A draft step counts as accepted where its greedy draft, and those of all steps before it, are the tokens of the text.
On greedy text this is what an engine accepts; on sampled text it is a lower bound of what rejection sampling accepts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

CLEAR = 4.0
"""Standard errors that make a difference clear: of equals, one comparison in some 30,000 comes out larger, and a draft
is compared a dozen times."""


class Acceptance(NamedTuple):
    """Drafted tokens that were accepted, over some rows."""

    rows: int
    length: float
    """Tokens per step, the target's own one included; between 1 and 1 + draft steps."""
    by_position: tuple[float, ...]
    """Share of the rows whose draft steps were accepted up to this one."""


def accepted(
    drafts: Int[np.ndarray, "rows steps"], truth: Int[np.ndarray, "rows steps"]
) -> Bool[np.ndarray, "rows steps"]:
    """Whether each draft step is accepted: it and all before it are the true tokens.

    Example:
      >>> accepted(np.array([[5, 6, 7]]), np.array([[5, 0, 7]])).tolist()
      [[True, False, False]]
    """
    return np.logical_and.accumulate(drafts == truth, axis=1)


def acceptance(steps: Bool[np.ndarray, "rows steps"]) -> Acceptance:
    """Pool over rows what `accepted` gives; without any row, nothing counts as accepted."""
    shares = steps.mean(axis=0) if len(steps) else np.zeros(steps.shape[1])
    return Acceptance(len(steps), float(1 + shares.sum()), tuple(shares.tolist()))


def clearly_more(
    more: Bool[np.ndarray, "rows steps"], less: Bool[np.ndarray, "rows steps"], *, by: float = 0.0
) -> bool:
    """Whether ``more`` accepts clearly more tokens than ``less`` does on the same rows.

    The mean gain must be at least ``by`` tokens, and more than `CLEAR` standard errors of the paired difference. Rows
    of one text are not independent; `CLEAR` leaves room for that. Fewer than two rows make nothing clear.
    """
    gain: Float[np.ndarray, " rows"] = more.sum(axis=1) - less.sum(axis=1, dtype=float)
    if len(gain) < 2:
        return False
    return bool(gain.mean() >= by and gain.mean() > CLEAR * gain.std(ddof=1) / len(gain) ** 0.5)


def by_steps(
    text: Sequence[int], first: int, drafts: Sequence[Sequence[int]] | Int[np.ndarray, "rows steps"], *, at_rows: bool
) -> Bool[np.ndarray, "_steps draft_steps"]:
    """Which drafted tokens a greedy engine accepts, one engine step after the other, along its own text.

    Args:
      text: prompt and output.
      first: row of the first step; row ``t`` drafts ``text[t + 2]`` and what follows.
      drafts: drafted tokens of every engine step, in order; with ``at_rows``, of every row of the text.
      at_rows: whether ``drafts`` is indexed by row of the text, not by engine step.

    Returns:
      For each step whose drafts all lie within the text, whether each of them is accepted.
    """
    found, row, step = [], first, 0
    width = len(drafts[0]) if len(drafts) else 0
    while row + 2 + width <= len(text) and (at_rows or step < len(drafts)):
        drafted = np.asarray([drafts[row if at_rows else step]])
        found.append(accepted(drafted, np.asarray([text[row + 2 : row + 2 + width]]))[0])
        row += 1 + int(found[-1].sum())
        step += 1
    return np.array(found, bool).reshape(-1, width)
