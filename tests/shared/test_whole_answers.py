"""``specexit calibrate`` on forced trials: what answers written in full say of them is carried into the bound."""

import json

import numpy as np
import pytest
from scipy import stats as scipy_stats

from specexit.data.scores import Scores, write_scores
from specexit.drafts.tensors import weights_hash
from specexit.method.calibrate import calibrate
from specexit.schemas.calibrate import CalibrateConfig
from tests.shared.calibration import refused

N = 400


def free(boundary, *, same):
    return json.dumps({"text": "x", "free": [{"boundary": boundary, "answer": "7", "same": same, "tokens": 9}]})


def test_what_whole_answers_contradict_is_carried_into_the_bound(setting, capsys):
    """300 of 1,000 prompts were asked in full where the exit is, one of them says otherwise."""
    n = 1000
    asked = {"trial": lambda i: '{"text": "x"}' if i >= 300 else free(0, same=i > 0)}
    paths = setting(np.full(n, 0.9), [True] * n, **asked)
    carried = calibrate(CalibrateConfig(**paths, epsilon=0.05)).point().certificate
    noise, trial = scipy_stats.beta.ppf(0.975, 2, 299), 1 - 0.025 ** (1 / n)  # a quarter of delta each
    assert carried.bound == pytest.approx(noise + trial)
    assert (carried.answers, carried.n_whole, carried.delta) == ("whole", 300, 0.1)
    ignored = calibrate(CalibrateConfig(**paths, epsilon=0.05, label_noise="ignore")).point().certificate
    assert (ignored.answers, ignored.n_whole, ignored.whole_contradictions) == ("trial", 300, 1)
    assert ignored.bound == pytest.approx(1 - 0.1 ** (1 / n))
    too_few = r"contradict trial answers at a rate of up to 0\.99%, which leaves nothing"
    refused(paths, too_few, epsilon=0.009, label_noise="require")
    fallen_back = calibrate(CalibrateConfig(**paths, epsilon=0.01)).point().certificate
    assert (fallen_back.answers, fallen_back.bound) == ("trial", pytest.approx(1 - 0.05 ** (1 / n)))
    said = " ".join(capsys.readouterr().out.split())
    assert "the risk of trial answers (1 of 300 whole answers contradict them) is at most" in said


def test_where_too_few_answers_were_written_in_full_it_is_not_the_observed_risk_that_bars(setting, capsys):
    """Nothing errs. 200 prompts were asked at their first boundary, 30 at the second one, where the policy exits."""
    trial = [free(1, same=True)] * 30 + [free(0, same=True)] * 200 + ['{"text": "x"}'] * 170
    paths = setting(np.full(N, 0.01), [True] * N, trial=lambda i: trial[i])
    signals = {str(i): np.full((10, 4), 0.01, np.float32) for i in range(N)}
    for values in signals.values():
        values[6, 3] = 0.9
    write_scores(paths["scores"], Scores("draft", weights_hash(paths["draft"]), signals))
    point = calibrate(CalibrateConfig(**paths, epsilon=0.05, label_noise="require")).point()
    assert point.certificate is None
    said = " ".join(capsys.readouterr().out.split())
    assert "The first 30.0% of cut would take more answers written in full where it exits (free_share" in said
    assert "would break" not in said


def test_comparisons_that_are_required_have_to_be_there(setting, monkeypatch):
    monkeypatch.setattr("specexit.method.calibrate.replays", lambda *_: pytest.fail("hours are spent"))
    paths = setting(np.full(N, 0.9), [True] * N)
    refused(paths, "no trial was compared with the answer written in full", label_noise="require")


def test_two_claims_on_the_same_prompts_take_more_of_them(setting, monkeypatch):
    """114 prompts are enough for one claim, 149 for the second of two; said before anything is replayed."""
    paths = setting(np.full(148, 0.9), [True] * 148, trial=lambda i: free(0, same=True))
    assert calibrate(CalibrateConfig(**paths, label_noise="ignore")).point().certificate.bound <= 0.02
    monkeypatch.setattr("specexit.method.calibrate.replays", lambda *_: pytest.fail("hours are spent"))
    refused(paths, r"148 .* cannot support risk 0\.02 at confidence 90%: expected at least 149 .* another claim's")


def test_one_of_two_claims_is_shown_with_half_of_delta(setting):
    """Four errors pass with all of it."""
    paths = setting(
        np.full(N, 0.9), np.arange(N) >= 4, trial=lambda i: free(0, same=True) if i < 30 else '{"text": "x"}'
    )
    assert 0.05 < scipy_stats.binom.cdf(4, N, 0.02) <= 0.1
    assert calibrate(CalibrateConfig(**paths)).point().certificate is None
    assert calibrate(CalibrateConfig(**paths, label_noise="ignore")).point().certificate.errors == 4


def test_errors_are_tested_with_what_the_bound_on_contradictions_leaves_of_delta(setting):
    """Half of it pays for that bound. Eleven errors pass with all of it."""
    paths = setting(np.full(1000, 0.9), np.arange(1000) >= 11, trial=lambda i: free(0, same=True))
    noise = 1 - 0.05 ** (1 / 1000)
    assert 0.05 < scipy_stats.binom.cdf(11, 1000, 0.02 - noise) <= 0.1
    assert calibrate(CalibrateConfig(**paths, label_noise="require")).point().certificate is None
    wider = calibrate(CalibrateConfig(**paths, label_noise="require", epsilon=0.022)).point().certificate
    assert (wider.errors, wider.answers) == (11, "whole")


def test_a_contradiction_where_the_trial_disagrees_is_none(setting):
    """An exit there counts as an error anyway."""
    agrees = np.arange(N) >= 8
    paths = setting(np.full(N, 0.9), agrees, trial=lambda i: free(0, same=i >= 8))
    certificate = calibrate(CalibrateConfig(**paths, epsilon=0.1)).point().certificate
    assert (certificate.answers, certificate.errors) == ("whole", 8)
    assert (certificate.n_whole, certificate.whole_contradictions) == (N, 0)


def test_contradictions_count_where_the_policy_exits_and_nowhere_else(setting):
    """Each prompt was asked at one of three boundaries, and whole answers say otherwise at the first, where it exits.

    On the code before they were a third of what was asked anywhere: half of the risk was certified for a policy that
    changes every answer.
    """
    at = np.random.default_rng(0).integers(3, size=N)
    paths = setting(np.full(N, 0.9), [True] * N, trial=lambda i: free(int(at[i]), same=bool(at[i] != 0)))
    certificate = calibrate(CalibrateConfig(**paths, epsilon=0.5)).point().certificate
    asked = int((at == 0).sum())
    assert (certificate.answers, certificate.n_whole, certificate.whole_contradictions) == ("trial", asked, asked)
    assert calibrate(CalibrateConfig(**paths, epsilon=0.5, label_noise="require")).point().certificate is None


def test_an_answer_in_full_that_never_came_contradicts(setting):
    paths = setting(np.full(N, 0.9), [True] * N, trial=lambda i: free(0, same=None if i < 4 else True))
    certificate = calibrate(CalibrateConfig(**paths, epsilon=0.1)).point().certificate
    assert (certificate.n_whole, certificate.whole_contradictions) == (N, 4)


def test_exits_that_nobody_tried_are_errors_and_asked_where_the_first_trial_was(setting):
    """Half exit behind a trial that was compared; the others' exits lie between two trials that agree.

    Nothing could be asked there. That they err is counted once, in the risk, and not as a contradiction again.
    """
    exits_at_trial = np.arange(N) % 2 == 0
    paths = setting(
        np.full(N, 0.01),
        [False] * N,
        boundaries=[2, 4, 6, 8],
        boundary_answers=["8", "7", "7", "7"],
        boundary_agrees=[False, True, True, True],
        boundary_confidence=[1.0] * 4,
        boundary_state=["untried", "agrees", "untried", "agrees"],
        think_ids=[20, 382] * 5,
        trial=lambda i: free(1, same=True) if i % 4 < 2 else '{"text": "x"}',
    )
    signals = {str(i): np.full((10, 4), 0.01, np.float32) for i in range(N)}
    for at_trial, values in zip(exits_at_trial, signals.values(), strict=True):
        values[3 if at_trial else 5, 3] = 0.999
    write_scores(paths["scores"], Scores("draft", weights_hash(paths["draft"]), signals))
    certificate = calibrate(CalibrateConfig(**paths, epsilon=0.6)).point().certificate
    assert (certificate.answers, certificate.n_whole, certificate.whole_contradictions) == ("whole", N // 2, 0)
    assert certificate.errors == N // 2


def test_prompts_of_many_traces_are_not_asked_more_often_than_others(setting):
    """100 prompts of one trace, a tenth of which were asked and all contradict; 100 of four, all of which agree.

    Some trace of four was asked of four times as many prompts, which hid what the others say.
    """
    asked = {"trial": lambda i: free(0, same=i < 400) if (i + i // 100) % 10 == 0 else '{"text": "x"}'}
    paths = setting(
        np.full(500, 0.999), [True] * 500, prompt_ids=lambda i: [1, i % 100] if i < 400 else [2, i], **asked
    )
    certificate = calibrate(CalibrateConfig(**paths, epsilon=0.9)).point().certificate
    assert (certificate.n, certificate.n_whole, certificate.whole_contradictions) == (200, 20, 10)


def test_each_group_answers_for_its_own_contradictions(setting):
    """One in twelve of a group's answers, written in full, says otherwise: too many there, not on average."""
    groups = {"group": lambda i: "ab"[i % 2], "trial": lambda i: free(0, same=i % 24 != 0)}
    paths = setting(np.full(2 * N, 0.9), [True] * 2 * N, **groups)
    together = calibrate(CalibrateConfig(**paths, epsilon=0.1)).point().certificate
    assert (together.answers, together.whole_contradictions) == ("whole", 34)
    grouped = calibrate(CalibrateConfig(**paths, epsilon=0.1, groups=True)).point().certificate
    assert grouped.answers == "trial"
    wider = calibrate(CalibrateConfig(**paths, epsilon=0.15, groups=True)).point().certificate
    noise, trial = scipy_stats.beta.ppf(0.975, 35, N - 34), 1 - 0.025 ** (1 / N)
    assert wider.groups["a"].bound == pytest.approx(noise + trial)
    assert wider.groups["b"].bound == pytest.approx(2 * trial)


def test_a_group_that_lacks_answers_in_full_is_named_with_what_to_do(setting):
    """In one, nothing is forced and so nothing compared; the message did not say of which group."""
    kinds = {"group": lambda i: "ab"[i % 2], "answer_kind": lambda i: "text" if i % 2 else "math"}
    paths = setting(
        np.full(N, 0.9),
        [True] * N,
        trial=lambda i: '{"text": ""}' if i % 2 else free(0, same=True),
        **kinds,
    )
    assert calibrate(CalibrateConfig(**paths, epsilon=0.1, label_noise="require")).point().certificate is not None
    said = r"group 'b': answers written in full .* up to 100\.00%.*: expected more of them \(free_share of collect\)"
    refused(paths, said, epsilon=0.1, label_noise="require", groups=True)
    certificate = calibrate(CalibrateConfig(**paths, epsilon=0.1, groups=True)).point().certificate
    assert (certificate.answers, sorted(certificate.groups)) == ("trial", ["a", "b"])


def test_trials_with_nothing_forced_are_whole_answers(setting):
    paths = setting(np.full(N, 0.9), [True] * N, trial='{"text": "", "max_tokens": 24}')
    stored = calibrate(CalibrateConfig(**paths))
    assert stored.point().certificate.answers == "whole"
    assert stored.trial == {"math": {"text": "", "max_tokens": 24}}
