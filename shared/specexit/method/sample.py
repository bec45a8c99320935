"""The sample behind a statement of risk: which prompts may judge a policy, and how many of them it gets wrong.

The unit is the prompt. Its loss is the share of its traces that err, so that a prompt that was sampled many times, or
stands in the file many times, counts once. A trace that cannot judge (`specexit.data.rows.can_judge`: unfinished, no
answer, nowhere to exit) is left out or counts as an error; as a success it never counts, and no more does an exit at an
undecided trial.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped, UInt64

from specexit.data.outlines import Outlines, outlines
from specexit.data.rows import AnyTrace, can_judge
from specexit.drafts.policy import Risk
from specexit.errors import InputError
from specexit.method.decision import Policy
from specexit.method.replay import Outcome, Replay
from specexit.method.stored import AnyReplay

Unjudged = Literal["refuse", "error"]
FoundT = TypeVar("FoundT")


class SampleError(InputError):
    """Traces that no statement of risk can be made of."""


@dataclass(frozen=True)
class Prompts:
    """What a test has to know of the prompts besides their losses."""

    n: int
    single: bool
    """Whether every prompt has one trace, so that losses are errors and no shares."""
    groups: Int[np.ndarray, " prompts"] | None = None
    """Number of each prompt's group, where there are groups."""
    names: Sequence[str] = ()
    """Of the groups, in their order."""

    def parts(self) -> Iterator[tuple[str, Bool[np.ndarray, " prompts"]]]:
        """Name of each group, in their order, and which prompts are its own; a nameless one where there are none."""
        if self.groups is None:
            yield "", np.ones(self.n, bool)
            return
        for number, name in enumerate(self.names):
            yield name, self.groups == number


@dataclass(frozen=True)
class Compared:
    """Prompts whose answer was also written in full at the very boundary where a policy ends their thinking."""

    asked: Bool[np.ndarray, " prompts"]
    contradicted: Bool[np.ndarray, " prompts"]
    """The trial agrees there with the trace's answer, and the answer written in full does not."""


class Sample:
    """Prompts that can judge, ready for policies.

    Args:
      traces: of one target, in any order, several of a prompt or not; with a replay, their outlines do.
      signals: values at every thinking token of each trace, or a replay of the traces that can judge.
      unjudged: what becomes of traces that cannot judge: left out, or counted as errors of their prompts.
      grouped: whether every prompt belongs to a group (``group``, by default its task).

    Raises:
      SampleError: a trace stands there twice, or a prompt is of several groups or, if grouped, of none.
    """

    def __init__(
        self,
        traces: Sequence[AnyTrace] | Outlines,
        signals: Sequence[Float[np.ndarray, "_think signals"]] | AnyReplay,
        *,
        unjudged: Unjudged = "refuse",
        grouped: bool = False,
    ):
        known = traces if isinstance(traces, Outlines) else outlines(_once(traces))
        able = known.has("barred", None)
        self.traces = known.only(able)
        self.replay = _replay(traces, signals) if isinstance(signals, Sequence) else signals
        self.unjudged = Counter({why: n for why, n in known.counted("barred").items() if why is not None})
        """Reasons, and how many traces each of them bars."""
        kept, counts = (self.traces, able[able]) if unjudged == "refuse" else (known, able)
        first, rows = _numbered(kept["prompt"])
        self._sizes = np.bincount(rows, minlength=len(first))
        groups, names = _groups(kept, rows, first) if grouped else (None, [])
        self.prompts = Prompts(len(first), bool((self._sizes == 1).all()), groups, names)
        self._prompt_of = rows[counts]
        self._barred = np.bincount(rows[~counts], minlength=len(first))

    @property
    def n(self) -> int:
        """Prompts that count."""
        return self.prompts.n

    @property
    def n_traces(self) -> int:
        """Traces of these prompts that count."""
        return int(self._sizes.sum())

    def losses(self, outcome: Outcome, risk: Risk) -> Float[np.ndarray, " prompts"]:
        """The share of each prompt's traces that err.

        Raises:
          SampleError: see `errors_of`.
        """
        wrong = np.bincount(self._prompt_of, weights=errors_of(self.replay, outcome, risk), minlength=self.n)
        return (wrong + self._barred) / self._sizes

    def per_prompt(self, values: Shaped[np.ndarray, " traces"]) -> Float[np.ndarray, " prompts"]:
        """Sums over each prompt's traces that can judge."""
        return np.bincount(self._prompt_of, weights=values, minlength=self.n)

    def play(self, policy: Policy, risk: Risk) -> Float[np.ndarray, " prompts"]:
        """`losses` of a policy."""
        return self.losses(self.replay.play(policy), risk)

    def describe_unjudged(self) -> str:
        """The traces that cannot judge, in words."""
        reasons = sorted(self.unjudged.items(), key=lambda item: (-item[1], item[0]))
        listed = ", ".join(f"{n} {reason}" for reason, n in reasons)
        return listed or "all can judge"

    @property
    def has_free_trials(self) -> bool:
        """Whether any answer was also written in full."""
        return len(self.traces.whole) > 0

    def compared(self, outcome: Outcome) -> Compared:
        """Trials and answers written in full, where a policy exits: elsewhere they say nothing of its risk.

        Chance chose the boundaries that were asked, so the prompts asked there are a sample of all prompts. For a trace
        that does not exit, or errs by its trial already, the first boundary stands, and nothing can contradict. It also
        stands for an exit at a boundary whose verdict was inferred, where nothing could be asked; such an exit counts
        as contradicted, and so does one whose answer in full never came.
        """
        asked, contradicted = np.zeros(self.n, bool), np.zeros(self.n, bool)
        sound = outcome.exited & (outcome.kept < self.replay.n_think) & ~outcome.changed
        at = np.where(sound & ~outcome.inferred, outcome.kept, 0)
        trace, tokens, same = self.traces.whole.T
        here = tokens == at[trace]
        asked[self._prompt_of[trace[here]]] = True
        wrong = here & sound[trace] & ((tokens == 0) | (same != 1))
        contradicted[self._prompt_of[trace[wrong]]] = True
        return Compared(asked, contradicted)


class OfEach(Sequence[FoundT]):
    """What is found of each policy, worked out whenever it is asked for: that of all of them may be very much.

    Args:
      policies: in their order.
      find: what is asked for, of one of them.
    """

    def __init__(self, policies: Sequence[Policy], find: Callable[[Policy], FoundT]):
        self._policies, self._find = policies, find

    def __len__(self) -> int:
        return len(self._policies)

    def __getitem__(self, index: Any) -> Any:
        return self._find(self._policies[index])


def losses_of(sample: Sample, policies: Sequence[Policy], risk: Risk) -> OfEach[Float[np.ndarray, " prompts"]]:
    """`Sample.play` of each policy.

    Raises:
      SampleError: see `errors_of`.
    """
    _check_references(sample.replay, risk)
    return OfEach(policies, lambda policy: sample.play(policy, risk))


def comparisons_of(sample: Sample, policies: Sequence[Policy]) -> OfEach[Compared]:
    """`Sample.compared` of each policy."""
    return OfEach(policies, lambda policy: sample.compared(sample.replay.play(policy)))


def errors_of(replay: AnyReplay, outcome: Outcome, risk: Risk) -> Bool[np.ndarray, " traces"]:
    """Which traces count as errors.

    ``accuracy_lost`` counts right answers that turn wrong and forgives none that turn right, so it bounds the net loss.

    Raises:
      SampleError: ``accuracy_lost`` without right answers to compare with.
    """
    _check_references(replay, risk)
    return outcome.changed if risk == "answer_changed" else (replay.correct == 1) & (outcome.correct != 1)


def _check_references(replay: AnyReplay, risk: Risk) -> None:
    n = int(np.isnan(replay.correct).sum())
    if n and risk == "accuracy_lost":
        raise SampleError(f"risk accuracy_lost: {n} traces have no reference answer, use risk answer_changed")


def _replay(traces: Sequence[AnyTrace] | Outlines, signals: Sequence[Float[np.ndarray, "_think signals"]]) -> Replay:
    """Of those that can judge."""
    assert not isinstance(traces, Outlines)
    able = [(trace, values) for trace, values in zip(traces, signals, strict=True) if can_judge(trace)]
    return Replay([trace for trace, _ in able], [values for _, values in able])


def _once(traces: Sequence[AnyTrace]) -> Sequence[AnyTrace]:
    seen = Counter((trace.id, trace.sample) for trace in traces)
    twice = [name for name, count in seen.items() if count > 1]
    if twice:
        (name, sample), *_ = twice
        raise SampleError(
            f"{len(twice)} traces stand there more than once, the first is {name!r} (sample {sample}): expected each "
            "sample of a prompt once"
        )
    return traces


def _numbered(prompts: UInt64[np.ndarray, " traces"]) -> tuple[Int[np.ndarray, " prompts"], Int[np.ndarray, " traces"]]:
    """Row of each prompt's first trace, rising, and number of each trace's prompt."""
    _, first, number = np.unique(prompts, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return first[order], place[number]


def _groups(
    traces: Outlines, prompt_of: Int[np.ndarray, " traces"], first: Int[np.ndarray, " prompts"]
) -> tuple[Int[np.ndarray, " prompts"], list[str]]:
    """Number of each prompt's group, and the groups' names."""
    code, names = traces.groups()
    if (code < 0).any():
        at = int(np.argmax(code < 0))
        raise SampleError(f"trace {traces.id_of(at)!r} is of no group and of no task, expected one of each trace")
    theirs = code[first][prompt_of]
    if (theirs != code).any():
        at = int(np.argmax(theirs != code))
        raise SampleError(
            f"trace {traces.id_of(at)!r} is of group {names[code[at]]!r}, but its prompt was of {names[theirs[at]]!r}"
        )
    present, groups = np.unique(code[first], return_inverse=True)
    return groups, [names[number] for number in present]
