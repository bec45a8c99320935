"""A published config, read key by key: one that nobody has read at the end is an error, not ignored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from specexit.drafts.config import DraftError
from specexit.errors import shown

_MISSING = object()


class Keys:
    """The keys of one JSON object that are still to be read.

    Args:
      raw: the object.
      path: of its file, named in errors.
      within: names of the objects around it, for errors.
    """

    def __init__(self, raw: dict[str, Any], path: Path, within: str = ""):
        self.rest, self.path, self.within = dict(raw), path, within
        self.notes: list[str] = []
        """Lines for the user: what is not read as the config says it, or may mean something else."""

    def note(self, text: str) -> None:
        """Note something about a key for the user; the text begins with the key's name."""
        self.notes.append(f"{self.path}: {self.within}{text}")

    def error(self, key: str, value: Any, expected: str) -> DraftError:
        """An error that names file, key and value."""
        return DraftError(f"{self.path}: {self.within}{key} is {shown(value)}, {expected}")

    def take(self, key: str, kind: type | tuple[type, ...], default: Any = _MISSING) -> Any:
        """The value of a key; ``default`` where it is missing or null.

        Raises:
          DraftError: there is none and no default, or it is of another type.
        """
        value = self.rest.pop(key, None)
        if value is None:
            if default is _MISSING:
                raise DraftError(f"{self.path}: {self.within}{key} is missing")
            return default
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise self.error(key, value, f"expected {' or '.join(k.__name__ for k in kinds)}")
        return value

    def only(self, key: str, *values: Any) -> None:
        """Read a key that may be missing or have one of these values, because nothing else is implemented.

        Raises:
          DraftError: it has another one.
        """
        value = self.rest.pop(key, None)
        if value is not None and not any(value == allowed and type(value) is type(allowed) for allowed in values):
            expected = f"only {' and '.join(map(repr, values))}" if values else "none"
            raise self.error(key, value, f"{expected} is implemented")

    def ignore(self, *keys: str) -> None:
        """Pass over keys that say nothing about what a draft computes."""
        for key in keys:
            self.rest.pop(key, None)

    def inner(self, key: str) -> Keys:
        """The object under a key; an empty one where it is missing or null.

        Raises:
          DraftError: it is no object.
        """
        within = Keys(self.take(key, dict, {}), self.path, f"{self.within}{key}.")
        within.notes = self.notes
        return within

    def finish(self) -> None:
        """Refuse what is left.

        Raises:
          DraftError: names the first unknown key and its value.
        """
        for key, value in self.rest.items():
            if value is not None:
                raise self.error(
                    key if key.isidentifier() else shown(key),
                    value,
                    "which is unknown: it may change what the draft computes",
                )
