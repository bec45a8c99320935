"""The fast replay of policies agrees with the exit rule itself, token by token, and reads outcomes off the traces."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specexit.data.rows import infer_agrees
from specexit.method.decision import EARLY_TOKENS, Policy, exit_position
from specexit.method.replay import Replay
from specexit.method.splits import ThinkTokens
from specexit.method.sums import sums_of

PLAIN, SPLIT = 5, 7
IDS = ThinkTokens(start=1, end=2, split=frozenset({SPLIT}))
ROUND = 3


def trace_of(make_trace, name, boundaries, agrees, n_think, **changes):
    return make_trace(
        id=name,
        think_ids=[SPLIT if i + 1 in boundaries else PLAIN for i in range(n_think)],
        boundaries=boundaries,
        boundary_answers=["7" if agree else "8" for agree in agrees],
        boundary_agrees=agrees,
        boundary_confidence=[0.9] * len(boundaries),
        **changes,
    )


@st.composite
def raw_traces(draw):
    """Per trace (boundaries, whether each agrees, thinking tokens, signals)."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    found = []
    for _ in range(draw(st.integers(1, 4))):
        n_think = draw(st.integers(0, 25))
        boundaries = sorted(draw(st.sets(st.integers(1, n_think)))) if n_think else []
        values = rng.uniform(0, 1, (n_think, 4))
        values[:, 2] *= 400
        found.append((boundaries, [bool(rng.random() < 0.5) for _ in boundaries], n_think, values))
    return found


def build(make_trace, raw):
    traces = [trace_of(make_trace, str(i), *rest) for i, (*rest, _) in enumerate(raw)]
    return traces, [signals for *_, signals in raw]


policies = st.builds(
    Policy,
    thresholds=st.dictionaries(st.sampled_from(["confidence", "progress", "validity"]), st.floats(0, 0.9), max_size=3),
    smoothing=st.sampled_from(["none", "ewma", "round"]),
    alpha=st.sampled_from([0.1, 0.5, 1.0]),
    patience=st.integers(1, 3),
    min_thinking_tokens=st.integers(0, 12),
    max_thinking_tokens=st.none() | st.integers(12, 24),
)


@settings(max_examples=300)
@given(
    raw_traces(),
    policies,
    st.floats(20, 400),
    st.dictionaries(st.sampled_from(["validity", "confidence"]), st.floats(0, 0.9)),
)
def test_the_fast_replay_is_the_exit_rule(make_trace, raw, policy, remaining, early):
    traces, signals = build(make_trace, raw)
    early = {} if policy.smoothing == "round" else early
    policy = policy.model_copy(update={"thresholds": policy.thresholds | {"remaining": remaining}, "early": early})
    outcome = Replay(traces, signals, round_tokens=ROUND).play(policy)
    for i, (trace, values) in enumerate(zip(traces, signals, strict=True)):
        steps = [ROUND] * len(trace.think_ids) if policy.smoothing == "round" else None
        position = exit_position(trace.think_ids, values, policy, IDS, steps)
        assert outcome.exited[i] == (position is not None)
        assert outcome.kept[i] == (len(trace.think_ids) if position is None else position + 1)


@pytest.mark.parametrize(("n", "exits"), [(EARLY_TOKENS, True), (EARLY_TOKENS + 1, False)])
def test_a_boundary_is_passed_over_from_the_first_that_has_a_token_so_far_in_front(make_trace, n, exits):
    signals = np.zeros((n, 4))
    signals[-1] = 0.9
    policy = Policy(thresholds={"validity": 0.5}, early={"validity": 0.25})
    replay = Replay([trace_of(make_trace, "a", [n], [True], n)], [signals])
    assert replay.play(policy).exited[0] == exits
    signals[0] = 0.25
    assert Replay(replay.traces, [signals]).play(policy).exited[0]


def test_outcomes_are_those_of_the_trial_answer_at_the_exit(make_trace):
    boundaries, n = [2, 4, 6], 8
    same = trace_of(make_trace, "same", boundaries, [False, True, True], n)
    wrong_to_right = trace_of(make_trace, "saved", boundaries, [False, True, True], n, reference="8", correct=False)
    unknown = trace_of(make_trace, "unknown", boundaries, [False, True, True], n, reference=None, correct=None)
    replay = Replay([same, wrong_to_right, unknown])

    first = replay.play(Policy(thresholds={}))
    assert first.kept.tolist() == [2, 2, 2]
    assert first.changed.all()
    np.testing.assert_array_equal(first.correct, [0, 1, np.nan])  # "8" was the right one in the second

    second = replay.play(Policy(thresholds={}, patience=2))
    assert second.kept.tolist() == [4, 4, 4]
    assert not second.changed.any()
    np.testing.assert_array_equal(second.correct, [1, 0, np.nan])


def test_an_exit_where_the_thinking_ends_by_itself_changes_and_cuts_nothing(make_trace):
    """A forced trial there may say otherwise than the trace, whose text it is all the same; the oracle changed answers
    by it."""
    trace = trace_of(make_trace, "a", [2, 5], [False, False], 5, boundary_state=["differs", "differs"])
    replay = Replay([trace, trace_of(make_trace, "b", [2, 5], [False, True], 5)])
    for outcome in (replay.play(Policy(thresholds={}, min_thinking_tokens=3)), replay.oracle()):
        assert outcome.kept.tolist() == [5, 5]
        assert outcome.exited.all()  # as a server reports it
        assert not (outcome.changed | outcome.inferred).any()
        assert outcome.correct.tolist() == replay.correct.tolist() == [1, 1]
        sums = sums_of(replay, outcome)
        assert (sums.exited, sums.changed, sums.kept, sums.right) == (0, 0, sums.full, 2)


def test_a_policy_that_never_exits_leaves_every_trace_as_it_is(make_trace):
    trace = trace_of(make_trace, "a", [2, 4], [False, True], 5)
    outcome = Replay([trace]).play(Policy(thresholds={}, min_thinking_tokens=6))
    assert (outcome.kept[0], outcome.exited[0], outcome.changed[0], outcome.correct[0]) == (5, False, False, 1)


def test_the_oracle_exits_at_the_first_boundary_that_agrees(make_trace):
    traces = [
        trace_of(make_trace, "early", [2, 4, 6], [False, True, False], 8),
        trace_of(make_trace, "never", [2, 4, 6], [False, False, False], 8),
        trace_of(make_trace, "no boundary", [], [], 8),
    ]
    oracle = Replay(traces).oracle()
    assert oracle.kept.tolist() == [4, 8, 8]
    assert oracle.exited.tolist() == [True, False, False]
    assert not oracle.changed.any()


@given(raw_traces())
def test_no_policy_that_changes_no_answer_cuts_more_than_the_oracle(make_trace, raw):
    traces, signals = build(make_trace, raw)
    replay = Replay(traces, signals)
    outcome, oracle = replay.play(Policy(thresholds={"validity": 0.5})), replay.oracle()
    unchanged = ~outcome.changed
    assert (oracle.kept[unchanged] <= outcome.kept[unchanged]).all()


def test_signals_of_the_wrong_number_of_traces_are_refused(make_trace):
    with pytest.raises(ValueError, match="zip"):
        Replay([make_trace()], [np.zeros((10, 4))] * 2).play(Policy())


def test_right_answers_are_told_by_the_traces_own_kind(make_trace):
    """A letter with its option's text is the letter; as mathematics it would be something else."""
    trace = make_trace(
        answer="A",
        reference="B",
        correct=False,
        answer_kind="choice",
        boundary_answers=["C", "B. 42 km", "A"],
        boundary_agrees=[False, False, True],
    )
    assert Replay([trace]).right[0].tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("states", "answers", "right"),
    [
        (["untried", "differs", "agrees"], ["8", "8", "7"], [0, 1, 0]),  # nothing is known in front of the first
        (["differs", "undecided", "agrees"], ["8", "8", "7"], [1, 0, 0]),  # "8" was cut off: 80, perhaps
        (["differs", "untried", "undecided"], ["8", "8", "8"], [1, 0, 0]),
        (["undecided", "untried", "differs"], ["8", "8", "8"], [0, 0, 1]),
        (["differs", "untried", "differs"], ["8", "8", "8"], [1, 1, 1]),  # both sides are right
        (["differs", "untried", "agrees"], ["8", "8", "7"], [1, 0, 0]),
    ],
)
def test_nobody_knows_of_a_right_answer_where_no_trial_stands_behind_it(make_trace, states, answers, right):
    """The full trace is wrong with 7, where 8 is right. Untried boundaries have the answer of the one before."""
    fields = {"boundary_state": states, "boundary_answers": answers, "boundary_agrees": infer_agrees(states)}
    fields["boundaries"] = [2, 4, 6]
    replay = Replay([make_trace(answer="7", reference="8", correct=False, **fields)])
    assert [replay.outcome_at(np.array([i])).correct[0] for i in range(3)] == right
