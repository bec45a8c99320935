"""What the two fast versions of the exit rule share: the tables they work on. `specexit.method.decision` is the
definition; `kernel` is one step of it for a whole batch as one Triton kernel, `twin` the same in eager torch.

Both are one state machine. The tokens of a step are read one after the other; before each, the token in front of it is
judged if it was a boundary and its signals are known; a verdict of exit puts ``</think>`` in the place of the token
that was drawn. Sources differ in when signals are known, and in nothing else:

* ``fc``: the signals of a token arrive in the target row whose *input* it is, the row that draws the token behind it.
* ``draft``: they arrive with the draft's first pass behind the step that the token ends. Acceptance therefore stops at
  a boundary, which is judged as the next step begins. A request that the next step leaves out is judged then as well.
* ``draft``, where a step's result is held back until its tokens have been drafted from (V1 on a CPU): nobody has seen
  what comes behind a boundary, so nothing stops, and all tokens are judged there and then (`late`).

Either way the KV cache holds exactly the tokens before ``</think>``, which vLLM takes for an ordinary rejection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from specexit.method.decision import Policy
from specexit.method.signals import NAMES, SIGNALS
from specexit.method.splits import ALL_STRINGS, ThinkTokens

BEFORE, THINKING, OVER = 0, 1, 2
"""Phases of a request."""

OTHER, THOUGHT, BOUNDARY = 0, 1, 2
"""What the last token is: outside of the thinking, within it, within it and to be judged."""

BEGINS, ENDS = 1 << 30, -(1 << 31)
"""Bits of the two markers; those of the split strings are below, and ``ENDS`` is the sign."""

NO_LIMIT = (1 << 31) - 1

RECORD = ("phase", "thoughts", "start", "exited", "judged", "on", *NAMES, "would_exit")
"""What a snapshot says of a request, see `torch_specexit.plugin.outcome.Record`; the first columns of its state."""

STATE = (*RECORD, "streak", "pending", "last", "outputs", "row", "smoothed", *(f"moving_{name}" for name in NAMES))
"""What is remembered of a request between two steps, all of it float32, in which counts are exact up to 2^24:

thoughts: thinking tokens so far; start: output position at which thinking began, 0 where the prompt began it; exited,
judged: there has been an exit, a verdict; on: exits are wanted; the signals at the last verdict; would_exit: thinking
tokens at which shadow mode would have exited, 0 for none; streak: boundaries in a row that have passed; pending: the
verdict on the last token is exit; last: its kind; outputs: tokens generated so far; row: batch row in the last step;
smoothed: the moving average has a value.
"""

KNOBS = ("wanted", "patience", "least", "most", "shadow")
"""A request's policy, int32. wanted: bits of the tokens that mean something to it; least, most: thinking tokens."""

WEIGHTS = (*(f"limit_{name}" for name in NAMES), "alpha")
"""The rest of its policy, float32. Limits are negated with `remaining`, see `SIGNS`, and minus infinity for none."""

SIGNS = tuple(1.0 if signal.exits_above else -1.0 for signal in SIGNALS)
"""Signals times these pass where they are *at least* their limits."""


class Tables(NamedTuple):
    """Per-request memory on the device; a request has the same row in each."""

    state: Float[Tensor, "requests state"]
    knobs: Int[Tensor, "requests knobs"]
    weights: Float[Tensor, "requests weights"]


class Admission(NamedTuple):
    """A new request: whether its prompt has opened the thinking, and what it asks for."""

    thinking: bool
    policy: Policy | None
    """None where exits are off."""
    strings: int = ALL_STRINGS
    """Split strings at which it may exit, as bits; see `ThinkTokens.mask`."""
    shadow: bool = False
    """Decide and report, but do not cut."""

    def state(self) -> list[float]:
        """Its row of `Tables.state`."""
        begun = {"phase": THINKING, "start": 0} if self.thinking else {"phase": BEFORE, "start": -1}
        values = begun | {"on": int(self.policy is not None)}
        return [float(values.get(column, 0)) for column in STATE]

    def knobs(self) -> list[int]:
        """Its row of `Tables.knobs`."""
        if self.policy is None:
            return [BEGINS | ENDS, 1, 0, NO_LIMIT, 0]
        least, most = self.policy.min_thinking_tokens, self.policy.max_thinking_tokens
        return [self.strings | BEGINS | ENDS, self.policy.patience, least, most or NO_LIMIT, int(self.shadow)]

    def weights(self) -> list[float]:
        """Its row of `Tables.weights`."""
        thresholds = {} if self.policy is None else self.policy.thresholds
        row = [
            sign * thresholds[name] if name in thresholds else -torch.inf
            for sign, name in zip(SIGNS, NAMES, strict=True)
        ]
        return [*row, 1.0 if self.policy is None else self.policy.alpha]


class Markers(NamedTuple):
    """What each token of the vocabulary means."""

    end: int
    """``</think>``."""
    bits: Int[Tensor, " vocab_and_padding"]
    """`BEGINS`, `ENDS`, or the bits of the split strings it belongs to; the last entry, of no token, is 0."""

    @classmethod
    def of(cls, ids: ThinkTokens, vocab_size: int, device: torch.device) -> Markers:
        """The table for a vocabulary."""
        bits = torch.zeros(vocab_size + 1, dtype=torch.int32)
        for token, mask in (ids.masks() | {ids.start: BEGINS, ids.end: ENDS}).items():
            bits[token] = mask
        return cls(ids.end, bits.to(device))


class Sampled(NamedTuple):
    """A step's result, as the rejection sampler has left it; the rule rewrites it in place."""

    requests: Sequence[str]
    tokens: Int[Tensor, "batch step"]
    """Accepted and drawn tokens; anything behind the first ``n`` of a row."""
    n: Num[Tensor, " batch"]
    """Their number, 0 for a row whose prompt is not yet through."""
    ends: Int[Tensor, " batch"]
    """Where each request's rows end among those that were sampled from; the next one's begin there."""
    rejected: Int[Tensor, " batch"] | None = None
    """What a runner wants to have counted in: tokens that are taken back."""
    padded: bool = False
    """Whether what lies behind a row's tokens has to be -1."""

    @property
    def first_row(self) -> Int[Tensor, " batch"]:
        """Where each request's rows begin."""
        return torch.cat([self.ends.new_zeros(1), self.ends])[:-1]


Forced = Bool[Tensor, " batch"] | None
"""Where the last token of a row is a ``</think>`` that was not drawn; None for nowhere."""

Raw = Callable[[], Float[Tensor, "rows signals"]]
"""Gives raw signals at the rows that were sampled from; not called where they are not needed."""
