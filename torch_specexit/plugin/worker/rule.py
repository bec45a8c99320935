"""What the two versions of the exit rule share: the tables they work on. `specexit.method.decision` is the definition.
`kernel` is one step of it for a whole batch as one Triton kernel, `twin` the same in plain Python, on a CPU's memory.

Both are one state machine. The tokens of a step are read one after the other; before each, the token in front of it is
judged if it was a boundary and its signals are known; a verdict of exit puts the closing tokens (``</think>``, behind a
transition text if there is one) in the place of what was drawn. Sources differ in when signals are known, and in
nothing else:

* ``fc``: the signals of a token arrive in the target row whose *input* it is, the row that draws the next token.
* ``draft``: they arrive with the draft's first pass, after the step that the token is part of. Acceptance therefore
  stops at a boundary, which is judged as the next step begins. A request that the next step leaves out is judged then
  as well.

A boundary that the policy's ``early`` thresholds pass over is none: acceptance goes on after it. These thresholds look
at the signals `EARLY_TOKENS` tokens before the boundary. Where these belong to the same step, and are not known yet,
acceptance stops at the boundary, and the next step decides.

Either way the KV cache holds exactly the tokens before a forced one, which vLLM takes for an ordinary rejection.

The tables are not trusted to be where vLLM is. vLLM may drop a step that it has not read yet, and go on from the tokens
before it. Each step therefore says from which position it goes on, and a row that has gone further falls back to what
it was there, for which each step leaves a copy of the row as it began (`Tables.past`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from specexit.method.decision import EARLY_TOKENS, Policy
from specexit.method.signals import NAMES, SIGNALS
from specexit.method.splits import ALL_STRINGS, ThinkTokens
from torch_specexit.plugin.worker.loops import FINGERPRINT, NOTHING, LoopSearch

BEFORE, THINKING, OVER = 0, 1, 2
"""Phases of a request."""

OTHER, THOUGHT, BOUNDARY = 0, 1, 2
"""What the last token is: outside of the thinking, within it, within it and to be judged."""

EXIT, CAP, INTERRUPT, LOOP = 1, 2, 3, 4
"""Why thinking was ended: by the signals, by its maximum, by the client, for going in circles. 0 where it was not."""

BEGINS = 1 << 30
"""Bit of ``<think>``; those of the split strings are below."""

NO_LIMIT = (1 << 31) - 1

STEPS_BACK = 4
"""Steps of a request that vLLM may drop at a time: two are in flight under asynchronous scheduling, one more for each
pipeline stage."""

ALL_NEAR = (1 << (EARLY_TOKENS + 1)) - 1
"""`near` of a request that has no thinking tokens yet."""

RECORD = ("phase", "thoughts", "start", "exited", "judged", "on", *NAMES, "would_exit", "kept")
"""What is reported of a request, see `torch_specexit.plugin.outcome.Record`; the first columns of its state."""

REMEMBERED = (
    *("near", "unread", "streak", "deferred", "closed", "matched"),
    *("last", "outputs", "row", "told", "slot", "smoothed"),
)
"""What is remembered beside that; see `STATE`."""

STATE = (
    *RECORD,
    *REMEMBERED,
    *(f"moving_{name}" for name in NAMES),
    *FINGERPRINT,
)
"""What is remembered of a request between two steps, all of it float32, in which counts are exact up to 2^24:

thoughts: thinking tokens so far, those of a transition text among them; start: output position at which thinking began,
0 where the prompt began it; exited: why it was ended, 0 where it was not; judged: there has been a verdict; on: exits
are wanted; the signals at the last verdict; would_exit: thinking tokens at which shadow mode would have exited, 0 for
none; kept: thinking tokens at the exit, in front of what is written there; near: one bit for each of the last thinking
tokens whose signals are known, the newest the lowest: whether the early thresholds held, and 1 where there is no such
token; unread: thinking tokens behind these; streak: boundaries in a row that have passed; deferred: why the closing
tokens are due with the next token, 0 where they are not; closed: how many of them are written; matched: tokens of the
end marker that the text ends with; last: kind of the last token; outputs: tokens generated so far; row: batch row in
the last step; told: all that is new has been reported; slot: where the next copy goes in its past; smoothed: the moving
average has a value; the others: see `torch_specexit.plugin.worker.loops`.
"""

KNOBS = ("wanted", "patience", "least", "most", "hard", "cause", "shadow", "prompt")
"""A request's policy, int32. wanted: bits of the tokens that mean something to it; least, most: thinking tokens before
which there is no exit, and at which there is one at any boundary; hard: at which there is one at any token, where
exits are wanted or it is 0; cause: what `most` and `hard` are called in `STATE`; shadow: what is due is noted and not
made, but for `INTERRUPT`; prompt: length of its prompt."""

WEIGHTS = (*(f"limit_{name}" for name in NAMES), *(f"early_{name}" for name in NAMES), "alpha")
"""The rest of its policy, float32. Limits of `remaining` are negated, see `SIGNS`. NaN stands for no limit, which every
signal passes."""

SIGNS = tuple(1.0 if signal.exits_above else -1.0 for signal in SIGNALS)
"""Signals times these pass where they are *at least* their limits."""


class Tables(NamedTuple):
    """Per-request memory on the device; a request has the same row in each."""

    state: Float[Tensor, "requests state"]
    knobs: Int[Tensor, "requests knobs"]
    weights: Float[Tensor, "requests weights"]
    past: Float[Tensor, "requests steps_and_one state"]
    """Rows of `state` as the last `STEPS_BACK` steps began, and one that the host has rebuilt from the tokens; those
    that hold nothing have -1 outputs."""
    recent: Int[Tensor, "requests ring"]
    """The last thinking tokens, plus one, token number ``i`` at ``i % ring``; see `LoopSearch`."""


class Admission(NamedTuple):
    """A new request: whether its prompt has opened the thinking, and what it asks for."""

    thinking: bool | None
    """None where the host has not looked through all of its prompt; see `Slots.open`."""
    policy: Policy | None
    """None where exits are off."""
    strings: int = ALL_STRINGS
    """Split strings at which it may exit, as bits; see `ThinkTokens.mask`."""
    shadow: bool = False
    """Exits are decided and reported, but not made."""
    prompt: int = 0
    """Tokens of its prompt."""
    margin: int | None = None
    """Tokens beyond ``max_thinking_tokens`` at which thinking ends at any token; None: at boundaries alone."""

    def state(self) -> list[float]:
        """Its row of `Tables.state`."""
        begun = {"phase": THINKING, "start": 0} if self.thinking else {"phase": BEFORE, "start": -1}
        values = begun | NOTHING | {"on": int(self.policy is not None), "near": ALL_NEAR}
        return [float(values.get(column, 0)) for column in STATE]

    def knobs(self) -> list[int]:
        """Its row of `Tables.knobs`. Numbers that do not fit into 32 bits become `NO_LIMIT`."""
        if self.policy is None:
            return [BEGINS, 1, 0, NO_LIMIT, NO_LIMIT, CAP, 0, self.prompt]
        most = self.policy.max_thinking_tokens or NO_LIMIT
        hard = NO_LIMIT if self.margin is None else most + self.margin
        numbers = (self.policy.patience, self.policy.min_thinking_tokens, most, hard)
        return [self.strings | BEGINS, *(min(n, NO_LIMIT) for n in numbers), CAP, int(self.shadow), self.prompt]

    def interrupted(self, *, now: bool) -> list[int]:
        """Its row of `Tables.knobs` when its client wants the thinking to end: at the next boundary, or now. Where no
        boundary comes, it ends in a loop, or where the operator's margin is used up, as before; in shadow mode nowhere,
        nor where its exits were lost."""
        hard = NO_LIMIT if self.shadow else self.knobs()[KNOBS.index("hard")]
        return [self.strings | BEGINS, NO_LIMIT, 0, 0, 0 if now else hard, INTERRUPT, int(self.shadow), self.prompt]

    def weights(self) -> list[float]:
        """Its row of `Tables.weights`."""
        both = ({}, {}) if self.policy is None else (self.policy.thresholds, self.policy.early)
        row = [
            sign * thresholds[name] if name in thresholds else torch.nan
            for thresholds in both
            for sign, name in zip(SIGNS, NAMES, strict=True)
        ]
        return [*row, 1.0 if self.policy is None else self.policy.alpha]


class Markers(NamedTuple):
    """What each token of the vocabulary means, and what ends the thinking."""

    bits: Int[Tensor, " vocab_and_padding"]
    """`BEGINS`, or the bits of the split strings it belongs to; the last entry, of no token, is 0."""
    closing: Int[Tensor, " closing"]
    """Tokens that are forced at an exit: a transition text, if there is one, and the end marker."""
    n_marker: int = 1
    """Of these, the tokens of the end marker."""
    loops: LoopSearch | None = None
    """The search that ends thinking that goes in circles, if there is one."""

    @classmethod
    def of(
        cls,
        ids: ThinkTokens,
        vocab_size: int,
        device: torch.device,
        *,
        transition: Sequence[int] = (),
        loops: LoopSearch | None = None,
    ) -> Markers:
        """The table for a vocabulary.

        Args:
          ids: markers and split tokens.
          vocab_size: of the target.
          device: of the rule.
          transition: tokens that are forced before the end marker.
          loops: the search that ends thinking that goes in circles; None for none.
        """
        bits = torch.zeros(vocab_size + 1, dtype=torch.int32)
        for token, mask in (ids.within(vocab_size).masks() | {ids.start: BEGINS}).items():
            bits[token] = mask
        end = ids.end_marker
        closing = torch.tensor([*transition, *end], dtype=torch.int32)
        return cls(bits.to(device), closing.to(device), len(end), loops)


class Sampled(NamedTuple):
    """A step's result, as the rejection sampler has left it; the rule rewrites it in place."""

    requests: Sequence[str]
    tokens: Int[Tensor, "batch step"]
    """Accepted and drawn tokens; anything behind the first ``n`` of a row."""
    n: Num[Tensor, " batch"]
    """Their number, 0 for a row whose prompt is not yet through."""
    ends: Int[Tensor, " batch"]
    """Where each request's rows end among those that were sampled from; the next one's begin there."""
    logits_rows: Int[Tensor, " rows"]
    """Which hidden states these rows are."""
    positions: Int[Tensor, " tokens"]
    """Positions of all hidden states' input tokens within their requests."""
    rejected: Int[Tensor, " batch"] | None = None
    """The runner's count of rejected tokens, to which the rule adds those that it takes back; None for none."""
    padded: bool = False
    """Whether what lies behind a row's tokens has to be -1."""
    input_ids: Int[Tensor, " tokens"] | None = None
    """All hidden states' input tokens, which the checking mode alone looks at."""

    def none(self) -> Sampled:
        """A step of no request, for the same variant of the kernel."""
        rejected = None if self.rejected is None else self.rejected[:0]
        first = {name: getattr(self, name)[:0] for name in ("tokens", "n", "ends", "logits_rows")}
        return self._replace(requests=[], **first, rejected=rejected, input_ids=None)


CHANGED = "changed"
REPORT = (*RECORD, CHANGED)
"""Columns of what a step reports of each request. changed: 1 where there is more news than tokens, else 0. Below 0
nothing was decided: at -1 and below because exits have failed on so many ranks, above -1 because the draft of some rank
is not whole."""


@runtime_checkable
class Rule(Protocol):
    """What `torch_specexit.plugin.worker.fused.Fused` and `torch_specexit.plugin.worker.twin.Twin` have in common."""

    forced: Bool[Tensor, " rows"]
    """Whether the last token of each request of the last step was put in the place of another; the next overwrites."""
    report: Float[Tensor, "rows report"]
    """`REPORT` of each request of the last step; the next overwrites it."""

    def step(self, sampled: Sampled, signals: Float[Tensor, "rows *last signals"], failed: Float[Tensor, " 1"]) -> None:
        """One decoding step.

        Args:
          sampled: the step's result, rewritten in place.
          signals: raw. Source ``fc``: at the rows that were sampled from; ``draft``: at the last tokens of each request
            of the step before, the very last one first, as many as a step may have.
          failed: above 0 where nothing is decided: exits have failed on so many ranks; or, below 1, the draft of some
            rank is not whole, and the requests of the step are left alone from now on.
        """
        ...
