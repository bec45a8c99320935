"""Where the answer ends that a model was made to state: at a stop, but not at one in the midst of it."""

from __future__ import annotations

import re
from collections.abc import Sequence

LATEX = re.compile(r"\\(begin|end|left|right)\b|\\.|([{}])", re.DOTALL)
OPENING = {"begin": 1, "end": -1, "left": 1, "right": -1, "{": 1, "}": -1, None: 0}


def answer_end(written: str, stop: Sequence[str], forced: str = "") -> int | None:
    r"""Offset of the first stop that ends an answer, None where there is none yet.

    Something must be written before it. Where the forced text leaves a brace open, that is a box to be filled: a stop
    ends nothing while what is in the box leaves a brace, an environment or a ``\left`` open, as in a matrix.

    Example:
      >>> box, rows = r"\boxed{", "\\begin{pmatrix}\n1 \\\\\n2\n\\end{pmatrix}"
      >>> answer_end("42\nOr", ["\n"], box), answer_end("\n42", ["\n"], box), answer_end(rows, ["\n"], box)
      (2, None, None)
      >>> answer_end(rows + "}\n", ["\n"], box) == len(rows + "}")
      True
    """
    in_box = _left_open(forced)
    ends = sorted({found.start() for one in stop for found in re.finditer(f"(?={re.escape(one)})", written)})
    return next((end for end in ends if written[:end].strip() and not (in_box and _left_open(written[:end]))), None)


def is_stated(piece: str, written: str, stop: Sequence[str], forced: str) -> bool:
    r"""Whether a request for an answer has ended, or only came to a stop in the midst of it and is to be gone on with.

    Args:
      piece: what the last request wrote.
      written: what all of them wrote, up to here.
      stop, forced: see `answer_end`.

    Example:
      >>> is_stated("\n", "\n", ["\n"], r"\boxed{"), is_stated("42}\n", "\n42}\n", ["\n"], r"\boxed{")
      (False, True)
    """
    return not any(one in piece for one in stop) or answer_end(written, stop, forced) is not None


def close_trial(written: str, stop: Sequence[str], close: str, forced: str = "") -> str:
    r"""What was written behind a forced text, up to the stop that ends the answer, which gives way to ``close``;
    without either, all of it.

    Example:
      >>> close_trial("7. Or", (".",), "}"), close_trial("7", (".",), "}"), close_trial("7.", (".",), "")
      ('7}', '7', '7.')
    """
    end = answer_end(written, stop, forced) if close else None
    return written if end is None else written[:end] + close


def _left_open(text: str) -> bool:
    """Whether LaTeX leaves something open that has an end, read up to where it closes one that it did not open."""
    depth = 0
    for found in LATEX.finditer(text):
        depth += OPENING[found[1] or found[2]]
        if depth < 0:
            return False
    return depth > 0
