"""The certificate is never false: against a direct statement of the theorem, on trace sets that are made to mislead."""

import math
from bisect import bisect_left
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from specexit.data.outlines import outlines
from specexit.data.rows import can_judge, fill_untried, infer_agrees
from specexit.method.certify import (
    CertificateError,
    Claim,
    certify,
    fixed_sequence,
    label_noise_bound,
    p_value,
    prompts_for,
    required_n,
)
from specexit.method.decision import Policy, exit_position
from specexit.method.judged import Counts, Judged, judge
from specexit.method.replay import Replay
from specexit.method.sample import Sample, SampleError
from specexit.method.splits import ThinkTokens
from specexit.method.sums import NOTHING

TAUS = (0.99, 0.9, 0.7, 0.5, 0.3)
POLICIES = [Policy(thresholds={"validity": tau}) for tau in TAUS]
SPLIT = 9
IDS = ThinkTokens(start=1, end=2, split=frozenset({SPLIT}))


VALIDITY = st.lists(st.sampled_from([0.05, 0.4, 0.6, 0.8, 0.95, 0.995]), min_size=3, max_size=3)


@st.composite
def kinds_of_traces(draw):
    """A crowd of good traces, now and then, and a few of every bad kind: each with how many and of how many prompts."""
    good = st.fixed_dictionaries(
        {
            "n": st.integers(50, 150),
            "prompts": st.sampled_from([40, 90, 150]),
            "finish_reason": st.just("stop"),
            "answer": st.just("7"),
            "states": st.lists(st.just("agrees"), min_size=1, max_size=3),
            "cut_off": st.just(None),
            "validity": VALIDITY,
        }
    )
    bad = st.fixed_dictionaries(
        {
            "n": st.integers(1, 20),
            "prompts": st.sampled_from([1, 5, 20]),
            "finish_reason": st.sampled_from(["stop", "stop", "stop", "length"]),
            "answer": st.sampled_from(["7", "7", "7", None]),
            "states": st.lists(st.sampled_from(["agrees", "differs", "differs", "undecided", "untried"]), max_size=3),
            "cut_off": st.sampled_from([None, "7", "8"]),
            "validity": VALIDITY,
        }
    )
    return draw(st.lists(good, max_size=2)) + draw(st.lists(bad, min_size=1, max_size=4))


@pytest.fixture(scope="module")
def build(make_trace):
    """Traces and signals of such kinds; ``cut_off`` is what an undecided trial had written. Every fifth is wrong."""

    def make(kinds):
        traces, signals = [], []
        for number, kind in enumerate(kinds):
            said = {"agrees": "7", "differs": "8", "undecided": kind["cut_off"]}
            for i in range(kind["n"]):
                states, right = kind["states"], i % 5 != 0
                ends = [3 * (j + 1) for j in range(len(states))]
                think = [SPLIT if at + 1 in ends else 20 for at in range(10)]
                traces.append(
                    make_trace(
                        id=f"{number}-{i}",
                        prompt_ids=[number, i % kind["prompts"]],
                        think_ids=think,
                        boundaries=ends,
                        boundary_answers=fill_untried([said.get(state) for state in states]),
                        boundary_agrees=infer_agrees(states),
                        boundary_state=states,
                        boundary_confidence=[1.0] * len(states),
                        finish_reason=kind["finish_reason"],
                        answer=kind["answer"],
                        reference="7" if right else "8",
                        correct=right and kind["answer"] == "7",
                    )
                )
                values = np.zeros((10, 4), np.float32)
                for end, validity in zip(ends, kind["validity"], strict=False):
                    values[end - 1, 3] = validity
                signals.append(values)
        return traces, signals

    return make


def theorem(traces, signals, claim, unjudged):
    """Directly: (prompts, losses of each policy on each of them, index of the policy that may be certified, or None).

    A trace counts if it finished with an answer, has a boundary. An exit whose trial does not say that it keeps the
    answer is an error, or, where accuracy is what may be lost, if that answer is right: here no other is. Where nothing
    was tried no trial says so, though those on both sides do. A prompt's loss is the mean of its traces' errors. The
    policies are tested from the cautious end; the exact binomial tail where every prompt has one trace, else the
    smaller of Hoeffding's bound and e times the tail of the sum rounded up.
    """
    epsilon, delta = claim.epsilon, claim.delta
    losses: dict[tuple, list[list[float]]] = {}
    for trace, values in zip(traces, signals, strict=True):
        able = trace.finish_reason == "stop" and trace.answer is not None and trace.boundaries
        if not able and unjudged == "refuse":
            continue
        row = []
        for policy in POLICIES:
            at = exit_position(trace.think_ids, values, policy, IDS) if able else None
            wrong = at is not None and trace.boundary_state[trace.boundaries.index(at + 1)] != "agrees"
            wrong &= claim.risk == "answer_changed" or trace.correct
            row.append(float(wrong or not able))
        losses.setdefault(tuple(trace.prompt_ids), []).append(row)
    table = np.array([np.mean(rows, axis=0) for rows in losses.values()]).reshape(-1, len(POLICIES))
    n, certified = len(table), None
    for i, total in enumerate(table.sum(axis=0)):
        if all(len(rows) == 1 for rows in losses.values()):
            p = scipy_stats.binom.cdf(round(total), n, epsilon)
        else:
            mean = total / n
            p = 1.0
            if mean < epsilon:
                kl = scipy_stats.entropy([mean, 1 - mean], [epsilon, 1 - epsilon])
                p = min(math.exp(-n * kl), math.e * scipy_stats.binom.cdf(math.ceil(total - 1e-9), n, epsilon))
        if p > delta:
            break
        certified = i
    return table, certified


def judged_by(traces, signals, risk="answer_changed", **options):
    """The prompts of traces, and what each policy does to them."""
    able = [(trace, values) for trace, values in zip(traces, signals, strict=True) if can_judge(trace)]
    sample = Sample(outlines(traces), **options)
    blocks = [Replay([trace for trace, _ in able], [values for _, values in able])] if able else []
    return sample, judge(sample, blocks, POLICIES, risk)


@settings(deadline=None, max_examples=50)
@given(
    kinds_of_traces(),
    st.sampled_from(["answer_changed", "accuracy_lost"]),
    st.sampled_from([0.05, 0.1, 0.2]),
    st.sampled_from(["refuse", "error"]),
)
def test_a_certificate_is_what_the_theorem_says_and_nothing_more(build, kinds, risk, epsilon, unjudged):
    traces, signals = build(kinds)
    claim = Claim(risk, epsilon, 0.1)
    table, expected = theorem(traces, signals, claim, unjudged)
    sample, judged = judged_by(traces, signals, risk, unjudged=unjudged)
    assert sample.n == len(table)
    if len(table) < math.log(0.1) / math.log(1 - epsilon):
        with pytest.raises(CertificateError, match=f"{len(table)} calibration prompts"):
            certify(sample, claim, judged)
        return
    np.testing.assert_allclose([one.errors for one in judged], table.sum(axis=0), atol=1e-12)
    found = certify(sample, claim, judged)
    if found is None:  # nothing certified, or what is exits nowhere
        assert expected is None or judged[expected].sums.kept == judged[expected].sums.full
        return
    assert found.index == expected
    assert found.errors == pytest.approx(table[:, expected].sum())
    assert found.bound <= epsilon + 1e-9
    assert found.bound > table[:, expected].mean()


@settings(deadline=None, max_examples=40)
@given(kinds_of_traces(), st.integers(0, 3))
def test_the_order_of_the_traces_does_not_matter(build, kinds, seed):
    traces, signals = build(kinds)
    order = np.random.default_rng(seed).permutation(len(traces))
    claim = Claim("answer_changed", 0.3, 0.1)
    results = []
    for rows in (range(len(traces)), order):
        sample, judged = judged_by([traces[i] for i in rows], [signals[i] for i in rows])
        try:
            found = certify(sample, claim, judged)
            results.append(found and (found.index, round(found.errors, 9), round(found.bound, 9)))
        except CertificateError as error:
            results.append(str(error))
    assert results[0] == results[1]


@pytest.mark.parametrize(("risk", "errors"), [("answer_changed", 40), ("accuracy_lost", 32)])
def test_an_exit_where_nothing_was_tried_is_an_error_though_the_trials_on_both_sides_agree(build, risk, errors):
    """As `collect boundaries=refine` leaves most of many boundaries: such exits were successes that nobody had seen.
    A fifth of the traces is wrong, and has no right answer to lose."""
    kind = {"prompts": 1000, "finish_reason": "stop", "answer": "7", "cut_off": None, "validity": [0.0, 0.8, 0.0]}
    states = (["agrees", "untried", "agrees"], ["agrees", "agrees", "agrees"])
    sample, judged = judged_by(*build([kind | {"n": 40, "states": each} for each in states]), risk)
    taken = judged[TAUS.index(0.7)]
    assert (sample.n, taken.sums.changed) == (80, 0)
    assert (taken.errors, taken.untried, taken.sound) == (errors, errors, 80 - errors)


def test_copies_of_a_trace_are_refused_whatever_they_are_called(build):
    traces, signals = build([{"n": 5, "prompts": 5, "finish_reason": "stop", "answer": "7"} | STATES])
    with pytest.raises(SampleError, match="1 traces stand there more than once"):
        judged_by([*traces, traces[0]], [*signals, signals[0]])


def test_samples_of_a_question_are_one_prompt_or_refused(build):
    """As a template writes them that knows the day: the same question in other tokens."""
    kind = {"n": 6, "prompts": 2, "finish_reason": "stop", "answer": "7"} | STATES
    traces, signals = build([kind])
    traces = [replace(trace, id="one question", sample=sample) for sample, trace in enumerate(traces)]
    with pytest.raises(
        SampleError, match="1 ids have samples of different prompt tokens, the first is 'one question' with 2"
    ):
        judged_by(traces, signals)


STATES = {"states": ["agrees"], "cut_off": None, "validity": [0.95, 0.0, 0.0]}


@pytest.mark.parametrize("epsilon", [0.01, 0.02, 0.05, 0.2])
@pytest.mark.parametrize("delta", [0.01, 0.05, 0.1])
def test_the_required_number_is_the_smallest_with_which_no_error_suffices(epsilon, delta):
    n = required_n(epsilon, delta)
    assert (1 - epsilon) ** n <= delta < (1 - epsilon) ** (n - 1)


def test_testing_stops_at_the_first_failure_though_a_later_one_would_pass():
    assert fixed_sequence([0.01, 0.02, 0.9, 0.01], 0.1) == 1
    assert fixed_sequence([0.9, 0.01], 0.1) is None
    assert fixed_sequence([], 0.1) is None


def counted(losses, groups=None, asked=None, contradicted=None):
    """What is known of losses on prompts, each of them in a group."""
    groups, nothing = np.zeros(len(losses), int) if groups is None else groups, np.zeros(len(losses), bool)
    told = [nothing if one is None else one for one in (asked, contradicted)]
    parts = {str(group): groups == group for group in np.unique(groups)}
    counts = {
        name: Counts(int(rows.sum()), float(losses[rows].sum()), *(int(one[rows].sum()) for one in told))
        for name, rows in parts.items()
    }
    return Judged(NOTHING, counts)


def violations(draw, risks, claim, draws, *, single, groups=None):
    """Share of draws in which the policy chosen has a true risk above epsilon, and the same of the naive pick."""
    exceeded = naive = 0
    worst = risks if risks.ndim == 1 else risks.max(axis=0)
    for _ in range(draws):
        losses = draw()
        p_values = [p_value(counted(loss, groups), claim, single=single) for loss in losses]
        chosen = fixed_sequence(p_values, claim.counted_delta)
        exceeded += chosen is not None and worst[chosen] > claim.epsilon
        naive += (
            worst[max((i for i, loss in enumerate(losses) if loss.mean() <= claim.epsilon), default=0)] > claim.epsilon
        )
    return exceeded / draws, naive / draws


RISKS = np.linspace(0.01, 0.15, 15)


def test_the_risk_exceeds_epsilon_in_at_most_delta_of_all_calibration_samples():
    """Against a population of known risk. Picking the boldest with an observed risk <= epsilon fails far more often."""
    rng, claim = np.random.default_rng(0), Claim("answer_changed", 0.05, 0.1)

    def draw():
        needed = rng.random(300)  # a trace errs at every threshold whose risk is above its own draw
        return [(needed < risk).astype(float) for risk in RISKS]

    ours, naive = violations(draw, RISKS, claim, 400, single=True)
    assert ours <= 0.1 + 0.045  # at most delta by the theorem; three standard errors of 400 draws
    assert naive > 2 * 0.1


def test_so_it_is_with_several_samples_a_prompt_and_with_groups():
    rng, claim = np.random.default_rng(1), Claim("answer_changed", 0.05, 0.1)

    def shares():
        hard = rng.random(300) < 0.3  # all errors are on a third of the prompts
        return [rng.binomial(4, np.where(hard, min(1, risk / 0.3), 0)) / 4 for risk in RISKS]

    assert violations(shares, RISKS, claim, 300, single=False)[0] <= 0.1 + 0.052

    groups = np.repeat([0, 1], 150)
    of_group = np.stack([RISKS, RISKS / 3])

    def grouped():
        needed = rng.random(300)
        return [(needed < np.repeat(risk, 150)).astype(float) for risk in of_group.T]

    ours, naive = violations(grouped, of_group, claim, 300, single=True, groups=groups)
    assert ours <= 0.1 + 0.052
    assert naive > 0.5  # the average hides the worse group


def test_so_it_is_with_whole_answers_that_contradict_their_trials():
    """Half of the prompts were asked in full where the policy exits; what is claimed is the risk of whole answers.

    The bolder a policy, the likelier its whole answers contradict: 4 % at most. Claims on trial answers know nothing of
    it and are broken more often than not.
    """
    rng = np.random.default_rng(2)
    n, risks = 600, RISKS[::2]
    shares = risks / risks.max()
    whole = risks / 2 + 0.04 * shares * (1 - risks / 2)
    broken = {True: 0, False: 0}
    for _ in range(150):
        errs, contradicts, asked = rng.random(n), rng.random(n), rng.random(n) < 0.5
        losses = [(errs < risk / 2).astype(float) for risk in risks]
        said = [(contradicts < 0.04 * share) & (loss == 0) for share, loss in zip(shares, losses, strict=True)]
        for carried in broken:
            claim = Claim("answer_changed", 0.06, 0.1, noise=0.01 if carried else 0.0)
            judged = [counted(loss, None, asked, asked & each) for loss, each in zip(losses, said, strict=True)]
            p_values = [p_value(one, claim, single=True) for one in judged]
            chosen = fixed_sequence(p_values, claim.counted_delta)
            broken[carried] += chosen is not None and whole[chosen] > claim.epsilon
    assert broken[True] / 150 <= 0.1 + 0.074  # three standard errors of 150 draws
    assert broken[False] / 150 > 0.5


def test_a_claim_that_gives_way_to_another_leaves_it_half_of_delta():
    """Two policies: whole answers say otherwise behind the first a little more often than may be, and behind the second
    trial answers err so. A claim on the first's whole answers is false, and so is one on the second's trial answers;
    the prompts decide which of the two is made. Exactly, as both counts are binomial and independent."""
    n, asked, rate = 20_000, 5_000, 0.0501

    def false(shared):
        trial = Claim("answer_changed", 0.05, 0.1, shared=shared)
        first = most(asked, replace(trial, noise=0.01), lambda k: Counts(n, 0, asked, k))
        second = most(n, trial, lambda k: Counts(n, k))
        chances = scipy_stats.binom.cdf([first, second], [asked, n], rate)
        return chances[0] + (1 - chances[0]) * chances[1]

    assert false(shared=True) <= 0.1 < false(shared=False)


def most(limit, claim, counts):
    """The largest count with which a policy passes; -1 where none does."""

    def fails(k):
        return p_value(Judged(NOTHING, {"": counts(k)}), claim, single=True) > claim.counted_delta

    return bisect_left(range(limit + 1), True, key=fails) - 1


@given(st.integers(1, 400), st.data())
def test_the_noise_bound_spends_half_of_delta(n, data):
    wrong = data.draw(st.integers(0, n))
    expected = 1.0 if wrong == n else scipy_stats.beta.ppf(0.95, wrong + 1, n - wrong)
    assert label_noise_bound(n, wrong, 0.1) == pytest.approx(expected, rel=1e-7)


def test_the_price_of_a_bolder_policy():
    """4 of 200 err where 5 % may: certified. 8 of 200: the theorem asks for more prompts, and says about how many."""
    judged = [counted((np.arange(200) < k).astype(float)) for k in (4, 8, 11)]
    claim = Claim("answer_changed", 0.05, 0.1)
    assert p_value(judged[0], claim, single=True) <= 0.1 < p_value(judged[1], claim, single=True)
    n = prompts_for(judged, 1, 1, claim, single=True)
    assert 200 < n < 1000
    # Errors come whole, so the smallest n is not sharp: a quarter more suffices, a quarter less does not.
    assert scipy_stats.binom.cdf(0.04 * 1.25 * n, 1.25 * n // 1, 0.05) <= 0.1
    assert scipy_stats.binom.cdf(0.04 * 0.75 * n, 0.75 * n // 1, 0.05) > 0.1
    assert prompts_for(judged, 1, 2, claim, single=True) is None  # 5.5 % observed: never
