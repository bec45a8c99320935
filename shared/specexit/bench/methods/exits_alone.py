"""Exits without speculation: what is left of the speed-up where nothing is drafted."""

from __future__ import annotations

from dataclasses import dataclass

from specexit.bench.methods.interface import Asks, Known, Marks, Method, MethodError, Problem
from specexit.bench.methods.oracle import scripted
from specexit.method.replay import Replay, with_boundaries


@dataclass(frozen=True)
class ExitsAlone(Method):
    """The exits of specexit, replayed on the target alone."""

    name = "exits-alone"
    engine = "none"
    says = (
        "the exits of specexit without speculation: replayed from the scores of the same traces, so the signals cost "
        "nothing, and the engine is paused once for each"
    )
    pauses = True

    def hints(self, known: Known) -> list[int | None]:
        """Thinking tokens at which the draft's policy exits by the scores; None where it does not exit.

        Raises:
          MethodError: there are no scores, or the draft has no policy.
        """
        if known.signals is None or known.policy is None:
            raise MethodError(f"method {self.name} replays the signals of the traces: scores is missing")
        outcome = Replay(with_boundaries(known.traces), known.signals).play(known.policy)
        return [int(n) if exited else None for n, exited in zip(outcome.kept, outcome.exited, strict=True)]

    def respond(self, problem: Problem, marks: Marks) -> Asks:
        """Think as long as the policy did."""
        return scripted(problem, marks)
