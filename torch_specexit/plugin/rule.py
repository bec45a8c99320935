"""The exit rule on the device: `specexit.decision.ExitRule` for a whole batch, with no Python loop over requests and no
host synchronisation.

Two sources, two moments, one text (see the design, "Decision"):

* ``draft``: the signals of a token arrive with the draft's first pass *behind* the step that the token is part of.
  Where the step's result has left the runner by then, acceptance stops at a split token while thinking
  (`cut_at_boundary`), its signals are judged behind the pass (`judge_last`), and where the verdict is exit,
  ``</think>`` replaces the first token of the next step. Where nobody has seen the result yet, nothing has to stop:
  all tokens of the step are judged together, and ``</think>`` replaces the token behind an exit (`judge_drafted`).
* ``fc``: the signals of a token arrive in the target row whose *input* it is, so the token that this very row draws is
  replaced (`judge_rows`).

Either way the KV cache holds exactly the tokens before ``</think>``, which vLLM takes for an ordinary rejection.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from specexit.signals import RAW_LIMIT, SIGNALS
from specexit.splits import ThinkTokens

BEFORE, THINKING, OVER = 0, 1, 2
"""Phases of a request."""

OTHER, THOUGHT, BOUNDARY = 0, 1, 2
"""What the last token of a step is: outside of the thinking, within it, within it and to be judged."""


class Markers(NamedTuple):
    """Token ids on the device."""

    start: int
    end: int
    is_split: Bool[Tensor, " vocab"]
    is_any: Bool[Tensor, " vocab_and_padding"]
    """Whether a token is a marker or a split token; the last entry is that of -1, the padding."""

    @classmethod
    def of(cls, ids: ThinkTokens, vocab_size: int, device: torch.device) -> Markers:
        """Tables for a vocabulary."""
        is_split, is_any = torch.zeros(vocab_size, dtype=torch.bool), torch.zeros(vocab_size + 1, dtype=torch.bool)
        is_split[list(ids.split)] = True
        is_any[[ids.start, ids.end, *ids.split]] = True
        return cls(ids.start, ids.end, is_split.to(device), is_any.to(device))


class Settings(NamedTuple):
    """The policy of every request of the batch."""

    limits: Float[Tensor, "batch signals"]
    """Thresholds, the one of `remaining` negated, minus infinity where there is none; see `passes`."""
    alpha: Float[Tensor, " batch"]
    on: Bool[Tensor, " batch"]
    patience: Int[Tensor, " batch"]
    min_thinking_tokens: Int[Tensor, " batch"]


class State(NamedTuple):
    """What is remembered of every request of the batch between two steps; all int32."""

    phase: Int[Tensor, " batch"]
    thoughts: Int[Tensor, " batch"]
    """Thinking tokens so far."""
    streak: Int[Tensor, " batch"]
    """Boundaries in a row that have passed."""
    pending: Int[Tensor, " batch"]
    """1: the next token is ``</think>``."""
    last: Int[Tensor, " batch"]
    """Kind of the last token: its signals are still to come."""
    outputs: Int[Tensor, " batch"]
    """Tokens generated so far."""
    start: Int[Tensor, " batch"]
    """Output position at which thinking began; 0 where the prompt began it."""
    exited: Int[Tensor, " batch"]
    judged: Int[Tensor, " batch"]
    """1: there has been a verdict."""
    smoothed: Int[Tensor, " batch"]
    """1: the moving average has a value."""


class Reading(NamedTuple):
    """A step's tokens, understood."""

    thought: Bool[Tensor, "batch step"]
    boundary: Bool[Tensor, "batch step"]
    starts: Bool[Tensor, "batch step"]
    ends: Bool[Tensor, "batch step"]


def activate(raw: Float[Tensor, "*batch signals"]) -> Float[Tensor, "*batch signals"]:
    """`specexit.signals.activate` in torch."""
    clamped = raw.float().clamp(-RAW_LIMIT, RAW_LIMIT)
    columns = [
        clamped[..., i].exp() if signal.activation == "exp" else clamped[..., i].sigmoid()
        for i, signal in enumerate(SIGNALS)
    ]
    return torch.stack(columns, dim=-1)


def limits(thresholds: dict[str, float]) -> list[float]:
    """Thresholds as a row of `Settings.limits`."""
    row = []
    for signal in SIGNALS:
        threshold = thresholds.get(signal.name)
        if threshold is None:
            row.append(-torch.inf)
        else:
            row.append(threshold if signal.exits_above else -threshold)
    return row


def passes(values: Float[Tensor, "*batch signals"], limits: Float[Tensor, "*#batch signals"]) -> Bool[Tensor, "*batch"]:
    """Whether every threshold holds. `remaining` is negated on both sides, so that all comparisons are the same."""
    signed = torch.stack([values[..., i] if s.exits_above else -values[..., i] for i, s in enumerate(SIGNALS)], dim=-1)
    return (signed >= limits).all(dim=-1)


def read(
    state: State, settings: Settings, markers: Markers, tokens: Int[Tensor, "batch step"], n: Int[Tensor, " batch"]
) -> Reading:
    """Understand the first ``n`` tokens of each row; what lies behind them may be anything.

    A boundary with too few thinking tokens before it is none: its verdict could only be "go on".
    """
    valid = _positions(tokens) < n[:, None]
    starts = valid & (tokens == markers.start)
    begun = (state.phase >= THINKING)[:, None] | _before(starts)
    ends = valid & begun & (tokens == markers.end)
    thought = valid & begun & ~((state.phase == OVER)[:, None] | _before(ends)) & ~ends
    count = state.thoughts[:, None] + thought.cumsum(dim=1)
    is_split = markers.is_split[tokens.where(valid, tokens.new_zeros(())).long()]
    boundary = thought & is_split & settings.on[:, None] & (count >= settings.min_thinking_tokens[:, None])
    return Reading(thought, boundary, starts, ends)


def advance(state: State, reading: Reading, n: Int[Tensor, " batch"], exits: Bool[Tensor, " batch"]) -> State:
    """The state behind the first ``n`` tokens of each row. Rows without any (a prompt in chunks) stay as they are."""
    kept = _positions(reading.thought) < n[:, None]
    thought, starts = reading.thought & kept, reading.starts & kept
    begun = (state.phase >= THINKING) | starts.any(dim=1)
    over = (state.phase == OVER) | (reading.ends & kept).any(dim=1)
    kind = thought.int() + (reading.boundary & kept).int()
    began_now = (state.phase == BEFORE) & begun
    new = state._replace(
        phase=begun.int() + over.int(),
        thoughts=state.thoughts + thought.sum(dim=1).int(),
        pending=torch.zeros_like(state.pending),
        last=_at(kind, n - 1),
        outputs=state.outputs + n.int(),
        start=torch.where(began_now, state.outputs + _first(starts).int() + 1, state.start),
        exited=state.exited | exits.int(),
    )
    return where(n > 0, new, state)


def where(condition: Bool[Tensor, " batch"], yes: State, no: State) -> State:
    """Rows of one state or the other."""
    return State(*(torch.where(condition, a, b) for a, b in zip(yes, no, strict=True)))


def cut_at_boundary(
    state: State, settings: Settings, markers: Markers, tokens: Int[Tensor, "batch step"], n: Int[Tensor, " batch"]
) -> tuple[Int[Tensor, "batch step"], Int[Tensor, " batch"], State]:
    """Source ``draft``, stopping: apply the pending verdicts and stop acceptance at the first boundary.

    Args:
      state: of the requests.
      settings: of the requests.
      markers: think markers and split tokens.
      tokens: what the rejection sampler has accepted and drawn.
      n: number of these in each row; 0 for a row whose prompt is not yet through.

    Returns:
      Tokens, their number, and the state behind them.
    """
    tokens, n, exits = force_pending(state, markers, tokens, n)
    reading = read(state, settings, markers, tokens, n)
    n = torch.minimum(n, _first(reading.boundary).to(n.dtype) + 1)
    return tokens, n, advance(state, reading, n, exits)


def force_pending(
    state: State, markers: Markers, tokens: Int[Tensor, "batch step"], n: Int[Tensor, " batch"]
) -> tuple[Int[Tensor, "batch step"], Int[Tensor, " batch"], Bool[Tensor, " batch"]]:
    """Put ``</think>`` in the place of a step's first token where the last verdict was exit.

    Returns:
      Tokens, their number, and where that was.
    """
    exits = (n > 0) & (state.pending > 0)
    tokens = torch.where(exits[:, None] & (_positions(tokens) == 0), markers.end, tokens)
    return tokens, torch.where(exits, 1, n), exits


def judge_last(
    state: State,
    settings: Settings,
    verdict: Float[Tensor, "batch signals"],
    raw: Float[Tensor, "batch signals"],
    n: Int[Tensor, " batch"],
) -> tuple[State, Float[Tensor, "batch signals"]]:
    """Source ``draft``, stopping: judge the boundary that a step has ended with.

    Args:
      state: what `cut_at_boundary` has returned.
      settings: of the requests.
      verdict: signal values of the last verdict of each request.
      raw: the signal head's output for the last token of each row.
      n: what `cut_at_boundary` has returned.

    Returns:
      The state with its verdict pending, and the signal values of the last verdicts.
    """
    asks = (n > 0) & (state.last == BOUNDARY)
    values = activate(raw)
    streak = torch.where(passes(values, settings.limits), state.streak + 1, 0)
    streak = torch.where(asks, streak, state.streak)
    new = state._replace(
        streak=streak,
        pending=(asks & (streak >= settings.patience)).int(),
        last=torch.where(asks, THOUGHT, state.last),
        judged=state.judged | asks.int(),
    )
    return where(n > 0, new, state), torch.where(asks[:, None], values, verdict)


def judge_drafted(
    state: State,
    settings: Settings,
    verdict: Float[Tensor, "batch signals"],
    markers: Markers,
    tokens: Int[Tensor, "batch step"],
    n: Int[Tensor, " batch"],
    raw: Float[Tensor, "batch step signals"],
) -> tuple[Int[Tensor, "batch step"], Int[Tensor, " batch"], State, Float[Tensor, "batch signals"]]:
    """Source ``draft``, without stopping: judge every boundary of a step, and replace the token behind an exit.

    Args:
      state: of the requests, as the step began.
      settings: of the requests.
      verdict: signal values of the last verdict of each request.
      markers: think markers and split tokens.
      tokens, n: what `force_pending` has returned.
      raw: the signal head's output for every token of the step.

    Returns:
      Tokens, their number, the state behind them (an exit at the very last token is pending), and the signal values of
      the last verdicts.
    """
    forced = (n > 0) & (state.pending > 0)
    reading = read(state, settings, markers, tokens, n)
    values = activate(raw)
    good = reading.boundary & passes(values, settings.limits[:, None])
    streak = _streaks(state.streak, good, reading.boundary & ~good)
    first = _first(good & (streak >= settings.patience[:, None]))
    exits = first + 1 < n
    tokens = torch.where(exits[:, None] & (_positions(tokens) == first[:, None] + 1), markers.end, tokens)
    kept = torch.where(exits, first.to(n.dtype) + 1, n)
    judged = reading.boundary & (_positions(tokens) < kept[:, None])
    new = advance(state, reading, kept, forced | exits)
    new = new._replace(
        phase=torch.where(exits, OVER, new.phase),
        outputs=new.outputs + exits.int(),
        streak=torch.where(n > 0, _at(streak, kept - 1), state.streak),
        pending=(first + 1 == n).int(),
        judged=state.judged | judged.any(dim=1).int(),
    )
    latest = torch.where(judged, _positions(tokens), -1).amax(dim=1)
    verdict = torch.where((latest >= 0)[:, None], _at(values, latest), verdict)
    return tokens, kept + exits.int(), where(n > 0, new, state), verdict


def advance_plainly(state: State, n: Int[Tensor, " batch"]) -> State:
    """`advance` over tokens of which none is a marker or a split token."""
    thoughts = torch.where(state.phase == THINKING, n, 0).int()
    return state._replace(thoughts=state.thoughts + thoughts, outputs=state.outputs + n.int())


class Averages(NamedTuple):
    """Source ``fc``: the signal values that a request carries from step to step."""

    verdict: Float[Tensor, "batch signals"]
    """Of the last verdict."""
    moving: Float[Tensor, "batch signals"]
    """The moving average over its thinking tokens."""


def judge_rows(
    state: State,
    settings: Settings,
    averages: Averages,
    markers: Markers,
    tokens: Int[Tensor, "batch step"],
    n: Int[Tensor, " batch"],
    raw: Float[Tensor, "batch step signals"],
    *,
    smooth: bool,
) -> tuple[Int[Tensor, "batch step"], Int[Tensor, " batch"], State, Averages]:
    """Source ``fc``: judge the input token of every row and replace the token drawn behind an exit.

    Args:
      state: of the requests.
      settings: of the requests.
      averages: of the requests.
      markers: think markers and split tokens.
      tokens: what the rejection sampler has accepted and drawn.
      n: number of these in each row; 0 for a row whose prompt is not yet through.
      raw: signal rows of ``fc`` at each target row; row j's input is token j - 1, row 0's the last step's last token.
      smooth: whether a moving average over thinking tokens is judged, or the values as they are.

    Returns:
      Tokens, their number, the state behind them and the averages.
    """
    reading = read(state, settings, markers, tokens, n)
    valid = _positions(tokens) < n[:, None]
    thought = _shift(reading.thought, state.last >= THOUGHT) & valid
    boundary = _shift(reading.boundary, state.last == BOUNDARY) & valid
    values = activate(raw)
    if smooth:
        values = _moving_average(values, thought, averages.moving, state.smoothed, settings.alpha)
    good = boundary & passes(values, settings.limits[:, None])
    streak = _streaks(state.streak, good, boundary & ~good)
    first = _first(good & (streak >= settings.patience[:, None]))
    exits = first < tokens.shape[1]
    tokens = torch.where(_positions(tokens) == first[:, None], markers.end, tokens)
    n = torch.minimum(n, first.to(n.dtype) + 1)
    new = advance(state, read(state, settings, markers, tokens, n), n, exits)
    judged = boundary & (_positions(tokens) < n[:, None])
    new = new._replace(
        streak=torch.where(n > 0, _at(streak, n - 1), state.streak),
        judged=state.judged | judged.any(dim=1).int(),
        smoothed=state.smoothed | thought.any(dim=1).int(),
    )
    latest = torch.where(judged, _positions(tokens), -1).amax(dim=1)
    verdict = torch.where((latest >= 0)[:, None], _at(values, latest), averages.verdict)
    moving = torch.where((n > 0)[:, None], _at(values, n - 1), averages.moving) if smooth else averages.moving
    return tokens, n, new, Averages(verdict, moving)


def _moving_average(
    values: Float[Tensor, "batch step signals"],
    thought: Bool[Tensor, "batch step"],
    moving: Float[Tensor, "batch signals"],
    started: Int[Tensor, " batch"],
    alpha: Float[Tensor, " batch"],
) -> Float[Tensor, "batch step signals"]:
    """The average behind each row. A loop over the few positions of a step, not over requests: it keeps the order of
    the reference's additions, so the two agree to the last bits."""
    started = started > 0
    weight = alpha[:, None]
    columns = []
    for i in range(values.shape[1]):
        now = thought[:, i]
        mixed = torch.where(started[:, None], weight * values[:, i] + (1 - weight) * moving, values[:, i])
        moving = torch.where(now[:, None], mixed, moving)
        started = started | now
        columns.append(moving)
    return torch.stack(columns, dim=1)


def _streaks(
    before: Int[Tensor, " batch"], good: Bool[Tensor, "batch step"], bad: Bool[Tensor, "batch step"]
) -> Int[Tensor, "batch step"]:
    """Length of the run of good boundaries that ends at each position; a bad one ends a run, other tokens do not."""
    total = good.cumsum(dim=1)
    at_last_bad = torch.where(bad, total, -before.long()[:, None]).cummax(dim=1).values
    return (total - at_last_bad).int()


def _positions(tokens: Tensor) -> Int[Tensor, "1 step"]:
    return torch.arange(tokens.shape[1], device=tokens.device)[None]


def _before(mask: Bool[Tensor, "batch step"]) -> Bool[Tensor, "batch step"]:
    """Whether the mask holds anywhere before a position."""
    return (mask.cumsum(dim=1) - mask.long()) > 0


def _first(mask: Bool[Tensor, "batch step"]) -> Int[Tensor, " batch"]:
    """First position at which the mask holds; the length of the step where it does not."""
    return torch.where(mask, _positions(mask), mask.shape[1]).amin(dim=1)


def _shift(mask: Bool[Tensor, "batch step"], first: Bool[Tensor, " batch"]) -> Bool[Tensor, "batch step"]:
    """From "of the token a row draws" to "of the token a row reads"."""
    return torch.cat([first[:, None], mask[:, :-1]], dim=1)


def _at(values: Tensor, index: Int[Tensor, " batch"]) -> Tensor:
    """``values[b, index[b]]``; an index of -1 gives the first (which the caller does not use)."""
    rows = torch.arange(values.shape[0], device=values.device)
    return values[rows, index.clamp(min=0).long()]
