"""``specexit calibrate``: the guarantee holds, the sample must support it, and the policy lands in the draft."""

import json

import numpy as np
import pytest
from scipy import stats as scipy_stats

from specexit.data.scores import Scores, draft_sha256, write_scores
from specexit.data.traces import data_sha256, write_traces
from specexit.drafts.directory import read_config
from specexit.method.calibrate import CalibrationError, calibrate, calibrate_budget, learn_then_test, required_n
from specexit.method.decision import OFF, Policy
from specexit.schemas.calibrate import CalibrateConfig

N = 400


@pytest.fixture
def setting(tmp_path, write_random_draft, make_trace):
    """``setting(validity, agrees)``: paths of a draft, of traces with one early boundary each, and of their scores.

    ``validity[i]`` is what the draft says there and ``agrees[i]`` whether the answer there is the final one.
    """

    def make(validity, agrees, **changes):
        draft = write_random_draft(tmp_path / "draft", "draft")
        traces, signals = [], {}
        for i, (value, agree) in enumerate(zip(validity, agrees, strict=True)):
            answers = ["7" if agree else "8", "7", "7"]
            fields = {"id": str(i), "boundary_answers": answers, "boundary_agrees": [bool(agree), True, True]}
            traces.append(make_trace(**fields | changes))
            signals[str(i)] = np.full((10, 4), 0.01, np.float32)
            signals[str(i)][3, 3] = value
        write_traces(tmp_path / "traces.parquet", traces)
        write_scores(tmp_path / "scores.parquet", Scores("draft", draft_sha256(draft), signals))
        return {"draft": draft, "traces": tmp_path / "traces.parquet", "scores": tmp_path / "scores.parquet"}

    return make


def test_the_boldest_certified_threshold_is_written_with_its_guarantee(setting, capsys):
    """All agree down to 0.6; below that none does. Few errors are allowed, so the choice is just under 0.6."""
    validity = np.linspace(0.999, 0.2, N)
    paths = setting(validity, validity > 0.6)
    policy, calibration = calibrate(CalibrateConfig(**paths))

    tau = policy.thresholds["validity"]
    errors = int(((validity >= tau) & (validity <= 0.6)).sum())
    assert calibration.errors == errors
    assert scipy_stats.binom.cdf(errors, N, 0.02) <= 0.1
    bolder = int(((validity >= tau - 0.005) & (validity <= 0.6)).sum())
    assert scipy_stats.binom.cdf(bolder, N, 0.02) > 0.1
    assert errors / N < calibration.bound <= 0.02

    stored = read_config(paths["draft"]).specexit
    assert (stored.policy, stored.calibration) == (policy, calibration)
    assert calibration.data_sha256 == data_sha256(paths["traces"])
    assert calibration.n == N
    assert f"validity >= {tau:g}" in capsys.readouterr().out


def test_where_nothing_can_be_certified_exits_are_switched_off_and_it_says_so(setting, capsys):
    paths = setting(np.full(N, 0.995), np.arange(N) % 2 == 0)
    assert calibrate(CalibrateConfig(**paths)) == (OFF, None)
    stored = read_config(paths["draft"]).specexit
    assert (stored.policy, stored.calibration) == (OFF, None)
    assert "switched off" in capsys.readouterr().out


def test_too_few_traces_are_refused_with_the_number_needed_and_the_draft_is_untouched(setting):
    paths = setting(np.full(113, 0.9), [True] * 113)
    before = (paths["draft"] / "config.json").read_bytes()
    with pytest.raises(CalibrationError, match=r"113 calibration traces cannot support risk 0\.02 .* at least 114"):
        calibrate(CalibrateConfig(**paths))
    assert (paths["draft"] / "config.json").read_bytes() == before


@pytest.mark.parametrize("epsilon", [0.01, 0.02, 0.05, 0.2])
@pytest.mark.parametrize("delta", [0.01, 0.05, 0.1])
def test_the_required_number_is_the_smallest_with_which_no_error_suffices(epsilon, delta):
    n = required_n(epsilon, delta)
    assert (1 - epsilon) ** n <= delta < (1 - epsilon) ** (n - 1)
    assert learn_then_test([0], n, epsilon, delta) == 0
    with pytest.raises(CalibrationError):
        learn_then_test([0], n - 1, epsilon, delta)


def test_testing_stops_at_the_first_failure_though_a_later_one_would_pass():
    assert learn_then_test([0, 1, 90, 0], 500, 0.02, 0.1) == 1
    assert learn_then_test([90, 0], 500, 0.02, 0.1) is None


def test_the_risk_exceeds_epsilon_in_at_most_delta_of_all_calibration_samples():
    """Against a population of known risk: the risk of each threshold rises along the grid, and 2,000 samples of 300
    errors are drawn. Picking the boldest with an observed risk <= epsilon would fail far more often."""
    rng = np.random.default_rng(0)
    n, epsilon, delta, draws = 300, 0.05, 0.1, 2000
    risks = np.linspace(0.01, 0.2, 40)
    needed = rng.random((draws, n))  # a trace errs at every threshold whose risk is above its own draw
    exceeded = naive = 0
    for sample in needed:
        errors = [int((sample < risk).sum()) for risk in risks]
        chosen = learn_then_test(errors, n, epsilon, delta)
        exceeded += chosen is not None and risks[chosen] > epsilon
        naive += risks[max((i for i, e in enumerate(errors) if e / n <= epsilon), default=0)] > epsilon
    # At most delta by the theorem; three standard errors of 2,000 draws are 0.02.
    assert exceeded / draws <= delta + 0.02
    assert naive / draws > 3 * delta


def test_accuracy_lost_counts_only_right_answers_that_turn_wrong(setting):
    paths = setting(np.full(N, 0.995), [False] * N, reference="8", correct=False)
    assert calibrate(CalibrateConfig(**paths))[1] is None
    policy, calibration = calibrate(CalibrateConfig(**paths, risk="accuracy_lost"))
    assert calibration.errors == 0  # every answer changes, from wrong to right
    assert policy == Policy(thresholds={"validity": 0.05})


def test_accuracy_lost_without_references_is_refused(setting):
    paths = setting(np.full(N, 0.9), [True] * N, reference=None, correct=None)
    with pytest.raises(CalibrationError, match="400 traces have no reference answer, use risk answer_changed"):
        calibrate(CalibrateConfig(**paths, risk="accuracy_lost"))


def test_scores_of_another_draft_are_refused(setting, tmp_path, write_random_draft):
    paths = setting(np.full(N, 0.9), [True] * N)
    other = write_random_draft(tmp_path / "other", "draft", seed=1)
    before = (other / "config.json").read_bytes()
    with pytest.raises(CalibrationError, match=r"scores\.parquet: scores come from a draft with sha256 .* score the"):
        calibrate(CalibrateConfig(**paths | {"draft": other}))
    assert (other / "config.json").read_bytes() == before


def test_the_policys_other_settings_are_kept(setting):
    paths = setting(np.full(N, 0.9), [True] * N)
    policy, _ = calibrate(CalibrateConfig(**paths, patience=2, min_thinking_tokens=3, smoothing="ewma", alpha=0.5))
    assert (policy.patience, policy.min_thinking_tokens, policy.smoothing, policy.alpha) == (2, 3, "ewma", 0.5)


def test_everything_but_the_policy_stays_as_it_was(setting):
    paths = setting(np.full(N, 0.9), [True] * N)
    before = json.loads((paths["draft"] / "config.json").read_text())
    weights = (paths["draft"] / "model.safetensors").read_bytes()
    calibrate(CalibrateConfig(**paths))
    after = json.loads((paths["draft"] / "config.json").read_text())
    for name in ("policy", "calibration", "serving"):  # in policy.json now
        del before["specexit"][name]
    assert after == before
    assert (paths["draft"] / "model.safetensors").read_bytes() == weights


def test_the_smallest_budget_within_the_tolerance(make_trace):
    """Boundaries behind 4, 7 and 10 of ten tokens; one trace in ten is not right before 7."""
    traces = [
        make_trace(id=str(i), boundary_answers=["7" if i else "8", "7", "7"], boundary_agrees=[bool(i), True, True])
        for i in range(10)
    ]
    assert calibrate_budget(traces, 0.1) == 0
    assert calibrate_budget(traces, 0.05) == 5  # more than 4, so that the exit is at the boundary behind 7
