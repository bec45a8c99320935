"""``python -m specexit.data.answers``: two answers as a JSON list on standard input, and whether they are the same.

A third entry is their kind. A server compares answers like this, so that a slow comparison holds up nobody; it ends the
process where it takes too long.
"""

from __future__ import annotations

import json

from specexit.data.answers import kind, plainly_same
from specexit.data.answers.apart import own_pipes


def main() -> None:
    """Read, compare, print."""
    question, verdict = own_pipes()
    a, b, *names = json.load(question)
    name = names[0] if names else "math"
    plainly = plainly_same(a, b, name)
    same = kind(name).compare(*sorted((a, b))) if plainly is None else plainly
    print(json.dumps(same), file=verdict, flush=True)


if __name__ == "__main__":
    main()
