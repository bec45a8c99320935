"""No thinking at all (Ma et al. 2025, arXiv 2504.09858)."""

from __future__ import annotations

from dataclasses import dataclass

from specexit.bench.methods.interface import Asks, Chain, Marks, Method, Problem


@dataclass(frozen=True)
class NoThinking(Method):
    """The end marker stands behind the prompt."""

    name = "no-thinking"
    engine = "eagle3"
    says = "</think> directly behind the prompt"

    def respond(self, problem: Problem, marks: Marks) -> Asks:
        """Answer at once."""
        return Chain(problem, marks).conclude()
