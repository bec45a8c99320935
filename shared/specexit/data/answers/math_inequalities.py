r"""Inequalities that "or" and "and" join, as unions and intersections of intervals."""

from __future__ import annotations

import re
from itertools import accumulate

from specexit.data.answers.math_latex import WRAPPER

_FLIPPED = {"<": "<", ">": "<", r"\le": r"\le", r"\ge": r"\le"}
INEQUALITY = re.compile(r"[<>]|\\[lg]eq?\b")
_SIGN = re.compile(r" ?(<|>|\\[lg]e(?![A-Za-z])) ?")
_RELATION = re.compile(rf"=|{_SIGN.pattern}")
_JOINT = re.compile(rf",? ?(?:{WRAPPER}\{{ ?(and|or) ?\}}|(?<![A-Za-z\\])(and|or)(?![A-Za-z])) ?")
_BRACKETS = re.compile(r"([\[\]])([^\[\]]*)([\[\]])")
_OR, _AND = (re.compile(rf" ?\\(?:{names})(?![A-Za-z]) ?") for names in ("lor|vee", "land|wedge"))
_BUILDER = re.compile(r"\\\{ ?([A-Za-z]) ?(?:\\in ?\\mathbb\{R\} ?)?(?:\||:|\\mid\b) ?(.+?) ?\\\}")


def as_intervals(text: str) -> str:
    r"""Inequalities of one letter as intervals, where "or" or "and" joins them; any other text as it is.

    Example:
      >>> as_intervals(r"x<2\text{ or }x\ge 3"), as_intervals(r"0<x and 5\ge x"), as_intervals("x<2 or y>3")
      ('(-\\infty,2)\\cup[3,\\infty)', '(0,\\infty)\\cap(-\\infty,5]', 'x<2 or y>3')
      >>> as_intervals(r"x<2\lor x>3"), as_intervals("]1,2]")
      ('(-\\infty,2)\\cup(3,\\infty)', '(1,2]')
      >>> as_intervals(r"\{x\mid x\ge 3\}")
      'x\\ge 3'
    """
    text = _with_round_brackets(text)
    if (built := _BUILDER.fullmatch(text)) and _SIGN.search(built.group(2)):
        text = built.group(2)
    text = _in_words(text)
    joints = {found.group(1) or found.group(2) for found in _JOINT.finditer(text)}
    if len(joints) != 1 or not _SIGN.search(text):
        return text
    parts = [_interval(part) for part in _JOINT.sub("\n", text).split("\n")]
    names = {part[0] if part else None for part in parts}
    if None in names or len(names) > 1:
        return text
    return (r"\cup" if joints == {"or"} else r"\cap").join(part[1] for part in parts if part)


def _in_words(text: str) -> str:
    r"""A text with words for logic's signs where all that these join are equations and inequalities; else as it is.

    Example:
      >>> _in_words(r"x=1\lor x=2"), _in_words(r"y=a\lor b")
      ('x=1 or x=2', 'y=a\\lor b')
    """
    said = _AND.sub(" and ", _OR.sub(" or ", text))
    return said if all(map(_RELATION.search, re.split(" (?:or|and) ", said))) else text


def _with_round_brackets(text: str) -> str:
    """A text in which open ends of intervals are round brackets rather than turned ones.

    Example:
      >>> _with_round_brackets("]1,2[,[3,4["), _with_round_brackets("(1,2],[3,4]")
      ('(1,2),[3,4)', '(1,2],[3,4]')
    """
    signs = [1 if sign in "[(" else -1 for sign in re.findall(r"[\[\]()]", text)]
    depths = list(accumulate(signs))
    if not depths or (min(depths) == depths[-1] == 0):
        return text
    return _BRACKETS.sub(_turned, text)


def _turned(found: re.Match[str]) -> str:
    left, inside, right = found.groups()
    if not re.fullmatch("[^,]+,[^,]+", inside):
        return found[0]
    return f"{'(' if left == ']' else left}{inside}{')' if right == '[' else right}"


def _interval(text: str) -> tuple[str, str] | None:
    r"""The letter of an inequality and its interval; None where it is no such.

    Example:
      >>> _interval(r"1<x\le 2"), _interval("x=1"), _interval("x<y")
      (('x', '(1,2]'), None, None)
    """
    sides = _SIGN.split(text)
    signs = set(sides[1::2])
    if signs & {">", r"\ge"}:
        if signs & {"<", r"\le"}:
            return None
        sides.reverse()
    sides = [_FLIPPED.get(side, side) for side in sides]
    if len(sides) == 3:
        sides = [r"-\infty", "<", *sides] if _is_letter(sides[0]) else [*sides, "<", r"\infty"]
    if len(sides) != 5 or not _is_letter(sides[2]) or not (_is_bound(sides[0]) and _is_bound(sides[4])):
        return None
    left, before, name, after, right = sides
    return name, f"{'(' if before == '<' else '['}{left},{right}{')' if after == '<' else ']'}"


def _is_letter(text: str) -> bool:
    return re.fullmatch("[A-Za-z]", text) is not None


def _is_bound(text: str) -> bool:
    return re.search("[A-Za-z,=]", re.sub(r"\\[A-Za-z]+", "", text)) is None and text != ""
