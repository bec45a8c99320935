"""``verify.json``: what `specexit verify` found, and whether it is of the weights that are there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from specexit.drafts.tensors import sha256_of

FILE = "verify.json"


def read_verification(folder: Path) -> dict[str, Any] | None:
    """What ``verify.json`` says; None where there is none."""
    path = folder / FILE
    return json.loads(path.read_text()) if path.exists() else None


def doubt_of(folder: Path) -> str | None:
    """Why a draft directory does not count as verified; None where it does."""
    found = read_verification(folder)
    if found is None:
        return "no: run `specexit verify`"
    if found.get("sha256") != sha256_of(folder):
        return "stale: the weights are others by now, run `specexit verify`"
    wrong = [] if found.get("passed") else ["the frameworks differ"]
    wrong += found.get("mistakes", ())
    return f"no: {'; '.join(wrong)}, on {found.get('n')} traces" if wrong else None


def acceptance_words(found: dict[str, Any]) -> str:
    """The ``acceptance`` of a ``verify.json``, as terminal and `inspect` say it."""
    shares = ", ".join(f"{share:.1%}" for share in found["by_position"])
    return f"acceptance length {found['length']:.2f} on {found['rows']} rows of the traces; draft steps: {shares}"
