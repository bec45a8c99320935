"""What audits have imposed on a server, and ``hold.json``, which keeps it.

Neither a restart, nor an edit of ``policy.json`` that is about something else, nor another server with the same draft
brings exits back. An operator's word does, and so does another policy or certificate of the point in question, as
audits have judged these two.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable
from functools import reduce
from pathlib import Path

from specexit.config import write_text
from specexit.drafts.hold import (
    FILE,
    MAX_BYTES,
    SWITCH,
    WRITTEN,
    HoldFile,
    Imposed,
    read_hold,
    said_by_route,
    switches_of,
    words_of,
)
from specexit.drafts.locking import locked
from specexit.drafts.policy import PolicyError, PolicyFile, Serving

logger = logging.getLogger("vllm.specexit")

FOLDER = "SPECEXIT_HOLD_FOLDER"
"""Environment variable: the folder of `FILE`, by default the draft's. Not a setting, as those may be a stranger's."""

Entries = dict[tuple[tuple[str, ...], tuple[str, ...]], Imposed]
"""What is kept, by `Imposed.under`."""

Change = Callable[[Entries], Entries]

SECONDS = 1.0
"""Between two tries to write what could not be written."""


def said_since(words: tuple[str, ...], later: tuple[str, ...]) -> list[tuple[str | None, str | None]] | None:
    """What an operator has said by the route, and nothing else, between two states of the words.

    Returns:
      Mode and point of each word, None for what it leaves; nothing where the history is shorter, and that is all; None
      where the file itself says something anew.

    Example:
      >>> words = ("default=usual", "mode=exit", "hold=True")
      >>> said_since(words, ("default=usual", "mode=off", "hold=True", "09:00 switch mode=off point=-"))
      [('off', None)]
      >>> said_since(words, ("default=usual", "mode=off", "hold=True")) is None
      True
    """
    default, mode, hold = words[:WRITTEN]
    said = [_said(word) for word in said_by_route(words, later)]
    for other_mode, other_default in said:
        mode = mode if other_mode is None else f"mode={other_mode}"
        default = default if other_default is None else f"default={other_default}"
    return said if later[:WRITTEN] == (default, mode, hold) else None


def switched_since(file: PolicyFile, later: PolicyFile) -> tuple[bool, bool]:
    """Whether an operator has said a mode, and whether a point, by the route between two states of a policy file.

    It may have been the mode that the file has had already, so the history alone tells.
    """
    new = Counter(switches_of(later)) - Counter(switches_of(file))
    said = [_said(word) for word in new]
    return any(mode is not None for mode, _ in said), any(point is not None for _, point in said)


def _said(word: str) -> tuple[str | None, str | None]:
    """Mode and point of an operator's word by the route."""
    mode, _, point = word.partition(SWITCH)[2].removeprefix("mode=").partition(" point=")
    return _unless_left(mode), _unless_left(point)


def _unless_left(said: str) -> str | None:
    return None if said == "-" else said


def settings_of(serving: Serving) -> tuple[str, ...]:
    """The operator's words that are in force in a server: its own settings override those of ``policy.json``."""
    return f"mode={serving.mode}", f"hold={serving.hold}"


def nothing(file: PolicyFile, serving: Serving) -> Imposed:
    """What is imposed on a server before its audits have shown anything."""
    return Imposed(words=words_of(file), settings=settings_of(serving))


class Kept:
    """``hold.json`` of a server, which all of its API server processes write. Where that fails, they log it and go on.

    The folder may be that of other drafts as well. So what changes it is given the claims that are ``ours``: those of
    points that this draft has had since the start. Others stay as they are. Where no folder is named, and no server of
    another draft has named this one, all claims are of this draft.

    Args:
      folder: of the draft.
    """

    def __init__(self, folder: Path):
        self.path = Path(os.environ.get(FOLDER) or folder) / FILE
        self._shared = bool(os.environ.get(FOLDER))  # by others as well, be it the folder of this draft
        self._behind: list[Change] = []
        """Changes that could not be made yet, the oldest first."""
        self._tried = 0.0
        self._logged = ""

    @property
    def writable(self) -> bool:
        """Whether what audits impose outlasts a restart."""
        return not self._behind and os.access(self.path.parent, os.W_OK)

    def read(self) -> tuple[Imposed, ...]:
        """What is kept, of all servers.

        Raises:
          PolicyError: the file is not what it should be.
        """
        return read_hold(self.path)

    def write(self, imposed: Imposed, ours: frozenset[str], *, cleared: str = "") -> None:
        """Keep what is imposed, with what other processes have seen, except a claim that audits have cleared."""
        under, own = imposed.under, self.own(imposed, ours)
        self._change(lambda found: found | {under: own.also(found.get(under)).without({cleared})})

    def carry(self, before: Imposed, imposed: Imposed, ours: frozenset[str]) -> None:
        """Keep what was imposed before, by other processes as well, under the words and settings of now."""

        def carried(found: Entries) -> Entries:
            moved = self.own(found.get(before.under, before), ours)
            now = self.own(imposed, ours).also(found.get(imposed.under)).also(moved)
            return self._without_own(found, before, ours) | {imposed.under: now}

        self._change(carried)

    def forget(self, imposed: Imposed, ours: frozenset[str]) -> None:
        """Forget all that was imposed under the same words and settings on points with claims of ours."""
        self._change(lambda found: self._without_own(found, imposed, ours))

    def own(self, imposed: Imposed, ours: frozenset[str]) -> Imposed:
        """What of something imposed is this draft's."""
        if not (self._shared or imposed.shared):
            return imposed
        return imposed.among(ours).model_copy(update={"shared": True})

    def _without_own(self, found: Entries, imposed: Imposed, ours: frozenset[str]) -> Entries:
        """What is kept, but for what this draft has under the words and settings of something imposed."""
        return {
            under: one.without(self.own(one, ours).claims) if under == imposed.under else one
            for under, one in found.items()
        }

    def catch_up(self) -> None:
        """Try again, once in `SECONDS` at most, what could not be written; requests wait for nothing meanwhile."""
        if self._behind and time.monotonic() - self._tried >= SECONDS:
            self._make_changes(wait=0.0)

    def _change(self, change: Change) -> None:
        self._behind.append(change)
        self._make_changes()

    def _make_changes(self, wait: float | None = None) -> None:
        self._tried = time.monotonic()
        try:
            with locked(self.path.parent, wait):
                found = {one.under: one for one in self.read()}
                changed = reduce(lambda entries, change: change(entries), self._behind, found)
                self._write(found, {under: one for under, one in changed.items() if one.claims})
        except (OSError, PolicyError) as error:
            said = f"specexit: {self.path} is not up to date, and a restart goes by it: {error}"
            if said != self._logged:
                logger.error("%s", said)
            self._logged = said
            return
        if self._logged:
            logger.warning("specexit: %s is up to date again", self.path)
        self._behind, self._logged = [], ""

    def _write(self, found: Entries, wanted: Entries) -> None:
        if wanted and wanted != found:
            file = HoldFile(entries=tuple(wanted.values()))
            text = file.model_dump_json(indent=2, exclude_defaults=True) + "\n"
            size = len(text.encode())
            if size > MAX_BYTES:  # no server could start beside it
                raise PolicyError(
                    f"it would hold {size:,} bytes, expected at most {MAX_BYTES:,}, as nothing reads more"
                )
            write_text(self.path, text)
        elif found and not wanted:
            self.path.unlink(missing_ok=True)
