"""One step of the exit rule as one Triton kernel, for a whole batch: the device side of `plugin.worker.fused`.

Lanes are requests. Each walks through the few tokens of its step, one after the other, as
`specexit.method.decision.ExitRule` does; its state is read from the tables and written back in place. `twin` is the
same in numpy, and its oracle.

This module needs Triton; it is imported where there is a GPU, or Triton's interpreter.
"""

from __future__ import annotations

import triton
import triton.language as tl

from specexit.method.signals import NAMES, RAW_LIMIT, SIGNALS
from torch_specexit.plugin.worker import rule
from torch_specexit.plugin.worker.loops import BASES, FINGERPRINT, PRIMES

_N = len(NAMES)


def _constant(value: float) -> tl.constexpr:
    return tl.constexpr(value)


BEFORE, THINKING, OVER = map(_constant, (rule.BEFORE, rule.THINKING, rule.OVER))
THOUGHT, BOUNDARY = map(_constant, (rule.THOUGHT, rule.BOUNDARY))
BY_SIGNALS, BY_CLIENT, BY_LOOP = map(_constant, (rule.EXIT, rule.INTERRUPT, rule.LOOP))
BEGINS, STRINGS = _constant(rule.BEGINS), _constant(rule.BEGINS - 1)
LIMIT = _constant(RAW_LIMIT)
N_SIGNALS, LANES = _constant(_N), _constant(triton.next_power_of_2(_N))
EXPONENTIAL = _constant(sum(1 << i for i, signal in enumerate(SIGNALS) if signal.activation == "exp"))
NEGATED = _constant(sum(1 << i for i, sign in enumerate(rule.SIGNS) if sign < 0))
N_STATE, N_REPORT = _constant(len(rule.STATE)), _constant(len(rule.REPORT))
N_KNOBS, N_WEIGHTS, STEPS_BACK = _constant(len(rule.KNOBS)), _constant(len(rule.WEIGHTS)), _constant(rule.STEPS_BACK)
PHASE, THOUGHTS, START, EXITED, JUDGED, ON = (_constant(rule.STATE.index(name)) for name in rule.RECORD[:6])
VERDICT, WOULD_EXIT = _constant(rule.STATE.index(NAMES[0])), _constant(rule.STATE.index("would_exit"))
STREAK, DEFERRED, CLOSED, MATCHED, LAST, OUTPUTS, ROW, TOLD, SLOT, SMOOTHED = (
    _constant(rule.STATE.index(name))
    for name in ("streak", "deferred", "closed", "matched", "last", "outputs", "row", "told", "slot", "smoothed")
)
MOVING, CHANGED = _constant(rule.STATE.index(f"moving_{NAMES[0]}")), _constant(len(rule.RECORD))
ROLLING, ANCHOR, LOOPING = (_constant(rule.STATE.index(FINGERPRINT[i])) for i in (0, 2, 4))
BASE_0, BASE_1, PRIME_0, PRIME_1 = map(_constant, (*BASES, *PRIMES))
WANTED, PATIENCE, LEAST, MOST, HARD, CAUSE, SHADOW, PROMPT = (_constant(i) for i in range(len(rule.KNOBS)))


@triton.jit
def _column(at, column, mask):
    return tl.load(at + column, mask=mask, other=0).to(tl.int32)


@triton.jit
def _signals(at, column, mask, signal):
    inside = mask[:, None] & (signal < N_SIGNALS)
    return tl.load(at[:, None] + column + signal, mask=inside, other=0)


@triton.jit
def _put(at, column, value, mask):
    tl.store(at + column, value.to(tl.float32), mask=mask)


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
def _recall(state_at, past_at, stale, outputs):
    """Where the state of each request is to be read from, and whether nothing is known of what it was like there."""
    at, found = state_at, stale != stale
    for step_back in tl.static_range(STEPS_BACK + 1):  # pyright: ignore[reportGeneralTypeIssues]
        then = past_at + step_back * N_STATE
        count = _column(then, OUTPUTS, stale)
        here = stale & (count == outputs) & (found == 0)
        at = tl.where(here, then, at)
        found = found | here
        tl.store(then + OUTPUTS, -1.0, mask=stale & (count > outputs))  # of a branch that vLLM has dropped
    return at, stale & (found == 0)


@triton.jit
def _load(at, mask, signal):
    """What the tables know of the requests; the counterpart of `_store`."""
    return (
        (_column(at, PHASE, mask), _column(at, THOUGHTS, mask), _column(at, START, mask), _column(at, OUTPUTS, mask)),
        (_column(at, LAST, mask), _column(at, MATCHED, mask)),
        (_column(at, STREAK, mask), _column(at, JUDGED, mask), _signals(at, VERDICT, mask, signal)),
        (_column(at, DEFERRED, mask), _column(at, CLOSED, mask), _column(at, EXITED, mask)),
        (_column(at, WOULD_EXIT, mask), _column(at, ON, mask), _column(at, TOLD, mask)),
        (_column(at, SMOOTHED, mask), _signals(at, MOVING, mask, signal)),
    )


@triton.jit
def _store_record(at, mask, signal, count, judged, exited, marks):
    """Write the columns of `rule.RECORD`."""
    _put(at, PHASE, count[0], mask)
    _put(at, THOUGHTS, count[1], mask)
    _put(at, START, count[2], mask)
    _put(at, EXITED, exited, mask)
    _put(at, JUDGED, judged[1], mask)
    _put(at, ON, marks[1], mask)
    tl.store(at[:, None] + VERDICT + signal, judged[2], mask=mask[:, None] & (signal < N_SIGNALS))
    _put(at, WOULD_EXIT, marks[0], mask)


@triton.jit
def _store(at, mask, signal, state, row, slot):
    """Write the columns of `rule.STATE`."""
    count, text, judged, closing, marks, average = state
    _store_record(at, mask, signal, count, judged, closing[2], marks)
    _put(at, OUTPUTS, count[3], mask)
    _put(at, LAST, text[0], mask)
    _put(at, MATCHED, text[1], mask)
    _put(at, STREAK, judged[0], mask)
    _put(at, DEFERRED, closing[0], mask)
    _put(at, CLOSED, closing[1], mask)
    _put(at, TOLD, marks[2], mask)
    _put(at, ROW, row, mask)
    _put(at, SLOT, slot, mask)
    _put(at, SMOOTHED, average[0], mask)
    tl.store(at[:, None] + MOVING + signal, average[1], mask=mask[:, None] & (signal < N_SIGNALS))


@triton.jit
def _judge(asks, values, signal, policy, thoughts, judged, deferred, told):
    """Judge where there is a boundary; returns what is remembered of it, and why the closing tokens are due."""
    limits, patience, most, cause = policy
    streak, was_judged, verdict = judged
    signed = tl.where(((1 << signal) & NEGATED) != 0, -values, values)
    good = tl.reduce((signed >= limits).to(tl.int32), 1, _both) == 1
    streak = tl.where(asks, tl.where(good, streak + 1, 0), streak)
    deferred = tl.where(asks & (thoughts >= most), cause, deferred)
    deferred = tl.where(asks & (streak >= patience), BY_SIGNALS, deferred)
    judged = (streak, tl.where(asks, 1, was_judged), tl.where(asks[:, None], values, verdict))
    return judged, deferred, tl.where(asks, 0, told)


@triton.jit
def _smooth(thought, values, alpha, average):
    """The moving average, where there is a thinking token."""
    started, moving = average
    mixed = alpha[:, None] * values + (1 - alpha)[:, None] * moving
    moving = tl.where(thought[:, None], tl.where((started > 0)[:, None], mixed, values), moving)
    return tl.where(thought, 1, started), moving


@triton.jit
def _may_end(marks, cause):
    """Whether thinking may still be ended: exits are wanted, and there was none in shadow mode; or the client says
    so."""
    return ((marks[0] == 0) & (marks[1] > 0)) | (cause == BY_CLIENT)


@triton.jit
def _load_loops(at, mask):
    """Fingerprints of the last thinking tokens, and of those that are remembered, and whether there is a loop."""
    return (
        (_column(at, ROLLING, mask), _column(at, ROLLING + 1, mask)),
        (_column(at, ANCHOR, mask), _column(at, ANCHOR + 1, mask)),
        _column(at, LOOPING, mask),
    )


@triton.jit
def _store_loops(at, mask, loops):
    _put(at, ROLLING, loops[0][0], mask)
    _put(at, ROLLING + 1, loops[0][1], mask)
    _put(at, ANCHOR, loops[1][0], mask)
    _put(at, ANCHOR + 1, loops[1][1], mask)
    _put(at, LOOPING, loops[2], mask)


@triton.jit
def _look_for_loops(
    thought,
    token,
    n,
    recent_at,
    loops,
    PERIOD: tl.constexpr,
    SPAN: tl.constexpr,
    RING: tl.constexpr,
    LEAVING_0: tl.constexpr,
    LEAVING_1: tl.constexpr,
):
    """Take a thinking token, number ``n``, into the fingerprint; see `torch_specexit.plugin.worker.loops`."""
    rolling, anchor, looping = loops
    oldest = tl.load(recent_at + (n - SPAN) % RING, mask=thought & (n >= SPAN), other=0).to(tl.int64)
    entering = (token + 1).to(tl.int64)
    first = ((rolling[0].to(tl.int64) * BASE_0 + entering + oldest * LEAVING_0) % PRIME_0).to(tl.int32)
    second = ((rolling[1].to(tl.int64) * BASE_1 + entering + oldest * LEAVING_1) % PRIME_1).to(tl.int32)
    tl.store(recent_at + n % RING, entering.to(tl.int32), mask=thought)
    first, second = tl.where(thought, first, rolling[0]), tl.where(thought, second, rolling[1])
    looping = tl.where(thought & (first == anchor[0]) & (second == anchor[1]), 1, looping)
    remembered = thought & (n + 1 >= SPAN) & ((n + 1) % PERIOD == 0)
    anchor = (tl.where(remembered, first, anchor[0]), tl.where(remembered, second, anchor[1]))
    return (first, second), anchor, looping


@triton.jit
def _force(now, active, token_at, closing_ptr, limits, count, text, closing, marks, N_CLOSING: tl.constexpr):
    """Put the closing token that is due in the place of what was drawn; in shadow mode, only take note of it."""
    hard, cause, shadow = limits
    matched, looping = text
    deferred, closed, exited = closing
    would_exit, on, told = marks
    thinking = now & (count[0] == THINKING) & _may_end(marks, cause)
    capped = count[1] >= hard
    at_any = thinking & (deferred == 0) & (matched == 0) & (capped | (looping > 0))
    deferred = tl.where(at_any & active, tl.where(capped, cause, BY_LOOP), deferred)
    noted = now & (deferred > 0) & shadow
    would_exit = tl.where(noted & (would_exit == 0), count[1], would_exit)
    due = now & (deferred > 0) & (shadow == 0) & active
    deferred = tl.where(noted, 0, deferred)
    was = _column(token_at, 0, now)
    token = tl.where(due, tl.load(closing_ptr + closed, mask=due, other=0), was)
    replaced = due & (token != was)
    tl.store(token_at, token, mask=replaced)
    exited = tl.where(due, deferred, exited)
    closed = tl.where(due, closed + 1, closed)
    done = due & (closed == N_CLOSING)
    closing = (tl.where(done, 0, deferred), tl.where(done, 0, closed), exited)
    return token, replaced, closing, (would_exit, tl.where(due, 1, on), tl.where(noted | due, 0, told))


@triton.jit
def _read(now, token, meant, marker_ptr, least, cause, count, matched, closed, marks, N_MARKER: tl.constexpr):
    """Take in one token; returns the state behind it, and where it is a boundary."""
    phase, thoughts, start, outputs = count
    would_exit, on, told = marks
    thinking = now & (phase == THINKING)
    begins = now & (phase == BEFORE) & ((meant & BEGINS) != 0)
    goes_on = token == tl.load(marker_ptr + matched, mask=thinking, other=-1)
    begun = token == tl.load(marker_ptr + matched * 0, mask=thinking, other=-1)
    matched = tl.where(thinking, tl.where(goes_on, matched + 1, begun.to(tl.int32)), matched)
    ends = thinking & (matched == N_MARKER)
    matched = tl.where(ends, 0, matched)
    thought = thinking & (ends == 0)
    thoughts += thought.to(tl.int32) - (N_MARKER - 1) * ends.to(tl.int32)
    outputs += now.to(tl.int32)
    boundary = thought & (matched == 0) & (closed == 0) & ((meant & STRINGS) != 0)
    boundary = boundary & (thoughts >= least) & _may_end(marks, cause)
    start = tl.where(begins, outputs, start)
    phase = tl.where(ends, OVER, tl.where(begins, THINKING, phase))
    last = thought.to(tl.int32) + boundary.to(tl.int32)
    told = tl.where(begins | ends, 0, told)
    return boundary, (phase, thoughts, start, outputs), (last, matched), (would_exit, on, told)


POINTERS = (
    *("state_ptr", "knobs_ptr", "weights_ptr", "past_ptr", "rows_ptr", "ends_ptr", "logits_rows_ptr", "positions_ptr"),
    *("signals_ptr", "failed_ptr", "meaning_ptr", "closing_ptr", "tokens_ptr", "n_ptr", "rejected_ptr", "report_ptr"),
    *("forced_ptr", "recent_ptr"),
)
NUMBERS = ("tokens_stride", "n_batch", "n_rows", "width", "vocabulary")


@triton.jit(do_not_specialize=NUMBERS, do_not_specialize_on_alignment=POINTERS)
def step(
    state_ptr,  # [requests, state], and the other tables; see `rule.Tables`
    knobs_ptr,
    weights_ptr,
    past_ptr,
    rows_ptr,  # [n_rows] of the tables
    ends_ptr,  # [n_batch]; see `rule.Sampled`
    logits_rows_ptr,
    positions_ptr,
    signals_ptr,  # [rows, signals], raw
    failed_ptr,  # [1]
    meaning_ptr,  # [vocabulary + 1]
    closing_ptr,  # [closing]
    tokens_ptr,  # [n_batch, width], rewritten
    n_ptr,  # [n_batch], rewritten
    rejected_ptr,  # [n_batch], rewritten
    report_ptr,  # [n_batch, report]
    forced_ptr,  # [n_batch]
    recent_ptr,  # [requests, RING]
    tokens_stride,
    n_batch,  # requests of the step
    n_rows,  # with those that it leaves out, whose last token is still to be judged
    width,
    vocabulary,
    DRAFT: tl.constexpr,
    SMOOTH: tl.constexpr,
    COUNTS: tl.constexpr,
    PADDED: tl.constexpr,
    N_CLOSING: tl.constexpr,
    N_MARKER: tl.constexpr,
    PERIOD: tl.constexpr,  # 0 where loops are not looked for; see `plugin.worker.loops.LoopSearch`
    SPAN: tl.constexpr,
    RING: tl.constexpr,
    LEAVING_0: tl.constexpr,
    LEAVING_1: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """See `torch_specexit.plugin.worker.rule.Rule.step`."""
    lane, signal = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, LANES)[None, :]
    known, here = lane < n_rows, lane < n_batch
    active = tl.load(failed_ptr + lane * 0) == 0
    row = tl.load(rows_ptr + lane, mask=known, other=0).to(tl.int64)
    state_at, knobs_at, weights_at = state_ptr + row * N_STATE, knobs_ptr + row * N_KNOBS, weights_ptr + row * N_WEIGHTS
    past_at = past_ptr + row * ((STEPS_BACK + 1) * N_STATE)
    wanted, least = _column(knobs_at, WANTED, known), _column(knobs_at, LEAST, known)
    cause, shadow = _column(knobs_at, CAUSE, known), _column(knobs_at, SHADOW, known) == 1
    limits = (_column(knobs_at, HARD, known), cause, shadow)
    policy = (
        _signals(weights_at, 0, known, signal),
        _column(knobs_at, PATIENCE, known),
        _column(knobs_at, MOST, known),
    )
    policy = (policy[0], policy[1], policy[2], cause)
    alpha = tl.load(weights_at + N_SIGNALS, mask=known, other=0)
    token_at, drawn = tokens_ptr + lane * tokens_stride, _column(n_ptr + lane, 0, here)
    moves = here & (drawn > 0)

    # Go back to where vLLM has gone on from, where that is not behind the last step that a row has seen.
    first = tl.load(ends_ptr + lane - 1, mask=here & (lane > 0), other=0).to(tl.int64)  # behind those of others
    fed = tl.load(logits_rows_ptr + first, mask=moves, other=0).to(tl.int64)
    position = tl.load(positions_ptr + fed, mask=moves, other=0).to(tl.int32)
    outputs = position + 1 - _column(knobs_at, PROMPT, known)
    stale = moves & (outputs != _column(state_at, OUTPUTS, known))
    at, lost = _recall(state_at, past_at, stale, outputs)
    count, text, judged, closing, marks, average = _load(at, known, signal)
    count = (count[0], count[1], count[2], tl.where(stale, outputs, count[3]))
    marks = (marks[0], tl.where(lost, 0, marks[1]), tl.where(stale, 0, marks[2]))
    text = (tl.where(lost, 0, text[0]), tl.where(lost, 0, text[1]))  # nothing is left to be judged, or due
    closing = (tl.where(lost, 0, closing[0]), tl.where(lost, 0, closing[1]), closing[2])
    if PERIOD:
        loops, recent_at = _load_loops(at, known), recent_ptr + row * RING
        loops = (loops[0], loops[1], tl.where(lost, 0, loops[2]))
    else:
        loops, recent_at = ((count[0], count[0]), (count[0], count[0]), count[0] * 0), recent_ptr

    if DRAFT:
        asks = known & (text[0] == BOUNDARY) & active
        then = signals_ptr + _column(state_at, ROW, asks) * N_SIGNALS
        values = _activate(_signals(then, 0, asks, signal), signal)
        judged, deferred, told = _judge(asks, values, signal, policy, count[1], judged, closing[0], marks[2])
        closing, marks = (deferred, closing[1], closing[2]), (marks[0], marks[1], told)
        text = (tl.minimum(text[0], THOUGHT), text[1])  # only once
    slot = _column(at, SLOT, known)
    then = past_at + slot * N_STATE
    tl.debug_barrier()  # a lane may have read its state from where it now leaves a copy
    _store(then, moves, signal, (count, text, judged, closing, marks, average), lane, slot)
    if PERIOD:
        _store_loops(then, moves, loops)
    slot = tl.where(moves, (slot + 1) % STEPS_BACK, slot)

    n, forced = drawn, lane < 0
    for j in range(width):
        now = j < n
        if not DRAFT:
            values = _activate(_signals(signals_ptr + (first + j) * N_SIGNALS, 0, now, signal), signal)
            if SMOOTH:
                average = _smooth(now & (text[0] >= THOUGHT), values, alpha, average)
                values = average[1]
            asks = now & (text[0] == BOUNDARY) & _may_end(marks, cause) & active
            judged, deferred, told = _judge(asks, values, signal, policy, count[1], judged, closing[0], marks[2])
            closing, marks = (deferred, closing[1], closing[2]), (marks[0], marks[1], told)
        token, replaced, closing, marks = _force(
            now, active, token_at + j, closing_ptr, limits, count, (text[1], loops[2]), closing, marks, N_CLOSING
        )
        inside = now & (token >= 0) & (token < vocabulary)
        meant = _column(meaning_ptr + token, 0, inside) & wanted
        before = count
        boundary, count, read, marks = _read(
            now,
            token,
            meant,
            closing_ptr + (N_CLOSING - N_MARKER),
            least,
            cause,
            count,
            text[1],
            closing[1],
            marks,
            N_MARKER,
        )
        text = (tl.where(now, read[0], text[0]), read[1])
        if PERIOD:
            thought = now & (text[0] >= THOUGHT)
            loops = _look_for_loops(
                thought, token, before[1], recent_at, loops, PERIOD, SPAN, RING, LEAVING_0, LEAVING_1
            )
        forced = forced | replaced
        n = tl.where(replaced | (boundary & DRAFT & active), j + 1, n)

    if PADDED:
        for j in range(width):
            tl.store(token_at + j, -1, mask=moves & (j >= n))
    if COUNTS:
        tl.store(rejected_ptr + lane, _column(rejected_ptr + lane, 0, here) + (drawn - n), mask=here)
    tl.store(n_ptr + lane, n, mask=here)
    tl.store(forced_ptr + lane, forced, mask=here)
    report_at = report_ptr + lane * N_REPORT
    _store_record(report_at, here, signal, count, judged, closing[2], marks)
    changed = tl.where(moves & (marks[2] == 0), 1, 0)
    _put(report_at, CHANGED, tl.where(active, changed, -1), here)
    marks = (marks[0], marks[1], tl.where(moves, 1, marks[2]))
    _store(state_at, known, signal, (count, text, judged, closing, marks, average), lane, slot)
    if PERIOD:
        _store_loops(state_at, known, loops)
