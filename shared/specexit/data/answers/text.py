"""Short texts: a name, a word, a phrase, compared after normalisation."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from specexit.data.answers.base import AnswerKind, last_box

_STATED = re.compile(r"\b(?:final\s+)?answer\b(?:\s+is\b|\s*[:=])+\s*(.+)", re.I)
_STYLE = re.compile(r"\\(?:text|textbf|textit|mathbf|mathrm|mbox)\b|\\[,;! ]|[${}*`]")
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


class Text(AnswerKind):
    """A few words."""

    name = "text"

    def extract(self, text: str, choices: Sequence[str] | None = None) -> str | None:
        r"""The last ``\boxed{}``, what follows ``####``, or the rest of the line behind "answer is" or "Answer:"."""
        del choices
        if r"\boxed" in text or r"\fbox" in text:
            return _clean(last_box(text) or "")
        _, hashes, rest = text.rpartition("####")
        if hashes:
            return _clean((rest.strip().splitlines() or [""])[0])
        found = _STATED.findall(text.replace("**", ""))
        return _clean(found[-1]) if found else None

    def plainly_same(self, a: str, b: str) -> bool:
        """Whether they are equal after `normal`.

        Example:
          >>> TEXT.plainly_same("The  Eiffel Tower.", "eiffel tower"), TEXT.plainly_same("3.5", "35")
          (True, False)
        """
        return normal(a) == normal(b)


TEXT = Text()


def _clean(text: str) -> str | None:
    return text.strip().rstrip(".").strip("\"' ") or None


def normal(text: str) -> str:
    """Lower case, one form of each character, no articles, no punctuation, single spaces, as in SQuAD's evaluation.

    The point and the sign of a number stay, and so does a text that is nothing but punctuation or articles.

    Example:
      >>> normal("The  “Eiffel” Tower!"), normal("-3.50"), normal("a"), normal("C++"), normal("!?")
      ('eiffel tower', '-3.50', 'a', 'c++', '!?')
    """
    whole = re.sub(r"\s+", " ", unicodedata.normalize("NFKC", _STYLE.sub("", text)).casefold()).strip()
    bare = whole.replace("−", "-").replace("’", "'")
    bare = re.sub(r"(?<=\d),(?=\d{3}\b)", "", bare)
    bare = re.sub(r"(?<!\d)[.](?!\d)|(?<=\d)[.](?!\d)|(?<=[^\W\d])[.](?=\d)", " ", bare)
    bare = re.sub(r"(?<=\w)-(?=\w)|-(?!\d)", " ", bare)
    bare = re.sub(r"[^\w\s.+#%/<>=-]|_", " ", bare.replace("'", ""))
    without = re.sub(r"\s+", " ", _ARTICLES.sub(" ", bare)).strip()
    return without or re.sub(r"\s+", " ", bare).strip() or whole
