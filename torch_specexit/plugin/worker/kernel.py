"""One step of the exit rule as one Triton kernel, for a whole batch: the device side of `plugin.worker.fused`.

Lanes are requests. Each walks through the few tokens of its step, one after the other, as
`specexit.method.decision.ExitRule` does; its state is read from the tables and written back in place. `twin` is the
same in eager torch, and its oracle.

This module needs Triton; it is imported where there is a GPU, or Triton's interpreter.
"""

from __future__ import annotations

import triton
import triton.language as tl

from specexit.method.signals import NAMES, RAW_LIMIT, SIGNALS
from torch_specexit.plugin.worker import rule

_N = len(NAMES)


def _constant(value: float) -> tl.constexpr:
    return tl.constexpr(value)


BEFORE, THINKING, OVER = map(_constant, (rule.BEFORE, rule.THINKING, rule.OVER))
THOUGHT, BOUNDARY = map(_constant, (rule.THOUGHT, rule.BOUNDARY))
BEGINS, STRINGS = _constant(rule.BEGINS), _constant(rule.BEGINS - 1)
LIMIT = _constant(RAW_LIMIT)
N_SIGNALS, LANES = _constant(_N), _constant(triton.next_power_of_2(_N))
EXPONENTIAL = _constant(sum(1 << i for i, signal in enumerate(SIGNALS) if signal.activation == "exp"))
NEGATED = _constant(sum(1 << i for i, sign in enumerate(rule.SIGNS) if sign < 0))
N_STATE, N_RECORD = _constant(len(rule.STATE)), _constant(len(rule.RECORD))
N_KNOBS, N_WEIGHTS = _constant(len(rule.KNOBS)), _constant(len(rule.WEIGHTS))
PHASE, THOUGHTS, START, EXITED, JUDGED, ON = (_constant(rule.STATE.index(name)) for name in rule.RECORD[:6])
VERDICT, WOULD_EXIT = _constant(rule.STATE.index(NAMES[0])), _constant(rule.STATE.index("would_exit"))
STREAK, PENDING, LAST, OUTPUTS, ROW, SMOOTHED = (
    _constant(rule.STATE.index(name)) for name in ("streak", "pending", "last", "outputs", "row", "smoothed")
)
MOVING = _constant(rule.STATE.index(f"moving_{NAMES[0]}"))
WANTED, PATIENCE, LEAST, MOST, SHADOW = (_constant(i) for i in range(len(rule.KNOBS)))


@triton.jit
def _column(at, column, mask):
    return tl.load(at + column, mask=mask, other=0).to(tl.int32)


@triton.jit
def _signals(at, column, mask, signal):
    inside = mask[:, None] & (signal < N_SIGNALS)
    return tl.load(at[:, None] + column + signal, mask=inside, other=0)


@triton.jit
def _activate(raw, signal):
    """`specexit.method.signals.activate`."""
    clamped = tl.minimum(tl.maximum(raw.to(tl.float32), -LIMIT), LIMIT)
    exponential = ((1 << signal) & EXPONENTIAL) != 0
    return tl.where(exponential, tl.exp(clamped), 1.0 / (1.0 + tl.exp(-clamped)))


@triton.jit
def _both(a, b):
    return a & b


@triton.jit
def _judge(asks, values, signal, policy, thoughts, judgement):
    """Judge where there is a boundary; returns where the verdict is exit, and what is remembered of it."""
    limits, patience, most = policy
    streak, judged, verdict = judgement
    signed = tl.where(((1 << signal) & NEGATED) != 0, -values, values)
    good = tl.reduce((signed >= limits).to(tl.int32), 1, _both) == 1
    streak = tl.where(asks, tl.where(good, streak + 1, 0), streak)
    exits = asks & ((streak >= patience) | (thoughts >= most))
    return exits, (streak, tl.where(asks, 1, judged), tl.where(asks[:, None], values, verdict))


@triton.jit
def _read(now, meant, least, would_exit, reading):
    """Take in one token; returns the state behind it, and where it is a boundary."""
    phase, thoughts, outputs, start, last = reading
    thinking = now & (phase == THINKING)
    thought = thinking & (meant >= 0)
    begins = now & (phase == BEFORE) & ((meant & BEGINS) != 0)
    thoughts += thought.to(tl.int32)
    outputs += now.to(tl.int32)
    boundary = thought & ((meant & STRINGS) != 0) & (thoughts >= least) & (would_exit == 0)
    start = tl.where(begins, outputs, start)
    phase = tl.where(thinking & (meant < 0), OVER, tl.where(begins, THINKING, phase))
    last = tl.where(now, thought.to(tl.int32) + boundary.to(tl.int32), last)
    return boundary, (phase, thoughts, outputs, start, last)


@triton.jit
def _remembered(at, mask, signal):
    """What the tables know of the requests; the counterpart of the stores at the end of `step`."""
    phase, thoughts = _column(at, PHASE, mask), _column(at, THOUGHTS, mask)
    outputs, start, last = _column(at, OUTPUTS, mask), _column(at, START, mask), _column(at, LAST, mask)
    streak, judged = _column(at, STREAK, mask), _column(at, JUDGED, mask)
    return (
        (phase, thoughts, outputs, start, last),
        (streak, judged, _signals(at, VERDICT, mask, signal)),
        (_column(at, EXITED, mask), _column(at, WOULD_EXIT, mask), _column(at, PENDING, mask)),
        (_column(at, SMOOTHED, mask), _signals(at, MOVING, mask, signal)),
    )


@triton.jit
def _smooth(thought, values, alpha, average):
    """The moving average, where there is a thinking token."""
    started, moving = average
    mixed = alpha[:, None] * values + (1 - alpha)[:, None] * moving
    moving = tl.where(thought[:, None], tl.where((started > 0)[:, None], mixed, values), moving)
    return tl.where(thought, 1, started), moving


@triton.jit
def _force(now, pending, shadow, would_exit, thoughts):
    """Where ``</think>`` is due; in shadow mode, only take note of it."""
    due = now & (pending > 0)
    would_exit = tl.where(due & shadow & (would_exit == 0), thoughts, would_exit)
    return due & ~shadow, would_exit, tl.where(now, 0, pending)


@triton.jit
def _store_record(at, mask, signal, reading, judgement, exited, on, would_exit):
    """Write the columns of `rule.RECORD`."""
    phase, thoughts, _outputs, start, _last = reading
    _streak, judged, verdict = judgement
    tl.store(at + PHASE, phase.to(tl.float32), mask=mask)
    tl.store(at + THOUGHTS, thoughts.to(tl.float32), mask=mask)
    tl.store(at + START, start.to(tl.float32), mask=mask)
    tl.store(at + EXITED, exited.to(tl.float32), mask=mask)
    tl.store(at + JUDGED, judged.to(tl.float32), mask=mask)
    tl.store(at + ON, on.to(tl.float32), mask=mask)
    tl.store(at[:, None] + VERDICT + signal, verdict, mask=mask[:, None] & (signal < N_SIGNALS))
    tl.store(at + WOULD_EXIT, would_exit.to(tl.float32), mask=mask)


@triton.jit
def _store_rest(at, mask, here, lane, signal, reading, judgement, pending, average):
    """Write the columns of `rule.STATE` that are not in a record."""
    tl.store(at + OUTPUTS, reading[2].to(tl.float32), mask=mask)
    tl.store(at + LAST, reading[4].to(tl.float32), mask=mask)
    tl.store(at + STREAK, judgement[0].to(tl.float32), mask=mask)
    tl.store(at + PENDING, pending.to(tl.float32), mask=mask)
    tl.store(at + ROW, lane.to(tl.float32), mask=here)
    tl.store(at + SMOOTHED, average[0].to(tl.float32), mask=mask)
    tl.store(at[:, None] + MOVING + signal, average[1], mask=mask[:, None] & (signal < N_SIGNALS))


@triton.jit(do_not_specialize=["stride", "n_batch", "n_rows", "width", "vocabulary"])
def step(
    tables,
    places,
    sampled,
    written,
    stride,
    n_batch,  # requests of the step
    n_rows,  # with those that it leaves out, whose last token is still to be judged
    width,
    vocabulary,
    END: tl.constexpr,
    DRAFT: tl.constexpr,
    SMOOTH: tl.constexpr,
    COUNTS: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """See `torch_specexit.plugin.worker.fused.Fused.step`, which says what is in the tuples."""
    lane, signal = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, LANES)[None, :]
    known, here = lane < n_rows, lane < n_batch
    row = tl.load(places[0] + lane, mask=known, other=0).to(tl.int64)
    state, knobs, weights = tables[0] + row * N_STATE, tables[1] + row * N_KNOBS, tables[2] + row * N_WEIGHTS
    reading, judgement, rest, average = _remembered(state, known, signal)
    exited, would_exit, pending = rest
    wanted, least = _column(knobs, WANTED, known), _column(knobs, LEAST, known)
    shadow = _column(knobs, SHADOW, known) == 1
    alpha = tl.load(weights + N_SIGNALS, mask=known, other=0)
    policy = (_signals(weights, 0, known, signal), _column(knobs, PATIENCE, known), _column(knobs, MOST, known))
    first = tl.load(places[1] + lane - 1, mask=here & (lane > 0), other=0)  # a request's rows begin where others end
    raw = places[2] + first.to(tl.int64) * N_SIGNALS
    tokens, drawn = sampled[0] + lane * stride, _column(sampled[1] + lane, 0, here)
    n, forced = drawn, lane < 0

    if DRAFT:
        asks = known & (reading[4] == BOUNDARY)
        then = places[2] + _column(state, ROW, asks) * N_SIGNALS
        values = _activate(_signals(then, 0, asks, signal), signal)
        exits, judgement = _judge(asks, values, signal, policy, reading[1], judgement)
        pending = tl.where(exits, 1, pending)
        reading = (reading[0], reading[1], reading[2], reading[3], tl.where(asks, THOUGHT, reading[4]))  # only once
    for j in range(width):
        now = j < n
        if not DRAFT:
            values = _activate(_signals(raw + j * N_SIGNALS, 0, now, signal), signal)
            if SMOOTH:
                average = _smooth(now & (reading[4] >= THOUGHT), values, alpha, average)
                values = average[1]
            asks = now & (reading[4] == BOUNDARY) & (would_exit == 0)
            exits, judgement = _judge(asks, values, signal, policy, reading[1], judgement)
            pending = tl.where(exits, 1, pending)
        exits, would_exit, pending = _force(now, pending, shadow, would_exit, reading[1])
        was = _column(tokens, j, now)
        token = tl.where(exits, END, was)
        tl.store(tokens + j, token, mask=exits)
        forced, exited = forced | (exits & (was != END)), tl.where(exits, 1, exited)
        meaning = now & (token >= 0) & (token < vocabulary)
        meant = _column(places[3] + token, 0, meaning) & wanted
        boundary, reading = _read(now, meant, least, would_exit, reading)
        n = tl.where(exits | (boundary & DRAFT), j + 1, n)

    if PADDED:
        for j in range(width):
            tl.store(tokens + j, -1, mask=here & (drawn > 0) & (j >= n))
    if COUNTS:
        tl.store(sampled[2] + lane, _column(sampled[2] + lane, 0, here) + (drawn - n), mask=here)
    tl.store(sampled[1] + lane, n, mask=here)
    tl.store(written[1] + lane, forced, mask=here)
    on = _column(state, ON, known)
    _store_record(written[0] + lane * N_RECORD, here, signal, reading, judgement, exited, on, would_exit)
    _store_record(state, known, signal, reading, judgement, exited, on, would_exit)
    _store_rest(state, known, here, lane, signal, reading, judgement, pending, average)
