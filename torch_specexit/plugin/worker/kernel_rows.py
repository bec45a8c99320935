"""How the kernel of the exit rule reads its tables and writes them: rows of `rule.Tables` to tuples, and back.

Lanes are requests; ``at`` points at the row of each. The state is a tuple of tuples, each of what changes together:
counts, the text's end, the last verdict, what is due, marks, the moving average, and what is known early.
"""

from __future__ import annotations

import triton
import triton.language as tl

from specexit.method.signals import NAMES
from torch_specexit.plugin.worker import rule
from torch_specexit.plugin.worker.loops import FINGERPRINT


def constant(value: float) -> tl.constexpr:
    """A value of a module as a kernel may read it."""
    return tl.constexpr(value)


N_SIGNALS, LANES = constant(len(NAMES)), constant(triton.next_power_of_2(len(NAMES)))
N_STATE, N_REPORT = constant(len(rule.STATE)), constant(len(rule.REPORT))
N_KNOBS, N_WEIGHTS, STEPS_BACK = constant(len(rule.KNOBS)), constant(len(rule.WEIGHTS)), constant(rule.STEPS_BACK)
PHASE, THOUGHTS, START, EXITED, JUDGED, ON = (constant(rule.STATE.index(name)) for name in rule.RECORD[:6])
VERDICT, WOULD_EXIT, KEPT = (constant(rule.STATE.index(name)) for name in (NAMES[0], "would_exit", "kept"))
NEAR, UNREAD, STREAK, DEFERRED, CLOSED, MATCHED, LAST, OUTPUTS, ROW, TOLD, SLOT, SMOOTHED = (
    constant(rule.STATE.index(name)) for name in rule.REMEMBERED
)
MOVING, CHANGED = constant(rule.STATE.index(f"moving_{NAMES[0]}")), constant(len(rule.RECORD))
ROLLING, ANCHOR, LOOPING = (constant(rule.STATE.index(FINGERPRINT[i])) for i in (0, 2, 4))
WANTED, PATIENCE, LEAST, MOST, HARD, CAUSE, SHADOW, PROMPT = (constant(i) for i in range(len(rule.KNOBS)))


@triton.jit
def column(at, number, mask):
    """A column, as integers."""
    return tl.load(at + number, mask=mask, other=0).to(tl.int32)


@triton.jit
def signals_at(at, number, mask, signal):
    """The columns of all signals, the first of which is ``number``."""
    inside = mask[:, None] & (signal < N_SIGNALS)
    return tl.load(at[:, None] + number + signal, mask=inside, other=0)


@triton.jit
def put(at, number, value, mask):
    """Write a column."""
    tl.store(at + number, value.to(tl.float32), mask=mask)


@triton.jit
def recall(state_at, past_at, stale, outputs):
    """Where to read each request's state as it was at ``outputs`` tokens, and whether no copy of it is left."""
    at, found = state_at, stale != stale
    for step_back in tl.static_range(STEPS_BACK + 1):  # pyright: ignore[reportGeneralTypeIssues]
        then = past_at + step_back * N_STATE
        count = column(then, OUTPUTS, stale)
        here = stale & (count == outputs) & (found == 0)
        at = tl.where(here, then, at)
        found = found | here
        tl.store(then + OUTPUTS, -1.0, mask=stale & (count > outputs))  # of a branch that vLLM has dropped
    return at, stale & (found == 0)


@triton.jit
def load_policy(knobs_at, weights_at, mask, signal):
    """What each request asks for: `rule.KNOBS` and `rule.WEIGHTS`, grouped by the functions that look at them."""
    cause = column(knobs_at, CAUSE, mask)
    policy = (
        signals_at(weights_at, 0, mask, signal),
        column(knobs_at, PATIENCE, mask),
        column(knobs_at, MOST, mask),
        cause,
    )
    limits = (column(knobs_at, HARD, mask), cause, column(knobs_at, SHADOW, mask) == 1)
    reading = (column(knobs_at, WANTED, mask), column(knobs_at, LEAST, mask), policy[2], cause)
    early = signals_at(weights_at, N_SIGNALS, mask, signal)
    return policy, (early, tl.load(weights_at + 2 * N_SIGNALS, mask=mask, other=0)), limits, reading


@triton.jit
def go_back(state_at, past_at, prompt, fed_at, positions_ptr, known, moves, left_alone, signal):
    """Go back to the token from which vLLM goes on, where that is not the last one that a row has seen.

    Returns where the state was read, whether it is lost, and the state. It is lost where no copy of it is left, or the
    step is to be left alone; what is matched of a marker only where no copy is left."""
    fed = tl.load(fed_at, mask=moves, other=0).to(tl.int64)
    outputs = tl.load(positions_ptr + fed, mask=moves, other=0).to(tl.int32) + 1 - prompt
    stale = moves & (outputs != column(state_at, OUTPUTS, known))
    at, unknown = recall(state_at, past_at, stale, outputs)
    lost = unknown | (moves & left_alone)
    count, text, judged, closing, marks, average, early = load(at, known, signal)
    count = (count[0], count[1], count[2], tl.where(stale, outputs, count[3]))
    marks = (marks[0], tl.where(lost, 0, marks[1]), tl.where(stale | lost, 0, marks[2]))
    text = (tl.where(lost, 0, text[0]), tl.where(unknown, 0, text[1]))  # nothing is left to be judged, or due
    closing = (tl.where(lost, 0, closing[0]), tl.where(lost, 0, closing[1]), closing[2], closing[3])
    early = (early[0], tl.where(lost, 0, early[1]))
    return at, lost, (count, text, judged, closing, marks, average, early)


@triton.jit
def load(at, mask, signal):
    """What the tables know of the requests; the counterpart of `store`."""
    return (
        (column(at, PHASE, mask), column(at, THOUGHTS, mask), column(at, START, mask), column(at, OUTPUTS, mask)),
        (column(at, LAST, mask), column(at, MATCHED, mask)),
        (column(at, STREAK, mask), column(at, JUDGED, mask), signals_at(at, VERDICT, mask, signal)),
        (column(at, DEFERRED, mask), column(at, CLOSED, mask), column(at, EXITED, mask), column(at, KEPT, mask)),
        (column(at, WOULD_EXIT, mask), column(at, ON, mask), column(at, TOLD, mask)),
        (column(at, SMOOTHED, mask), signals_at(at, MOVING, mask, signal)),
        (column(at, NEAR, mask), column(at, UNREAD, mask)),
    )


@triton.jit
def store_record(at, mask, signal, count, judged, closing, marks):
    """Write the columns of `rule.RECORD`."""
    put(at, PHASE, count[0], mask)
    put(at, THOUGHTS, count[1], mask)
    put(at, START, count[2], mask)
    put(at, EXITED, closing[2], mask)
    put(at, JUDGED, judged[1], mask)
    put(at, ON, marks[1], mask)
    tl.store(at[:, None] + VERDICT + signal, judged[2], mask=mask[:, None] & (signal < N_SIGNALS))
    put(at, WOULD_EXIT, marks[0], mask)
    put(at, KEPT, closing[3], mask)


@triton.jit
def store(at, mask, signal, state, row, slot):
    """Write the columns of `rule.STATE`."""
    count, text, judged, closing, marks, average, early = state
    store_record(at, mask, signal, count, judged, closing, marks)
    put(at, OUTPUTS, count[3], mask)
    put(at, LAST, text[0], mask)
    put(at, MATCHED, text[1], mask)
    put(at, STREAK, judged[0], mask)
    put(at, DEFERRED, closing[0], mask)
    put(at, CLOSED, closing[1], mask)
    put(at, TOLD, marks[2], mask)
    put(at, ROW, row, mask)
    put(at, SLOT, slot, mask)
    put(at, SMOOTHED, average[0], mask)
    tl.store(at[:, None] + MOVING + signal, average[1], mask=mask[:, None] & (signal < N_SIGNALS))
    put(at, NEAR, early[0], mask)
    put(at, UNREAD, early[1], mask)


@triton.jit
def load_loops(at, mask, lost, PERIOD: tl.constexpr):
    """Fingerprints of the last thinking tokens and of the remembered ones, and whether there is a loop."""
    if PERIOD:
        looping = column(at, LOOPING, mask)
        rolling = (column(at, ROLLING, mask), column(at, ROLLING + 1, mask))
        anchor = (column(at, ANCHOR, mask), column(at, ANCHOR + 1, mask))
    else:
        looping = lost.to(tl.int32) * 0
        rolling, anchor = (looping, looping), (looping, looping)
    return rolling, anchor, tl.where(lost, 0, looping)


@triton.jit
def store_loops(at, mask, loops, PERIOD: tl.constexpr):
    """Write the columns of `plugin.worker.loops.FINGERPRINT`; the counterpart of `load_loops`."""
    if PERIOD:
        put(at, ROLLING, loops[0][0], mask)
        put(at, ROLLING + 1, loops[0][1], mask)
        put(at, ANCHOR, loops[1][0], mask)
        put(at, ANCHOR + 1, loops[1][1], mask)
        put(at, LOOPING, loops[2], mask)


@triton.jit
def remember(past_at, at, known, moves, lane, signal, state, loops, PERIOD: tl.constexpr):
    """Leave a copy of each row as the step began; returns where the next one goes."""
    slot = column(at, SLOT, known)
    then = past_at + slot * N_STATE
    tl.debug_barrier()  # a lane may have read its state from where it now leaves a copy
    store(then, moves, signal, state, lane, slot)
    store_loops(then, moves, loops, PERIOD)
    return tl.where(moves, (slot + 1) % STEPS_BACK, slot)


@triton.jit
def report(at, here, moves, failed, signal, state):
    """Write the columns of `rule.REPORT`; returns the state, with the news in it marked as told."""
    count, text, judged, closing, marks, average, early = state
    store_record(at, here, signal, count, judged, closing, marks)
    put(at, CHANGED, tl.where(failed == 0, tl.where(moves & (marks[2] == 0), 1.0, 0.0), -failed), here)
    told = tl.where(moves, (failed == 0).to(tl.int32), marks[2])
    return count, text, judged, closing, (marks[0], marks[1], told), average, early
