"""A budget in steps in place of tokens."""

from __future__ import annotations

from dataclasses import dataclass

from specexit.bench.methods.interface import Asks, Chain, Marks, Method, MethodError, Problem, Tuning


@dataclass(frozen=True)
class KthBoundary(Method):
    """Exit at the k-th boundary."""

    k: int

    name = "kth-boundary"
    engine = "eagle3"
    says = "exit at the k-th step boundary, k being chosen on the calibration traces"
    pauses = True

    @classmethod
    def tuned(cls, tuning: Tuning) -> KthBoundary:
        """The smallest k within the tolerance.

        Raises:
          MethodError: there are no traces to choose it on, or none of them has a boundary.
        """
        most = max((len(trace.boundaries) for trace in tuning.traces), default=1)
        if most == 0:
            raise MethodError(
                f"method {cls.name} chooses its k on boundaries, but none of the {len(tuning.traces)} of "
                "calibration_traces has one: expected traces that finish"
            )
        candidates = range(most, 0, -1)
        return cls(tuning.boldest(cls.name, candidates, lambda t, k: k - 1 if k < len(t.boundaries) else None))

    def respond(self, problem: Problem, marks: Marks) -> Asks:
        """Think to the k-th boundary, then answer."""
        chain = Chain(problem, marks)
        for _ in range(self.k):
            if not (yield from chain.further()):
                break
        yield from chain.conclude()
