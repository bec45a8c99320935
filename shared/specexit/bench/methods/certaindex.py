"""Dynasor-style exits (Fu et al. 2024, arXiv 2412.20993): probes at a fixed distance, until they agree.

`specexit.method.policies.certaindex` is another rule: recorded trials stand at boundaries alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from specexit.bench.methods.interface import Asks, Chain, Marks, Method, Problem
from specexit.bench.methods.stability import is_stable


@dataclass(frozen=True)
class Certaindex(Method):
    """Exit where the answers of the last probes agree: their entropy is zero."""

    interval: int = 32
    """Tokens between two probes; Dynasor's own."""
    agreeing: int = 3
    """Probes in a row; Dynasor's own."""

    name = "certaindex"
    engine = "eagle3"
    says = "Dynasor-style: a trial answer every 32 tokens, wherever that falls; exit where the last 3 agree"
    pauses = True

    def respond(self, problem: Problem, marks: Marks) -> Asks:
        """Think, probe, compare."""
        chain, answers = Chain(problem, marks), []
        while (yield from chain.further(self.interval)):
            probe = yield from chain.trial()
            answers.append(chain.answer(probe))
            if is_stable(answers, self.agreeing, problem.answer_kind):
                break
        yield from chain.conclude()
