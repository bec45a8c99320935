"""What a response answers, and when two answers are the same."""

from __future__ import annotations

import json
import re
import sys


def extract_answer(text: str) -> str | None:
    r"""The content of the last ``\boxed{...}``, braces balanced; None where there is none or it never closes.

    Example:
      >>> extract_answer(r"So \boxed{1} is wrong. The answer is \boxed{\frac{1}{2}}.")
      '\\frac{1}{2}'
    """
    start = text.rfind(r"\boxed{")
    if start < 0:
        return None
    depth, body = 0, text[start + len(r"\boxed") :]
    for i, char in enumerate(body):
        depth += {"{": 1, "}": -1}.get(char, 0)
        if depth == 0:
            return body[1:i].strip()
    return None


_SPACE = re.compile(r"\s+")


def plainly_same(a: str | None, b: str | None) -> bool | None:
    """`same_answer` where it needs no parser: equal text, two plain integers, or no answer; else None.

    Example:
      >>> plainly_same("042", "42"), plainly_same("41", "42"), plainly_same("0.5", "1/2"), plainly_same("1", None)
      (True, False, None, False)
    """
    if a is None or b is None:
        return False
    a, b = _SPACE.sub("", a), _SPACE.sub("", b)
    if a == b:
        return True
    return int(a) == int(b) if re.fullmatch(r"-?\d+", a) and re.fullmatch(r"-?\d+", b) else None


def same_answer(a: str | None, b: str | None) -> bool:
    """Whether two answers mean the same.

    Equal text is equal. Two plain integers are compared as numbers, and everything else by math-verify, which knows
    that 1/2, 0.5 and \\frac{1}{2} are one answer. No answer equals nothing, not even no answer: a trial that
    states none can never pass for the original's.

    Example:
      >>> same_answer("042", "42"), same_answer("0.5", "1/2"), same_answer(None, None)
      (True, True, False)
    """
    plainly = plainly_same(a, b)
    if plainly is not None:
        return plainly
    import math_verify

    assert a is not None
    assert b is not None
    a, b = _SPACE.sub("", a), _SPACE.sub("", b)
    return bool(math_verify.verify(math_verify.parse(f"${a}$"), math_verify.parse(f"${b}$")))


def main() -> None:
    """``python -m specexit.data.answers``: two answers as a JSON list on standard input, and whether they are the same.

    A server compares answers like this: math-verify limits its time by signals, which only a main thread gets.
    """
    print(json.dumps(same_answer(*json.load(sys.stdin))))


if __name__ == "__main__":
    main()
