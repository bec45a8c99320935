"""What a draft was before it was trained here, by the ``convert.json`` that `specexit convert` leaves beside it."""

from __future__ import annotations

from pathlib import Path

from specexit.drafts.config import MAX_CONFIG, DraftError
from specexit.drafts.files import TensorError, read_json
from specexit.drafts.layouts import LAYOUTS
from specexit.drafts.published import read_origin
from specexit.errors import shown

FILE = "convert.json"


def imported_as(folder: Path) -> str | None:
    """Layout of the published draft that the one in ``folder`` is, or was trained from; None where nothing says so.

    Raises:
      DraftError: ``import.json`` or ``convert.json`` cannot be read.
    """
    origin, path = read_origin(folder), folder / FILE
    if origin is not None:
        return origin.layout
    try:
        found = read_json(path, MAX_CONFIG) if path.exists() else {}
    except TensorError as error:
        raise DraftError(str(error)) from error
    said = found.get("imported") if isinstance(found, dict) else None
    if said is not None and said not in LAYOUTS:
        raise DraftError(f"{path}: imported is {shown(said)}, expected one of {', '.join(LAYOUTS)}")
    return said
