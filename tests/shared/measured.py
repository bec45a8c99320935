"""Responses, runs and results of a benchmark that has not been run."""

from functools import cache

from specexit.bench.comparison import compare, identities, summarise
from specexit.bench.requests import Reason, Request, Run
from specexit.bench.results import (
    Oracle,
    Results,
)


def request(i: int, thinking: int, *, total: int, correct: bool = True, reason: Reason = "natural_end") -> Request:
    return Request(str(i), list(range(total)), thinking, reason, "7", correct, {})


def full_run() -> Run:
    """Three problems, the first of them also asked alone; the plain baseline."""
    run = Run()
    requests = [request(0, 100, total=110), request(1, 300, total=320), request(2, 200, total=220, correct=False)]
    run.add(1, requests[:1], [2.0], 30, 60)
    run.add(16, requests[:2], [6.0], 10, 30)
    run.add(16, requests[2:], [2.0], 10, 10)
    return run


def exit_run() -> Run:
    """The same problems, with exits behind 50, 100 and 50 tokens."""
    run = Run()
    requests = [
        request(0, 50, total=60, reason="exit"),
        request(1, 100, total=120, correct=False, reason="exit"),
        request(2, 50, total=70, reason="exit"),
    ]
    run.add(1, requests[:1], [1.0], 10, 25)
    run.add(16, requests[:2], [3.0], 5, 15)
    run.add(16, requests[2:], [1.0], 5, 5)
    return run


@cache
def some_results() -> Results:
    runs = {"eagle3": full_run(), "specexit": exit_run()}
    against = {"specexit": compare(runs["specexit"], runs["eagle3"])}
    return Results(
        n=3,
        n_seconds={"1": 1, "16": 3},
        target="tiny-reasoner",
        hardware={"cores": 2},
        versions={"python": "3.11"},
        seed=0,
        num_speculative_tokens=3,
        methods={name: summarise(run) for name, run in runs.items()},
        against_eagle3=against,
        oracle=Oracle(thinking_cut=0.7, fraction_reached={"specexit": 0.95}),
        lossless=identities(runs),
    )
