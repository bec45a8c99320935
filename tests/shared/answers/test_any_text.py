"""What holds of every kind, whatever the text."""

import os
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specexit.data.answers import agree, extract_answer, plainly_same, same_answer, sandbox
from specexit.data.answers.math import MATH

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

_LEAVES = r"0 1 2 7 -3 0.5 2024 x i e k A 52_8 x_1 y' \pi \infty \theta 30^\circ"
_COMPOUNDS = (
    r"#+# ; #-# ; # \cdot # ; \frac{#}{#} ; (#)^{#} ; \sqrt{#} ; \sqrt[#]{#} ; |#| ; #! ; #\% ; \log_{#} # ; "
    r"\ln # ; \sin # ; \tan # ; \cos(#) ; \lfloor # \rfloor ; \lceil # \rceil ; # \mod # ; # \bmod # ; "
    r"# \pmod{#} ; \binom{#}{#} ; \gcd(#,#) ; \max(#,#) ; #,# ; (#,#) ; [#,#] ; \{#,#\} ; "
    r"\begin{pmatrix}#\\#\end{pmatrix} ; #\cup # ; #=# ; #<# ; #\le # ; # \equiv # \pmod # ; "
    r"\sum_{k=1}^{#} # ; \int_0^{#} # dx ; \lim_{x\to #} #"
)
LEAVES, COMPOUNDS = _LEAVES.split(), _COMPOUNDS.split(" ; ")


def latex(depth: int, rng: random.Random) -> str:
    """Mathematics in LaTeX, sensible or not: a sign # is an expression."""
    if not depth:
        return rng.choice(LEAVES)
    return re.sub("#", lambda _: latex(rng.randrange(depth), rng), rng.choice(COMPOUNDS))


def fuzzed(n: int, seed: int) -> list[str]:
    """Texts of pieces that the parsers give a meaning to."""
    rng = random.Random(seed)
    return ["".join(rng.choices(PIECES, k=rng.randint(0, 12))) for _ in range(n)]


@pytest.mark.parametrize("kind", KINDS)
def test_thousands_of_texts(kind):
    """Extraction and equality raise nothing, are reflexive and symmetric, and end."""
    texts = fuzzed(10_000 if "SPECEXIT_SLOW" in os.environ else 3_000, seed=7)
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


def test_mathematics_that_has_no_value_ends_nothing():
    """0/0, a divergent sum, the sine of infinity: a trial answer that cannot be compared is another one."""
    rng = random.Random(6)
    for _ in range(100):
        answer, other = latex(rng.choice([1, 1, 2]), rng), latex(rng.choice([0, 0, 1]), rng)
        assert isinstance(same_answer(answer, other), bool)


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


def test_a_short_pair_is_compared_once_and_a_long_one_is_not_kept(monkeypatch):
    """Simulations compare the answers of a trace in each of 37 settings, and compared them anew in each."""
    seen, plainly = [], MATH.plainly_same
    monkeypatch.setattr(type(MATH), "plainly_same", lambda self, a, b: seen.append((a, b)) or plainly(a, b))
    for _ in range(3):
        assert not same_answer("90417", "90418")
        assert not same_answer("90418", "90417")
    assert seen == [("90417", "90418")]
    long = "7" * 300
    for _ in range(2):
        assert not same_answer(long, "90418")
    assert len(seen) == 3
