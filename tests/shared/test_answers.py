"""What a response answers, and which answers are the same."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specexit.data.answers import extract_answer, same_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"The answer is \boxed{42}.", "42"),
        (r"\boxed{1} no, \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}} and more {braces}", r"\frac{1}{2}"),
        (r"\boxed{ 7 }", "7"),
        (r"\boxed{}", ""),
        ("The answer is 42.", None),
        (r"\boxed{4", None),
        ("", None),
    ],
)
def test_the_last_box_is_the_answer(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("a", "b"),
    [("42", "42"), ("042", "42"), ("-7", "-07"), ("0.5", "1/2"), (r"\frac{1}{2}", "0.5"), ("x + 1", "x+1"), ("B", "B")],
)
def test_same_answers(a, b):
    assert same_answer(a, b)
    assert same_answer(b, a)


@pytest.mark.parametrize(("a", "b"), [("42", "43"), ("42", "-42"), ("4 2", "43"), ("A", "B"), ("1/2", "1/3")])
def test_different_answers(a, b):
    assert not same_answer(a, b)
    assert not same_answer(b, a)


@given(st.one_of(st.none(), st.text(max_size=5)))
def test_no_answer_equals_nothing(other):
    assert not same_answer(None, other)
    assert not same_answer(other, None)


@given(st.integers(), st.integers())
def test_integers_are_compared_as_numbers(a, b):
    assert same_answer(str(a), str(b)) == (a == b)
