r"""The normal form of a mathematical answer's text, and the words in it that are no mathematics."""

from __future__ import annotations

import re

from specexit.data.answers.base import in_ascii, last_box
from specexit.data.answers.math_latex import WRAPPER, in_latex
from specexit.data.answers.math_number_words import in_digits
from specexit.data.answers.math_numbers import with_repeating_as_fractions

_BOLD = re.compile(r"\s*\*\*([^\s*](?:[^*]*[^\s*])?)\*\*\s*")
_INFINITY = re.compile("infinity|inf|oo")
_NO_SOLUTION = re.compile(
    "(?:there (?:is|are) |(?:(?:the|this) (?:equation|system|inequality)|it) has )?no (?:real )?solutions?(?: exists?)?"
    "|(?:the )?empty set"
)
"""Real solutions are what is asked for where nothing else is said; integer ones are not."""
_ALL_REALS = re.compile("(?:the set of )?all (?:real numbers|reals)")

_DOLLAR = re.compile(r"(?<!\\)\$")
_BETWEEN = re.compile(r"\\q?quad(?![A-Za-z])|\\\\|(?<!\\);|\n")
_SYSTEM = re.compile(r"\\begin\{(cases|aligned|align\*?|gathered)\}(.*)\\end\{\1\}", re.DOTALL)
_SEMICOLON, _COMMA = (re.compile(rf"(?<!\\){sign} ?") for sign in ";,")
_SAYS = re.compile(r"(?:\([^()=]*\)|\\?[A-Za-z]+(?:_(?:\w|\{[^{}]*\}))?'*(?:\([^()=]*\))?) ?=[^<>]+")
_SPACE = r"(?<!\\)\\[,;: ]|~"
"""A backslash behind a backslash is no space: a matrix's rows end in ``\\``."""
_LEAD = re.compile(
    rf"(?:{WRAPPER}\{{ ?)?(?:the )?(?:final )?answer(?: is)? ?[:=]? ?\}}? ?"
    r"|(?:=|\\(?:therefore|Rightarrow|implies)(?![A-Za-z])) ?",
    re.IGNORECASE,
)
_ABOUT_WORD = r"(?:about|approximately|approx\.?|roughly)"
_ABOUT = re.compile(
    rf"(?:\\(?:approx|sim)(?![A-Za-z])|{WRAPPER}\{{ ?{_ABOUT_WORD} ?\}}|{_ABOUT_WORD}(?= )) ?", re.IGNORECASE
)
_LINE_END = re.compile(r"\\{1,2} ?(?:\[[^\[\]]*\])?\Z")
_ORDINAL = re.compile(rf"(?<=\d) ?\^?\{{?(?:{WRAPPER}\{{)?(?:st|nd|rd|th)\}}*\Z")
_SPACED_GROUPS = re.compile(r"((?:\\\$|€|£)?[+-]?(?:\\\$|€|£)?)(\d{1,3}(?: \d{3})+)((?:\.\d+)?\D*)")
_DOTTED = re.compile(r"(\D*\d{1,3}(?:\.\d{3}){2,})(\D*)")
_GROUP = re.compile(r"(?<![\d,.])[1-9]\d{0,2}(?:,\d{3}|, 0\d\d)+(?![\d,])")
_LISTED = re.compile(r"(?:[(\[]|\\\{)(?:(?!\\\{)[^()\[\],])*,|_\{(?:(?!_\{)[^},])*,")
"""A comma in a bracket or an index; looked for up to the next bracket, as a model in a loop opens thousands."""
_IN_BRACKET = re.compile(r"([(\[]|\\\{)((?:(?!\\[{}])[^()\[\]])+)")
_WORD = re.compile(r"(?:(?<=\d )|(?<=[A-Za-z] ))[A-Za-z]{2,}|(?<![A-Za-z])[A-Za-z]{2,}(?= [\dA-Za-z])")
COMMA, _SPACED_COMMA = re.compile(","), re.compile(", ")
_FUNCTION = re.compile(rf"{WRAPPER}\{{([A-Za-z]{{2,}})\}}(?=(?:\([^()]*\)|\[[^\[\]]*\]) ?=)")
"""The name of a function, as in an equation that says what it is."""
_AND_OR = re.compile(rf",? ?(?:{WRAPPER}\{{ ?(?:and|or) ?\}}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])) ?")


def normal(text: str) -> str:
    r"""An answer without what changes nothing: dollar signs, spacing, thousands separators, a full stop at its end.

    Example:
      >>> normal(r"\$1{,}000\,"), normal(r"\text{(1, 2)}"), normal(r"\boxed{x²}"), normal("10 080")
      ('\\$1000', '(1,2)', 'x^{2}', '10080')
    """
    text = in_ascii(text)
    if bold := _BOLD.fullmatch(text):
        text = bold.group(1)
    text = _as_money(last_box(text) or text)
    text = _ungrouped(_trimmed(_listed(_unwrapped(in_latex(text)))))
    # A space stays where it keeps two words, two numbers or a command and its argument apart.
    text = in_digits(_FUNCTION.sub(r"\\text{\1}", re.sub(r"(?<![\w}]) | (?![\w\\])", "", text)))
    if _INFINITY.fullmatch(text.lower()):
        return r"\infty"
    if _ALL_REALS.fullmatch(text.lower()):
        return r"\mathbb{R}"
    return r"\emptyset" if _NO_SOLUTION.fullmatch(text.lower()) else with_repeating_as_fractions(text)


def _as_money(text: str) -> str:
    r"""A text in which a dollar sign that begins no formula is one of money.

    Example:
      >>> _as_money("$5"), _as_money("$5$"), _as_money(r"\$5")
      ('\\$5', '$5$', '\\$5')
    """
    alone = len(_DOLLAR.findall(text)) == 1
    return re.sub(rf"{_DOLLAR.pattern}(?= ?[.\d])", r"\\$", text) if alone else text


def _listed(text: str) -> str:
    r"""Equations that say what names are, kept apart by wide spaces, semicolons or rows, as a list; else the text.

    Where there are only semicolons, these are its commas; beside commas, those may be a decimal's.

    Example:
      >>> _listed(r"x=1 \qquad y=2"), _listed("x=1; x=2"), _listed(r"x=3 \quad (x>0)"), _listed("(1;2)")
      ('x=1,y=2', 'x=1,x=2', 'x=3 \\quad (x>0)', '(1, 2)')
      >>> _listed("(1,5;2)"), _listed(r"\begin{cases}x=1\\y=2\end{cases}")
      ('(1,5;2)', 'x=1,y=2')
    """
    system = _SYSTEM.fullmatch(text.strip())
    rows = system[2].replace("&", "") if system else text
    parts = [part.strip(" ,") for part in _BETWEEN.split(rows) if part.strip(" ,")]
    if len(parts) > 1 and all(_SAYS.fullmatch(part) and len(apart(part, COMMA)) == 1 for part in parts):
        return ",".join(parts)
    return text if _COMMA.search(text) else _SEMICOLON.sub(", ", text)


def _ungrouped(text: str) -> str:
    """Without separators of thousands: commas that all stand between groups of three digits, and in no bracket.

    A comma that a space follows is one of a list, whose members do not begin with a zero. A list that has such commas
    alone, in a bracket or not, may have the others in its members.

    Example:
      >>> [_ungrouped(text) for text in ("1,000", "(1,000)", "1,000, 2", "[0, 1,500)", "(1,100), (2,200)")]
      ['1000', '(1,000)', '1000, 2', '[0, 1500)', '(1,100), (2,200)']
    """
    if groups := _SPACED_GROUPS.fullmatch(text):
        before, digits, after = groups.groups()
        return before + digits.replace(" ", "") + after
    if dotted := _DOTTED.fullmatch(text):
        return dotted[1].replace(".", "") + dotted[2]
    if "," in _GROUP.sub("", text) or _LISTED.search(text):
        return _ungrouped_list(_IN_BRACKET.sub(lambda found: found[1] + _ungrouped_list(found[2]), text))
    return _GROUP.sub(lambda found: re.sub("[, ]", "", found.group()), text)


def _ungrouped_list(text: str) -> str:
    """A list whose members are each without separators of thousands; the text where another comma would be left."""
    members = apart(text, _SPACED_COMMA)
    if len(members) == 1:
        return text
    members = [_ungrouped(member.strip()) for member in members]
    return text if any(len(apart(member, COMMA)) > 1 for member in members) else ", ".join(members)


def _unwrapped(text: str) -> str:
    """Without a text command around no letter, around a constant or around all, and without "the answer is"."""
    # A bold i is a unit vector.
    text = re.sub(rf"(?!\\mathbf ?\{{i\}}){WRAPPER}\{{([^A-Za-z{{}}]*|[ei])\}}", r"\1", text).strip()
    if whole := re.fullmatch(rf"{WRAPPER}\{{([^{{}}]*)\}}", text):
        text = whole.group(1).strip()
    lead = _LEAD.match(text)
    return text[lead.end() :] if lead else text


def _trimmed(text: str) -> str:
    """With single spaces, and without what only ends a sentence or a line."""
    text = re.sub(rf"(?<=\d)(?:{_SPACE})(?=\d{{3}}(?!\d))", "", text)
    text = re.sub(rf"{_SPACE}|\\q?quad\b", " ", text)
    text = re.sub(r"\s+", " ", text).strip()
    text = _LINE_END.sub("", text).strip().rstrip(" .,;")
    text = _ORDINAL.sub("", text)
    about = _ABOUT.match(text)
    return text[about.end() :] if about else text


def squeezed(text: str) -> str:
    r"""A normal form without text commands and needless spaces, for comparing answers that no parser reads.

    Example:
      >>> squeezed(r"3\text{ ft }4\text{ in}"), squeezed("3 ft 4in")
      ('3ft4in', '3ft4in')
    """
    text = re.sub(rf"{WRAPPER}\{{([^{{}}]*)\}}", r" \1 ", text)
    return re.sub(r" +(?!\d)|(?<!\d) +", "", text.strip())


def prose(text: str) -> str | None:
    r"""The text of an answer that is words, or in which words stand between numbers; None where it is mathematics.

    A parser reads words as products of letters, or stops in front of them.

    Example:
      >>> prose("10 red and 6 blue"), prose(r"1,2,\ldots,10"), prose(r"1\text{ and }2"), prose(r"2\pi rh")
      ('10redand6blue', '1,2,\\ldots,10', None, None)
      >>> prose(r"\text{Var}(X)=2"), prose(r"\text{Var}(X)=\text{two}")
      (None, 'var(x)=two')
    """
    listed = _FUNCTION.sub("", without_and_or(text))
    words = re.search(rf"{WRAPPER}\{{[^{{}}]*[A-Za-z]{{2}}", listed) or _WORD.search(
        re.sub(r"\\[A-Za-z]+ ?", "#", listed)
    )
    return squeezed(text).casefold() if words or r"\ldots" in text else None


def is_word(text: str) -> bool:
    """Whether an answer is one word, or a product of letters, which nothing tells apart."""
    return re.fullmatch("[A-Za-z]{2,}", text) is not None


def without_and_or(text: str) -> str:
    r"""A list as one with commas.

    Example:
      >>> without_and_or(r"x=1 \text{ or } x=2"), without_and_or("3 and 4")
      ('x=1,x=2', '3,4')
    """
    return _AND_OR.sub(",", text)


def joints(text: str) -> set[str]:
    r"""The words that join a list of words or letters; none of a list of numbers or equations, where "and" and "or" say
    the same.

    Example:
      >>> joints(r"\text{red and blue}"), joints("A or B"), joints("x=1 or x=2")
      ({'and'}, {'or'}, set())
    """
    words = re.findall("[A-Za-z]+", re.sub(WRAPPER, "", text))
    return {"and", "or"} & set(words) if re.fullmatch(r"[A-Za-z'{}, -]+", re.sub(WRAPPER, "", text)) else set()


def apart(text: str, sign: re.Pattern[str]) -> list[str]:
    """A text cut at a sign, but not within brackets.

    Example:
      >>> apart("(1,2),3", re.compile(","))
      ['(1,2)', '3']
    """
    depth, start, parts = 0, 0, []
    for i, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0 and sign.match(text, i):
            parts.append(text[start:i])
            start = i + 1
    return [*parts, text[start:]]
