"""Multiple choice: the letter of an option, however it is written."""

from __future__ import annotations

import re
from collections.abc import Sequence, Set

from specexit.data.answers.base import AnswerKind, in_ascii
from specexit.data.answers.math_boxes import last_boxes
from specexit.data.answers.text import normal
from specexit.data.answers.text_blocks import first_statement

_LETTERS = "A-J"
MOST_OPTIONS = 10
"""Options of a question, whose letters are these: that of an eleventh could never be read."""
_STYLE = re.compile(r"\\(?:text|textbf|textit|mathbf|mathrm|mathit|bf|rm|mbox|bold)\b|[\\${}*`_]")
_ALONE = re.compile(rf"\(?\[?([{_LETTERS}{_LETTERS.lower()}])\]?\)?[.,:)]?")
_WITH_TEXT = re.compile(
    rf"(?:option|choice|answer)?\s*[(\[]?(?P<letter>[{_LETTERS}])"
    r"(?:(?:[)\]]?[.:]|[)\]]|\s+[-–—:])\s*\S.*|\s\(.+\)\.?)",
    re.I | re.S,
)
_NAMED = re.compile(rf"(?:option|choice|answer)\s*[(\[]?([{_LETTERS}])[)\]]?[.,:]?", re.I)
_MARKED = re.compile(
    r"([\"'])answer\1\s*:\s*([\"'])(?P<json>.*?)\2|"
    r"<answer>\s*+(?P<tag>.{0,500}?)(?:(?<!\s)\s*+)?</answer>",
    re.I,
)
"""Spaces are passed over once: there may be tens of thousands, and nothing behind them."""
_GAP = r"[\s*_{}$]"
_STATED = re.compile(
    rf"(?:answer|option|choice)(?:{_GAP}+(?:is|would\s+be|should\s+be|must\s+be)\b|{_GAP}*:)+{_GAP}*", re.I
)
_SURELY = re.compile(
    r"\A(?:(?:most\s+)?likely|probably|clearly|obviously|definitely|certainly|indeed|therefore|thus|then)\s+", re.I
)
"""A word between "is" and the letter. It is not part of `_STATED`, as an option may begin with it."""
_BLANKS = re.compile(r"(?<=[(\[])\s++|(?<!\s)\s++(?=[)\]])")
"""Inside of a bracket: a trial may be forced up to the bracket, and a model begin a word with its space."""
_STATEMENT = 2000
"""Characters behind "the answer is" that are read: a model may open a fence there a thousand times and close none."""
_SMALL = _LETTERS.lower()
_FIRST = re.compile(
    r"(?i:option|choice|(?:the\s+)?letter)?\s*[:(\[\"']*(?P<letter>"
    rf"[{_LETTERS}](?=[)\].,:;\"'!]|\s*$|\s+[^a-z\s]|\s+[-–—]"
    r"|\s+(?i:because|since|as|and|or|with|rather\s+than|instead\s+of|over(?=\s)|not(?=\s))\b)"
    rf"|[{_SMALL}](?=[)\]]|[.:]?\s*$|[.:]\s))"
)
_NEXT = (
    rf"(?:\s*(?:and|or)\b)?\s*[(\[\"']*[{_LETTERS}{_SMALL}]"
    r"(?=[)\].,;:\"'!]|\s*$|\s+(?:and|or|are|both)\b)"
)
_EXPLAINED = r"(?:\s*:|\s+(?:is|was|does|has|would|cannot|fails|needs)\b)"
_DENIED = r"\s+(?:(?:is|was)\s+(?:\w+ly\s+|also\s+)?(?:wrong|incorrect|false|not)|(?:does|would)\s+not|cannot|fails)\b"
_ANOTHER = re.compile(
    r"[)\]\"']*(?:"
    rf"(?:\s*[,&/+|和与與或及]|\s*(?:[-–—(]\s*)?\b(?:and|or)\b){_NEXT}(?![)\]\"']*{_DENIED})"
    rf"|\s*;{_NEXT}(?![)\]\"']*{_EXPLAINED})"
    rf"|(?:\s*\(|(?<=\])\s*\[)[{_LETTERS}]"
    rf"(?=[)\]][)\](\[\s.,;\"'!]*(?:$|[{_LETTERS}][)\]]|(?:and|or|are|both|because|since|as)\b)))"
)
"""A letter behind the first. One that is denied, or explained in a clause of its own, is not chosen; and "(E)-hexene"
is no letter, but the text of the first option."""
_RIGHT = re.compile(
    rf"(?:\b(?i:option|choice|answer)\s+|(?<![\w'])(?=\S{{1,3}}\s+is\s+the\b))[(\[]?([{_LETTERS}])[)\]]?"
    r"\s+is\s+(?:(?:the\s+)?(?:correct|right)(?:\s+(?:answer|option|choice|one))?|the\s+answer)"
    r"(?=[.,;:!]|\s*$|\s+(?:because|since|as)\b)",
    re.M,
)
_CHOSEN = re.compile(
    r"(?:^|[.!?]\s+)[*_]*(?:(?:So|Thus|Hence|Therefore|Finally|Based on [^.!?,\n]{1,100}),?\s+)?"
    r"I\s+(?:would\s+)?(?:choose|pick|select)\s+(?:the\s+letter\s+)?"
    r"(\S.{0,500}?)(?=[.!]?[*_]*+[^\S\n]*+$|[.!:]\s|,?\s++(?:because|since)\b)",
    re.M,
)
"""A sentence that says a choice and no more: one may choose a point, or a value, to compute with."""
_TEXT_WITH_LETTER = re.compile(rf"(.*\S)\s*[(\[]([{_LETTERS}])[)\]]")
_LISTED = re.compile(rf"[(\[（]?([{_LETTERS}Ａ-Ｊ])(?:[)\].:]\s+|[）．：、]\s*)(\S.*)")
"""What stands between a letter and its option brings its space along where it is of full width."""


class Choice(AnswerKind):
    """A letter from A to J."""

    name = "choice"

    def extract(self, text: str, choices: Sequence[str] | None = None) -> str | None:
        r"""The letter in the last ``\boxed{}``, in JSON (``"answer": "C"``) or ``<answer>``, behind "the answer is",
        alone on the last line, of the one option that "is correct", or else that "I choose".

        With ``choices``, an option's own text counts as its letter, unless the text is itself a letter.
        """
        text = in_ascii(text)
        if r"\boxed" in text or r"\fbox" in text:
            return _only({_letter(box, choices) for box in last_boxes(text)[0]})
        marked = [found["json"] or found["tag"] or "" for found in _MARKED.finditer(text)]
        if marked and (letter := _letter(marked[-1], choices)):
            return letter
        said = [_BLANKS.sub("", first_statement(rest[:_STATEMENT])) for rest in _STATED.split(text)[1:]]
        for rest in dict.fromkeys(reversed(said)):  # a model in a loop says one thing thousands of times
            bare = rest.rstrip(" .*_")
            first = _FIRST.match(_SURELY.sub("", _STYLE.sub("", rest)))
            # "A NOT gate" is the text of an option, and its A is no letter.
            letter = _alone(bare, choices) or _of_text(bare, choices) or _in_range(_one(first), choices)
            if first or letter:
                return letter
        plain = _STYLE.sub("", text)
        last = (plain.strip().splitlines() or [""])[-1]
        right = set(_RIGHT.findall(plain))
        chosen = {letter for said in set(_CHOSEN.findall(text)) if (letter := _alone(said, choices))}
        return _letter(last, choices) or _in_range(_only(right), choices) or _only(chosen)

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
        letter = in_ascii(found.group(1))
        if letter == "A":
            lists.append([])
        if ord(letter) - ord("A") == len(lists[-1]):
            lists[-1].append(found.group(2))
    return next((tuple(options) for options in reversed(lists) if len(options) > 1), None)


def _letter(text: str, choices: Sequence[str] | None = None) -> str | None:
    """The letter that a short text names; None where it names none, or several.

    A letter alone is a letter, also where it is an option's text as well, as prompts ask for letters.
    """
    text = in_ascii(text)
    return _alone(text, choices) or _in_range(_one(_WITH_TEXT.fullmatch(_unstyled(text))), choices)


def _alone(text: str, choices: Sequence[str] | None) -> str | None:
    """The letter of a text that is a letter, or an option's text, and no more."""
    plain = _unstyled(text)
    found = _ALONE.fullmatch(plain) or _NAMED.fullmatch(plain)
    return (_in_range(found.group(1), choices) if found else None) or _of_option(text, choices)


def _unstyled(text: str) -> str:
    return re.sub(r"\s+", " ", _STYLE.sub("", text)).strip()


def _of_option(text: str, choices: Sequence[str] | None) -> str | None:
    """The letter of the one option whose text this is."""
    matching = [i for i, choice in enumerate(choices or ()) if normal(choice) == normal(text)]
    return chr(ord("A") + matching[0]) if len(matching) == 1 else None


def _of_text(text: str, choices: Sequence[str] | None) -> str | None:
    """`_of_option` of what follows "the answer is": its letter may stand behind the option's text, in brackets."""
    if letter := _of_option(text, choices) or _of_option(_SURELY.sub("", text), choices):
        return letter
    found = _TEXT_WITH_LETTER.fullmatch(text)
    return found[2] if found and _of_option(found[1], choices) == found[2] else None


def _one(found: re.Match[str] | None) -> str | None:
    """The letter that was found; None where another is named behind it."""
    if found is None or _ANOTHER.match(found.string, found.end("letter")):
        return None
    return found["letter"]


def _only(letters: Set[str | None]) -> str | None:
    """The letter, where there is one and no other."""
    return next(iter(letters)) if len(letters) == 1 else None


def _in_range(letter: str | None, choices: Sequence[str] | None) -> str | None:
    """A letter as a capital; None where there are fewer options."""
    return letter.upper() if letter and (not choices or ord(letter.upper()) - ord("A") < len(choices)) else None
