"""Which boundaries are tried: every change that is seen is found exactly, and few trials are enough for long traces."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from specexit.bench.refinement import Tried, refinement
from specexit.bench.refinement import exits as exits_of
from specexit.data.boundaries import TRIED_WHOLE, boundaries_tried, next_boundary, stating
from specexit.data.rows import infer_agrees
from specexit.method.labels import exit_point
from specexit.schemas.collect import CollectConfig


def tried(agrees: list[bool], how: str, stride: int = 8) -> dict[int, bool]:
    """All trials of a trace whose boundaries would say ``agrees``; the last one is its natural end."""
    return {i: agrees[i] for i in boundaries_tried(agrees, how, stride, known=[len(agrees) - 1])}


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
@given(st.integers(0, 400), st.integers(1, 400), st.sampled_from(["refine", "stable", "bisect"]))
def test_one_change_is_found_exactly(differing, agreeing, how):
    agrees = [False] * differing + [True] * agreeing
    found = tried(agrees, how)
    assert exits(agrees, found) == (differing + 1, differing + 1)
    if how == "bisect":
        assert len(found) <= 2 + len(agrees).bit_length()


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.integers(0, 40), st.integers(1, 40), st.sets(st.integers(0, 79)), st.sampled_from(["stable", "bisect"]))
def test_a_trial_that_was_cut_off_does_not_end_the_search(differing, agreeing, cut_off, how):
    """The first boundary that agrees is found, of those whose trials come to an end."""
    verdicts = [i >= differing if i not in cut_off else None for i in range(differing + agreeing)]
    found = {}
    while (i := next_boundary(len(verdicts), found, how, 8)) is not None:
        assert i not in found
        found[i] = verdicts[i]
    expected = next((i for i, verdict in enumerate(verdicts) if verdict), None)
    assert min((i for i, verdict in found.items() if verdict), default=None) == expected


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.integers(0, 400), st.integers(1, 400), st.integers(0, 799))
@example(4, 156, 8)
def test_a_trial_that_was_cut_off_hides_no_change_from_refine(differing, agreeing, cut_off):
    """Neither in front of it nor behind it, for as many more trials as finding two more changes takes."""
    n = differing + agreeing
    verdicts = [i >= differing if i != cut_off else None for i in range(n)]
    found: dict[int, bool | None] = {n - 1: True}
    while (i := next_boundary(n, found, "refine", 8)) is not None:
        assert i not in found
        found[i] = verdicts[i]
    verdicts[-1] = True
    assert min(i for i, verdict in found.items() if verdict) == verdicts.index(True)
    assert len(found) <= len(tried([i >= differing for i in range(n)], "refine")) + 2 * 3


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.lists(st.booleans(), max_size=200), st.booleans())
def test_stable_is_found_exactly_however_often_verdicts_change(agrees, at_end):
    """Whatever lies in front of the last boundary that differs costs nothing."""
    known = [len(agrees) - 1] if at_end and agrees and agrees[-1] else []
    found = {i: agrees[i] for i in boundaries_tried(agrees, "stable", 8, known=known)}
    assert exits(agrees, found)[1] == right(agrees)[1]
    settled = next((n for n, agree in enumerate(reversed(agrees)) if not agree), len(agrees))
    assert len(found) == min(settled + 1, len(agrees))


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


@pytest.mark.parametrize("how", ["all", "refine", "stable", "bisect"])
@pytest.mark.parametrize("n", [0, 1])
def test_hardly_any_boundary(n, how):
    assert next_boundary(n, {}, how, 8) == (0 if n else None)
    assert next_boundary(n, dict.fromkeys(range(n), True), how, 8) is None


def test_a_trial_that_was_cut_off_interrupts_no_stable_answer_as_in_annotate():
    """It was another definition than the one that labels have: of these the stable one was the fourth, and `stable`
    was taken to end at a trial that `collect` goes on beside."""
    assert refinement([Tried("daua", (1,) * 4, (), False)], "stable", 8).trials == 4
    assert exits_of("daua", range(4)) == (2, 2)


def recorded() -> list[Tried]:
    """What the tiny reasoner answers at every boundary of 120 traces (`specexit collect boundaries=all`, split test).

    Its steps end here at each comma, operator and space, so that a trace has some 90 boundaries, and not ten.
    """
    rows = json.loads((Path(__file__).parent / "recorded_answers.json").read_text())
    return [Tried(states, tuple(tokens), tuple(stated), at_end) for states, stated, at_end, tokens in rows]


def test_recorded_answers_have_the_same_exit_point_at_a_third_of_the_trials():
    """The earliest one, which labels count down to by default. Without a look at which steps state the answer, every
    eleventh would be missed: lucky guesses that last for a boundary or two.

    The stable one is another matter: in the midst of a sentence verdicts go back and forth, and each has to be seen.
    Going back from the end sees them, and needs no other.
    """
    traces = recorded()
    found = refinement(traces, "refine", CollectConfig.model_fields["stride"].default)
    assert found.traces == 120
    assert found.all_trials > 50 * found.traces
    assert found.same_earliest >= 0.99 * found.traces
    assert found.trials <= found.all_trials / 3
    assert found.trial_tokens <= found.all_trial_tokens / 3
    blind = refinement([replace(trace, stated=()) for trace in traces], "refine", 8)
    assert blind.same_earliest < 0.95 * blind.traces
    stable = refinement(traces, "stable", 8)
    assert stable.same_stable == 120
    assert stable.trials <= stable.all_trials / 2
    assert stable.trial_tokens <= stable.all_trial_tokens / 2
    everywhere = refinement(traces, "all", 8)
    assert (everywhere.same_earliest, everywhere.same_stable) == (120, 120)


def test_an_answer_that_every_step_states_costs_no_more_than_twice():
    agrees = [False] * 299 + [True]
    assert len(boundaries_tried(agrees, "refine", 8, range(300))) <= 2 * len(range(0, 300, 8)) + 1
    # Where nothing agrees before, what is tried beside the first ones are the earliest that state it.
    assert boundaries_tried(agrees, "refine", 8, [5, 6])[:5] == [0, 5, 6, 8, 16]


@pytest.mark.parametrize(
    ("step", "answer"),
    [
        ("So it is 37.", "37"),
        ("所以答案是37。", "37"),
        ("总共37个。", "37"),
        ("답은 37입니다.", "37"),
        ("首都是北京。", "北京"),
        ("คำตอบคือ37ครับ", "37"),
        ("แมวดำ", "ดำ"),
    ],
)
def test_a_step_states_an_answer_beside_words_without_spaces(step, answer):
    assert stating([step], answer) == [0]


@pytest.mark.parametrize("step", ["137", "37x", "x37", "3.37", "37.5", "37é", "д37", "_37", "١37"])
def test_a_part_of_a_longer_word_or_number_states_nothing(step):
    assert stating([f"是{step}。", step], "37") == []
