"""What holds of every kind, whatever the text."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specexit.data.answers import agree, extract_answer, plainly_same, same_answer, sandbox

KINDS = [
    "math",
    "choice",
    "text",
    pytest.param("code", marks=pytest.mark.skipif(sandbox._missing() is not None, reason="no sandbox")),
]

_TEX = r"\boxed \frac \text \sqrt \left( \right) \infty \begin{pmatrix} \end{pmatrix} \\ \{ \} \$ \% { } ( ) [ ] & ^ _"
_PLAIN = "0 1 -1 12 3.5 1e9 1,000 x y A B (C) answer is: **Answer** #### ``` ```python '' | + - * / = < > ! ~ . , ; :"
_ODD = ["\n", "\n\n", " ", "\t", "\x00", "\ud800", "é", "日本", "\u202e", "🙂", "²", "½", "٣", "−", '"']
PIECES = [*_TEX.split(), *_PLAIN.split(), *_ODD]


def fuzzed(n: int, seed: int) -> list[str]:
    """Texts of pieces that the parsers give a meaning to."""
    rng = random.Random(seed)
    return ["".join(rng.choices(PIECES, k=rng.randint(0, 12))) for _ in range(n)]


@pytest.mark.parametrize("kind", KINDS)
def test_ten_thousand_texts(kind):
    """Extraction and equality raise nothing, are reflexive and symmetric, and end."""
    texts = fuzzed(10_000, seed=7)
    for text, other in zip(texts, texts[1:] + texts[:1], strict=True):
        answer = extract_answer(text, kind)
        assert answer is None or isinstance(answer, str)
        assert same_answer(text, text, kind)
        assert plainly_same(text, other, kind) == plainly_same(other, text, kind)
        if plainly_same(text, other, kind):
            assert same_answer(text, other, kind)


def test_the_parser_survives_what_it_is_given():
    """The pairs that math-verify sees: as above, and in a bounded time."""
    texts = [text for text in fuzzed(400, seed=8) if text.strip()]
    for text, other in zip(texts[::2], texts[1::2], strict=False):
        assert same_answer(text, other) == same_answer(other, text)
        assert same_answer(text, text)


@given(st.text(), st.text())
def test_equality_is_reflexive_and_symmetric(a, b):
    for kind in ("choice", "text"):
        assert same_answer(a, a, kind)
        assert same_answer(a, b, kind) == same_answer(b, a, kind)
        assert agree(a, b, kind) == same_answer(a, b, kind)
    assert plainly_same(a, b) == plainly_same(b, a)


@given(st.text())
def test_extraction_takes_any_text(text):
    for kind in ("math", "choice", "text"):
        answer = extract_answer(text, kind)
        assert answer is None or isinstance(answer, str)
