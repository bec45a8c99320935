"""``python -m specexit.data.answers``: two answers as a JSON list on standard input, and whether they are the same.

A third entry is their kind. A server compares answers like this, so that a slow comparison holds up nobody; it ends the
process where it takes too long.
"""

from __future__ import annotations

import json
import sys

from specexit.data.answers import kind, plainly_same


def main() -> None:
    """Read, compare, print."""
    a, b, *names = json.load(sys.stdin)
    name = names[0] if names else "math"
    plainly = plainly_same(a, b, name)
    print(json.dumps(kind(name).compare(*sorted((a, b))) if plainly is None else plainly))


if __name__ == "__main__":
    main()
