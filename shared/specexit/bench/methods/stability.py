"""Exit once the answer has stopped changing: a trial answer at every boundary."""

from __future__ import annotations

from dataclasses import dataclass

from specexit.bench.methods.interface import Asks, Chain, Marks, Method, Problem, Tuning
from specexit.data.answers import same_answer
from specexit.data.rows import heard_answers
from specexit.data.traces import Trace


@dataclass(frozen=True)
class Stability(Method):
    """Exit where the last m trial answers are the same."""

    m: int

    name = "stability"
    engine = "eagle3"
    says = "a trial answer at every boundary; exit where the last m are the same, m being chosen on calibration traces"
    pauses = True

    @classmethod
    def tuned(cls, tuning: Tuning) -> Stability:
        """The smallest m within the tolerance.

        Raises:
          MethodError: there are no traces to choose it on, or they were not tried at every boundary.
        """
        tuning.check_heard(cls.name)
        return cls(tuning.boldest(cls.name, (6, 5, 4, 3, 2), stable_at))

    def respond(self, problem: Problem, marks: Marks) -> Asks:
        """Think, try, compare."""
        chain, answers = Chain(problem, marks), []
        while (yield from chain.further()):
            trial = yield from chain.trial()
            answers.append(chain.answer(trial))
            if is_stable(answers, self.m, problem.answer_kind):
                break
        yield from chain.conclude()


def is_stable(answers: list[str | None], m: int, kind: str = "math") -> bool:
    """Whether the last m are there and the same.

    Example:
      >>> is_stable(["7", "8", "8"], 2), is_stable([None, None], 2)
      (True, False)
    """
    last = answers[-m:]
    return len(last) == m and last[0] is not None and all(same_answer(last[0], answer, kind) for answer in last)


def stable_at(trace: Trace, m: int) -> int | None:
    """Index of the boundary at which a recorded trace would exit; None where it would not."""
    heard = heard_answers(trace)
    for i in range(m, len(heard)):
        if is_stable(heard[:i], m, trace.answer_kind):
            return i - 1
    return None
