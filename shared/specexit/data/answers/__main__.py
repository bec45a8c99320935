"""``python -m specexit.data.answers``: a question about answers in JSON on standard input, and the answer to it.

A list is two answers, and their kind if it is not ``math``: are they the same? They are compared as anywhere, `apart`
and within its limits. An object is a ``text``, its ``kind`` and the ``options`` of its prompt or null: which answer
does it state? A server asks like this, so that nothing slow holds up its requests; it ends the process where that takes
too long.
"""

from __future__ import annotations

import json
import logging
from typing import Any

from specexit.data.answers import extract_answer, same_answer
from specexit.data.answers.apart import own_pipes
from specexit.processes import look_in_working_folder


def main() -> None:
    """Read, answer, print."""
    look_in_working_folder()
    logging.disable()  # what took too long are clients' answers, which are not for a server's log
    question, said = own_pipes()
    print(json.dumps(_answer(json.load(question))), file=said, flush=True)


def _answer(question: Any) -> bool | str | None:
    if isinstance(question, dict):
        return extract_answer(question["text"], question["kind"], question["options"])
    return same_answer(*question)


if __name__ == "__main__":
    main()
