"""What a draft was before it was trained here, by the ``convert.json`` that `specexit convert` leaves beside it."""

from __future__ import annotations

import json
from pathlib import Path

from specexit.config import write_text
from specexit.drafts.config import MAX_CONFIG, DraftError
from specexit.drafts.files import read_object
from specexit.drafts.layouts import LAYOUTS
from specexit.drafts.published import read_origin
from specexit.errors import shown

FILE = "convert.json"


FOLDERS = ("run", "draft")
"""Keys of ``convert.json`` that say where something lay on the machine that wrote it."""


def hand_on_record(folder: Path, to: Path) -> None:
    """Copy ``convert.json`` into another folder without its paths of this machine; do nothing where there is none.

    Raises:
      DraftError: it cannot be read, or is no object.
    """
    if (path := folder / FILE).exists():
        kept = {key: value for key, value in read_object(path, MAX_CONFIG, DraftError).items() if key not in FOLDERS}
        write_text(to / FILE, json.dumps(kept, indent=2) + "\n")


def imported_as(folder: Path) -> str | None:
    """Layout of the published draft that the one in ``folder`` is, or was trained from; None where nothing says so.

    Raises:
      DraftError: ``import.json`` or ``convert.json`` cannot be read, or the latter names an unknown layout.
    """
    origin, path = read_origin(folder), folder / FILE
    if origin is not None:
        return origin.layout
    said = read_object(path, MAX_CONFIG, DraftError).get("imported") if path.exists() else None
    if said is not None and (not isinstance(said, str) or said not in LAYOUTS):
        raise DraftError(f"{path}: imported is {shown(said)}, expected one of {', '.join(LAYOUTS)}")
    return said
