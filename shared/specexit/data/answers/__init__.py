"""What a response answers, and when two answers are the same, by kind.

| kind | an answer is | the same |
|---|---|---|
| ``math`` | the last ``\\boxed{}`` | the same value, set, interval or matrix (math-verify) |
| ``choice`` | a letter | the same letter |
| ``text`` | a few words | the same words, normalised |
| ``code`` | the last fenced block of Python | both pass the prompt's tests, in a sandbox |
| ``function:module:name`` | what a Python function of the user's says | what it says |

Each kind has a file, and `function` is the user's own; `base` is what kinds have in common. Comparisons that take long,
or may not end, are made `apart`; programs run in a `sandbox`. What a short text holds where a block begins is in
`text_blocks`. Mathematics is read step by step, each in a file, from `math_text` (words) and `math_latex` (spellings)
to `math_parsed` (latex2sympy and math-verify). `trial` says where an answer ends that a model was made to state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

from specexit.data.answers.base import AnswerError, AnswerKind
from specexit.data.answers.choice import CHOICE, listed_options
from specexit.data.answers.code import Code
from specexit.data.answers.function import PREFIX, Function
from specexit.data.answers.math import MATH
from specexit.data.answers.text import TEXT
from specexit.data.answers.trial import answer_end, close_trial, is_stated

__all__ = [
    "KINDS",
    "AnswerError",
    "AnswerKind",
    "agree",
    "answer_end",
    "close_trial",
    "extract_answer",
    "is_stated",
    "kind",
    "listed_options",
    "plainly_same",
    "same_answer",
]

KINDS: dict[str, Callable[[], AnswerKind]] = {
    "math": lambda: MATH,
    "choice": lambda: CHOICE,
    "text": lambda: TEXT,
    "code": Code,
}


@cache
def kind(name: str) -> AnswerKind:
    """The answer kind of a name.

    Raises:
      AnswerError: there is none, or it cannot be used on this machine.
    """
    if name.startswith(PREFIX):
        return Function(name)
    if name not in KINDS:
        raise AnswerError(f"answer kind {name!r} does not exist, expected {', '.join(KINDS)} or {PREFIX}module:name")
    return KINDS[name]()


def extract_answer(text: str, kind: str = "math", choices: Sequence[str] | None = None) -> str | None:
    r"""The answer that a response states, None where it states none; see `AnswerKind.extract`.

    Example:
      >>> extract_answer(r"So \boxed{1} is wrong. The answer is \boxed{\frac{1}{2}}.")
      '\\frac{1}{2}'
      >>> extract_answer("The answer is (B).", "choice")
      'B'
    """
    return _kind(kind).extract(text, choices)


def same_answer(a: str | None, b: str | None, kind: str = "math") -> bool:
    r"""Whether two answers mean the same; see `AnswerKind.same`.

    No answer equals nothing, not even no answer: a trial that states none can never pass for the original's.

    Example:
      >>> same_answer("042", "42"), same_answer("0.5", r"\frac{1}{2}"), same_answer(None, None)
      (True, True, False)
    """
    return _kind(kind).same(a, b)


def agree(a: str | None, b: str | None, kind: str = "math", reference: str | None = None) -> bool:
    """Whether two responses to one prompt come to the same answer; see `AnswerKind.agree`.

    As `same_answer`, but two different programs agree if both pass the tests that are the reference.
    """
    return _kind(kind).agree(a, b, reference)


def plainly_same(a: str | None, b: str | None, kind: str = "math") -> bool | None:
    """`same_answer` where it takes no parser and no time, else None.

    Example:
      >>> plainly_same("042", "42"), plainly_same("41", "42"), plainly_same("x", "y"), plainly_same("1", None)
      (True, False, None, False)
    """
    if a is None or b is None:
        return False
    return a == b or _kind(kind).plainly_same(a, b)


_kind = kind  # in the functions above, `kind` is a parameter
