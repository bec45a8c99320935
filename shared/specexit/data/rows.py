"""What one trace is: the columns of a trace file, their meaning, and which traces a statistic may count.

Columns are the fields of `Trace` and, once ``specexit annotate`` has found the exit points, of `LabelledTrace`. Reading
and writing files of them is `specexit.data.traces`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
from jaxtyping import Bool

SCHEMA_VERSION = "3"
READABLE_VERSIONS = ("1", "2", SCHEMA_VERSION)
"""Version 1 lacks the columns of `ADDED`; a row of it was tried at every boundary. Version 2 lacks ``choices``."""

BoundaryState = Literal["agrees", "differs", "undecided", "untried"]
"""What the trial behind a boundary said: the trace's answer, another or none, nothing before it was cut off; or there
was no trial."""

STATES: tuple[str, ...] = get_args(BoundaryState)

NO_TASK = "no task"
"""What traces that name no task are counted under."""

FAILED = "failed"
"""``finish_reason`` of a prompt that no server answered: the row holds no text."""


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One row: what the target wrote for a prompt, and what it would have answered at its step boundaries."""

    id: str
    """Of the prompt."""
    prompt: str
    """The last user turn."""
    prompt_ids: list[int]
    think_ids: list[int]
    """Thinking tokens, neither marker included."""
    answer_ids: list[int]
    """Everything behind ``</think>``, end of turn included."""
    answer: str | None
    """Extracted from the full response."""
    reference: str | None
    """The right answer, where it is known."""
    correct: bool | None
    finish_reason: str
    """``stop``, ``length`` where the token budget ran out, or `FAILED`. Whatever it is but ``stop``, the trace is
    unfinished."""
    boundaries: list[int]
    """Offsets in ``think_ids`` just behind a split token."""
    boundary_answers: list[str | None]
    """Answer that the target gives when its thinking is ended at each boundary. An untried one has that of the tried
    one before it, or of the first tried one where none is before it."""
    boundary_agrees: list[bool]
    """Whether that equals ``answer``. True where the trial agrees, and at an untried boundary where the nearest tried
    ones on both sides do; False everywhere else, where a trial was undecided too."""
    boundary_confidence: list[float]
    """Geometric mean of the probabilities of the trial answer's tokens; an untried boundary has that of the same tried
    one as its answer."""
    target: str
    sampling: str
    """Sampling parameters, as JSON."""
    seed: int
    """Of this very sample."""
    sample: int = 0
    """Which of the prompt's samples, from 0."""
    messages: str | None = None
    """The chat messages as JSON; None where ``prompt`` is all of them."""
    task: str | None = None
    answer_kind: str = "math"
    """How answers are read and compared, see `specexit.data.answers`."""
    group: str | None = None
    """Part of the population that the prompt belongs to; by default its task."""
    boundary_state: list[str] = field(default_factory=list)
    """A `BoundaryState` each. By default every boundary was tried, with what ``boundary_agrees`` says."""
    boundary_trial_tokens: list[int] = field(default_factory=list)
    """Tokens that each trial generated; 0 where there was none, or where it is not known."""
    trial: str = "{}"
    """How trials were made, as JSON: ``text`` forced behind the end marker, ``max_tokens``, ``stop``, ``boundaries``
    (how they were chosen), and ``free``: trials with nothing forced, see `free_trials`."""
    choices: list[str] | None = None
    """The options of a multiple-choice question: the text of one counts as its letter."""

    def __post_init__(self) -> None:
        if not self.boundary_state:
            states = ["agrees" if agrees else "differs" for agrees in self.boundary_agrees]
            object.__setattr__(self, "boundary_state", states)
        if not self.boundary_trial_tokens:
            object.__setattr__(self, "boundary_trial_tokens", [0] * len(self.boundaries))

    @property
    def n_prompt(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt_ids)

    @property
    def n_think(self) -> int:
        """Thinking tokens."""
        return len(self.think_ids)

    @property
    def n_answer(self) -> int:
        """Tokens behind the end marker."""
        return len(self.answer_ids)

    @property
    def prompt_hash(self) -> str:
        """Hash of the prompt's token ids: what tells whether two traces are of one prompt, whatever their ids say."""
        return ids_sha256(self.prompt_ids)

    @property
    def split_ids(self) -> list[int]:
        """The token in front of each boundary."""
        return [self.think_ids[at - 1] for at in self.boundaries]


@dataclass(frozen=True, kw_only=True)
class LabelledTrace(Trace):
    """A finished trace together with the points at which its thinking could have ended."""

    exit_earliest: int
    """Offset of the first boundary that agrees; ``len(think_ids)`` where none does."""
    exit_stable: int
    """Offset of the first boundary that agrees and behind which no decided one differs; ``len(think_ids)`` where none
    does."""
    hard_boundary: int | None
    """Index of the boundary behind the first stated answer; None where there is none, see
    `specexit.data.annotate.hard_boundary`."""


@dataclass(frozen=True, kw_only=True)
class BareTrace:
    """A trace without its text, for commands that read many: what is known at its boundaries, and how long it is.

    Fields are as in `Trace`, where the last five are properties. Numbers lie in `array.array`, a few bytes each.
    """

    id: str
    answer: str | None
    reference: str | None
    correct: bool | None
    finish_reason: str
    boundaries: Sequence[int]
    boundary_answers: Sequence[str | None]
    boundary_agrees: Sequence[bool]
    boundary_confidence: Sequence[float]
    target: str
    sampling: str
    sample: int
    task: str | None
    answer_kind: str
    group: str | None
    boundary_state: Sequence[str]
    boundary_trial_tokens: Sequence[int]
    trial: str
    n_prompt: int
    n_think: int
    n_answer: int
    prompt_hash: str
    split_ids: Sequence[int]


AnyTrace = Trace | BareTrace
"""What a statistic or a policy reads of a trace is the same in both."""


@dataclass(frozen=True)
class FreeTrial:
    """A trial with nothing forced behind the end marker: the whole answer, as a user would get it."""

    boundary: int
    """Index of the boundary."""
    answer: str | None
    same: bool | None
    """Whether the forced trial there has the same verdict; None where one of the two was cut off."""
    tokens: int


def can_judge(trace: AnyTrace) -> bool:
    """Whether a statistic or certificate may count a trace: it came to its end with an answer, and had somewhere to
    exit. All others are reported, and never count as successes. An exit where the trial is undecided counts as an
    error: without such traces, fewer prompts would seem to go wrong at an early end than do."""
    return why_not(trace) is None


def why_not(trace: AnyTrace) -> str | None:
    """Why a trace cannot judge; None where it can."""
    if trace.finish_reason != "stop":
        return "unfinished"
    if trace.answer is None:
        return "without an answer"
    return None if len(trace.boundaries) else "without a boundary"


def ids_sha256(ids: Sequence[int]) -> str:
    """Hash of token ids."""
    return hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()


def short_hash(sha256: str) -> int:
    """The first eight bytes of a hash."""
    return int(sha256[:16], 16)


def free_trials(trace: AnyTrace) -> list[FreeTrial]:
    """The trials of a trace in which nothing was forced, which show what forced ones are worth."""
    return [FreeTrial(**free) for free in json.loads(trace.trial).get("free", [])]


def is_tried_throughout(trace: AnyTrace) -> bool:
    """Whether a trace's trials were spread over all of its thinking; False where one exit point alone was looked for
    (``boundaries=stable`` or ``bisect``), in front of which nothing is known."""
    return json.loads(trace.trial).get("boundaries", "all") in ("all", "refine")


def known_verdicts(states: Sequence[str] | np.ndarray) -> Bool[np.ndarray, " boundaries"]:
    """Which boundaries of a trace have a verdict that rests on a trial: those of `infer_decided`, without the ones in
    front of the first trial, where nothing was looked for.

    Example:
      >>> known_verdicts(["untried", "differs", "untried", "agrees", "undecided"]).tolist()
      [False, True, True, True, False]
    """
    return infer_decided(states) & (np.arange(len(states)) >= first_trial(states))


def first_trial(states: Sequence[str] | np.ndarray) -> int:
    """Index of the first boundary that was tried; their number where none was."""
    return next((i for i, state in enumerate(states) if state != "untried"), len(states))


def fill_untried(tried: Sequence[Any]) -> list[Any]:
    """Give untried boundaries (None) the value of the tried one before them, or of the first one where none is before.

    Example:
      >>> fill_untried([None, 1, None, None, 2, None])
      [1, 1, 1, 1, 2, 2]
    """
    last = next((value for value in tried if value is not None), None)
    filled = []
    for value in tried:
        last = last if value is None else value
        filled.append(last)
    return filled


def heard_answers(trace: AnyTrace) -> list[str | None]:
    """The answers that a method would hear if it made the trials itself: a trial that was cut off states none, nor does
    an untried boundary that has its answer from such a trial."""
    states = fill_untried([None if state == "untried" else state for state in trace.boundary_state])
    pairs = zip(states, trace.boundary_answers, strict=True)
    return [None if state == "undecided" else answer for state, answer in pairs]


def infer_agrees(states: Sequence[str]) -> list[bool]:
    """``boundary_agrees`` from ``boundary_state``: an untried boundary agrees where both tried neighbours do. In front
    of the first tried one none agrees; behind the last tried one, all agree if that one does.

    Example:
      >>> infer_agrees(["untried", "agrees", "untried", "agrees", "untried", "differs", "untried"])
      [False, True, True, True, False, False, False]
    """
    before = _carry(states, start=False)
    after = reversed(_carry(states[::-1], start=True))
    return [left and right for left, right in zip(before, after, strict=True)]


def infer_decided(states: Sequence[str] | np.ndarray) -> Bool[np.ndarray, " boundaries"]:
    """Which boundaries of a trace have a verdict: all except the undecided ones and the untried ones beside these,
    whose verdict depends on what the trial that was cut off would have said.

    Example:
      >>> infer_decided(["differs", "untried", "agrees", "untried", "undecided", "untried", "agrees"]).tolist()
      [True, True, True, False, False, False, True]
    """
    array = np.asarray(states, np.str_)
    untried, at = array == "untried", np.arange(len(array))
    before = np.maximum.accumulate(np.where(untried, -1, at))
    after = np.minimum.accumulate(np.where(untried, len(at), at)[::-1])[::-1]
    beyond = np.append(array == "undecided", False)  # -1 and len(at), where no trial is, both read its last
    return ~(beyond[before] | beyond[after])


def _carry(states: Sequence[str], *, start: bool) -> list[bool]:
    """Whether the last tried state agrees, at every place."""
    agrees, carried = start, []
    for state in states:
        agrees = agrees if state == "untried" else state == "agrees"
        carried.append(agrees)
    return carried


_INTS, _STRINGS = pa.list_(pa.int32()), pa.list_(pa.string())
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("prompt_ids", _INTS, nullable=False),
        pa.field("think_ids", _INTS, nullable=False),
        pa.field("answer_ids", _INTS, nullable=False),
        pa.field("answer", pa.string()),
        pa.field("reference", pa.string()),
        pa.field("correct", pa.bool_()),
        pa.field("finish_reason", pa.string(), nullable=False),
        pa.field("boundaries", _INTS, nullable=False),
        pa.field("boundary_answers", _STRINGS, nullable=False),
        pa.field("boundary_agrees", pa.list_(pa.bool_()), nullable=False),
        pa.field("boundary_confidence", pa.list_(pa.float32()), nullable=False),
        pa.field("target", pa.string(), nullable=False),
        pa.field("sampling", pa.string(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("sample", pa.int32(), nullable=False),
        pa.field("messages", pa.string()),
        pa.field("task", pa.string()),
        pa.field("answer_kind", pa.string(), nullable=False),
        pa.field("group", pa.string()),
        pa.field("boundary_state", _STRINGS, nullable=False),
        pa.field("boundary_trial_tokens", _INTS, nullable=False),
        pa.field("trial", pa.string(), nullable=False),
        pa.field("choices", _STRINGS),
    ],
    metadata={"specexit.traces": SCHEMA_VERSION},
)
LABELLED_SCHEMA = pa.schema(
    [
        *SCHEMA,
        pa.field("exit_earliest", pa.int32(), nullable=False),
        pa.field("exit_stable", pa.int32(), nullable=False),
        pa.field("hard_boundary", pa.int32()),
    ],
    metadata=SCHEMA.metadata,
)
SCHEMAS: dict[type[Trace], pa.Schema] = {Trace: SCHEMA, LabelledTrace: LABELLED_SCHEMA}
assert all(schema.names == [column.name for column in fields(kind)] for kind, schema in SCHEMAS.items())
ADDED = tuple(column.name for column in fields(Trace) if (column.default, column.default_factory) != (MISSING, MISSING))
"""Columns that version 1 does not have; its rows have the defaults of `Trace` in them."""
LACKING = {"1": ADDED, "2": ("choices",)}
"""Columns that the files of an older version do not have."""
