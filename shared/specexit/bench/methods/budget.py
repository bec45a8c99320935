"""A fixed budget that ends at a boundary, carried out by the plug-in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from specexit.bench.methods.interface import Asks, Marks, Method, MethodError, Problem, Tuning, everything
from specexit.data.rows import AnyTrace
from specexit.method.decision import MOST_TOKENS
from specexit.method.policies.budget import budget_policy
from specexit.method.replay import Replay
from specexit.method.simulate import mean_known, summarise, within


@dataclass(frozen=True)
class Budget(Method):
    """Exit at the first boundary at or behind a number of tokens."""

    tokens: int

    name = "budget"
    engine = "specexit"
    says = (
        "a fixed thinking budget: exit at the first step boundary at or after N thinking tokens. Snapping to a "
        "boundary favours this baseline: a hard cut would end in mid-sentence"
    )
    reports = True

    @classmethod
    def tuned(cls, tuning: Tuning) -> Budget:
        """The smallest budget within the tolerance.

        Raises:
          MethodError: neither a budget nor traces are given.
        """
        return cls(chosen(cls.name, tuning))

    def respond(self, problem: Problem, marks: Marks) -> Asks:
        """One request, which exits as soon as the budget allows: validity is always at least 0."""
        return everything(
            problem,
            marks,
            specexit_validity=0.0,
            specexit_patience=1,
            specexit_min_thinking_tokens=self.tokens,
            specexit_max_thinking_tokens=MOST_TOKENS,  # a maximum of the draft's own may lie below the budget
        )


def chosen(name: str, tuning: Tuning) -> int:
    """The budget as given, or the smallest within the tolerance.

    Raises:
      MethodError: neither a budget nor traces are given.
    """
    if tuning.budget is not None:
        return tuning.budget
    if not tuning.traces:
        raise MethodError(f"method {name} chooses its budget on traces: budget or calibration_traces is needed")
    return calibrate_budget(tuning.traces, tuning.tolerance)


def calibrate_budget(traces: Sequence[AnyTrace], tolerance: float) -> int:
    """The smallest fixed thinking budget that loses at most ``tolerance`` of accuracy on these traces.

    The baseline of the benchmark. It is picked by the loss that was *observed*, with no bound on chance, and its exits
    snap to the next boundary: both favour the baseline.

    Args:
      traces: calibration traces.
      tolerance: accuracy lost (changed answers, where references are missing), 0..1.
    """
    replay = Replay(traces)
    full = mean_known(replay.correct)
    for tokens in range(int(replay.n_think.max(initial=0)) + 1):
        policy = budget_policy(tokens)
        if within(summarise(replay, policy, replay.play(policy)), full, tolerance):
            return tokens
    return int(replay.n_think.max(initial=0)) + 1
