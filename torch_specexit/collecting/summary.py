"""What came out of a run, in counts, and whether it is worth going on with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields

from rich.console import Console

from specexit.config import write_text
from specexit.data.rows import FAILED, Trace, free_trials
from specexit.schemas.collect import CollectConfig
from torch_specexit.collecting.work import CollectError

SUMMARY = "summary.json"

MOST_IN_TRIALS = 0.15
"""Share of all tokens above which trials are worth a warning, if they are longer than `SHORT_TRIAL`."""

SHORT_TRIAL = 32
"""Mean tokens of trials that a forced text would hardly make shorter."""


@dataclass
class Counts:
    """Counts over a set of traces."""

    traces: int = 0
    finished: int = 0
    """Traces that came to their end within the token budget."""
    answered: int = 0
    correct: int = 0
    """Traces whose answer is right, of those with a reference."""
    references: int = 0
    boundaries: int = 0
    unbroken: int = 0
    """Traces with an answer and no boundary."""
    trials: int = 0
    """Boundaries that were tried, before the natural end and at it."""
    agreed: int = 0
    undecided: int = 0
    thinking_tokens: int = 0
    trial_tokens: int = 0
    free: int = 0
    """Forced trials that were compared with the whole answer, both decided."""
    free_same: int = 0
    free_tokens: int = 0
    failed: int = 0
    """Traces of prompts that no server answered."""
    unclosed: int = 0
    """Traces that came to their end without the end marker."""

    def __add__(self, other: Counts) -> Counts:
        names = [field.name for field in fields(self)]
        return Counts(**{name: getattr(self, name) + getattr(other, name) for name in names})

    __radd__ = __add__


def count(trace: Trace) -> Counts:
    """The counts of one trace."""
    states, free = trace.boundary_state, free_trials(trace)
    return Counts(
        traces=1,
        finished=int(trace.finish_reason == "stop"),
        answered=int(trace.answer is not None),
        correct=int(bool(trace.correct)),
        references=int(trace.correct is not None),
        boundaries=len(states),
        unbroken=int(trace.answer is not None and not trace.boundaries),
        trials=len(states) - states.count("untried"),
        agreed=states.count("agrees"),
        undecided=states.count("undecided"),
        thinking_tokens=len(trace.think_ids),
        trial_tokens=sum(trace.boundary_trial_tokens),
        free=sum(trial.same is not None for trial in free),
        free_same=sum(trial.same is True for trial in free),
        free_tokens=sum(trial.tokens for trial in free),
        failed=int(trace.finish_reason == FAILED),
        unclosed=int(trace.finish_reason == "stop" and not trace.answer_ids),
    )


def finish(config: CollectConfig, counts: Counts, max_tokens: int) -> None:
    """Write ``summary.json``, print it, warn, and fail where the traces are not worth training on.

    Raises:
      CollectError: too few finished or answered, or no boundary in any. All that was collected stays.
    """
    console = Console(stderr=True)
    shares = {
        "finished": _share(counts.finished, counts.traces),
        "answered": _share(counts.answered, counts.traces),
        "unbroken": _share(counts.unbroken, counts.answered),
        "undecided": _share(counts.undecided, counts.trials),
        "agreed": _share(counts.agreed, counts.trials),
        "forced_as_free": _share(counts.free_same, counts.free),
        "trial_tokens": _share(counts.trial_tokens, counts.trial_tokens + counts.thinking_tokens),
    }
    write_text(config.out / SUMMARY, json.dumps({"counts": asdict(counts), "shares": shares}, indent=2) + "\n")
    failed = f", {counts.failed} failed" if counts.failed else ""
    free = "" if shares["forced_as_free"] is None else f", as whole answers {shares['forced_as_free']:.1%}"
    traces, trials = counts.traces, counts.trials
    console.print(
        f"{config.out}: {traces} traces, {_percent(counts.finished, traces)} finished{failed}, "
        f"{_percent(counts.answered, traces)} answered; {trials} trials at {counts.boundaries} boundaries, "
        f"{_percent(counts.agreed, trials)} agreed, {_percent(counts.undecided, trials)} undecided{free}; "
        f"{counts.trial_tokens} trial tokens beside {counts.thinking_tokens} of thinking",
        soft_wrap=True,
        markup=False,
    )
    for said in _warnings(config, counts):
        console.print(f"[yellow]warning:[/yellow] {said}", soft_wrap=True)
    _check(config, counts, max_tokens)


def _warnings(config: CollectConfig, counts: Counts) -> Iterator[str]:
    """What is worth a second look before the traces are trained on."""
    if _in_trials(counts) > MOST_IN_TRIALS and counts.trial_tokens > SHORT_TRIAL * counts.trials:
        yield (
            f"{_in_trials(counts):.1%} of all tokens were written in trials, "
            f"{counts.trial_tokens / counts.trials:.0f} in each; collect into a new folder with a text in the target's "
            "trial that makes it answer at once, with a larger stride, or with boundaries=stable or bisect"
        )
    if counts.trials and counts.undecided > config.max_undecided * counts.trials:
        yield (
            f"{_percent(counts.undecided, counts.trials)} of the trials were cut off or state nothing, so nobody knows "
            "what they would have answered; collect into a new folder with a larger trial_max_tokens, or with a text "
            "in the target's trial that makes it answer at once"
        )
    if counts.unbroken > config.max_unbroken * counts.answered:
        yield (
            f"{_percent(counts.unbroken, counts.answered)} of the answered traces have no step boundary, so nothing is "
            "learnt from them; do the target's split_endings occur in its thinking?"
        )
    if counts.free_same < config.min_forced_as_free * counts.free:
        yield (
            f"{_percent(counts.free_same, counts.free)} of {counts.free} forced trials come to the verdict of the "
            "whole answer, so the labels are not what an exit gives; look at the target's trial (text, stop and close) "
            "beside answers in the traces, or lower min_forced_as_free"
        )


def check_early(config: CollectConfig, counts: Counts, max_tokens: int, of: int) -> None:
    """Check the first traces as `finish` will check all ``of`` them. What is so far off that the others can hardly make
    up for it ends the run; anything less is a warning.

    Raises:
      CollectError: the traces are so far off. All that was collected stays.
    """
    try:
        _check(config, counts, max_tokens)
    except CollectError as error:
        far = (
            not counts.boundaries
            or 2 * counts.finished < config.min_finished * counts.traces
            or 2 * counts.answered < config.min_answered * counts.traces
        )
        said = f"{error} (the first {counts.traces} of {of} traces)"
        if far:
            raise CollectError(f"{said}; the same command goes on") from error
        Console(stderr=True, soft_wrap=True).print(f"warning: {said}", style="yellow", markup=False, highlight=False)


def _check(config: CollectConfig, counts: Counts, max_tokens: int) -> None:
    too_few = counts.finished < config.min_finished * counts.traces
    cut_off = counts.traces - counts.finished - counts.failed
    if counts.failed and (counts.failed == counts.traces or (too_few and counts.failed > cut_off)):
        raise CollectError(
            f"{config.out}: no server answered {counts.failed} of {counts.traces} requests for a trace, and "
            f"{_percent(counts.finished, counts.traces)} finished, expected {config.min_finished:.0%}; the same "
            "command asks for them again, otherwise lower min_finished"
        )
    if too_few:
        raise CollectError(
            f"{config.out}: {_percent(counts.finished, counts.traces)} of {counts.traces} traces finished within "
            f"{max_tokens} tokens, expected {config.min_finished:.0%}; collect into a new folder with a larger "
            "max_new_tokens, or lower min_finished"
        )
    if counts.answered < config.min_answered * counts.traces:
        why = "do the prompts ask for the form that their answer_kind reads?"
        if 2 * counts.unclosed > counts.traces - counts.answered:
            why = (
                f"{counts.unclosed} came to their end and never wrote the end marker: does this model think, and are "
                "think_start, think_end and chat in the target's YAML as it has them?"
            )
        raise CollectError(
            f"{config.out}: {_percent(counts.answered, counts.traces)} of {counts.traces} traces state an answer, "
            f"expected {config.min_answered:.0%}; {why} Otherwise lower min_answered"
        )
    if counts.answered and not counts.boundaries:
        raise CollectError(
            f"{config.out}: none of {counts.answered} answered traces has a step boundary, so there is nothing to "
            "label; give the target split_endings (or split_connectors) that occur in its thinking, and collect into a "
            "new folder"
        )


def _in_trials(counts: Counts) -> float:
    return counts.trial_tokens / max(1, counts.trial_tokens + counts.thinking_tokens)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "none"
