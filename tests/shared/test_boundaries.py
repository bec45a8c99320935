"""Which boundaries are tried: every change that is seen is found exactly, and few trials are enough for long traces."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specexit.data.boundaries import TRIED_WHOLE, next_boundary
from specexit.data.rows import infer_agrees
from specexit.method.labels import exit_point


def tried(agrees: list[bool], how: str, stride: int = 8) -> dict[int, bool]:
    """All trials of a trace whose boundaries would say ``agrees``; the last one is its natural end."""
    found = {len(agrees) - 1: True}
    while (i := next_boundary(len(agrees), found, how, stride)) is not None:
        assert i not in found
        found[i] = agrees[i]
    return found


def exits(agrees: list[bool], found: dict[int, bool]) -> tuple[int, int]:
    states = [{True: "agrees", False: "differs", None: "untried"}[found.get(i)] for i in range(len(agrees))]
    boundaries, inferred = range(1, len(agrees) + 1), infer_agrees(states)
    return tuple(exit_point(boundaries, inferred, len(agrees), kind) for kind in ("earliest", "stable"))


def right(agrees: list[bool]) -> tuple[int, int]:
    return exits(agrees, dict(enumerate(agrees)))


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.lists(st.booleans(), max_size=TRIED_WHOLE * 2 - 2).map(lambda before: [*before, True]))
def test_short_traces_are_tried_whole(agrees):
    assert sorted(tried(agrees, "refine")) == sorted(tried(agrees, "all")) == list(range(len(agrees)))


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.integers(0, 400), st.integers(1, 400), st.sampled_from(["refine", "bisect"]))
def test_one_change_is_found_exactly(differing, agreeing, how):
    agrees = [False] * differing + [True] * agreeing
    found = tried(agrees, how)
    assert exits(agrees, found) == (differing + 1, differing + 1)
    if how == "bisect":
        assert len(found) <= 2 + len(agrees).bit_length()


def settling(rng: random.Random, n: int) -> list[bool]:
    """A trace that settles somewhere. One in ten has a stretch of 8 to 16 boundaries that says otherwise: a right guess
    before it settles, or a doubt behind."""
    settled = rng.randrange(1, n)
    agrees = [False] * settled + [True] * (n - settled)
    if rng.random() < 0.1:
        at, length = rng.randrange(n), rng.randrange(8, 17)
        agrees[at : at + length] = [at < settled] * len(agrees[at : at + length])
    agrees[-1] = True
    return agrees


def test_long_traces_cost_a_fifth_and_have_the_same_exit_points():
    """A changed verdict that lasts as long as a stride cannot be missed, wherever it lies."""
    rng = random.Random(0)
    traces = [settling(rng, 300) for _ in range(1000)]
    found = [tried(agrees, "refine") for agrees in traces]
    same = sum(exits(agrees, one) == right(agrees) for agrees, one in zip(traces, found, strict=True))
    assert same >= 990
    assert sum(map(len, found)) <= 0.2 * sum(map(len, traces))
    tokens_of_trial, tokens_of_step = 20, 50
    assert sum(map(len, found)) * tokens_of_trial <= 0.15 * sum(map(len, traces)) * tokens_of_step


@pytest.mark.parametrize("how", ["all", "refine", "bisect"])
@pytest.mark.parametrize("n", [0, 1])
def test_hardly_any_boundary(n, how):
    assert next_boundary(n, {}, how, 8) == (0 if n else None)
    assert next_boundary(n, dict.fromkeys(range(n), True), how, 8) is None
