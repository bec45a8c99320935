"""Short texts: a name, a word, a phrase, compared after normalisation."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from specexit.data.answers.base import AnswerKind, in_ascii, last_box
from specexit.data.answers.text_blocks import first_statement

_HEADING = r"^#*[ \t]*(?:the\s+)?(?:final\s+)?answer[^\S\n]*\n\s*+(?!.*\banswer\b)"
_BULLET = r"(?:(?<=\n)(?:> ?|- (?=[^\W\d_]{2})))?"
_COLON = r"\s*[:=：＝]\*{0,3}"
_STATED = re.compile(rf"(?:\b(?:final\s+)?answer\b(?:\s+is\b|{_COLON})+|{_HEADING})\s*{_BULLET}(.+)", re.I | re.M)
_NAMED = r"(?:the\s+)?(?:final\s+)?answer"
_TITLE = re.compile(rf"(?:\A{_NAMED}\s+is\b|^{_NAMED}(?:{_COLON}|[^\S\n]*\n))(?:\s+is\b|{_COLON})*", re.I | re.M)
"""What stands before the answer where ``####`` is a heading, its own or one above it."""
_AS_STATED = re.compile(rf"\\(?:boxed|fbox)\b|####|\A\s*\**{_NAMED}{_COLON}", re.I)
_FONT = r"\\(?:text|textbf|textit|mathbf|mathrm|mbox)\b"
_STYLED = re.compile(_FONT + r"\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_EMPHASIS = re.compile(r"(?<![\w*])(\*{1,3})([^\s*](?:[^*\n]*[^\s*])?)\1(?![\w*])")
_MARKUP = re.compile(_FONT + r"|\\[,;! ]|[$`\ufe0e\ufe0f]|^\s*\*+\s")
_FRACTION_BEHIND = re.compile(r"(?<=\w)(?=[¼-¾⅐-⅟↉])")
_SUPERSCRIPT = re.compile("[⁰¹²³⁴-⁹⁺⁻ⁿ]+")
_QUOTE = "[\"'“‘«(]"
_ARTICLE = re.compile(rf"^{_QUOTE}*(?:a|an|the)\s+(?={_QUOTE}?[^\W\d_]{{2}})")
_HYPHEN = re.compile(r"(?<=[^\W\d_]{2})-(?=\w)|(?<=\w)-(?=[^\W\d_]{2})|(?<=[^\W\d_]{2}) - (?=[^\W\d_]{2})|--+")
_BRACKETED = re.compile(r"\\?[\[({].*[\])}]")
_MEMBERS = r"(?:[^\[\]]|\[(?:[^\[\]]|\[[^\[\]]*\])*\])*"
_LIST = re.compile(rf"\[({_MEMBERS})\]")
_INITIAL = re.compile(r"(?<![^\W_])([^\W\d_])\.(?=[^\W\d_](?![^\W_]))")
_BESIDE_SIGN = re.compile(r"[-+*/^=] ?\(([^()]*+)\)|\(([^()]*+)\)!? ?[-+*/^=]")
_AMOUNT = re.compile(r"(?<!\S)(-?)([\d.]+) ([€£¥¢₩₹₽])(?!\S)")
"""A currency behind its number, in what has single spaces."""
_FORGIVEN = "°©®"
"""Symbols that say nothing of their own."""
_TICKS = "✅✔✓☑"
_BEGINS = r"[-+]?[\w.$€£¥₩₹₽\\([{\"'“‘«「『《【]"
_ENDS = r"[\w*.!?%‰°#+$€£¥¢₩₹₽)\]}\"'’”»」』》】]"
_DECORATION = re.compile(
    rf"^[●•■▪◆★] +(?=[^\W\d_])|^[{_TICKS}]+ *(?={_BEGINS})|(?<={_ENDS}) *[🎉😊{_TICKS}\ufffc\ufffd]+$"
)
"""One bullet before words, a tick before an answer, and ticks behind it. Several stars are a number, and what is
hollow may be the opposite of what is full; a cross says something, and so does a tick behind a colon or a cross."""
_OF_FLAGS = "".join(map(chr, range(0xE0020, 0xE0080)))
"""Letters that nobody sees, behind a flag: England's, Scotland's and Wales' are one symbol."""
_SIGNS = str.maketrans("−–’⁄♯", "--'/#")
_EXCLAMATION = re.compile(r"(?<![\d)])!+(?!=)")


class Text(AnswerKind):
    """A few words."""

    name = "text"

    def extract(self, text: str, choices: Sequence[str] | None = None) -> str | None:
        r"""The last ``\boxed{}``, what follows ``####``, the rest of the line behind "answer is" or "Answer:", or the
        line below the heading "Answer". Where a block begins there, a fence for example, its content."""
        del choices
        if r"\boxed" in text or r"\fbox" in text:
            return _clean(last_box(text) or "")
        text = _EMPHASIS.sub(r"\2", text)
        _, hashes, rest = text.rpartition("####")
        if hashes:
            return _clean(first_statement(_TITLE.split(rest.strip())[-1]))
        found = list(_STATED.finditer(text))
        return _clean(first_statement(text[found[-1].start(1) :])) if found else None

    def why_no_reference(self, reference: str, choices: Sequence[str] | None = None) -> str | None:
        """As for any kind; an answer as a response states it is refused too, as no answer would ever be equal to it."""
        if _AS_STATED.search(reference):
            return f"is an answer as a response states it, expected it alone: {self.extract(reference)!r}"
        return super().why_no_reference(reference, choices)

    def plainly_same(self, a: str, b: str) -> bool:
        """Whether they are equal after `normal`, initials with points or without.

        Example:
          >>> TEXT.plainly_same("The  Eiffel Tower.", "eiffel tower"), TEXT.plainly_same("3.5", "35")
          (True, False)
          >>> TEXT.plainly_same("U.S.", "US"), TEXT.plainly_same("J.K. Rowling", "J. K. Rowling")
          (True, True)
        """
        return normal(a) == normal(b) or normal(_INITIAL.sub(r"\1", a)) == normal(_INITIAL.sub(r"\1", b))


TEXT = Text()


def _clean(text: str) -> str | None:
    return text.strip().rstrip(".。").strip("\"' ") or None


def normal(text: str) -> str:
    """Lower case, one form of each character, no article in front, no punctuation, single spaces, after SQuAD's rule.

    What changes the meaning stays: the point of a number, signs, superscripts, braces, brackets in a formula, symbols,
    the lists in a list. So does a text of nothing but punctuation. A hyphen beside a word of two letters or more joins
    words; any other is a minus. In an answer in brackets a comma separates members, not thousands.

    Example:
      >>> normal("The  “Eiffel” Tower!"), normal("-3.50"), normal("a"), normal("C++"), normal("!?")
      ('eiffel tower', '-3.50', 'a', 'c++', '!?')
      >>> normal("well-known"), normal("x - y"), normal("x = - y"), normal("10²"), normal("x ≥ 3")
      ('well known', 'x-y', 'x = -y', '10 ^ 2', 'x ≥ 3')
      >>> normal("1,000"), normal("[1,000]"), normal("[1, [2, 3]]"), normal("5!"), normal("5 % / 2")
      ('1000', '1 000', '1 [ 2 3 ]', '5!', '5%/2')
    """
    whole = _ARTICLE.sub("", _one_form(_unstyled(in_ascii(text))))
    bare = whole if _BRACKETED.fullmatch(whole) else re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", whole)
    bare = found.group(1) if (found := _LIST.fullmatch(bare)) else re.sub(r"[\[\]]", " ", bare)
    if _is_bracketed_formula(bare):
        bare = bare.replace("(", "{").replace(")", "}")
    bare = re.sub(r"(?<!\d)[.](?!\d)|(?<=\d)[.](?!\d)|(?<=[^\W\d])[.](?=\d)", " ", _EXCLAMATION.sub(" ", bare))
    bare = re.sub(r"(?<=\S) ([-+/]) (?=\S)|(?<=\d) (%)", r"\1\2", _HYPHEN.sub(" ", bare))
    bare = re.sub(r"\s+", " ", "".join(map(_apart, bare.replace("'", ""))))
    bare = _AMOUNT.sub(r"\1\3 \2", bare)
    return bare.replace("- ", "-").strip() or whole


def _is_bracketed_formula(text: str) -> bool:
    """Whether brackets tell what is computed first: around a sign, and beside another.

    Example:
      >>> _is_bracketed_formula("(3+4)*2"), _is_bracketed_formula("-(5)"), _is_bracketed_formula("a (b-c)")
      (True, False, False)
    """
    return any(re.search("[-+*/^=]", found[1] or found[2] or "") for found in _BESIDE_SIGN.finditer(text))


def _unstyled(text: str) -> str:
    """A text without what only changes how it looks, in LaTeX or Markdown."""
    for _ in range(3):  # a style in a style
        text = _STYLED.sub(r"\1", text)
    text = _MARKUP.sub("", _EMPHASIS.sub(r"\2", text))
    return re.sub(r"(?<=[\^_])\{(\w)\}", r"\1", text)


def _one_form(text: str) -> str:
    """Characters that mean one thing as one character, and single spaces."""
    text = _SUPERSCRIPT.sub(lambda found: "^" + unicodedata.normalize("NFKC", found.group()), text)
    text = _FRACTION_BEHIND.sub(" ", text)
    text = unicodedata.normalize("NFKC", text).casefold().translate(_SIGNS)
    return _DECORATION.sub("", re.sub(r"\s+", " ", text).strip())


def _apart(char: str) -> str:
    """A character of a word or number as it is, a symbol between spaces, a space for all else."""
    category = unicodedata.category(char)
    if char.isalnum() or char in "+-/.#%‰!" or category[0] == "M" or char in _OF_FLAGS:
        return char
    return f" {char} " if char in "*^{}[]" or (category[0] == "S" and char not in _FORGIVEN) else " "
