"""Learn-then-Test: the boldest policy of a sequence whose risk is bounded, and what a bolder one would cost.

Angelopoulos et al. 2021 (arXiv 2110.01052): each policy of a sequence that was fixed beforehand is the hypothesis "its
risk is above epsilon". The hypotheses are tested from the cautious end on and testing stops at the first that is not
rejected, so no correction for their number is needed: with probability at least 1 - delta over the calibration prompts,
the risk of the policy chosen is at most epsilon on prompts like these. The empirically best one promises no such thing:
in our study, picking "observed risk <= epsilon" exceeded epsilon in 45 % of draws.

P-values are exact binomial tails where each prompt has one trace, and Hoeffding-Bentkus where it has several and its
loss is a share. With groups, the hypothesis is "the risk in some group is above epsilon", and its p-value the largest
of the groups' (an intersection-union test). Where trial answers were forced and some were compared with the answer
written in full, half of delta pays for a bound on how often the two contradict where the policy exits, in each group,
and that bound is taken off epsilon.

Where a claim on answers written in full gives way to one on trial answers if it cannot be shown, the prompts choose the
claim. Tested with all of delta, each would be false in at most a share delta of the samples, but the chosen one in up
to twice that: a sample that just fails to show the first claim may err in the second. So each has half of delta.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from specexit.drafts.certified import confidence
from specexit.drafts.policy import GroupRisk, Risk
from specexit.method.judged import Counts, Judged
from specexit.method.sample import Sample, SampleError
from specexit.method.statistics import binomial_tail, binomial_upper_bound, hoeffding_bentkus, mean_upper_bound


class CertificateError(SampleError):
    """The sample cannot support the guarantee that is asked for."""


@dataclass(frozen=True)
class Claim:
    """What is to be shown: with probability ``1 - delta``, the risk is at most ``epsilon``."""

    risk: Risk
    epsilon: float
    delta: float
    noise: float = 0.0
    """Bound on how often a whole answer contradicts the trial that the risk is counted on."""
    noisy: str = ""
    """The group that this bound is for."""
    shared: bool = False
    """Whether another claim is tried on the same prompts, before this one or where it fails: each has half of delta."""

    @property
    def counted_epsilon(self) -> float:
        """The part of epsilon that is left for the trial answers."""
        return self.epsilon - self.noise

    @property
    def own_delta(self) -> float:
        """The part of delta that this claim has."""
        return self.delta / 2 if self.shared else self.delta

    @property
    def counted_delta(self) -> float:
        """What trial answers have of `own_delta`: half of it where the rest pays for the noise's bound, else all."""
        return self.own_delta / 2 if self.noise else self.own_delta


@dataclass(frozen=True)
class Certified:
    """The policy that was chosen, and what is known of it."""

    index: int
    """Which of the policies."""
    errors: float
    """The losses of its prompts, added up."""
    bound: float
    """Upper confidence bound of its risk, of the worst group's where there are groups: at the level of a policy that is
    named beforehand. What the choice itself promises is epsilon."""
    groups: dict[str, GroupRisk]
    """Each group on its own; empty without groups."""


def required_n(epsilon: float, delta: float) -> int:
    """The fewest prompts on which a flawless policy is certified: the smallest n with ``(1 - epsilon)^n <= delta``.

    Example:
      >>> required_n(0.02, 0.1)
      114
    """
    return math.ceil(math.log(delta) / math.log1p(-epsilon))


def fixed_sequence(p_values: Sequence[float], delta: float) -> int | None:
    """Index of the last hypothesis before the first that is not rejected; None where the first one already is not.

    Example:
      >>> fixed_sequence([0.01, 0.05, 0.9, 0.01], 0.1)
      1
    """
    for i, p_value in enumerate(p_values):
        if p_value > delta:
            return i - 1 if i else None
    return len(p_values) - 1 if p_values else None


@cache
def label_noise_bound(n: int, contradictions: int, delta: float) -> float:
    """Upper bound, at confidence ``1 - delta / 2``, on how often the whole answer contradicts a trial that agrees.

    Args:
      n: prompts whose answer was also written in full.
      contradictions: how many of them contradict.
      delta: of the claim; half of it is spent here.
    """
    return binomial_upper_bound(contradictions, n, delta / 2)


def worst_noise(judged: Judged, delta: float) -> tuple[float, str]:
    """The largest `label_noise_bound` of any group, and the group."""
    return max((label_noise_bound(of.asked, of.contradicted, delta), name) for name, of in judged.groups.items())


def p_value(judged: Judged, claim: Claim, *, single: bool) -> float:
    """P-value of "the policy's risk is above epsilon", or, where there are groups, "it is above epsilon in some group".

    Args:
      judged: what the policy does to the prompts.
      claim: what is to be shown. Where it is on answers written in full, each group's own noise replaces the claim's.
      single: whether every prompt has one trace.
    """
    parts = judged.groups.values()
    return max(share_p_value(part.errors, part.n, _of_group(claim, part), single=single) for part in parts)


def share_p_value(total: float, n: int, claim: Claim, *, single: bool) -> float:
    """P-value of "the risk is above epsilon", for losses of ``n`` prompts that sum to ``total``.

    Args:
      total: sum of the losses.
      n: prompts.
      claim: what is to be shown.
      single: whether every prompt has one trace, so that its loss is 0 or 1.
    """
    if claim.counted_epsilon <= 0:
        return 1.0
    if single:
        return binomial_tail(round(total), n, claim.counted_epsilon)
    return hoeffding_bentkus(total, n, claim.counted_epsilon)


def _of_group(claim: Claim, part: Counts) -> Claim:
    """The claim for one group: with the group's own noise, where the claim has any."""
    if not claim.noise:
        return claim
    return replace(claim, noise=label_noise_bound(part.asked, part.contradicted, claim.own_delta))


def check_size(sample: Sample, claim: Claim) -> None:
    """Refuse what the sample cannot support whatever the policy.

    Raises:
      CertificateError: names the prompts that there are, per group, and how many it takes.
    """
    if claim.counted_epsilon <= 0:
        where = f"group {claim.noisy!r}: " if claim.noisy else ""
        raise CertificateError(
            f"{where}answers written in full contradict trial answers at a rate of up to {claim.noise:.2%}, which "
            f"leaves nothing of risk {claim.epsilon:g}: expected more of them (free_share of collect), a larger "
            "epsilon, or label_noise=ignore"
        )
    needed = required_n(claim.counted_epsilon, claim.counted_delta)
    for name, n in sample.sizes.items():
        if n < needed:
            where = f"group {name!r}: " if name else ""
            barred = f" ({sample.describe_unjudged()})" if sample.unjudged else ""
            half = "; half of delta is another claim's, unless label_noise is require or ignore" if claim.shared else ""
            raise CertificateError(
                f"{where}{n} calibration prompts that can judge{barred} cannot support risk {claim.epsilon:g} at "
                f"confidence {confidence(claim.delta)}%: expected at least {needed} (ln delta / ln(1 - epsilon){half})"
            )


def certify(sample: Sample, claim: Claim, judged: Sequence[Judged]) -> Certified | None:
    """The boldest policy that can be certified.

    Args:
      sample: prompts that can judge.
      claim: what is to be shown.
      judged: what each policy does to them; the policies were fixed beforehand, the cautious ones first.

    Returns:
      The boldest certified policy that shortens some trace without an error; None where there is none. The guarantee
      holds for all certified policies together, so any of them may be chosen.

    Raises:
      CertificateError: see `check_size`.
    """
    check_size(sample, claim)
    p_values: list[float] = []
    for one in judged:
        p_values.append(p_value(one, claim, single=sample.single))
        if p_values[-1] > claim.counted_delta:
            break
    last = fixed_sequence(p_values, claim.counted_delta)
    best = None if last is None else next((i for i in range(last, -1, -1) if judged[i].sound), None)
    if best is None:
        return None
    groups = {
        name: GroupRisk(n=part.n, errors=part.errors, bound=_bound(part, _of_group(claim, part), single=sample.single))
        for name, part in judged[best].groups.items()
    }
    bound = max(group.bound for group in groups.values())
    return Certified(best, judged[best].errors, bound, groups if sample.grouped else {})


def prompts_for(judged: Sequence[Judged], first: int, last: int, claim: Claim, *, single: bool) -> int | None:
    """About how many prompts would certify policy ``last``, if the risks that were observed are the true ones.

    Args:
      judged: what each policy does to the prompts that can judge.
      first: index of the first policy of the sequence that is not certified.
      last: index of the policy that is wanted; all in between have to be certified as well.
      claim: what is to be shown; where it is on answers written in full, the bounds on these are kept.
      single: whether every prompt has one trace.

    Returns:
      prompts in all, rounded up to two digits; None where the observed risk is not below epsilon, or `lacks_answers`.
    """
    worst = 1.0
    for one in judged[first : last + 1]:
        for part in one.groups.values():
            times = _times(part, _of_group(claim, part), single=single)
            if times is None:
                return None
            worst = max(worst, times)
    n = worst * judged[first].n
    digits = 10 ** max(0, math.floor(math.log10(n)) - 1)
    return math.ceil(n / digits) * digits


def lacks_answers(judged: Sequence[Judged], claim: Claim) -> bool:
    """Whether too few answers were written in full: the observed risk of the policies is below epsilon, but the bound
    on how often these answers contradict trial answers leaves too little of it, however many prompts there are.

    Args:
      judged: what each policy does to the prompts that can judge.
      claim: what is to be shown.
    """
    parts = [part for one in judged for part in one.groups.values()]
    observed = (part.errors / part.n + part.contradicted / max(part.asked, 1) for part in parts)
    bounded = (part.errors / part.n >= _of_group(claim, part).counted_epsilon for part in parts)
    return max(observed) < claim.epsilon and any(bounded)


def _times(part: Counts, claim: Claim, *, single: bool) -> float | None:
    """How many times as many prompts a group would need; None where no number suffices."""
    rate = part.errors / part.n
    if rate >= claim.counted_epsilon:
        return None
    for times in 1.1 ** np.arange(100):
        n = math.ceil(times * part.n)
        if share_p_value(math.ceil(rate * n - 1e-9), n, claim, single=single) <= claim.counted_delta:
            return float(times)
    return None


def _bound(part: Counts, claim: Claim, *, single: bool) -> float:
    """Upper confidence bound of a policy's risk in a group, had the policy been named beforehand."""
    delta = claim.counted_delta
    bound = (
        binomial_upper_bound(round(part.errors), part.n, delta)
        if single
        else mean_upper_bound(part.errors, part.n, delta)
    )
    return min(1.0, bound + claim.noise)
