"""Answers judged by the user's own Python function, named ``function:package.module:name``."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from typing import Any

from specexit.data.answers.base import AnswerError, AnswerKind, last_box

PREFIX = "function:"

FUNCTIONS = "SPECEXIT_ANSWER_FUNCTIONS"
"""Environment variable: the answer kinds ``function:module:name`` that may be called, separated by spaces. No file says
so: prompts, traces and `policy.json` may be a stranger's, and the function gets what they or clients have written."""


def to_be_called() -> list[str]:
    """The answer kinds whose functions may be called: those that `FUNCTIONS` names."""
    return os.environ.get(FUNCTIONS, "").split()


class Function(AnswerKind):
    r"""What a function says.

    The name is that of a function ``(answer, other) -> bool``, or of anything with ``same`` (such a function) and
    ``extract`` (``text -> str | None``). Without ``extract`` an answer is what stands in the last ``\boxed{}``, or else
    the whole response. The function is called in both orders, in a process of its own, and two answers are the same if
    it returns True or 1 in either. ``extract`` runs in the calling process, with no limit on its time, so it has to be
    quick.

    Raises:
      AnswerError: `FUNCTIONS` does not name it, there is no such function, or its module cannot be imported.
    """

    def __init__(self, name: str):
        if name not in to_be_called():
            raise AnswerError(
                f"answer kind {name!r:.200}: the environment variable {FUNCTIONS} does not name it, and prompts "
                "or traces may be a stranger's; if you trust this function, say the kind there (several between spaces)"
            )
        self.name = name
        self._found = _load(name)

    def extract(self, text: str, choices: Sequence[str] | None = None) -> str | None:
        """What the function's own ``extract`` finds, or the box, or the text.

        Raises:
          AnswerError: that fails, or gives something else than a string or None.
        """
        del choices
        own: Callable[[str], str | None] | None = getattr(self._found, "extract", None)
        if own is None:
            return last_box(text) if r"\boxed" in text else text.strip() or None
        try:
            answer = own(text)
        except Exception as error:
            raise AnswerError(f"answer kind {self.name}: extract fails: {type(error).__name__}: {error}") from error
        if answer is not None and not isinstance(answer, str):
            raise AnswerError(f"answer kind {self.name}: extract gives {answer!r}, expected a string or None")
        return answer

    def plainly_same(self, a: str, b: str) -> bool | None:
        """None for any two answers, as only the function can tell."""
        del a, b
        return None

    def compare(self, a: str, b: str) -> bool:
        """Whether the function says that they are the same, in either order."""
        same = getattr(self._found, "same", self._found)
        return any(bool(verdict is True or verdict == 1) for verdict in (same(a, b), same(b, a)))


def _load(name: str) -> Any:
    module, _, attribute = name.removeprefix(PREFIX).partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # whatever the user's module does
        raise AnswerError(
            f"answer kind {name!r}: {type(error).__name__}: {error}; "
            "expected function:package.module:name of a function that can be imported"
        ) from error
    if not callable(getattr(found, "same", found)):
        raise AnswerError(f"answer kind {name!r}: is a {type(found).__name__}, expected a function, or one as its same")
    return found
