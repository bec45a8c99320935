"""The sample behind a statement of risk: which prompts may judge a policy.

The unit is the prompt. Its loss is the share of its traces that err, so that a prompt that was sampled many times, or
stands in the file many times, counts once. A trace that cannot judge (`specexit.data.rows.can_judge`: unfinished, no
answer, nowhere to exit) is left out or counts as an error; as a success it never counts. What policies do to the
prompts is `specexit.method.judged`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

from specexit.data.outlines import Outlines
from specexit.data.rows import AnyTrace, short_hash
from specexit.data.scratch import Scratch
from specexit.data.seen import HALF
from specexit.drafts.policy import wrong_sampling
from specexit.errors import InputError, listed, shown

Unjudged = Literal["refuse", "error"]


class SampleError(InputError):
    """Traces that no statement of risk can be made of."""


class Prompt(NamedTuple):
    """What is known of a prompt besides its loss."""

    hash: int
    """See `specexit.data.outlines.COLUMNS`."""
    group: str
    """Its group; nameless where groups do not matter."""
    size: int
    """Its traces that count."""


class Sample:
    """Prompts that can judge, ready for policies. They lie on the disk.

    Args:
      traces: of one target, in any order, several of a prompt or not.
      unjudged: what becomes of traces that cannot judge: left out, or counted as errors of their prompts.
      grouped: whether every prompt belongs to a group (``group``, by default its task).

    Raises:
      SampleError: a trace is there twice, samples of one id stand behind different prompts or, if grouped, a prompt is
        of several groups or of none, or there is a group in which no trace can judge.
    """

    def __init__(self, traces: Outlines, *, unjudged: Unjudged = "refuse", grouped: bool = False):
        _check_once(traces)
        _check_one_prompt(traces)
        self.traces = traces.only(barred=None)
        self.unjudged = Counter({why: n for why, n in traces.counted("barred").items() if why is not None})
        """Reasons, and how many traces each of them bars."""
        kept = self.traces if unjudged == "refuse" else traces
        if grouped:
            _check_groups(kept)
            _check_able(traces, self.traces)
        self.grouped, self._names = grouped, [name or "" for name in traces.texts["part"]] if grouped else [""]
        able, part = traces.texts["barred"].get(None, -1), "part" if grouped else "0"
        self._file = Scratch("create table prompts (hash integer primary key, part, size, barred)")
        of_each = kept.ask(f"prompt, {part}, count(*), sum(barred != {able})", "group by prompt")
        self._file.write("insert into prompts values (?, ?, ?, ?)", of_each)
        sizes = self._file.ask("select part, count(*), sum(size), max(size) from prompts group by part")
        found = {self._names[part]: numbers for part, *numbers in sizes}
        self.sizes = {name: found[name][0] for name in sorted(found)} or {"": 0}
        """Prompts of each group; without groups all of them, under no name."""
        self.n = sum(self.sizes.values())
        """Prompts that count."""
        self.n_traces = sum(traces for _, traces, _ in found.values())
        """Traces of these prompts that count."""
        self.single = all(most == 1 for _, _, most in found.values())
        """Whether every prompt has one trace, so that losses are errors and no shares."""
        [(fewest,)] = self._file.ask("select min(size - barred) from prompts where size > barred")
        self.fewest: int = fewest or 0
        """How many traces can judge of the prompt with the fewest such traces, prompts without any left aside."""

    def prompt_of(self, trace: AnyTrace) -> Prompt:
        """The prompt of a trace that can judge."""
        key = short_hash(trace.prompt_hash) - HALF
        found = self._file.first("select part, size from prompts where hash = ?", key)
        assert found is not None
        return Prompt(key, self._names[found[0]], found[1])

    def barred(self) -> Iterator[tuple[str, int, int]]:
        """Group, traces that count, and how many of them cannot judge, summed over the prompts that are alike in the
        first two."""
        query = "select part, size, sum(barred) from prompts where barred group by part, size"
        return ((self._names[part], size, n) for part, size, n in self._file.ask(query))

    def describe_unjudged(self) -> str:
        """The traces that cannot judge, in words."""
        reasons = sorted(self.unjudged.items(), key=lambda item: (-item[1], item[0]))
        return listed(dict(reasons)) or "all can judge"

    @property
    def has_free_trials(self) -> bool:
        """Whether any answer was also written in full."""
        return self.traces.number("max(has_free)") > 0


def one_sampling(traces: Outlines, path: Path) -> dict[str, Any]:
    """The one sampling of all traces. How long a response may get depends on its prompt: it is not compared, and the
    longest is returned.

    Raises:
      SampleError: the file mixes traces of several samplings, or one of them is not valid.
    """
    found = [json.loads(sampling or "{}") for sampling in traces.different("sampling")]
    for wrong in filter(None, map(wrong_sampling, found)):
        raise SampleError(f"{path}: sampling: {wrong}")
    lengths = {key for sampling in found for key in sampling if key.startswith("max")}
    kinds = [{key: value for key, value in sampling.items() if key not in lengths} for sampling in found]
    for one, other in pairwise(kinds):
        if one != other:
            raise SampleError(f"{path}: traces of sampling {one} and of {other} are mixed, expected one")
    return kinds[0] | {key: _longest(key, found, path) for key in sorted(lengths)}


def _longest(key: str, found: list[dict[str, Any]], path: Path) -> float | None:
    """The largest of several samplings' values of a length; None, which is no limit, where one of them is that."""
    values = [sampling[key] for sampling in found if key in sampling]
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise SampleError(f"{path}: sampling: {key} is {shown(value)}, expected a number, or null for no limit")
    return None if None in values else max(values)


def _check_once(traces: Outlines) -> None:
    twice = "group by id, sample having count(*) > 1 order by min(row)"
    names = list(traces.ask("id, sample", f"{twice} limit 1"))
    if names:
        [(name, sample)], n = names, sum(1 for _ in traces.ask("1", twice))
        raise SampleError(
            f"{n} traces stand there more than once, the first is {name!r} (sample {sample}): expected each sample of "
            "a prompt once"
        )


def _check_one_prompt(traces: Outlines) -> None:
    """Refuse samples of one question that stand behind different tokens: each would count as a prompt of its own, and
    a certificate as drawn from more questions than were asked."""
    several = "group by id having min(prompt) != max(prompt) order by min(row)"
    names = list(traces.ask("id, count(distinct prompt)", f"{several} limit 1"))
    if names:
        [(name, prompts)], n = names, sum(1 for _ in traces.ask("1", several))
        raise SampleError(
            f"{n} ids have samples of different prompt tokens, the first is {name!r} with {prompts}: expected one "
            "prompt of each id; where a chat template writes the day's date, collect all samples of a prompt on one "
            "day, or write a fixed date into the template"
        )


def _check_groups(traces: Outlines) -> None:
    names = list(traces.texts["part"])
    if None in names:
        for (name,) in traces.ask("id", f"and part = {names.index(None)} order by row limit 1"):
            raise SampleError(f"trace {name!r} is of no group and of no task, expected one of each trace")
    several = traces.ask("prompt, part, min(row)", "group by prompt having min(part) != max(part)")
    for prompt, first, _ in several:
        [(name, other)] = traces.ask("id, part", f"and prompt = {prompt} and part != {first} order by row limit 1")
        raise SampleError(f"trace {name!r} is of group {names[other]!r}, but its prompt was of {names[first]!r}")


def _check_able(traces: Outlines, able: Outlines) -> None:
    """Refuse a group in which no trace can judge: if all its traces were left out, it would be certified unseen with
    the others; if all were errors, it would keep the others from being certified, and nothing would say so."""
    judging = able.different("part")
    for name in traces.different("part"):
        if name is None or name in judging:
            continue
        barred = traces.only(part=name).counted("barred")
        raise SampleError(
            f"group {name!r}: none of its {sum(barred.values())} traces can judge ({listed(barred)}), expected some "
            "that can in every group"
        )
