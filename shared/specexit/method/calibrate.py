"""``specexit calibrate``: exit thresholds whose risk is bounded, written into ``policy.json`` with what they are for.

The procedure is `specexit.method.certify`, the sample that it is applied to `specexit.method.sample`. This file reads,
has `specexit.method.calibration_inputs` check what it reads, and writes the operating points: one for each epsilon.
Each holds with probability at least 1 - delta; that several hold together is not claimed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from specexit.config import write_text
from specexit.data.engine import types_written_with
from specexit.data.overlap import refuse_selected, refuse_trained, unlisted
from specexit.data.scores import check_scores_of, open_scores
from specexit.data.traces import WEIGHTS, data_sha256, read_outlines, said_of, target_of_file
from specexit.drafts.certified import confidence, in_percent, judged_otherwise
from specexit.drafts.directory import DraftError, read_config
from specexit.drafts.locking import locked
from specexit.drafts.policy import (
    FILE,
    TRAFFIC_LEVELS,
    Certificate,
    Event,
    Fingerprints,
    OperatingPoint,
    PolicyError,
    PolicyFile,
    Population,
    Traffic,
    policy_sha256,
    read_policy,
    write_policy,
)
from specexit.method.calibration_inputs import (
    check_served,
    check_serving,
    check_target,
    check_writable,
    fingerprints,
    one_trial,
)
from specexit.method.certify import (
    CertificateError,
    Certified,
    Claim,
    certify,
    check_size,
    lacks_answers,
    prompts_for,
    worst_noise,
)
from specexit.method.decision import OFF, Policy
from specexit.method.judged import Judged, judge
from specexit.method.ordered import Ordered
from specexit.method.policies.validity import VALIDITY_GRID, early_of, policy_at
from specexit.method.replay import Replay
from specexit.method.sample import Sample, one_sampling
from specexit.method.simulate import point_of
from specexit.method.stored import replays
from specexit.schemas.calibrate import CalibrateConfig, point_name
from specexit.schemas.target import TargetConfig

NEXT_CUT = 0.01
"""A bolder policy is worth naming where it cuts a point more."""

KEPT = "policy.calibrated.json"
"""Beside the scores: what was found and could not be written into the draft directory."""


def calibrate(config: CalibrateConfig) -> PolicyFile:
    """Choose an operating point for each epsilon and write them, with their guarantees, into the draft directory.

    Raises:
      DraftError, PolicyError, TraceError, ScoreError: a file is unreadable, a trace is there twice, the scores are of
        other traces or another draft, or the draft directory cannot be written.
      SampleError: traces have no references or groups where these are asked for, or are of several samplings.
      CertificateError: traces, draft and claim do not belong together, the sample cannot support the claim, no
        server runs the smoothing, or the draft's serving settings name a point that would be gone.
      OverlapError: the draft was trained on some of the prompts, or its checkpoint chosen on them.
    """
    stored, draft = read_policy(config.draft), read_config(config.draft)
    block = draft.specexit
    if block is None:
        raise DraftError(f"{config.draft / 'config.json'}: no specexit block, so this draft has no signals to judge by")
    check_served(config, block)
    check_serving(config, stored)
    check_writable(config.draft)
    traces, scores = read_outlines(config.traces), open_scores(config.scores)
    check_scores_of(config.draft, scores, config.scores)
    target = target_of_file(config.traces, config.target, config.draft)
    check_target(config, target, block)
    told, wrote = types_written_with(config.traces, target), said_of(config.traces, WEIGHTS)
    marks = fingerprints(draft, target, scores, told, wrote)
    sampling, trial = one_sampling(traces, config.traces), one_trial(config, traces)
    refuse_trained(config.draft, traces, config.traces)
    refuse_selected(config.draft, stored.selection, traces, config.traces)
    scores.check(traces)
    data = data_sha256(config.traces)
    config = config.model_copy(update={"early": early_of(block.source, config.early)})
    sample, seen = Sample(traces, unjudged=config.unjudged, grouped=config.groups), PassedBy()
    compared = _compared(sample, trial)
    if config.label_noise == "require" and not compared:
        raise CertificateError(f"{config.traces}: no trial was compared with the answer written in full")
    for epsilon in config.epsilon:  # what no outcome could support is refused before hours of replaying
        check_size(sample, _of_trials(config, epsilon, compared=compared))
    judged = judge(sample, seen.look(replays(config.traces, scores)), grid(config), config.risk)
    points, remarks = choose(sample, judged, config, data, sampling, trial)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    made = f"calibrate {config.risk} <= {', '.join(f'{epsilon:g}' for epsilon in config.epsilon)}"
    found = {
        "default": points[0].name,
        "points": tuple(points),
        "fingerprints": marks,
        "sampling": sampling,
        "trial": trial,
        "population": population(sample),
        "traffic": seen.traffic(),
    }
    event = Event(when=now, what=made, data_sha256=data)
    console = Console(markup=False)
    for remark in [*remarks, *_unknown(marks, target), *unlisted(config.draft)]:
        console.print(remark)
    if sample.unjudged:
        fate = "left out" if config.unjudged == "refuse" else "counted as errors"
        console.print(f"{sum(sample.unjudged.values())} traces cannot judge, {fate}: {sample.describe_unjudged()}")
    written, gone = _write(config, stored, found, event)
    for remark in gone:
        console.print(remark)
    return written


def _write(
    config: CalibrateConfig, begun: PolicyFile, found: dict[str, Any], event: Event
) -> tuple[PolicyFile, list[str]]:
    """Write what was found into the file as it is now: an operator, or a server, may have written into it meanwhile.

    Args:
      config: of the calibration.
      begun: the file when it began; another default by now is an operator's word, and stays.
      found: fields of the file.
      event: for its history.

    Returns:
      The file, and a remark on such a default that is none of the points.

    Raises:
      PolicyError: it cannot be written. What was found, perhaps in hours, is kept beside the scores.
    """
    draft = config.draft
    try:
        with locked(draft):
            stored = read_policy(draft)
            said = stored.default if stored.default != begun.default else found["default"]
            default = said if any(point.name == said for point in found["points"]) else found["default"]
            history = (*stored.history, event)
            written = stored.model_copy(update=found | {"default": default, "history": history})
            write_policy(draft, written)
    except (OSError, PolicyError) as error:
        told = _keep(config.scores, begun.model_copy(update=found | {"history": (*begun.history, event)}))
        raise PolicyError(f"nothing is written: {error}; {told}") from error
    gone = f"{draft}: default is {default}: {said}, which was written there meanwhile, is none of its points any more"
    return written, [] if said == default else [gone]


def _keep(scores: Path, made: PolicyFile) -> str:
    """Write a file that has no place in the draft directory beside the scores; returns what became of it, in words."""
    kept = (scores if scores.is_dir() else scores.parent) / KEPT
    try:
        write_text(kept, made.model_dump_json(indent=2) + "\n")
    except OSError as error:
        return f"nor could what was found be kept: {error}"
    return f"what was found lies in {kept}: mend the cause, and copy all of it but serving and history into {FILE}"


def choose(
    sample: Sample,
    judged: Sequence[Judged],
    config: CalibrateConfig,
    data: str,
    sampling: dict[str, Any],
    trial: dict[str, Any],
) -> tuple[list[OperatingPoint], list[str]]:
    """The operating points, and a remark on each; one without a certificate never exits.

    Args:
      sample: the prompts.
      judged: what each policy of the `grid` does to them.
      config: what is asked.
      data: hash of the traces.
      sampling: how they were sampled.
      trial: how the trials of each answer kind were made.

    Raises:
      CertificateError: see `specexit.method.certify.check_size`.
    """
    policies, whole, compared = grid(config), _written_in_full(trial), _compared(sample, trial)
    claims = [_claims(sample, config, epsilon, judged if compared else None) for epsilon in config.epsilon]
    points, remarks = [], []
    for either in claims:
        claim, found = _boldest(sample, either, judged)
        name = point_name(claim.epsilon)
        if found is None:
            points.append(OperatingPoint(name=name, policy=OFF.model_copy(update=_shared(config))))
            remarks.append(_nothing(sample, config, claim) + _first(sample, judged, claim))
            continue
        policy, told = policies[found.index], judged[found.index].groups.values() if compared else ()
        point = point_of(judged[found.index].sums, policy)
        certificate = Certificate(
            risk=config.risk,
            epsilon=claim.epsilon,
            delta=config.delta,
            n=sample.n,
            errors=found.errors,
            bound=found.bound,
            data_sha256=data,
            policy_sha256=policy_sha256(policy),
            samples=sample.n_traces,
            unjudged=config.unjudged,
            n_unjudged=sum(sample.unjudged.values()),
            groups=found.groups,
            answers="whole" if whole or claim.noise else "trial",
            n_whole=sum(part.asked for part in told),
            whole_contradictions=sum(part.contradicted for part in told),
            thinking_cut=point.thinking_cut,
            exits=point.exits,
        )
        points.append(OperatingPoint(name=name, policy=policy, certificate=certificate))
        said = _certified(config, points[-1], judged[found.index], judged_otherwise(sampling))
        remarks.append(said + _next(sample, judged, found.index, claim))
    return points, remarks


def grid(config: CalibrateConfig) -> list[Policy]:
    """The policies that are tried, the cautious ones first."""
    return [policy_at(tau, config.early, **_shared(config)) for tau in VALIDITY_GRID]


def _shared(config: CalibrateConfig) -> dict[str, Any]:
    return config.model_dump(include={"smoothing", "alpha", "patience", "min_thinking_tokens"})


def _boldest(sample: Sample, claims: Sequence[Claim], judged: Sequence[Judged]) -> tuple[Claim, Certified | None]:
    """The first claim under which a policy can be certified, with that policy; else the last claim, with None."""
    for claim in claims[:-1]:
        found = certify(sample, claim, judged)
        if found is not None:
            return claim, found
    return claims[-1], certify(sample, claims[-1], judged)


def _claims(sample: Sample, config: CalibrateConfig, epsilon: float, compared: Sequence[Judged] | None) -> list[Claim]:
    """The claims to try in order: on whole answers where there are enough comparisons, then on trial answers."""
    bare = _of_trials(config, epsilon, compared=compared is not None)
    claims = []
    if compared is not None and config.label_noise != "ignore":
        noise, noisy = min(worst_noise(each, bare.own_delta) for each in compared)
        carried = replace(bare, noise=noise, noisy=noisy)
        try:
            check_size(sample, carried)
            claims.append(carried)
        except CertificateError:
            if config.label_noise == "require":
                raise
    if config.label_noise != "require":
        claims.append(bare)
    return claims


def _of_trials(config: CalibrateConfig, epsilon: float, *, compared: bool) -> Claim:
    """The claim on trial answers. Whether another one is tried beside it must not hang on what the trials say."""
    return Claim(config.risk, epsilon, config.delta, shared=compared and config.label_noise == "carry")


def _compared(sample: Sample, trial: dict[str, Any] | None) -> bool:
    """Whether there are trial answers that were compared with answers written in full."""
    return sample.has_free_trials and not _written_in_full(trial)


def _written_in_full(trial: dict[str, Any] | None) -> bool:
    """Whether nothing was forced behind the end marker, so that a trial answer is the one that is served."""
    return bool(trial) and all(kind.get("text") == "" for kind in trial.values())


def _unknown(marks: Fingerprints, target: TargetConfig) -> list[str]:
    """A remark on fingerprints that could not be taken."""
    names = ", ".join(name for name, value in marks.model_dump().items() if value is None)
    doubted = "a server that knows it will call the certificates into doubt"
    return [f"{names}: not known, as {target.folder} does not say; {doubted}"] if names else []


def population(sample: Sample) -> Population | None:
    """The prompts of the sample that can judge, which are those of the traffic; None where there are none."""
    if not len(sample.traces):
        return None
    names, groups, references = list(sample.traces.texts["part"]), Counter[str](), 0
    for part, is_known, _ in sample.traces.ask("part, is_known, min(row)", "group by prompt"):
        groups[names[part] or ""] += 1
        references += is_known
    kinds = [str(kind) for kind in sample.traces.different("answer_kind")]
    return Population(
        prompts=groups.total(),
        traces=len(sample.traces),
        groups={name: groups[name] for name in sorted(groups) if name},
        answer_kinds=tuple(sorted(kinds)),
        references=references,
    )


class PassedBy:
    """What is seen of replays that pass by: how long their traces are, and where they could end."""

    def __init__(self) -> None:
        self._prompt, self._think, self._boundaries = (Ordered() for _ in range(3))
        self._shares: defaultdict[int, float] = defaultdict(float)
        self._traces = 0

    def look(self, replays: Iterable[Replay]) -> Iterator[Replay]:
        """The replays, looked at as they pass."""
        for replay in replays:
            self._prompt.add(np.array([trace.n_prompt for trace in replay.traces]))
            self._think.add(replay.n_think)
            self._boundaries.add(np.array([len(trace.boundaries) for trace in replay.traces]))
            for trace in replay.traces:
                self._note_shares(trace.split_ids)
            yield replay

    def _note_shares(self, splits: Sequence[int]) -> None:
        for token, n in Counter(splits).items():
            self._shares[token] += n / len(splits)
        self._traces += bool(splits)

    def traffic(self) -> Traffic | None:
        """What has passed; None where nothing has."""
        if not self._traces:
            return None
        shares = sorted(self._shares.items(), key=lambda kind: -kind[1])
        return Traffic(
            prompt_tokens=_levels(self._prompt),
            thinking_tokens=_levels(self._think),
            boundaries=_levels(self._boundaries),
            split_shares={str(token): round(share / self._traces, 6) for token, share in shares},
        )


def _levels(numbers: Ordered) -> tuple[float, ...]:
    return tuple(round(value, 4) for value in numbers.quantiles(TRAFFIC_LEVELS))


def _certified(config: CalibrateConfig, point: OperatingPoint, judged: Judged, otherwise: str | None) -> str:
    certificate = point.certificate
    assert certificate is not None
    what = config.risk + _unseen(judged, "; ")
    worst = f" (worst of {len(certificate.groups)} groups)" if certificate.groups else ""
    claim = "" if certificate.answers == "whole" else " of trial answers"
    if claim and certificate.n_whole:
        claim += f" ({certificate.whole_contradictions} of {certificate.n_whole} whole answers contradict them)"
    return (
        f"{config.draft}, {point.name}: exit at validity >= {point.policy.thresholds['validity']:g}. "
        f"{certificate.errors:g} of {certificate.n} prompts err ({what}); with confidence "
        f"{confidence(config.delta)}% the risk{claim} is at most {in_percent(certificate.epsilon)}%{worst}"
        f"{'' if otherwise is None else f'; {otherwise}'}. Thinking cut {certificate.thinking_cut:.1%}."
    )


def _nothing(sample: Sample, config: CalibrateConfig, claim: Claim) -> str:
    return (
        f"{config.draft}, {point_name(claim.epsilon)}: no threshold that shortens a trace without error keeps "
        f"{config.risk} <= {claim.epsilon:g} at confidence {confidence(config.delta)}% on {sample.n} prompts: exits "
        "are switched off."
    )


def _first(sample: Sample, judged: Sequence[Judged], claim: Claim) -> str:
    """The price of the first policy that cuts some trace without an error, as a sentence; empty where none does."""
    for i, one in enumerate(judged):
        if one.sound:
            cut = 1 - one.sums.kept / one.sums.full
            return f" The first {cut:.1%} of cut would {_price(sample, judged, 0, i, claim)}."
    return _unseen(judged[-1], " At the boldest one ", ".")


def _next(sample: Sample, judged: Sequence[Judged], chosen: int, claim: Claim) -> str:
    """The price of cutting `NEXT_CUT` more, as a sentence; empty where no bolder policy does."""
    for i in range(chosen + 1, len(judged)):
        more = (judged[chosen].sums.kept - judged[i].sums.kept) / judged[i].sums.full
        if more < NEXT_CUT:
            continue
        return f" {more:.1%} more would {_price(sample, judged, chosen + 1, i, claim)}."
    return ""


def _price(sample: Sample, judged: Sequence[Judged], first: int, last: int, claim: Claim) -> str:
    """What it takes to certify a policy, and those in front of it that are not certified."""
    n = prompts_for(judged, first, last, claim, single=sample.single)
    if n is not None:
        price = f"take about {n} prompts"
    elif lacks_answers(judged[first : last + 1], claim):
        price = "take more answers written in full where it exits (free_share of collect)"
    else:
        price = "break the risk that was observed, however many prompts there are"
    return price + _unseen(judged[last], "; ")


def _unseen(one: Judged, before: str, behind: str = "") -> str:
    """How many errors of a policy nobody has seen, and what to do, between two texts; empty where all were seen."""
    if not one.untried:
        return ""
    said = f"{one.untried} traces err as they exit where no answer was tried: collect them anew with boundaries=all"
    return f"{before}{said}{behind}"
