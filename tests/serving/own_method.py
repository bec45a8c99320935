"""A method of the benchmark as a stranger adds one: this file, and its path in ``methods``."""

from dataclasses import dataclass

from specexit.bench.methods import Asks, Chain, Marks, Method, Problem


@dataclass(frozen=True)
class Twice(Method):
    """Two steps, whatever they say."""

    steps: int = 2

    name = "twice"
    engine = "eagle3"
    says = "exit at the second step boundary"
    pauses = True

    def respond(self, problem: Problem, marks: Marks) -> Asks:
        """Think for so many steps, then answer."""
        chain = Chain(problem, marks)
        for _ in range(self.steps):
            if not (yield from chain.further()):
                break
        yield from chain.conclude()
