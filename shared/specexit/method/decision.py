"""The exit rule: when thinking ends. This file is the definition; every fast version is tested against it.

A split token at position ``p`` is judged once, with the signals *of that token*. If the verdict is exit, the token
after it is ``</think>``. Nothing else is ever forced, and a request exits at most once.

Judging costs speed where speculation has to wait for the verdict. With ``early`` thresholds a boundary is judged only
if these held `EARLY_TOKENS` tokens before it already, which is known before any step can reach it: where the answer is
far from settled, a boundary is passed over, and costs nothing. A boundary so near to the beginning that there is no
such token is judged.

The verdicts depend on the tokens and their signals alone, not on how decoding grouped the tokens into steps, so the
text is the same with 1, 3 or 5 speculative tokens, alone or in a batch. The one exception is ``smoothing: round``: the
rule of the released reference code (AngelSlim, commit 8ba8d74), kept for comparison only.

A signal that is NaN, as where a target's numbers overflow, passes no threshold; nor does a moving average that has
taken one in. A signal without a threshold does not matter.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float
from pydantic import Field, field_validator, model_validator

from specexit.config import Config
from specexit.method.signals import SIGNALS, column
from specexit.method.splits import ThinkTokens

EARLY_TOKENS = 8
"""How many tokens before a boundary the ``early`` thresholds look. A step that accepts up to 7 speculative tokens
reaches the boundary when these signals are read already; a longer one has to wait for them, and comes to the same
verdict."""

MOST_TOKENS = 1 << 24
"""Largest count in a policy: servers keep counts in float32, where they are exact up to here."""


class Policy(Config):
    """When to exit: all thresholds hold at a boundary, ``patience`` boundaries in a row, after enough thinking."""

    thresholds: dict[str, float] = Field(
        default={"validity": 0.9},
        description="signal -> threshold; all must hold. remaining must be at most its threshold, the others at least",
    )
    early: dict[str, float] = Field(
        default={},
        description=f"signal -> threshold that must hold {EARLY_TOKENS} tokens before a boundary already; where it "
        "does not, the boundary is passed over, as if it had not passed. None: every boundary is judged",
    )
    smoothing: Literal["none", "ewma", "round"] = Field(
        default="none",
        description="none, a moving average per token (fc source), or the reference code's average per round",
    )
    alpha: float = Field(default=0.1, gt=0, le=1, description="weight of the newest value in the moving average")
    patience: int = Field(default=1, ge=1, le=MOST_TOKENS, description="boundaries in a row that must pass")
    min_thinking_tokens: int = Field(
        default=0, ge=0, le=MOST_TOKENS, description="no exit before this many thinking tokens"
    )
    max_thinking_tokens: int | None = Field(
        default=None,
        ge=1,
        le=MOST_TOKENS,
        description="exit at the first boundary with this many, whatever signals and patience say; null: none",
    )

    @field_validator("thresholds", "early")
    @classmethod
    def _known_and_in_range(cls, thresholds: dict[str, float]) -> dict[str, float]:
        for name, value in thresholds.items():
            signal = SIGNALS[column(name)]
            top = 1.0 if signal.exits_above else np.inf
            if not 0 <= value <= top:
                wanted = f"a {signal.unit} between 0 and 1" if signal.exits_above else f"{signal.unit}, 0 or more"
                raise ValueError(f"threshold of {name} is {value}, expected {wanted}")
        return thresholds

    @model_validator(mode="after")
    def _early_by_token(self) -> Policy:
        if self.early and self.smoothing == "round":
            raise ValueError(f"early is {self.early}, expected none with smoothing 'round', which averages over rounds")
        return self

    @model_validator(mode="after")
    def _least_before_most(self) -> Policy:
        # Equal ones are a fixed budget, which is a policy like any other.
        if self.max_thinking_tokens is not None and self.max_thinking_tokens < self.min_thinking_tokens:
            raise ValueError(
                f"max_thinking_tokens is {self.max_thinking_tokens}, expected at least min_thinking_tokens, "
                f"which is {self.min_thinking_tokens}"
            )
        return self


OFF = Policy(thresholds={"validity": 1.0}, early={"validity": 1.0})
"""Never exits, and judges only boundaries too near to the beginning to pass over: a probability is below 1 (see
`signals.RAW_LIMIT`)."""

ENDED = ("exit", "cap", "interrupt", "loop")
"""Outcomes of thinking that was ended: by the signals, by the policy's maximum, by the client, for going in circles."""

PAPER = Policy(thresholds={"confidence": 0.8, "progress": 0.3, "remaining": 200.0}, smoothing="round", alpha=0.1)
"""The literals and the smoothing of the released code."""


def passes(values: Float[np.ndarray, " signals"], thresholds: dict[str, float]) -> bool:
    """Whether every threshold holds. NaN reaches no threshold, not even an infinite one; a signal without a threshold
    may have any value.

    Example:
      >>> passes(np.array([0.9, 0.5, 120.0, 0.2]), {"confidence": 0.8, "remaining": 200.0})
      True
    """
    return all(SIGNALS[column(name)].holds(values[column(name)], threshold) for name, threshold in thresholds.items())


class ExitRule:
    """The rule as a state machine for one request, fed with decoding steps of any size.

    Args:
      policy: the thresholds.
      ids: split tokens and markers.
    """

    def __init__(self, policy: Policy, ids: ThinkTokens):
        self.policy, self.ids = policy, ids
        self.thinking = True
        self.n_tokens = 0
        self.streak = 0
        self.smoothed: np.ndarray | None = None
        self.recent: deque[np.ndarray] = deque(maxlen=EARLY_TOKENS + 1)

    def push(self, tokens: Sequence[int], signals: Float[np.ndarray, "step signals"]) -> int | None:
        """Feed the tokens that one decoding step has accepted.

        Args:
          tokens: accepted tokens, the model's own (no forced marker).
          signals: the signal values that belong to each of them.

        Returns:
          Index within ``tokens`` of the split token after which ``</think>`` comes, or None. What follows it in
          this step is not part of the text.
        """
        if self.policy.smoothing == "round":
            return self._push_round(tokens, signals)
        for i, (token, values) in enumerate(zip(tokens, signals, strict=True)):
            if self._push_token(token, values):
                return i
        return None

    def _push_token(self, token: int, values: np.ndarray) -> bool:
        if not self.thinking or token == self.ids.end:
            self.thinking = False
            return False
        self.n_tokens += 1
        if self.policy.smoothing == "ewma" and self.smoothed is not None:
            values = self.policy.alpha * values + (1 - self.policy.alpha) * self.smoothed
        self.smoothed = values
        self.recent.append(values)
        return token in self.ids.split and self._judge(values)

    def _judge(self, values: np.ndarray) -> bool:
        enough = self.n_tokens >= self.policy.min_thinking_tokens
        good = enough and self._was_near() and passes(values, self.policy.thresholds)
        self.streak = self.streak + 1 if good else 0
        most = self.policy.max_thinking_tokens
        if self.streak < self.policy.patience and (most is None or self.n_tokens < most):
            return False
        self.thinking = False
        return True

    def _was_near(self) -> bool:
        """Whether the early thresholds held so many tokens ago, if there was such a token."""
        return len(self.recent) <= EARLY_TOKENS or passes(self.recent[0], self.policy.early)

    def _push_round(self, tokens: Sequence[int], signals: np.ndarray) -> int | None:
        """One round of the reference code: the *first* split token of the round is judged by the average that the
        rounds *before* this one left; then the round's kept tokens enter it with one update."""
        if not self.thinking or self.ids.end in tokens:
            self.thinking = False
            return None
        if not len(tokens):  # the mean over none is NaN, and would stay in the average for good
            return None
        split = next((i for i, token in enumerate(tokens) if token in self.ids.split), None)
        before = self.n_tokens
        self.n_tokens += len(tokens) if split is None else split + 1
        hit = split is not None and self.smoothed is not None and self._judge(self.smoothed)
        kept = signals[: split + 1] if hit and split is not None else signals
        if not hit:
            self.n_tokens = before + len(tokens)
        mean = np.mean(kept, axis=0)
        alpha = self.policy.alpha
        self.smoothed = mean if self.smoothed is None else alpha * mean + (1 - alpha) * self.smoothed
        return split if hit else None


def exit_position(
    tokens: Sequence[int],
    signals: Float[np.ndarray, "time signals"],
    policy: Policy,
    ids: ThinkTokens,
    steps: Iterable[int] | None = None,
) -> int | None:
    """Replay a whole trace.

    Args:
      tokens: thinking tokens.
      signals: signal values of each.
      policy: the thresholds.
      ids: split tokens and markers.
      steps: sizes of the decoding steps; only ``smoothing: round`` depends on them. One token each by default.

    Returns:
      Index of the split token after which thinking ends, or None where it ends by itself.
    """
    rule = ExitRule(policy, ids)
    start = 0
    for size in steps if steps is not None else [1] * len(tokens):
        if start >= len(tokens):
            break
        hit = rule.push(tokens[start : start + size], signals[start : start + size])
        if hit is not None:
            return start + hit
        start += size
    return None


__all__ = ["EARLY_TOKENS", "ENDED", "OFF", "PAPER", "ExitRule", "Policy", "exit_position", "passes"]
