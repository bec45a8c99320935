"""``specexit calibrate``: the boldest validity threshold whose risk is bounded, by Learn-then-Test.

Angelopoulos et al. 2021 (arXiv 2110.01052): each threshold of a grid that was fixed beforehand is the hypothesis "its
risk is above epsilon". Its p-value is the exact binomial probability of so few errors at risk epsilon. The hypotheses
are tested in a fixed sequence from the cautious end on and testing stops at the first that is not rejected, so no
correction for their number is needed: with probability at least 1 - delta over the calibration prompts, the risk of
the threshold chosen is at most epsilon on prompts like these. The empirically best threshold promises no such thing:
in our study, picking "observed risk <= epsilon" exceeded epsilon in 45 % of draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool
from rich.console import Console

from specexit.data.scores import draft_sha256, read_scores
from specexit.data.traces import Trace, data_sha256, read_traces
from specexit.drafts.directory import read_config
from specexit.drafts.policy import Certificate, OperatingPoint, read_policy, write_policy
from specexit.errors import InputError
from specexit.method.decision import OFF, Policy
from specexit.method.replay import Outcome, Replay
from specexit.method.simulate import VALIDITY_GRID, Point, budget_policy, loss, mean_known, summarise
from specexit.method.statistics import binomial_tail, binomial_upper_bound
from specexit.schemas.calibrate import CalibrateConfig


class CalibrationError(InputError):
    """The sample cannot support the guarantee that is asked for."""


def errors_of(replay: Replay, outcome: Outcome, risk: str) -> Bool[np.ndarray, " traces"]:
    """Which traces count as errors.

    ``accuracy_lost`` counts right answers that turn wrong and forgives none that turn right, so it bounds the net loss.

    Raises:
      CalibrationError: ``accuracy_lost`` without right answers to compare with.
    """
    if risk == "answer_changed":
        return outcome.changed
    if np.isnan(replay.correct).any():
        n = int(np.isnan(replay.correct).sum())
        raise CalibrationError(f"risk accuracy_lost: {n} traces have no reference answer, use risk answer_changed")
    return (replay.correct == 1) & (outcome.correct != 1)


def required_n(epsilon: float, delta: float) -> int:
    """Traces without which not even a flawless policy could be certified: ``(1 - epsilon)^n <= delta``.

    Example:
      >>> required_n(0.02, 0.1)
      114
    """
    return math.ceil(math.log(delta) / math.log1p(-epsilon))


def learn_then_test(errors: Sequence[int], n: int, epsilon: float, delta: float) -> int | None:
    """Fixed-sequence testing.

    Args:
      errors: errors on the ``n`` traces of each policy, the cautious ones first.
      n: calibration traces.
      epsilon: risk that must not be exceeded.
      delta: probability with which it may be.

    Returns:
      Index of the last policy before the first that is not certified; None where the first one already is not.

    Raises:
      CalibrationError: too few traces for any claim.
    """
    if n < required_n(epsilon, delta):
        raise CalibrationError(
            f"{n} calibration traces cannot support risk {epsilon:g} at confidence {1 - delta:g}: "
            f"expected at least {required_n(epsilon, delta)} (ln delta / ln(1 - epsilon))"
        )
    chosen = None
    for i, count in enumerate(errors):
        if binomial_tail(count, n, epsilon) > delta:
            break
        chosen = i
    return chosen


def choose(replay: Replay, config: CalibrateConfig, data_sha256: str) -> tuple[Policy, Certificate | None]:
    """The certified policy; `OFF` and None where no threshold passes.

    Raises:
      CalibrationError: see `learn_then_test` and `errors_of`.
    """
    shared = config.model_dump(include={"smoothing", "alpha", "patience", "min_thinking_tokens"})
    policies = [Policy(thresholds={"validity": tau}, **shared) for tau in VALIDITY_GRID]
    errors = [int(errors_of(replay, replay.play(policy), config.risk).sum()) for policy in policies]
    n = len(replay.traces)
    best = learn_then_test(errors, n, config.epsilon, config.delta)
    if best is None:
        return OFF, None
    calibration = Certificate(
        risk=config.risk,
        epsilon=config.epsilon,
        delta=config.delta,
        n=n,
        errors=errors[best],
        bound=binomial_upper_bound(errors[best], n, config.delta),
        data_sha256=data_sha256,
    )
    return policies[best], calibration


def calibrate(config: CalibrateConfig) -> tuple[Policy, Certificate | None]:
    """Choose the policy and write it, with its guarantee, into the draft directory.

    Raises:
      DraftError, TraceError, ScoreError: a file is unreadable, or the scores are of other traces.
      CalibrationError: the scores are of another draft, or the sample cannot support the guarantee.
    """
    read_config(config.draft)
    traces, scores = read_traces(config.traces), read_scores(config.scores)
    ours = draft_sha256(config.draft)
    if scores.draft_sha256 != ours:
        raise CalibrationError(
            f"{config.scores}: scores come from a draft with sha256 {scores.draft_sha256[:12]}..., "
            f"but {config.draft} has {ours[:12]}...: score the traces with this draft first"
        )
    replay = Replay(traces, scores.of(traces))
    policy, calibration = choose(replay, config, data_sha256(config.traces))
    point = OperatingPoint(name=f"risk-{config.epsilon:g}", policy=policy, certificate=calibration)
    stored = read_policy(config.draft)
    write_policy(config.draft, stored.model_copy(update={"default": point.name, "points": (point,)}))
    _report(summarise(replay, policy, replay.play(policy)), config, calibration, len(traces))
    return policy, calibration


def _report(point: Point, config: CalibrateConfig, calibration: Certificate | None, n: int) -> None:
    console = Console()
    if calibration is None:
        console.print(
            f"No threshold keeps {config.risk} <= {config.epsilon:g} at confidence {1 - config.delta:g} on {n} traces: "
            f"exits are switched off in {config.draft}"
        )
        return
    console.print(
        f"{config.draft}: exit at validity >= {point.policy.thresholds['validity']:g}. {calibration.errors} of "
        f"{calibration.n} traces err ({config.risk}); with confidence {1 - config.delta:g} the risk is at most "
        f"{calibration.bound:.2%} (asked: {config.epsilon:.2%}). Thinking cut {point.thinking_cut:.1%}."
    )


def calibrate_budget(traces: Sequence[Trace], tolerance: float) -> int:
    """The smallest fixed thinking budget that loses at most ``tolerance`` of accuracy on these traces.

    The baseline of the benchmark. It is picked by the loss that was *observed*, with no bound on chance, and its exits
    snap to the next boundary: both favour the baseline.

    Args:
      traces: calibration traces.
      tolerance: accuracy lost (changed answers, where references are missing), 0..1.
    """
    replay = Replay(traces)
    full = mean_known(replay.correct)
    for tokens in range(int(replay.n_think.max(initial=0)) + 1):
        policy = budget_policy(tokens)
        if loss(summarise(replay, policy, replay.play(policy)), full) <= tolerance:
            return tokens
    return int(replay.n_think.max(initial=0)) + 1
