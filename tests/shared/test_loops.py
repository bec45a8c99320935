"""The loop guard's definition: what is found is a loop, and no loop is overlooked."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from specexit.method.loops import LoopGuard, loop_position

guards = st.builds(LoopGuard, st.integers(1, 6), st.integers(2, 4))


@given(guards, st.lists(st.integers(0, 1), max_size=80))
@settings(max_examples=50, deadline=None)
def test_what_is_found_is_one_piece_again_and_again(guard, tokens):
    position = loop_position(tokens, guard)
    if position is None:
        return
    text = tokens[: position + 1]
    pieces = [text[-size:] for size in range(1, guard.period + 1)]
    assert any(text[-len(piece) * guard.repeats :] == piece * guard.repeats for piece in pieces)


@given(guards, st.lists(st.integers(0, 3), max_size=30), st.data())
@settings(max_examples=50, deadline=None)
def test_every_loop_is_found_in_time(guard, before, data):
    piece = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=guard.period))
    tokens = [*before, *piece * (guard.latest // len(piece) + 1)][: len(before) + guard.latest]
    assert loop_position(tokens, guard) is not None


def test_a_piece_that_comes_less_often_is_none():
    guard = LoopGuard(period=4, repeats=3)
    piece = [1, 2, 3, 4]
    assert loop_position([9, *piece * 2, 9, *piece * 2], guard) is None
    assert loop_position([9, *piece * 4, 9], guard) is not None
    assert loop_position([9, *[1, 2, 3, 4, 5] * 9], guard) is None  # longer than what is looked for


def test_a_loop_from_the_first_token_on_is_found_by_the_first_tokens_that_are_remembered():
    guard = LoopGuard(period=2, repeats=3)
    assert loop_position([5] * 9, guard) == guard.span
    assert loop_position([5, 6] * 9, guard) == guard.span + 1
