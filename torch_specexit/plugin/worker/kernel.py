"""One step of the exit rule as one Triton kernel, for a whole batch: the device side of `plugin.worker.fused`.

Lanes are requests. Each walks through the few tokens of its step, one after the other, as
`specexit.method.decision.ExitRule` does; its state is read from the tables and written back in place. `twin` is the
same in plain Python, and its oracle.

This module needs Triton; it is imported where there is a GPU, or Triton's interpreter.
"""

from __future__ import annotations

import triton
import triton.language as tl

from specexit.method.signals import RAW_LIMIT, SIGNALS
from torch_specexit.plugin.worker import rule
from torch_specexit.plugin.worker.kernel_rows import (
    LANES,
    N_KNOBS,
    N_REPORT,
    N_SIGNALS,
    N_STATE,
    N_WEIGHTS,
    PROMPT,
    ROW,
    STEPS_BACK,
    column,
    constant,
    go_back,
    load_loops,
    load_policy,
    remember,
    report,
    signals_at,
    store,
    store_loops,
)
from torch_specexit.plugin.worker.loops import BASES, PRIMES

BEFORE, THINKING, OVER = map(constant, (rule.BEFORE, rule.THINKING, rule.OVER))
THOUGHT, BOUNDARY = map(constant, (rule.THOUGHT, rule.BOUNDARY))
BY_SIGNALS, BY_CLIENT, BY_LOOP = map(constant, (rule.EXIT, rule.INTERRUPT, rule.LOOP))
BEGINS, STRINGS = constant(rule.BEGINS), constant(rule.BEGINS - 1)
LIMIT = constant(RAW_LIMIT)
EXPONENTIAL = constant(sum(1 << i for i, signal in enumerate(SIGNALS) if signal.activation == "exp"))
NEGATED = constant(sum(1 << i for i, sign in enumerate(rule.SIGNS) if sign < 0))
EARLY, ALL_NEAR = constant(rule.EARLY_TOKENS), constant(rule.ALL_NEAR)
BASE_0, BASE_1, PRIME_0, PRIME_1 = map(constant, (*BASES, *PRIMES))


@triton.jit
def _activate(raw, signal):
    """`specexit.method.signals.activate`."""
    clamped = tl.clamp(raw.to(tl.float32), -LIMIT, LIMIT, propagate_nan=tl.PropagateNan.ALL)
    exponential = ((1 << signal) & EXPONENTIAL) != 0
    return tl.where(exponential, tl.exp(clamped), 1.0 / (1.0 + tl.exp(-clamped)))


@triton.jit
def _both(a, b):
    return a & b


@triton.jit
def _passes(values, limits, signal):
    """`specexit.method.decision.passes`."""
    signed = tl.where(((1 << signal) & NEGATED) != 0, -values, values)
    return tl.reduce(((signed >= limits) | (limits != limits)).to(tl.int32), 1, _both)


@triton.jit
def _take_in(known, values, limits, signal, near):
    """Take in the signals of the next thinking token: whether the early thresholds hold becomes a bit of ``near``."""
    return tl.where(known, ((near << 1) | _passes(values, limits, signal)) & ALL_NEAR, near)


@triton.jit
def _pass_over(boundary, early, thoughts, most, judged):
    """Which boundaries are to be judged; one that the early thresholds pass over ends the streak of passed ones."""
    near, unread = early
    behind = EARLY - unread
    was_near = (behind < 0) | (((near >> tl.maximum(behind, 0)) & 1) == 1)
    asks = boundary & (was_near | (thoughts >= most))
    return asks, (tl.where(boundary & (asks == 0), 0, judged[0]), judged[1], judged[2])


@triton.jit
def _judge(asks, values, near, signal, policy, thoughts, judged, closing, marks):
    """Judge where there is a boundary; returns what is remembered of it, what is due, and the marks.

    Its token's signals have been taken in before. A boundary that is judged for the cap alone does not pass."""
    limits, patience, most, cause = policy
    streak, was_judged, verdict = judged
    good = (_passes(values, limits, signal) & (near >> EARLY)) == 1
    streak = tl.where(asks, tl.where(good, streak + 1, 0), streak)
    deferred = tl.where(asks & (thoughts >= most), cause, closing[0])
    deferred = tl.where(asks & (streak >= patience), BY_SIGNALS, deferred)
    judged = (streak, tl.where(asks, 1, was_judged), tl.where(asks[:, None], values, verdict))
    return judged, (deferred, closing[1], closing[2], closing[3]), (marks[0], marks[1], tl.where(asks, 0, marks[2]))


@triton.jit
def _judge_last(state, state_at, signals_ptr, last, known, active, signal, policy, limits):
    """Source ``draft``: take in the signals of the last step's tokens, and judge the last of these if it was a
    boundary."""
    count, text, judged, closing, marks, average, early = state
    near, new = early[0], tl.minimum(early[1], last)
    then = signals_ptr + column(state_at, ROW, known) * last * N_SIGNALS
    for i in tl.static_range(EARLY + 1):  # pyright: ignore[reportGeneralTypeIssues]
        here = known & (new > EARLY - i)
        values = _activate(signals_at(then, (EARLY - i) * N_SIGNALS, here, signal), signal)
        near = _take_in(here, values, limits, signal, near)
    early = (near, new * 0)
    asks, judged = _pass_over(known & (text[0] == BOUNDARY), early, count[1], policy[2], judged)
    asks = asks & active
    values = _activate(signals_at(then, 0, asks, signal), signal)
    judged, closing, marks = _judge(asks, values, near, signal, policy, count[1], judged, closing, marks)
    return count, (tl.minimum(text[0], THOUGHT), text[1]), judged, closing, marks, average, early  # only once


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
def _judge_row(now, raw, signal, policy, limits, alpha, active, state, SMOOTH: tl.constexpr):
    """Source ``fc``: judge the token before this one, if it was a boundary, by the row that has drawn this one."""
    count, text, judged, closing, marks, average, early = state
    values, thought = _activate(raw, signal), now & (text[0] >= THOUGHT)
    if SMOOTH:
        average = _smooth(thought, values, alpha, average)
        values = average[1]
    early = (_take_in(thought, values, limits, signal, early[0]), tl.where(now, 0, early[1]))
    asks = now & (text[0] == BOUNDARY) & _may_end(marks, policy[3]) & active
    judged, closing, marks = _judge(asks, values, early[0], signal, policy, count[1], judged, closing, marks)
    return count, text, judged, closing, marks, average, early


@triton.jit
def _look_for_loops(
    thought,
    token,
    n,
    recent_at,
    loops,
    SEARCH: tl.constexpr,
):
    """Take a thinking token, number ``n``, into the fingerprint; see `torch_specexit.plugin.worker.loops`."""
    PERIOD: tl.constexpr = SEARCH[0]
    SPAN: tl.constexpr = SEARCH[1]
    RING: tl.constexpr = SEARCH[2]
    rolling, anchor, looping = loops
    oldest = tl.load(recent_at + (n - SPAN) % RING, mask=thought & (n >= SPAN), other=0).to(tl.int64)
    entering = (token + 1).to(tl.int64)
    first = ((rolling[0].to(tl.int64) * BASE_0 + entering + oldest * SEARCH[3]) % PRIME_0).to(tl.int32)
    second = ((rolling[1].to(tl.int64) * BASE_1 + entering + oldest * SEARCH[4]) % PRIME_1).to(tl.int32)
    tl.store(recent_at + n % RING, entering.to(tl.int32), mask=thought)
    first, second = tl.where(thought, first, rolling[0]), tl.where(thought, second, rolling[1])
    looping = tl.where(thought & (first == anchor[0]) & (second == anchor[1]), 1, looping)
    remembered = thought & (n + 1 >= SPAN) & ((n + 1) % PERIOD == 0)
    anchor = (tl.where(remembered, first, anchor[0]), tl.where(remembered, second, anchor[1]))
    return (first, second), anchor, looping


@triton.jit
def _force(now, active, token_at, closing_ptr, limits, count, text, closing, marks, N_CLOSING: tl.constexpr):
    """Put the closing token that is due in the place of what was drawn; in shadow mode, only take note of it, except
    where the client wants it."""
    hard, cause, shadow = limits
    matched, looping = text
    deferred, closed, exited, kept = closing
    would_exit, on, told = marks
    thinking = now & (count[0] == THINKING) & _may_end(marks, cause)
    capped = (count[1] >= hard) & ((on > 0) | (hard == 0))
    circles = (looping > 0) & (on > 0) & (would_exit == 0)  # elsewhere a client waits for a boundary
    at_any = thinking & (deferred == 0) & (matched == 0) & (capped | circles)
    deferred = tl.where(at_any & active, tl.where(capped, cause, BY_LOOP), deferred)
    noted = now & (deferred > 0) & shadow & (deferred != BY_CLIENT)
    would_exit = tl.where(noted & (would_exit == 0), count[1], would_exit)
    due = now & (deferred > 0) & (noted == 0) & active
    deferred = tl.where(noted, 0, deferred)
    was = column(token_at, 0, now)
    token = tl.where(due, tl.load(closing_ptr + closed, mask=due, other=0), was)
    replaced = due & (token != was)
    tl.store(token_at, token, mask=replaced)
    exited = tl.where(due, deferred, exited)
    kept = tl.where(due & (closed == 0), count[1], kept)
    closed = tl.where(due, closed + 1, closed)
    done = due & (closed == N_CLOSING)
    closing = (tl.where(done, 0, deferred), tl.where(done, 0, closed), exited, kept)
    return token, replaced, closing, (would_exit, tl.where(due, 1, on), tl.where(noted | due, 0, told))


@triton.jit
def _read(now, token, meant, marker_ptr, reading, state, N_MARKER: tl.constexpr):
    """Take in one token; returns the state after it, and where it is a boundary."""
    count, text, judged, closing, marks, average, early = state
    _, least, most, cause = reading
    phase, thoughts, start, outputs = count
    would_exit, on, told = marks
    matched = text[1]
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
    early = (early[0], early[1] + thought.to(tl.int32))
    boundary = thought & (matched == 0) & (closing[1] == 0) & ((meant & STRINGS) != 0)
    boundary = boundary & (thoughts >= least) & _may_end(marks, cause)
    boundary, judged = _pass_over(boundary, early, thoughts, most, judged)
    start = tl.where(begins, outputs, start)
    phase = tl.where(ends, OVER, tl.where(begins, THINKING, phase))
    text = (tl.where(now, thought.to(tl.int32) + boundary.to(tl.int32), text[0]), matched)
    marks = (would_exit, on, tl.where(begins | ends, 0, told))
    return (phase, thoughts, start, outputs), text, judged, closing, marks, average, early, boundary


@triton.jit
def _take(now, active, token_at, words, limits, reading, state, loops, CLOSING: tl.constexpr, SEARCH: tl.constexpr):
    """One token of each request: put another in its place where that is due, and read it.

    Returns the state after it, where it was replaced, and where it is a boundary."""
    meaning_ptr, vocabulary, closing_ptr, recent_at = words
    count, text, judged, closing, marks, average, early = state
    token, replaced, closing, marks = _force(
        now, active, token_at, closing_ptr, limits, count, (text[1], loops[2]), closing, marks, CLOSING[0]
    )
    inside = now & (token >= 0) & (token < vocabulary)
    meant = column(meaning_ptr + token, 0, inside) & reading[0]
    marker_ptr, before = closing_ptr + (CLOSING[0] - CLOSING[1]), count[1]
    state = (count, text, judged, closing, marks, average, early)
    count, text, judged, closing, marks, average, early, boundary = _read(
        now, token, meant, marker_ptr, reading, state, CLOSING[1]
    )
    if SEARCH[0]:
        thought = now & (text[0] >= THOUGHT)
        loops = _look_for_loops(thought, token, before, recent_at, loops, SEARCH)
    return (count, text, judged, closing, marks, average, early), loops, replaced, boundary


# Each is an argument of its own. Triton would take a tuple of them, `rule.Tables` for one, but specialises what is in a
# tuple, whatever is asked for: a batch of one request, or a tensor that begins in the middle of another, would be one
# more variant of the kernel, compiled while requests wait.
POINTERS = (
    *("state_ptr", "knobs_ptr", "weights_ptr", "past_ptr", "rows_ptr", "ends_ptr", "logits_rows_ptr", "positions_ptr"),
    *("signals_ptr", "failed_ptr", "meaning_ptr", "closing_ptr", "tokens_ptr", "n_ptr", "rejected_ptr", "report_ptr"),
    *("forced_ptr", "recent_ptr"),
)
NUMBERS = ("tokens_stride", "n_batch", "n_rows", "width", "last", "vocabulary")


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
    signals_ptr,  # [rows, signals], or [rows, last, signals] of the step before; raw
    failed_ptr,  # [1]
    meaning_ptr,  # [vocabulary + 1]
    closing_ptr,  # [closing]
    tokens_ptr,  # [n_batch, width], rewritten
    n_ptr,  # [n_batch], rewritten
    rejected_ptr,  # [n_batch], rewritten
    report_ptr,  # [n_batch, report]
    forced_ptr,  # [n_batch]
    recent_ptr,  # [requests, ring]
    tokens_stride,
    n_batch,  # requests of the step
    n_rows,  # with those that it leaves out, whose last token is still to be judged
    width,
    last,
    vocabulary,
    DRAFT: tl.constexpr,
    SMOOTH: tl.constexpr,
    COUNTS: tl.constexpr,
    PADDED: tl.constexpr,
    CLOSING: tl.constexpr,  # how many tokens are forced at an exit, and how many of these are the end marker
    SEARCH: tl.constexpr,  # period, span, ring and both `leaving` of `plugin.worker.loops.LoopSearch`; zeros for none
    BLOCK: tl.constexpr,
):
    """See `torch_specexit.plugin.worker.rule.Rule.step`."""
    lane, signal = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, LANES)[None, :]
    known, here = lane < n_rows, lane < n_batch
    failed = tl.load(failed_ptr + lane * 0)
    active, left_alone = failed == 0, (failed > 0) & (failed < 1)
    row = tl.load(rows_ptr + lane, mask=known, other=0).to(tl.int64)
    state_at, past_at = state_ptr + row * N_STATE, past_ptr + row * ((STEPS_BACK + 1) * N_STATE)
    knobs_at, weights_at = knobs_ptr + row * N_KNOBS, weights_ptr + row * N_WEIGHTS
    words = (meaning_ptr, vocabulary, closing_ptr, recent_ptr + row * SEARCH[2])
    policy, (early, alpha), limits, reading = load_policy(knobs_at, weights_at, known, signal)
    token_at, drawn = tokens_ptr + lane * tokens_stride, column(n_ptr + lane, 0, here)
    moves = here & (drawn > 0)
    first = tl.load(ends_ptr + lane - 1, mask=here & (lane > 0), other=0).to(tl.int64)  # after other lanes' rows
    fed_at, prompt = logits_rows_ptr + first, column(knobs_at, PROMPT, known)
    at, lost, state = go_back(state_at, past_at, prompt, fed_at, positions_ptr, known, moves, left_alone, signal)
    loops = load_loops(at, known, lost, SEARCH[0])
    if DRAFT:
        state = _judge_last(state, state_at, signals_ptr, last, known, active, signal, policy, early)
    slot = remember(past_at, at, known, moves, lane, signal, state, loops, SEARCH[0])

    n, forced = drawn, lane < 0
    for j in range(width):
        now = j < n
        if not DRAFT:
            raw = signals_at(signals_ptr + (first + j) * N_SIGNALS, 0, now, signal)
            state = _judge_row(now, raw, signal, policy, early, alpha, active, state, SMOOTH)
        state, loops, replaced, boundary = _take(
            now, active, token_at + j, words, limits, reading, state, loops, CLOSING, SEARCH
        )
        forced = forced | replaced
        n = tl.where(replaced | (boundary & DRAFT & active), j + 1, n)

    if PADDED:
        for j in range(width):
            tl.store(token_at + j, -1, mask=moves & (j >= n))
    if COUNTS:
        tl.store(rejected_ptr + lane, column(rejected_ptr + lane, 0, here) + (drawn - n), mask=here)
    tl.store(n_ptr + lane, n, mask=here)
    tl.store(forced_ptr + lane, forced, mask=here)
    state = report(report_ptr + lane * N_REPORT, here, moves, failed, signal, state)
    store(state_at, known, signal, state, lane, slot)
    store_loops(state_at, known, loops, SEARCH[0])
