"""Which box of a response is the mathematical answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specexit.data.answers import extract_answer, plainly_same, same_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"The answer is \boxed{42}.", "42"),
        (r"\boxed{1} no, \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}} and more {braces}", r"\frac{1}{2}"),
        (r"\boxed{ 7 }", "7"),
        (r"\boxed{}", None),
        (r"\boxed{1} and \boxed{ }", None),
        ("The answer is 42.", None),
        (r"\boxed{4", None),
        (r"\boxed{4} and then \boxed{5", None),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\{}", r"\{"),
        (r"\boxed {3}", "3"),
        (r"Thus \boxed 5.", "5"),
        (r"\fbox{9}", "9"),
        (r"\boxed{a}. So \fbox{b}", "b"),
        (r"\boxed{a} and \fbox{b}", "a, b"),
        (r"The solutions are $x = \boxed{1}$ and $x = \boxed{-2}$.", "x=1, x=-2"),
        (r"\boxed{1},\ \boxed{2}, \text{ and } \boxed{3}", "1, 2, 3"),
        (r"\boxed{1 + \boxed{5}}", "5"),
        (r"\boxed{5}, \boxed{5.0}", "5.0"),
        ("\\boxed{1}\n\n\\boxed{2}", "2"),
        ("She has 3 * 6 = 18.\n#### 18", "18"),
        ("#### 1,234\n", "1,234"),
        ("####", None),
        ("#### 18 apples\nDone.", "18 apples"),
        ("#### Paris", "Paris"),
        ("#### Step 3: Compute\nSo x is 5", None),
        (r"\boxed", None),
        (r"\boxed{\text{(C)}}", r"\text{(C)}"),
        (r"\[ \boxed{\begin{pmatrix} 1 \\ 2 \end{pmatrix}} \]", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
        ("", None),
    ],
)
def test_the_last_box_is_the_answer(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        (r"$\boxed{1,000}$ and $\boxed{2,000}$", "2000, 1000"),
        (r"\boxed{100}, \boxed{200}", r"\{100,200\}"),
        (r"\boxed{5\text{ cm}} and \boxed{7\text{ cm}}", "5, 7"),
        (r"\boxed{x<1} or \boxed{x>3}", r"(-\infty,1)\cup(3,\infty)"),
        (r"\boxed{x>1}\text{ and }\boxed{x\le 3}", "(1,3]"),
        (r"\boxed{x^2+2x+1}, or \boxed{(x+1)^2}", "(x+1)^2"),
    ],
)
def test_boxes_in_a_row_are_one_answer(text, reference):
    assert same_answer(extract_answer(text), reference)


def test_boxes_in_a_row_are_no_number():
    assert not same_answer(extract_answer(r"\boxed{100}, \boxed{200}"), "100200")


def test_a_model_in_a_loop_has_an_answer_of_bounded_length():
    """Reading is done where engines are fed, so it may not take longer the longer a list of boxes is."""
    found = extract_answer(r"$x=\boxed{1}$ and " * 20_000 + r"$x=\boxed{2}$")
    assert found is not None
    assert found.endswith("x=2")
    assert len(found) < 200


@pytest.mark.parametrize("piece", [r"\{", "(", "x+", r"\frac{", "1,000,", r"\sin 3^\circ", "x'"])
def test_what_a_model_in_a_loop_repeats_is_not_parsed(piece):
    assert plainly_same(2000 * piece, "5") is False
    assert plainly_same(2000 * piece, 1999 * piece) is False
    assert same_answer(2000 * piece, f"$ {2000 * piece}$")


@pytest.mark.parametrize("piece", [r"\cdot ", r"\times ", r"\text{m}\cdot ", "five hundred ", "25k ", "]1,"])
def test_what_a_model_repeats_is_read_in_a_bounded_time(piece):
    """Up to the length from which nothing is looked for; a reading that takes for ever would never end here."""
    assert plainly_same(100 * piece, "5") is not True


@given(st.one_of(st.none(), st.text(max_size=5)))
def test_no_answer_equals_nothing(other):
    assert not same_answer(None, other)
    assert not same_answer(other, None)
