"""How many prompts of a sample a policy gets wrong, counted over blocks of their traces.

An exit at an undecided trial counts as a changed answer, and never as a right one; one at a boundary that was not tried
is an error, whatever the trials on both sides say. Besides the errors, this file counts the prompts whose answer was
also written in full at the very boundary where the policy ends their thinking: there it can contradict the trial.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from specexit.data.rows import first_trial, free_trials
from specexit.data.scratch import Scratch
from specexit.data.seen import Seen
from specexit.drafts.policy import Risk
from specexit.method.decision import Policy
from specexit.method.replay import Outcome, Replay
from specexit.method.sample import Prompt, Sample, SampleError
from specexit.method.sums import NOTHING, Sums, sums_of


@dataclass(frozen=True)
class Counts:
    """What a policy does to the prompts of a group, or to all."""

    n: int
    """Prompts."""
    errors: float
    """Their losses, added up: of each the share of its traces that err."""
    asked: int = 0
    """Prompts whose answer was also written in full where the policy exits; at the first trial if it does not exit."""
    contradicted: int = 0
    """Those of them whose trial agrees with the trace's answer while the answer written in full does not, or never
    came."""


@dataclass(frozen=True)
class Judged:
    """What a policy does to a sample."""

    sums: Sums
    """Over the traces that can judge."""
    groups: dict[str, Counts]
    """As in `Sample.sizes`."""
    sound: int = 0
    """Traces whose thinking is cut without an error."""
    untried: int = 0
    """Traces that are errors as their exit is at a boundary that was not tried."""

    @property
    def n(self) -> int:
        """Prompts."""
        return sum(counts.n for counts in self.groups.values())

    @property
    def errors(self) -> float:
        """Their losses, added up."""
        return sum(counts.errors for counts in self.groups.values())


def judge(sample: Sample, blocks: Iterable[Replay], policies: Sequence[Policy], risk: Risk) -> list[Judged]:
    """What each policy does to the prompts of a sample.

    Args:
      sample: of the prompts.
      blocks: of the traces that can judge, in any order.
      policies: to be tried.
      risk: what is an error.

    Raises:
      SampleError: see `check_references`.
    """
    row, shape = {name: i for i, name in enumerate(sample.sizes)}, (len(policies), len(sample.sizes))
    sums, losses, contradictions = [NOTHING] * len(policies), _Losses(shape), _Contradictions(shape, sample.fewest)
    sound, untried = np.zeros((2, len(policies)), np.int64)
    check_references(sample, risk)
    for replay in blocks:
        prompts = [sample.prompt_of(trace) for trace in replay.traces]
        groups = np.array([row[prompt.group] for prompt in prompts])
        outcomes = [replay.play(policy) for policy in policies]
        sums = [before.plus(sums_of(replay, outcome)) for before, outcome in zip(sums, outcomes, strict=True)]
        errors = np.stack([errors_of(replay, outcome, risk) for outcome in outcomes])
        sound += np.stack([sound_of(replay, *each) for each in zip(outcomes, errors, strict=True)]).sum(axis=1)
        untried += (errors & np.stack([outcome.inferred for outcome in outcomes])).sum(axis=1)
        losses.add(errors, groups, np.array([prompt.size for prompt in prompts]))
        contradictions.add(replay, outcomes, prompts, groups)
    for group, size, n in sample.barred():
        losses.of(size)[:, row[group]] += n
    found = losses.counted(), *contradictions.counted()

    def counts(policy: int, name: str) -> Counts:
        loss, asked, contradicted = (numbers[policy, row[name]] for numbers in found)
        return Counts(sample.sizes[name], float(loss), int(asked), int(contradicted))

    found_of = ({name: counts(i, name) for name in row} for i in range(len(policies)))
    return [Judged(*each) for each in zip(sums, found_of, sound.tolist(), untried.tolist(), strict=True)]


def errors_of(replay: Replay, outcome: Outcome, risk: Risk) -> Bool[np.ndarray, " traces"]:
    """Which traces count as errors.

    ``accuracy_lost`` counts right answers that turn wrong and forgives none that turn right, so it bounds the net loss.
    The answer behind a boundary that was not tried is estimated, which is enough for a simulation and for no promise.
    """
    if risk == "answer_changed":
        return outcome.changed | outcome.inferred
    return (replay.correct == 1) & ((outcome.correct != 1) | outcome.inferred)


def sound_of(replay: Replay, outcome: Outcome, errors: Bool[np.ndarray, " traces"]) -> Bool[np.ndarray, " traces"]:
    """Which traces' thinking is cut without an error."""
    return (outcome.kept < replay.n_think) & ~errors


def check_references(sample: Sample, risk: Risk) -> None:
    """Check that errors can be told.

    Raises:
      SampleError: ``accuracy_lost`` without right answers to compare with.
    """
    n = sample.traces.number("sum(not is_known)")
    if n and risk == "accuracy_lost":
        raise SampleError(f"risk accuracy_lost: {n} traces have no reference answer, use risk answer_changed")


class _Losses:
    """Traces that err, by policy and group, and by how many traces their prompts have: whole numbers, whose sums are
    the same whatever the blocks."""

    def __init__(self, shape: tuple[int, int]):
        self._shape, self._wrong = shape, dict[int, Int[np.ndarray, "policies groups"]]()

    def add(
        self,
        errors: Bool[np.ndarray, "policies traces"],
        groups: Int[np.ndarray, " traces"],
        sizes: Int[np.ndarray, " traces"],
    ) -> None:
        """Note some traces."""
        for size in np.unique(sizes).tolist():
            here = sizes == size
            np.add.at(self.of(size).T, groups[here], errors[:, here].T)

    def of(self, size: int) -> Int[np.ndarray, "policies groups"]:
        """The traces that err of prompts with so many traces."""
        return self._wrong.setdefault(size, np.zeros(self._shape, np.int64))

    def counted(self) -> Float[np.ndarray, "policies groups"]:
        """The losses of the prompts, added up."""
        return sum((self._wrong[size] / size for size in sorted(self._wrong)), np.zeros(self._shape))


class _Contradictions:
    """Compares trials with answers written in full where policies exit: elsewhere they say nothing of a policy's risk.

    At which of the tried boundaries an answer was also written in full ("asked") was left to chance, so the prompts
    that were asked where a policy exits are a random sample of all prompts. A trace that does not exit, or whose exit
    changes the answer or is at a boundary that was not tried, counts as asked if its first trial's boundary was, and
    cannot contradict. One whose answer in full never came contradicts.

    A prompt with many traces is asked more often than one with a single trace, and may be an easier one. So of every
    prompt only as many traces are looked at as the prompt with the fewest has.

    Of each prompt that was asked anywhere, two bits for every policy lie on the disk.
    """

    def __init__(self, shape: tuple[int, int], fewest: int):
        self._shape, self._fewest, self._taken = shape, fewest, Seen()
        self._file = Scratch("create table prompts (hash integer primary key, part integer, bits blob)")

    def add(
        self,
        replay: Replay,
        outcomes: Sequence[Outcome],
        prompts: Sequence[Prompt],
        groups: Int[np.ndarray, " traces"],
    ) -> None:
        """Note the traces of a block."""
        looked_at = np.array([self._take(prompt) for prompt in prompts], bool)
        whole = _written_in_full(replay)
        whole = whole[looked_at[whole[:, 0]]]
        if not len(whole):
            return
        trace, tokens, same = whole.T
        sound = np.stack([(o.kept < replay.n_think) & ~o.changed & ~o.inferred for o in outcomes])
        at = np.where(sound, np.stack([o.kept for o in outcomes]), 0)
        asked = tokens == at[:, trace]
        contradicted = asked & sound[:, trace] & (same != 1)
        bits = np.packbits(np.concatenate([asked, contradicted]), axis=0).T
        found: dict[int, tuple[int, np.ndarray]] = {}
        for i, new in zip(trace.tolist(), bits, strict=True):
            key = prompts[i].hash
            found[key] = int(groups[i]), new | (found[key][1] if key in found else self._bits_of(key))
        rows = ((key, group, known.tobytes()) for key, (group, known) in found.items())
        self._file.write("insert or replace into prompts values (?, ?, ?)", rows)

    def _take(self, prompt: Prompt) -> bool:
        """Whether one more trace of a prompt is looked at."""
        if prompt.size <= self._fewest:
            return True
        return any(self._taken.add(hash((prompt.hash, i))) for i in range(self._fewest))

    def _bits_of(self, key: int) -> np.ndarray:
        """The packed bits of a prompt so far; zeros where there are none."""
        found = self._file.first("select bits from prompts where hash = ?", key)
        return np.frombuffer(found[0], np.uint8) if found else np.zeros(1, np.uint8)

    def counted(self) -> Int[np.ndarray, "2 policies groups"]:
        """How many prompts were asked, and how many of them contradicted."""
        n_policies, n_groups = self._shape
        counts = np.zeros((2 * n_policies, n_groups), np.int64)
        for some in self._file.pieces("select part, bits from prompts"):
            packed = np.frombuffer(b"".join(bits for _, bits in some), np.uint8).reshape(len(some), -1)
            np.add.at(counts.T, [part for part, _ in some], np.unpackbits(packed, axis=1, count=2 * n_policies))
        return counts.reshape(2, n_policies, n_groups)


def _written_in_full(replay: Replay) -> Int[np.ndarray, "asked 3"]:
    """Boundaries where the answer was also written in full: number of the trace, thinking tokens there, and
    `FreeTrial.same` (-1 where it is not known). The first boundary that was tried has two rows: one with its own
    tokens, and one with 0."""
    found = []
    for i, trace in enumerate(replay.traces):
        first = first_trial(trace.boundary_state)
        for free in free_trials(trace):
            same = -1 if free.same is None else int(free.same)
            at = trace.boundaries[free.boundary]
            found += [(i, tokens, same) for tokens in ((at, 0) if free.boundary == first else (at,))]
    return np.array(found, np.int64).reshape(-1, 3)
