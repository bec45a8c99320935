"""A method as the benchmark sees it: a generator that asks an engine and is sent what it said.

A method that leaves the engine alone asks once for everything. One that decides by itself asks for thinking up to the
next boundary, for a trial answer, and in the end for the answer; `Chain` has these steps. Whatever is asked runs in
the same engine, as many problems at once as the batch allows, and its tokens and its time are counted by `Ask.kind`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float

from specexit.data.answers import close_trial, extract_answer, is_stated
from specexit.data.rows import is_tried_throughout
from specexit.data.traces import Trace
from specexit.errors import InputError
from specexit.method.decision import Policy
from specexit.method.replay import Replay
from specexit.method.splits import text_behind

Engine = Literal["none", "eagle3", "specexit", "specexit-fc"]
"""The target alone; with the plain draft; with the draft and the plug-in; the same with the second draft."""

Kind = Literal["think", "answer", "probe"]


class MethodError(InputError):
    """A method that cannot be run; the message names it and what it needs."""


@dataclass(frozen=True)
class Ask:
    """One request to the engine."""

    kind: Kind
    """think: the response up to here, which may close its thinking and answer; answer: what comes behind a ``</think>``
    that the method has forced or that ended the thinking; probe: nothing of the response."""
    prompt_ids: list[int]
    max_tokens: int
    stop: tuple[int, ...] = ()
    """Tokens behind which to stop; they are part of what was said."""
    stop_text: tuple[str, ...] = ()
    """Text behind which to stop."""
    extra_args: dict[str, Any] = field(default_factory=dict)
    """Of vLLM's sampling parameters, for the plug-in."""
    budget: int | None = None
    """Thinking tokens of the response behind which vLLM itself ends the thinking (its ``thinking_token_budget``)."""
    logprobs: bool = False


@dataclass(frozen=True)
class Said:
    """What the engine wrote for an `Ask`."""

    token_ids: list[int]
    finished: bool
    """Whether it stopped by itself or at a stop token, and did not run out of tokens."""
    logprobs: list[float] = field(default_factory=list)
    """Of each token, where they were asked for."""


Asks = Generator[Ask, Said, None]


@dataclass(frozen=True)
class Trial:
    """How an answer is tried, as the target's YAML has it for the problem's answer kind."""

    ids: tuple[int, ...]
    """Forced behind ``</think>``, so that the answer is stated at once."""
    max_tokens: int
    """One that is cut off here states no answer."""
    stop: tuple[str, ...] = ()
    """Text behind which it ends as well."""
    close: str = ""
    """Put in the place of that text before the answer is read."""


@dataclass(frozen=True)
class Problem:
    """What a method is given."""

    id: str
    prompt_ids: list[int]
    trial: Trial
    answer_kind: str = "math"
    """See `specexit.data.answers`."""
    choices: list[str] | None = None
    """Of multiple choice: the options."""
    hint: int | None = None
    """From `Method.hints`."""


@dataclass(frozen=True)
class Marks:
    """What a method has to know of the target."""

    start: int
    """``<think>``."""
    end: int
    """``</think>``."""
    split: frozenset[int]
    max_new_tokens: int
    max_model_len: int
    """Tokens that the engine has room for, prompt included."""
    decode: Callable[[list[int]], str]
    """Text of tokens, without special ones such as the one that ends a turn."""


@dataclass(frozen=True)
class Tuning:
    """What a method may choose its parameters on."""

    traces: Sequence[Trace]
    """With trial answers at their boundaries; `bench` refuses those of prompts that are measured."""
    tolerance: float
    """Accuracy that may be lost on them."""
    budget: int | None = None
    """Thinking tokens of the fixed budgets, where the config gives them."""
    beyond: dict[str, float] = field(default_factory=dict)
    """Methods none of whose candidates is within the tolerance, and what the first of them loses on the traces."""

    def check_heard(self, name: str) -> None:
        """Refuse traces that do not say what a method hears that asks at every boundary.

        Args:
          name: of the method, for messages.

        Raises:
          MethodError: there are boundaries that were not tried.
        """
        gaps = sum("untried" in trace.boundary_state for trace in self.traces)
        if gaps:
            raise MethodError(
                f"method {name} asks at every boundary, but {gaps} of {len(self.traces)} of calibration_traces have "
                "boundaries that were not tried: expected traces that were collected with boundaries=all"
            )

    def boldest(self, name: str, candidates: Sequence[Any], exit_of: Callable[[Trace, Any], int | None]) -> Any:
        """The candidate that saves the most thinking within the tolerance; the first where none is within it, which
        `beyond` then tells.

        Picked by the loss that was observed, with no bound on chance: that favours the method.

        Args:
          name: of the method, for messages.
          candidates: cautious ones first.
          exit_of: index of the boundary at which a trace exits; None where it does not.

        Raises:
          MethodError: there are no traces to tune on, or not all were tried throughout.
        """
        if not self.traces:
            raise MethodError(f"method {name} chooses its parameters on traces: calibration_traces is missing")
        unknown = sum(not is_tried_throughout(trace) for trace in self.traces)
        if unknown:
            raise MethodError(
                f"method {name} chooses its parameters on trial answers, but {unknown} of {len(self.traces)} of "
                "calibration_traces were tried about one exit point (boundaries=stable or bisect): expected refine"
            )
        best, most, replay, losses = candidates[0], -1, Replay(self.traces), list[float]()
        for candidate in candidates:
            exits = [exit_of(trace, candidate) for trace in self.traces]
            outcome = replay.outcome_at(np.array([-1 if at is None else at for at in exits]))
            # Accuracy where the right answer is known, else agreement.
            gone = replay.correct - outcome.correct
            losses.append(float(np.where(np.isnan(gone), outcome.changed, gone).mean()))
            saved = int((replay.n_think - outcome.kept).sum())
            if losses[-1] <= self.tolerance and saved > most:
                best, most = candidate, saved
        if most < 0:
            self.beyond[name] = losses[0]
        return best


@dataclass(frozen=True)
class Known:
    """What is known of the measured problems beforehand. Only bounds and replays may read it."""

    traces: Sequence[Trace]
    signals: Sequence[Float[np.ndarray, "_think signals"]] | None
    """The draft's, where scores are given."""
    policy: Policy | None
    """The draft's."""


class Method(ABC):
    """A method. Subclasses are frozen dataclasses whose fields are its parameters, numbers or text.

    Class attributes: ``name`` in tables; ``engine`` that it runs on; ``says``, its definition in a sentence;
    ``reports``, whether the plug-in has to report an outcome; ``pauses``, whether it asks more than once, so that
    the engines keep their prefixes; ``budgets``, whether it asks with an `Ask.budget`, for which vLLM has to be told
    the markers; ``policy``, which is served in place of the draft's own.
    """

    name: ClassVar[str]
    engine: ClassVar[Engine]
    says: ClassVar[str]
    reports: ClassVar[bool] = False
    pauses: ClassVar[bool] = False
    budgets: ClassVar[bool] = False
    policy: ClassVar[Policy | None] = None

    @classmethod
    def tuned(cls, tuning: Tuning) -> Method:
        """The method with its parameters chosen; as it is, where it has none.

        Raises:
          MethodError: it has nothing to choose them on.
        """
        return cls()

    def hints(self, known: Known) -> list[int | None]:
        """A number for each problem that the method may use; only an oracle or a replay has any.

        Raises:
          MethodError: what it needs to know is not there.
        """
        return [None] * len(known.traces)

    @abstractmethod
    def respond(self, problem: Problem, marks: Marks) -> Asks:
        """Answer one problem."""


def everything(problem: Problem, marks: Marks, **extra_args: Any) -> Asks:
    """The whole response in one request."""
    yield Ask("think", problem.prompt_ids, marks.max_new_tokens, extra_args=extra_args)


class Chain:
    """A chain of thought that a method reads from one boundary to the next.

    Example:
      Answer at the third boundary::

        chain = Chain(problem, marks)
        for _ in range(3):
            if not (yield from chain.further()):
                break
        yield from chain.conclude()
    """

    def __init__(self, problem: Problem, marks: Marks):
        self.problem, self.marks = problem, marks
        self.kept: list[int] = []
        """Thinking so far."""
        self.open = True
        """Whether the model has not closed its thinking, nor ended its turn within it, nor run out of tokens."""
        self._answerable = True

    @property
    def left(self) -> int:
        """Tokens that may still be generated, ``</think>`` not included."""
        room = self.marks.max_model_len - len(self.problem.prompt_ids)
        return min(self.marks.max_new_tokens, room) - len(self.kept) - 1

    def further(self, n: int | None = None) -> Generator[Ask, Said, bool]:
        """Think up to the next boundary, or for ``n`` tokens; returns whether thinking can go on from there."""
        stop = (self.marks.end,) if n is not None else (self.marks.end, *sorted(self.marks.split))
        limit = self.left if n is None else min(n, self.left)
        said = yield Ask("think", self.problem.prompt_ids + self.kept, max(1, limit), stop)
        self.kept += said.token_ids
        last = self.kept[-1] if self.kept else None
        given_up = said.finished and (n is not None or last not in self.marks.split)
        if last == self.marks.end:
            self.kept.pop()
            self.open = False
        elif given_up or self.left <= 0:
            self.open = self._answerable = False
        return self.open

    def trial(self) -> Generator[Ask, Said, Said]:
        """Try an answer here, which leaves no trace in the thinking."""
        trial = self.problem.trial
        prompt = [*self.problem.prompt_ids, *self.kept, self.marks.end, *trial.ids]
        forced, whole = self.marks.decode(list(trial.ids)), Said([], True)
        while True:
            left = trial.max_tokens - len(whole.token_ids)
            said = yield Ask("probe", [*prompt, *whole.token_ids], left, stop_text=trial.stop, logprobs=True)
            piece = text_behind(self.marks.decode, [*trial.ids, *whole.token_ids], said.token_ids)
            whole = Said(whole.token_ids + said.token_ids, said.finished, whole.logprobs + said.logprobs)
            written = text_behind(self.marks.decode, list(trial.ids), whole.token_ids)
            if not said.finished or is_stated(piece, written, trial.stop, forced):
                return whole
            if len(whole.token_ids) >= trial.max_tokens:
                return replace(whole, finished=False)

    def answer(self, trial: Said) -> str | None:
        """The answer in a trial; None where it was cut off or states none."""
        how = self.problem.trial
        forced = self.marks.decode(list(how.ids))
        written = text_behind(self.marks.decode, list(how.ids), trial.token_ids)
        text = forced + close_trial(written, how.stop, how.close, forced)
        return extract_answer(text, self.problem.answer_kind, self.problem.choices) if trial.finished else None

    def conclude(self) -> Asks:
        """End the thinking here, if the model has not, and let it answer. Asks for nothing where the model has run out
        of tokens or ended its turn: then it would not answer in one request for everything either."""
        if self._answerable:
            prompt = [*self.problem.prompt_ids, *self.kept, self.marks.end]
            yield Ask("answer", prompt, max(1, self.left))
