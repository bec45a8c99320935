"""``specexit bench-certificate``: how often a certificate is broken, against a population whose risk is known.

A few thousand prompts are taken as the whole population, so the true risk of every policy is a mean over them. From it
calibration samples are drawn with replacement, each is certified as `specexit calibrate` would, and the risk of what
was chosen is looked up. At most a share delta may be above epsilon. Beside it stands the naive pick: the boldest
threshold whose *observed* risk is at most epsilon. The policies are those that `calibrate` tries by default.

The command fails where the share is above delta in any cell. Beside such a cell stands the chance of as many violations
or more where a share delta is the truth (a binomial tail), and whether that is more than chance allows with so many
cells (`SURPRISE` over their number).

`specexit.method.certify` is the procedure. A thousand draws of 189 policies are one matrix product here, and the tests
hold the two together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import track
from rich.table import Table

from specexit.config import revision, versions, write_text
from specexit.data.outlines import outlines
from specexit.data.rows import can_judge
from specexit.data.scores import open_scores, read_scores
from specexit.data.traces import Trace, data_sha256, read_traces
from specexit.drafts.policy import Risk
from specexit.errors import InputError
from specexit.method.certify import Claim, required_n, share_p_value
from specexit.method.decision import Policy
from specexit.method.judged import check_references, errors_of, sound_of
from specexit.method.policies.validity import VALIDITY_GRID, early_of, policy_at
from specexit.method.replay import Replay
from specexit.method.sample import Sample, SampleError, one_sampling
from specexit.method.statistics import binomial_tail
from specexit.schemas.bench_certificate import BenchCertificateConfig
from specexit.schemas.early import EARLY

SURPRISE = 0.05
"""Level of the test over all cells together: violations that are less probable than this are not put down to chance."""


@dataclass(frozen=True)
class Population:
    """Prompts whose losses under every policy are known."""

    losses: Float[np.ndarray, "policies prompts"]
    kept: Float[np.ndarray, "policies prompts"]
    """Thinking tokens that each policy leaves."""
    full: Float[np.ndarray, " prompts"]
    """Thinking tokens of the whole traces."""
    sound: Float[np.ndarray, "policies prompts"]
    """Traces whose thinking each policy cuts without an error."""
    single: bool
    group: Int[np.ndarray, " prompts"]
    """Number of each prompt's group; all 0 where groups do not matter."""


@dataclass(frozen=True)
class Cell:
    """One setting; shares are of the draws."""

    risk: str
    epsilon: float
    n: int
    source: str
    decoding: str
    grouped: bool
    violations: float
    """A policy was certified whose true risk (of the worst group, if grouped) is above epsilon."""
    naive: float
    """The same of the boldest policy whose observed risk is at most epsilon."""
    cut: float
    """Mean over the draws of the population's thinking that the certified policy saves, 0 where there is none."""
    certified: float
    """A policy was certified at all."""
    chance: float
    """Probability of so many violations or more where a share delta is the truth."""

    def __str__(self) -> str:
        return (
            f"{self.decoding}, source {self.source}, {self.risk}, {'worst group' if self.grouped else 'all together'}, "
            f"epsilon {self.epsilon:g}, n {self.n}"
        )


class ViolationError(InputError):
    """More certificates were broken than promised; the message names the cells."""


@dataclass(frozen=True)
class Transfer:
    """A certificate made without one group of the prompts, used on that group; shares are of the draws."""

    risk: str
    epsilon: float
    n: int
    source: str
    decoding: str
    tested_on: str
    """The group."""
    violations: float
    """The risk in the group is above epsilon, though the certificate is true of the others."""
    grouped: float
    """The same where the group was among the prompts, and the worst group was controlled."""


def policies_of(source: str) -> tuple[Policy, ...]:
    """What `calibrate` tries by default with signals of a source (draft, fc), the cautious ones first."""
    return tuple(policy_at(tau, early_of(source, EARLY)) for tau in VALIDITY_GRID)


def population(sample: Sample, replay: Replay, policies: Sequence[Policy], risk: Risk) -> Population:
    """Play every policy on a sample that is taken for the whole population.

    Args:
      sample: the prompts.
      replay: their traces that can judge.
      policies: the cautious ones first.
      risk: what is an error.

    Raises:
      SampleError: see `specexit.method.judged.check_references`.
    """
    check_references(sample, risk)
    prompts = [sample.prompt_of(trace) for trace in replay.traces]
    number = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    of, names = np.array([number[prompt] for prompt in prompts]), list(sample.sizes)
    outcomes = [replay.play(policy) for policy in policies]
    wrong = [errors_of(replay, outcome, risk) for outcome in outcomes]
    errors = np.stack([np.bincount(of, weights=each) for each in wrong])
    sound = [sound_of(replay, *each) for each in zip(outcomes, wrong, strict=True)]
    return Population(
        losses=errors / np.array([prompt.size for prompt in number]),
        kept=np.stack([np.bincount(of, weights=outcome.kept) for outcome in outcomes]),
        full=np.bincount(of, weights=replay.n_think),
        sound=np.stack([np.bincount(of, weights=each) for each in sound]),
        single=sample.single,
        group=np.array([names.index(prompt.group) for prompt in number]),
    )


def measure(
    people: Population, claim: Claim, drawn: Int[np.ndarray, "draws prompts"]
) -> tuple[Int[np.ndarray, " draws"], Int[np.ndarray, " draws"]]:
    """What is certified, and what the naive pick is, in each draw.

    Args:
      people: the population.
      claim: what is to be shown.
      drawn: how often each prompt was drawn.

    Returns:
      indices of the policies; -1 where there is none.
    """
    passes = np.ones((len(drawn), len(people.losses)), bool)
    seems = passes.copy()
    for group in np.unique(people.group):
        rows = people.group == group
        totals = drawn[:, rows] @ people.losses[:, rows].T
        sizes = drawn[:, rows].sum(axis=1)
        most = {int(n): _most(int(n), claim, single=people.single) for n in np.unique(sizes)}
        # Sums of shares differ in their last bits with the order, and the limit is known to 1e-7.
        passes &= totals <= np.array([most[n] for n in sizes.tolist()])[:, None] + 1e-6
        seems &= totals <= claim.epsilon * sizes[:, None] + 1e-6
    chosen = np.logical_and.accumulate(passes, axis=1) & (drawn @ people.sound.T > 0)
    return _last(chosen), _last(seems)


def _last(fits: Bool[np.ndarray, "draws policies"]) -> Int[np.ndarray, " draws"]:
    """The last policy that fits, in each draw; -1 where none does."""
    return np.where(fits.any(axis=1), fits.shape[1] - 1 - fits[:, ::-1].argmax(axis=1), -1)


def _most(n: int, claim: Claim, *, single: bool) -> float:
    """The largest sum of losses that is certified on ``n`` prompts; -1 where none is."""
    if n < required_n(claim.epsilon, claim.delta):
        return -1.0
    low, high = 0.0, float(n)
    while high - low > (1 if single else 1e-7):
        middle = (low + high) // 2 if single else (low + high) / 2
        passed = share_p_value(middle, n, claim, single=single) <= claim.delta
        low, high = (middle, high) if passed else (low, middle)
    return low


def cell(people: Population, claim: Claim, n: int, draws: int, rng: np.random.Generator) -> dict[str, float]:
    """Violations of both picks, what ours cuts, and how far chance explains its violations."""
    size = people.losses.shape[1]
    drawn = rng.multinomial(n, np.full(size, 1 / size), draws)
    chosen, boldest = measure(people, claim, drawn)
    groups = [people.losses[:, people.group == group].mean(axis=1) for group in np.unique(people.group)]
    broken = np.append(np.max(groups, axis=0) > claim.epsilon, False)  # the last one stands for "none"
    cuts = np.append(1 - people.kept.sum(axis=1) / people.full.sum(), 0.0)
    n_broken = int(broken[chosen].sum())
    return {
        "violations": float(broken[chosen].mean()),
        "naive": float(broken[boldest].mean()),
        "cut": float(cuts[chosen].mean()),
        "certified": float((chosen >= 0).mean()),
        "chance": 1 - binomial_tail(n_broken - 1, draws, claim.delta) if n_broken else 1.0,
    }


def transfer(
    people: Population, claim: Claim, n: int, draws: int, rng: np.random.Generator
) -> dict[int, dict[str, float]]:
    """What certificates are worth in a group that they were made without, group by group.

    Returns:
      number of the group -> the two shares of `Transfer`.
    """
    size, found = people.losses.shape[1], {}
    together, _ = measure(people, claim, rng.multinomial(n, np.full(size, 1 / size), draws))
    for group in np.unique(people.group).tolist():
        inside = people.group == group
        others = Population(
            losses=people.losses[:, ~inside],
            kept=people.kept[:, ~inside],
            full=people.full[~inside],
            sound=people.sound[:, ~inside],
            single=people.single,
            group=np.zeros((~inside).sum(), np.int64),
        )
        left = int((~inside).sum())
        chosen, _ = measure(others, claim, rng.multinomial(n, np.full(left, 1 / left), draws))
        broken = np.append(people.losses[:, inside].mean(axis=1) > claim.epsilon, False)
        found[group] = {"violations": float(broken[chosen].mean()), "grouped": float(broken[together].mean())}
    return found


def bench_certificate(config: BenchCertificateConfig) -> list[Cell]:
    """Measure every cell, print the table and write it.

    Raises:
      TraceError, ScoreError, SampleError: a file is unreadable, traces and scores do not belong together, traces are
        not decoded or scores not of the source that their name says, or some have a group and others none.
      ViolationError: in some cell more certificates are broken than promised; the file is written all the same.
    """
    console = Console(markup=False)  # groups are called as their prompts say
    cells, moved, sizes = _measured(config, console)
    record = {
        "delta": config.delta,
        "draws": config.draws,
        "early": EARLY,
        "population": sizes,
        "cells": [asdict(cell) for cell in cells],
        "transfer": [asdict(one) for one in moved],
        "definitions": {
            name: _definition(name) for name in ("violations", "naive", "cut", "certified", "chance", "early")
        },
        "versions": versions(),
        "revision": revision(),
    }
    write_text(config.out, json.dumps(record, indent=1) + "\n")
    for decoding, source in dict.fromkeys((c.decoding, c.source) for c in cells):
        title = f"{decoding}, source {source}: violations may reach {config.delta:g} in a cell"
        console.print(_table([c for c in cells if (c.decoding, c.source) == (decoding, source)], title))
    if moved:
        console.print(_transfer_table(moved))
    check_promise(cells, config.delta, config.draws)
    return cells


def check_promise(cells: Sequence[Cell], delta: float, draws: int) -> None:
    """Refuse cells whose certificates are broken too often.

    Raises:
      ViolationError: a cell's share of violations is above ``delta``.
    """
    failing = [cell for cell in cells if cell.violations > delta]
    if failing:
        told = "; ".join(_told(cell, delta, draws, SURPRISE / len(cells)) for cell in failing)
        raise ViolationError(
            f"{len(failing)} of {len(cells)} cells have more violations than {delta:g}, expected at most that: {told}"
        )


def _told(cell: Cell, delta: float, draws: int, least: float) -> str:
    why = "which chance allows: more draws would tell" if cell.chance > least else "which is beyond chance"
    return (
        f"{cell}: {round(cell.violations * draws)} of {draws} ({cell.violations:.1%}; where {delta:.1%} is the truth "
        f"so many or more have a probability of {cell.chance:.2g}, {why} with so many cells)"
    )


def _measured(
    config: BenchCertificateConfig, console: Console
) -> tuple[list[Cell], list[Transfer], dict[str, dict[str, Any]]]:
    """All cells, what becomes of certificates elsewhere, and what the populations are."""
    recorded = {decoding: _recorded(config, decoding, console) for decoding in config.traces}
    rng = np.random.default_rng(config.seed)
    cells: list[Cell] = []
    moved: list[Transfer] = []
    for decoding, found in recorded.items():
        for source, scores in config.scores[decoding].items():
            read = read_scores(scores)
            replay, policies = Replay(found.able, read.of(found.able)), policies_of(read.source)
            for sample, risk in product(found.samples, config.risks):
                people = population(sample, replay, policies, risk)
                todo = list(product(config.epsilon, config.n))
                what = f"{decoding}, {source}, {risk}"
                for epsilon, n in track(todo, what, console=console, disable=not console.is_terminal):
                    shares = cell(people, Claim(risk, epsilon, config.delta), n, config.draws, rng)
                    cells.append(Cell(risk, epsilon, n, source, decoding, sample.grouped, **shares))
                names, n = list(sample.sizes), max(config.n)
                for epsilon in config.epsilon if len(names) > 1 else ():  # from one group there is nowhere to go
                    elsewhere = transfer(people, Claim(risk, epsilon, config.delta), n, config.draws, rng)
                    for i, name in enumerate(names):
                        moved.append(Transfer(risk, epsilon, n, source, decoding, name, **elsewhere[i]))
    return cells, moved, {decoding: found.about for decoding, found in recorded.items()}


@dataclass(frozen=True)
class _Recorded:
    """Traces of one decoding."""

    able: list[Trace]
    """Those that can judge."""
    samples: list[Sample]
    """Of their prompts: all together and, where they have groups, by group."""
    about: dict[str, Any]


def _recorded(config: BenchCertificateConfig, decoding: str, console: Console) -> _Recorded:
    path = config.traces[decoding]
    traces = read_traces(path)
    able, table = [trace for trace in traces if can_judge(trace)], outlines(traces)
    together, sampling = Sample(table), one_sampling(table, path)
    _check_decoding(decoding, sampling, path)
    for source, scores in config.scores[decoding].items():
        _check_source(source, scores)
    if not able:
        raise SampleError(f"{path}: none of {len(traces)} traces can judge ({together.describe_unjudged()})")
    samples = [together]
    if config.grouped and any(trace.group or trace.task for trace in able):
        samples.append(Sample(table, grouped=True))
    elif config.grouped:
        console.print(f"{path}: no trace is of a group or a task, so no worst group is controlled")
    about = {"prompts": together.n, "traces": together.n_traces, "unjudged": dict(together.unjudged)}
    return _Recorded(able, samples, about | {"data_sha256": data_sha256(path), "sampling": sampling})


def _check_decoding(name: str, sampling: Mapping[str, Any], path: Path) -> None:
    """Refuse traces that are not decoded as their name says; other names than these two say nothing."""
    is_sampled = bool(sampling.get("temperature"))
    if name in ("greedy", "sampled") and is_sampled != (name == "sampled"):
        expected = "above 0" if name == "sampled" else "0"
        raise SampleError(f"{path}: named {name}, but its sampling is {sampling}, expected a temperature of {expected}")


def _check_source(name: str, path: Path) -> None:
    """Refuse scores that are not of the source that they are named after."""
    found = open_scores(path).source
    if name in ("draft", "fc") and found != name:
        raise SampleError(f"{path}: named {name}, but its signals are of source {found}, expected those of {name}")


def _definition(name: str) -> str:
    return {
        "violations": "share of draws that certify a policy whose true risk is above epsilon",
        "naive": "the same of the boldest policy whose observed risk is at most epsilon",
        "cut": "thinking of the population that the certified policy saves, mean over draws, 0 where there is none",
        "certified": "share of draws in which a policy is certified",
        "chance": "probability of so many violations or more where a share delta is the truth (binomial)",
        "early": "share of the threshold that has to be there 8 tokens before a boundary; none for source fc",
    }[name]


def _transfer_table(moved: list[Transfer]) -> Table:
    headings = ("risk", "ε", "source", "decoding", "group", "broken", "worst controlled")
    rows = [
        (one.risk, one.epsilon, one.source, one.decoding, one.tested_on, one.violations, one.grouped) for one in moved
    ]
    return _shares("certified without a group, used on it; and with all groups, the worst controlled", headings, rows)


def _table(cells: list[Cell], title: str) -> Table:
    headings = ("risk", "groups", "ε", "n", "violations", "naive", "certified", "cut")
    rows = [
        (c.risk, "worst" if c.grouped else "together", c.epsilon, c.n, c.violations, c.naive, c.certified, c.cut)
        for c in cells
    ]
    return _shares(title, headings, rows)


def _shares(title: str, headings: Sequence[str], rows: Sequence[Sequence[str | int | float]]) -> Table:
    """A table whose floats are shares."""
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    for heading, value in zip(headings, rows[0], strict=True):
        table.add_column(heading, no_wrap=True, justify="left" if isinstance(value, str) else "right")
    for row in rows:
        table.add_row(*(f"{100 * value:.1f} %" if isinstance(value, float) else str(value) for value in row))
    return table
