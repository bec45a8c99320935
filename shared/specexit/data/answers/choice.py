"""Multiple choice: the letter of an option, however it is written."""

from __future__ import annotations

import re
from collections.abc import Sequence

from specexit.data.answers.base import AnswerKind, last_box
from specexit.data.answers.text import normal

_LETTERS = "A-J"
_STYLE = re.compile(r"\\(?:text|textbf|textit|mathbf|mathrm|mathit|bf|rm|mbox|bold)\b|[\\${}*`_]")
_ALONE = re.compile(rf"\(?\[?([{_LETTERS}{_LETTERS.lower()}])\]?\)?[.,:)]?")
_WITH_TEXT = re.compile(
    rf"(?:option|choice|answer)?\s*[(\[]?([{_LETTERS}])(?:[)\]]?[.:]|[)\]]|\s+[-–—:])\s*\S.*", re.I | re.S
)
_NAMED = re.compile(rf"(?:option|choice|answer)\s*[(\[]?([{_LETTERS}])[)\]]?[.,:]?", re.I)
_JSON = re.compile(r"([\"'])answer\1\s*:\s*([\"'])(.*?)\2", re.I)
_STATED = re.compile(
    r"(?i:answer|option|choice)(?:\s+(?i:is|would\s+be|should\s+be|must\s+be)|\s*:)+\s*(?i:option|choice|the\s+letter)?\s*[:(\[\"']*"
    rf"([{_LETTERS}])(?=[)\].,:;\"'!]|\s*$|\s+[^a-z\s]|\s+[-–—]|\s+(?i:because|since|as|and|or|with)\b)",
    re.M,
)
_ANOTHER = re.compile(
    rf"[)\]\"']*(?:\s*[,&/]|\s+(?:and|or)\b)(?:\s*(?:and|or)\b)?\s*[(\[\"']*"
    rf"[{_LETTERS}](?=[)\].,;:\"'!]|\s*$|\s+(?:and|or|are|both)\b)",
    re.M,
)
_LISTED = re.compile(rf"[(\[]?([{_LETTERS}])[)\].:]\s+(\S.*)")


class Choice(AnswerKind):
    """A letter from A to J."""

    name = "choice"

    def extract(self, text: str, choices: Sequence[str] | None = None) -> str | None:
        r"""The letter in the last ``\boxed{}``, in JSON (``"answer": "C"``), behind "the answer is", or alone on the
        last line; with ``choices``, an option's own text counts as its letter where it is no letter itself."""
        if r"\boxed" in text or r"\fbox" in text:
            box = last_box(text)
            return None if box is None else _letter(box, choices)
        plain = _STYLE.sub("", text)
        if (found := _JSON.findall(text)) and (letter := _letter(found[-1][-1], choices)):
            return letter
        if stated := list(_STATED.finditer(plain)):
            several = _ANOTHER.match(plain, stated[-1].end())
            return None if several else _in_range(stated[-1].group(1), choices)
        lines = plain.strip().splitlines()
        return _letter(lines[-1], choices) if lines else None

    def why_no_reference(self, reference: str, choices: Sequence[str] | None = None) -> str | None:
        """A reference has to name an option."""
        return None if _letter(reference, choices) else "names no option, expected a letter"

    def as_reference(self, reference: str, choices: Sequence[str] | None = None) -> str:
        """The letter of the option that it names, such as by the option's text."""
        return _letter(reference, choices) or reference

    def plainly_same(self, a: str, b: str) -> bool:
        """Whether both name one letter; where either names none, whether their texts are the same.

        Example:
          >>> CHOICE.plainly_same("B", "(b)"), CHOICE.plainly_same("B. 42 km", "B"), CHOICE.plainly_same("A", "B")
          (True, True, False)
        """
        one, other = _letter(a), _letter(b)
        if one is None or other is None:
            return normal(a) == normal(b)
        return one == other


CHOICE = Choice()


def listed_options(prompt: str) -> tuple[str, ...] | None:
    """The options that a prompt lists, each in a line of its own behind its letter: the last such list, or None.

    It is all that a server knows of a question, as a request does not say its options.

    Example:
      >>> listed_options("Which is hot?\\n\\nA. ice\\nB. the sun\\n\\nName the letter.")
      ('ice', 'the sun')
      >>> listed_options("Is a sea hot? A. yes B. no")
    """
    lists: list[list[str]] = [[]]
    for found in filter(None, map(_LISTED.fullmatch, map(str.strip, prompt.splitlines()))):
        if found.group(1) == "A":
            lists.append([])
        if ord(found.group(1)) - ord("A") == len(lists[-1]):
            lists[-1].append(found.group(2))
    return next((tuple(options) for options in reversed(lists) if len(options) > 1), None)


def _letter(text: str, choices: Sequence[str] | None = None) -> str | None:
    """The letter that a short text names; None where it names none, or several.

    A letter alone is a letter, also where it is an option's text as well, as prompts ask for letters.
    """
    plain = re.sub(r"\s+", " ", _STYLE.sub("", text)).strip()
    alone = _ALONE.fullmatch(plain) or _NAMED.fullmatch(plain)
    if alone and (letter := _in_range(alone.group(1), choices)):
        return letter
    matching = [i for i, choice in enumerate(choices or ()) if normal(choice) == normal(text)]
    if len(matching) == 1:
        return chr(ord("A") + matching[0])
    found = _WITH_TEXT.fullmatch(plain)
    return _in_range(found.group(1), choices) if found else None


def _in_range(letter: str, choices: Sequence[str] | None) -> str | None:
    """A letter as a capital; None where there are fewer options."""
    letter = letter.upper()
    return letter if not choices or ord(letter) - ord("A") < len(choices) else None
