"""Multiple choice: the letter in every form in which models write it."""

import pytest

from specexit.data.answers import extract_answer, listed_options, same_answer
from specexit.data.answers.choice import CHOICE
from specexit.data.prompts.formats import FORMATS

CHOICES = ("12 N", "42 km", "the sun", "None of these")

EXTRACTED = [
    *[
        (text, "B")
        for text in ("The answer is (B); (A) is wrong.", "**Answer: (B)** (D) would need more", "Answer: B; A: no")
    ],
    ("The answer is (A), (B) is wrong.", "A"),
    ("The answer is (A), (B) is clearly wrong.", "A"),
    ("The answer is (A), (B) is false.", "A"),
    ("The answer is (A), (B) does not fit.", "A"),
    ("The answer is (A), (B) cannot be right.", "A"),
    ("The answer is (A) and (B) is not.", "A"),
    *[
        (text, None)
        for text in (
            "The answer is A and C: both describe it",
            "Answer: A, C: both hold",
            "Answer: A or B: cannot tell",
            "Answer: (A) or (B) is correct",
            "The answer is (A) and (C) is also correct",
            "The answer is（A）和（C）：都对",
            r"\boxed{(A) and (C): both}",
            "The correct answer is: (B) and (D): x",
            "The answer is (A) (C), as both are hot",
            "The answer is (A)(C) because both are hot",
            "The answer is [A][C].",
            "The answer is (A) (C) (D)",
            "The answer is (A) (C) are hot",
        )
    ],
    # an option's text that begins with a capital in brackets
    *[
        (text, "B")
        for text in (
            "The answer is B) (E)-hex-3-ene",
            "Answer: (B) (E)-hex-3-ene",
            r"\boxed{B) (E)-hex-3-ene}",
            r"\boxed{\text{(B) (E)-hex-3-ene}}",
            "Answer: **B** (E)-hex-3-ene",
            "It is hot.\n\nB) (E)-hex-3-ene",
            "It is hot.\n\nB) (D)-glucose",
            "It is hot.\n\nB) [B]/[A]",
            "It is hot.\n\nB) [A][B]",
            "It is hot.\n\nB) [A]^2",
        )
    ],
    # an explanation in brackets
    *[
        (text, "B")
        for text in (
            "The answer is **(B)** (A and C do not conserve energy).",
            "The answer is B (A and C are wrong).",
            "B (A or C would violate it)",
            "(B) (A and C are both wrong)",
        )
    ],
    (r"\boxed{B}", "B"),
    (r"\boxed{b}", "B"),
    (r"\boxed{(B)}", "B"),
    (r"\boxed{\text{B}}", "B"),
    (r"\boxed{\textbf{(B)}\ 42}", "B"),
    (r"\boxed{\mathbf{C}}", "C"),
    (r"\boxed{B. 42 km}", "B"),
    (r"\boxed{B) 42 km}", "B"),
    (r"\boxed{(B) 42 km}", "B"),
    (r"\boxed{B: 42 km}", "B"),
    (r"\boxed{Option B}", "B"),
    (r"\boxed{A} is wrong, so \boxed{D}", "D"),
    (r"\boxed{42 km}", None),
    (r"\boxed{A, B}", None),
    (r"\boxed{A} or \boxed{B}", None),
    (r"$\boxed{A}$ and $\boxed{\text{(B)}}$.", None),
    (r"\boxed{A}, \boxed{42 km}", None),
    (r"$\boxed{B}$, \boxed{(b)}", "B"),
    (r"\fbox{\boxed{B}}", "B"),
    (r"So \boxed{A}, wait: \boxed{B}", "B"),
    (r"\boxed{B", None),
    ("The answer is (B)", "B"),
    ("The answer is B.", "B"),
    ("The answer is ( B)", "B"),
    ("The answer is (B )", "B"),
    ("The answer is ( **B** ).", "B"),
    ("The answer is ( b ).", "B"),
    ("The answer is (A ) or (B)", None),
    ("The answer is (a), (b)", None),
    ("The answer is (a matter of taste)", None),
    ("The correct answer is **B**.", "B"),
    ("The correct answer is: (C) because it is hot.", "C"),
    ("So the correct option is D", "D"),
    ("Answer: A", "A"),
    ("**Answer:** A", "A"),
    ("Answer: (A) 12 N", "A"),
    ("Final answer: C\n", "C"),
    ('```json\n{"answer": "C"}\n```', "C"),
    ('{"answer": "(d)"}', "D"),
    ("I first thought the answer is A, but the answer is B.", "B"),
    ("It is hot.\n\nB", "B"),
    ("It is hot.\n\n(B)", "B"),
    ("It is hot.\n\nB. 42 km", "B"),
    ("It is hot.\n\n**B) 42 km**", "B"),
    ("The answer is A, B.", None),
    ("The answer is A and C.", None),
    ("The answer is (A), (B) and (C).", None),
    ("The answer is A and C are correct", None),
    ("The answer is A (or B).", None),
    ("The answer is A – or B.", None),
    ("The answer is A + B.", None),
    (r"\boxed{(A)(C)}", None),
    (r"\boxed{(A) (C)}", None),
    ("The answer is (A)(C).", None),
    ("The answer is A; C.", None),
    ('{"answer": "(A)(C)"}', None),
    ("The answer is A; B is too cold.", "A"),
    ("The answer is B (orange).", "B"),
    ("I first thought the answer is B, but the answer is A or C.", None),
    ("The answer is A, I think.", "A"),
    ("The answer is A and I am sure.", "A"),
    ('{"answer": "A and C"}', None),
    ('{"answer": "C. nitrogen", "why": "it is hot"}', "C"),
    ("The answer is a matter of taste.", None),
    ("The answer is I do not know.", None),
    ("A dog barks.", None),
    ("The answer is 42.", None),
    ("The answer should be E", "E"),
    ("The answer is option C.", "C"),
    ("The answer is $\\text{C}$.", "C"),
    ("The answer is [C]", "C"),
    ("The answer is likely B.", "B"),
    ("The answer is clearly B", "B"),
    ("The answer is therefore **B**.", "B"),
    ("The answer is most likely A or B.", None),
    ("The answer is unlikely B.", None),
    ("The answer is clearly not B.", None),
    ("The answer is B rather than A", "B"),
    ("The answer is B, not A.", "B"),
    ("The answer is B instead of A.", "B"),
    ("The answer is A not-for-profit trust.", None),
    ("The answer is letter B", "B"),
    ("The answer is the letter B", "B"),
    ("I choose (D).", "D"),
    ("I would choose D", "D"),
    ("If I choose A, it is cold.", None),
    ("I would not choose D.", None),
    ("I choose a random number.", None),
    ("Based on this, I choose **B**.", "B"),
    ("So I would pick option C because it is hot.", "C"),
    ("I choose B. I select (B).", "B"),
    ("I pick B.\nI pick C.", None),
    # a point or a value that is chosen to compute with
    ("Answer: C\n\nI choose A as the origin of coordinates.", "C"),
    ("The answer is C. When I choose A, the force is 12 N.", "C"),
    ("Here I choose B as the reference point. So (C) is the correct answer.", "C"),
    ("I choose A = 2 and B = 3 to test. Option C is correct.", "C"),
    ("To check, I choose A = 2 and B = 3.\n\nC", "C"),
    ("I choose A.\n\nC", "C"),
    ("Should I choose A or D? D is the correct answer.", "D"),
    ("Should I choose A? ", None),
    ("I choose (A) as the origin.", None),
    ("I select A and B for the test.", None),
    ("I choose A = 2.", None),
    ("To check, I choose A.", None),
    ("If I pick A because it is near, it is cold.", None),
    # small letters, in brackets or at the end of the line
    ("The answer is (b).", "B"),
    ("The answer is (b) because it is hot.", "B"),
    ("Answer: b", "B"),
    ("**Answer:** c\n", "C"),
    ("Answer: b) 42 km", "B"),
    ("Answer: b. 42 km", "B"),
    ("The answer is (a) and (c).", None),
    ("The answer is a and it is hot.", None),
    ("The answer is e.g. hot.", None),
    # full width
    (r"\boxed{Ａ}", "A"),
    (r"\boxed{（B）}", "B"),
    (r"\boxed{B．铁}", "B"),
    (r"\boxed{B：42}", "B"),
    (r"\boxed{A、B}", None),
    ("太阳很热。\n\n（B）", "B"),
    ("太阳很热。\n\nB。", "B"),
    ("Answer：B", "B"),
    ("The answer is B。", "B"),
    ("The answer is B，because it is hot。", "B"),
    ("The answer is A、B。", None),
    (r"\boxed{（A）（C）}", None),
    (r"\boxed{（A）和（C）}", None),
    (r"\boxed{（A）；（C）}", None),
    ("The answer is（A）（B）", None),
    ("The answer is A；B", None),
    # with the option's text in brackets
    (r"\boxed{B \text{ (42 km)}}", "B"),
    ("It is hot.\n\nB (42 km)", "B"),
    (r"\boxed{f(x) = 1}", None),
    (r"\boxed{(A), (B)}", None),
    # below the statement, in a block
    *[
        (text, "B")
        for text in (
            "The answer is:\n\\[\n\\text{(B)}\n\\]\nas it is hot",
            "**Answer:**\n~~~text\nB. 42 km\n~~~",
            "Answer:\n<pre>\nB\n</pre>",
            "The correct answer is:\n\n---\n\n**B**",
        )
    ],
    ("Answer:\n\\[\nA \\text{ and } B\n\\]", None),
    # marked, or said to be right
    ("<answer>B</answer>", "B"),
    ("The answer is A, they say.\n<answer>\n(B) 42 km\n</answer>", "B"),
    ("<answer>A and B</answer>", None),
    ("Option B is correct.", "B"),
    ("(A) is too cold.\nSo option (B) is the correct choice, as it is hot.", "B"),
    ("So **B** is the correct answer.", "B"),
    ("It is hot, so option B is the answer.", "B"),
    ("Option A is correct, but the answer is B.", "B"),
    ("Option A is correct.\nOption B is correct.", None),
    ("Option A is not correct.", None),
    ("Option A is correct about ice.", None),
    ("A is correct.", None),
    ("", None),
    ("   \n", None),
]

SAME = [("B", "(b)"), ("B. 42 km", "B"), ("Option C", "C"), ("(D)", "D."), ("the sun", "The Sun."), ("Ａ", "（a）")]
DIFFERENT = [
    ("A", "B"),
    ("B. 42 km", "A"),
    ("A, B", "A"),
    ("", "A"),
    ("the sun", "the moon"),
    ("（A）（C）", "（A）（D）"),
]


@pytest.mark.parametrize(("text", "letter"), EXTRACTED)
def test_the_letter_is_found(text, letter):
    assert extract_answer(text, "choice") == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        (r"\boxed{42 km}", "B"),
        (r"\boxed{\text{the Sun}}", "C"),
        (r"\boxed{B}", "B"),
        (r"\boxed{E}", None),  # there are four
        ("It is hot.\n\nNone of these.", "D"),
        ('{"answer": "the sun"}', "C"),
        ('{"answer": "E"}', None),
        ("The answer is B.", "B"),
        ("The answer is 42 km.", "B"),
        ("The answer is: **the sun**.", "C"),
        ("**Answer: the sun**", "C"),
        ("**Final answer:**\n\nthe sun\n", "C"),
        ("The answer is 42 km, no, the answer is the sun", "C"),
        ("The answer is A. No, the answer is 42 km.", "B"),
        ("The answer is the moon.", None),
        ("The answer is the sun (C).", "C"),
        ("The answer is the sun (B).", None),
        ("The answer is the moon (C).", None),
        ("The answer is clearly the sun.", "C"),
        ("I choose the sun.", "C"),
        ("I choose the moon.", None),
        ("I choose E.", None),
        ("The answer is (e).", None),
        ("The answer is E.", None),
        ("Answer: E", None),
    ],
)
def test_an_options_text_is_its_letter(text, letter):
    assert extract_answer(text, "choice", CHOICES) == letter


@pytest.mark.parametrize("text", [r"\boxed{A}", "The answer is A.", '{"answer": "A"}', "It is hot.\n\nA"])
def test_a_letter_that_is_an_options_text_too_is_the_letter(text):
    assert extract_answer(text, "choice", ("C", "A", "D", "B")) == "A"


@pytest.mark.parametrize(
    ("text", "choices", "letter"),
    [
        (r"\boxed{H}", ("He", "H", "Li"), "B"),  # there are three, so it is no letter
        ("The answer is H.", ("He", "H", "Li"), "B"),
        ("The answer is A and C.", ("He", "H", "A and C"), "C"),
        ("The answer is A over B ratio.", ("A/B", "A over B ratio"), "B"),
        ("Answer: A NOT gate", ("An OR gate", "A NOT gate"), "B"),
        ("The answer is probably true.", ("probably false", "probably true"), "B"),
        ("The answer is $x_2$.", ("x^2", "x_2"), "B"),
        ("The answer is -5.", ("5", "-5"), "B"),
        ("The answer is (0, 1).", ("0.1", "(0, 1)"), "B"),
        (r"\boxed{x^{12}}", ("x^{12}", "x^12"), "A"),
        (r"\boxed{x_2}", ("x^2", "x_2"), "B"),
        (r"\boxed{2 * 3}", ("2 * 3", "23", "2 / 3"), "A"),
        (r"\boxed{-5}", ("5", "-5"), "B"),
        (r"\boxed{p \lor q}", (r"p \land q", r"p \lor q"), "B"),
        (r"\boxed{$\frac{1}{2}$}", (r"\frac{1}{3}", r"\frac{1}{2}"), "B"),
    ],
)
def test_an_options_text_is_read_as_it_was_written(text, choices, letter):
    assert extract_answer(text, "choice", choices) == letter


@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        ("What?\n\nA. ice\nB. 42 km\nC. the sun\nD. no\n\nName the letter.", ("ice", "42 km", "the sun", "no")),
        ("What?\n(A) ice\n(B) the sun", ("ice", "the sun")),
        ("What?\n  a) no list\nA) ice\nB) the sun", ("ice", "the sun")),
        ("Example.\nA. one\nB. two\nC. three\nNow yours.\nA. ice\nB. the sun", ("ice", "the sun")),
        ("A. ice, which is\n   cold\nB. the sun", ("ice, which is", "the sun")),
        ("哪个热？\nA．冰\nB．太阳", ("冰", "太阳")),
        ("哪个热？\nA、冰\nB、42 km", ("冰", "42 km")),
        ("哪个热？\n（Ａ）冰\n（Ｂ）太阳", ("冰", "太阳")),
        ("What is 6 * 7?", None),
        ("A. Einstein was born in?", None),
        ("C. three\nD. four", None),
        ("", None),
    ],
)
def test_options_are_read_from_a_prompt(prompt, options):
    assert listed_options(prompt) == options


ROWS = {
    "arc-challenge": {"question": "Hot?", "choices": {"label": ["1", "2"], "text": ["ice", "sun"]}, "answerKey": "2"},
    "gpqa-diamond": {
        "Question": "Hot?",
        "Correct Answer": "a",
        **{f"Incorrect Answer {i}": f"b{i}" for i in (1, 2, 3)},
    },
}


@pytest.mark.parametrize("name", ROWS)
def test_options_of_known_formats_are_read_as_they_were_written(name):
    prompt = FORMATS[name](ROWS[name], "row", 0, 0)
    assert listed_options(prompt.text) == prompt.choices


def test_shuffled_options_give_the_letter_of_their_new_place():
    shuffled = CHOICES[::-1]
    for choice in CHOICES:
        letter = extract_answer(rf"\boxed{{{choice}}}", "choice", shuffled)
        assert letter == "ABCD"[shuffled.index(choice)]


@pytest.mark.parametrize(("a", "b"), SAME)
def test_same_choices(a, b):
    assert same_answer(a, b, "choice")
    assert same_answer(b, a, "choice")


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_different_choices(a, b):
    assert not same_answer(a, b, "choice")
    assert not same_answer(b, a, "choice")


def test_a_reference_may_have_a_text_that_begins_with_a_capital_in_brackets():
    assert CHOICE.why_no_reference("B) (E)-hex-3-ene", CHOICES) is None
    assert CHOICE.as_reference("B) (E)-hex-3-ene", CHOICES) == "B"


def test_a_reference_of_full_width_names_its_option():
    assert CHOICE.why_no_reference("Ａ") is None
    assert CHOICE.as_reference("Ａ") == "A"
