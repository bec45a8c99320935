"""DEER-style exits (Yang et al. 2025, arXiv 2504.15895): a trial answer at every boundary, and how sure it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from specexit.bench.methods.interface import Asks, Chain, Marks, Method, Problem, Tuning
from specexit.data.rows import heard_answers
from specexit.data.traces import Trace

THRESHOLDS = (0.999, 0.995, 0.99, 0.98, 0.95, 0.9, 0.8)
"""DEER's own is 0.95."""


@dataclass(frozen=True)
class Deer(Method):
    """Exit where the trial answer's tokens are probable enough."""

    confidence: float

    name = "deer"
    engine = "eagle3"
    says = (
        "DEER-style: a trial answer at every boundary; exit where the geometric mean of its tokens' probabilities "
        "reaches a threshold, chosen on the calibration traces"
    )
    pauses = True

    @classmethod
    def tuned(cls, tuning: Tuning) -> Deer:
        """The lowest threshold within the tolerance.

        Raises:
          MethodError: there are no traces to choose it on, or they were not tried at every boundary.
        """
        tuning.check_heard(cls.name)
        return cls(tuning.boldest(cls.name, THRESHOLDS, sure_at))

    def respond(self, problem: Problem, marks: Marks) -> Asks:
        """Think, try, judge."""
        chain = Chain(problem, marks)
        while (yield from chain.further()):
            trial = yield from chain.trial()
            if chain.answer(trial) is not None and np.exp(np.mean(trial.logprobs)) >= self.confidence:
                break
        yield from chain.conclude()


def sure_at(trace: Trace, confidence: float) -> int | None:
    """Index of the boundary at which a recorded trace would exit; None where it would not."""
    pairs = zip(heard_answers(trace)[:-1], trace.boundary_confidence[:-1], strict=True)
    return next((i for i, (answer, sure) in enumerate(pairs) if answer is not None and sure >= confidence), None)
