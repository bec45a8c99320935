"""What every kind of answer has in common: how it is told from a text, and when two of them are the same."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache

from specexit.data.answers.apart import NoVerdict, compare_apart
from specexit.errors import InputError


class AnswerError(InputError):
    """An answer kind that does not exist or cannot be used here; the message says which and why."""


class AnswerKind(ABC):
    """One way of answering: a number, a letter, a few words, a program.

    `same` is reflexive and symmetric for every kind: the pair is ordered before it is compared, and equal text is
    equal. It ends in a bounded time whatever the text, and remembers what it has compared.
    """

    name: str
    processor_limit = 0.0
    """Seconds of the processor's time that `compare` may take; 0 limits it by the clock alone."""

    @abstractmethod
    def extract(self, text: str, choices: Sequence[str] | None = None) -> str | None:
        """The answer that a response states; None where it states none.

        Args:
          text: the response, thinking excluded.
          choices: the options of a multiple-choice question, where they are known.
        """

    @abstractmethod
    def plainly_same(self, a: str, b: str) -> bool | None:
        """`same` of two answers where it needs no parser and no time, else None."""

    def compare(self, a: str, b: str) -> bool:
        """`same` of two answers that are not plainly the same or different; it may take for ever."""
        raise NotImplementedError(f"{self.name} answers are always plainly the same or not")

    def same(self, a: str | None, b: str | None) -> bool:
        """Whether two answers mean the same; no answer equals nothing, not even no answer."""
        if a is None or b is None:
            return False
        if a == b:
            return True
        one, other = sorted((a, b))
        short = len(one) + len(other) <= _SHORT  # long texts are not worth the memory
        plainly = _plainly_same(self, one, other) if short else self.plainly_same(one, other)
        return self._bounded(one, other) if plainly is None else plainly

    def agree(self, a: str | None, b: str | None, reference: str | None = None) -> bool:
        """Whether two responses to one prompt come to the same answer, which `same` decides for most kinds.

        Args:
          a: the one answer.
          b: the other.
          reference: the prompt's, where it is known; two programs agree if both pass its tests.
        """
        del reference
        return self.same(a, b)

    def why_no_reference(self, reference: str, choices: Sequence[str] | None = None) -> str | None:
        """Why a text cannot be the right answer of a prompt of this kind; None where it can.

        Args:
          reference: the text.
          choices: the options of a multiple-choice question, where they are known.
        """
        del choices
        return None if reference.strip() else "is empty, expected an answer, or null where none is known"

    def as_reference(self, reference: str, choices: Sequence[str] | None = None) -> str:
        """A right answer in a form that `same` can compare without knowing the options.

        Args:
          reference: the text, for which `why_no_reference` has nothing to say.
          choices: the options of a multiple-choice question, where they are known.
        """
        del choices
        return reference

    def _bounded(self, a: str, b: str) -> bool:
        """`compare` in a bounded time, remembered; without a verdict by then False, which is not remembered."""
        try:
            return _compared(self.name, a, b)
        except NoVerdict:
            return False


_SHORT = 256
"""Characters of a pair whose comparison is remembered: simulations compare the same answers in each setting."""


@lru_cache(maxsize=1 << 16)
def _plainly_same(kind: AnswerKind, a: str, b: str) -> bool | None:
    return kind.plainly_same(a, b)


@lru_cache(maxsize=1 << 16)
def _compared(kind: str, a: str, b: str) -> bool:
    return compare_apart(kind, a, b)


def last_box(text: str) -> str | None:
    r"""The content of the last ``\boxed{...}``, braces balanced; None where there is none or it never closes.

    ``\fbox{...}`` and ``\boxed 5`` count too, and of a box in a box the inner one.

    Example:
      >>> last_box(r"So \boxed{1} is wrong. The answer is \boxed{\frac{1}{2}}."), last_box(r"\boxed 5 and \boxed{6")
      ('\\frac{1}{2}', None)
    """
    at, name = max((text.rfind(name), name) for name in (r"\boxed", r"\fbox"))
    box = None if at < 0 else opened_box(text, at + len(name))
    return box and box[0]


def opened_box(text: str, start: int) -> tuple[str | None, int] | None:
    r"""The content of the box whose command ends at ``start``, and where the box ends; None where it never closes.

    Example:
      >>> opened_box(r"\boxed{1}, \boxed{2}", 6)
      ('1', 9)
    """
    body = text[start:].lstrip()
    start = len(text) - len(body)
    if not body.startswith("{"):
        word = (body.split(maxsplit=1) or [""])[0].strip("$.,;")
        return word or None, start + len(word)
    depth = i = 0
    while i < len(body):
        if body[i] == "\\":
            i += 2  # an escaped brace is a character
            continue
        depth += {"{": 1, "}": -1}.get(body[i], 0)
        if depth == 0:
            return body[1:i].strip(), start + i + 1
        i += 1
    return None


_ASCII: dict[int, str | None] = {
    **{code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5E)},
    **{ord(sign): plain for sign, plain in {"，": ", ", "、": ", ", "،": ", ", "。": ". "}.items()},
    **{ord(sign): plain for sign, plain in {"٫": ".", "٬": ",", "٪": "%"}.items()},
    **dict.fromkeys([0xAD, 0x61C, 0x180E, *range(0x200B, 0x2010), *range(0x202A, 0x202F), 0x2060]),
    **dict.fromkeys([*range(0x2066, 0x206A), 0xFEFF]),
}
"""Of full width all but ～, which is of a range, and in LaTeX a space. Nothing is left of joiners, marks of the
direction of writing, and hyphens that are seen at the end of a line alone."""
_THOUSANDS = re.compile("(?<=[０-９])，(?=[０-９]{3}(?![０-９]))")
_LISTED = re.compile(r"(?<=\d)[、。](?=\d)")
"""Signs between two numbers that separate no thousands and begin no decimals."""


def in_ascii(text: str) -> str:
    """A text with the digits of any script, and what is of full width beside Chinese and Japanese, in ASCII; without
    characters that nobody sees.

    A comma and a stop bring their space along: the one separates thousands only if its digits, too, are of full width,
    the other begins no decimals.

    Example:
      >>> in_ascii("（Ａ）。"), in_ascii("1，234、５"), in_ascii("１，２３４"), in_ascii("٣٫٥")
      ('(A). ', '1, 234 , 5', '1,234', '3.5')
      >>> in_ascii("co\\u00adoperate")
      'cooperate'
    """
    if text.isascii():
        return text
    text = _LISTED.sub(" , ", _THOUSANDS.sub(",", text))  # with a space in front, none of thousands
    return re.sub(r"\d", lambda found: str(int(found[0])), text.translate(_ASCII))
