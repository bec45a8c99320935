"""Output folders: new or empty to begin with, and there whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def require_empty(folder: Path) -> None:
    """Refuse to write into a folder that holds something.

    Raises:
      FileExistsError: it is there and not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder}: output folder is not empty, expected a new or empty one")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, beside its final place; it is moved there when the block ends without an error.

    Raises:
      FileExistsError: ``folder`` is there and not empty.
    """
    require_empty(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield beside
        beside.chmod(0o755)  # mkdtemp's folders are closed to everyone else
        if folder.exists():
            folder.rmdir()
        os.rename(beside, folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
