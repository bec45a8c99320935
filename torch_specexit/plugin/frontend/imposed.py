"""What audits have imposed on a server, and ``hold.json``, which keeps it.

Neither a restart, nor an edit of ``policy.json`` that speaks of something else, nor another server with the same draft
brings exits back. An operator's word does, and another policy or another certificate of the point in question: what was
shown was shown of these.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

from pydantic import Field, ValidationError

from specexit.config import Config, write_text
from specexit.drafts.files import read_object
from specexit.drafts.locking import locked
from specexit.drafts.policy import OperatingPoint, PolicyError, PolicyFile, Serving
from specexit.errors import dotted, shown

logger = logging.getLogger("vllm.specexit")

FILE = "hold.json"
FOLDER = "SPECEXIT_HOLD_FOLDER"
"""Environment variable: the folder of `FILE`, by default the draft's. Not a setting, as those may be a stranger's."""
MAX_BYTES = 10_000_000
SWITCH = "switch "
"""What begins the events by which an operator's word to one API server process reaches the others."""


class Imposed(Config):
    """Points whose audits have shown that they change too many answers, on the servers of the same words and settings;
    what serves in their place follows from ``policy.json``."""

    words: tuple[str, ...] = Field(description="the operator's in policy.json at that time, see `words_of`")
    settings: tuple[str, ...] = Field(description="of these servers, see `settings_of`")
    for_all: dict[str, str] = Field(
        default={}, description="claim -> name of a point that served by default: nobody gets anything bolder"
    )
    for_some: dict[str, str] = Field(
        default={}, description="claim -> name of another point: those who ask for it get a stricter one"
    )

    @property
    def under(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Words and settings. What is imposed under some is never changed under others."""
        return self.words, self.settings

    def also(self, other: Imposed | None) -> Imposed:
        """With what another process has seen under the same words and settings."""
        if other is None:
            return self
        both = {"for_all": other.for_all | self.for_all, "for_some": other.for_some | self.for_some}
        return self.model_copy(update=both)

    def without(self, claim: str) -> Imposed:
        """As it is when a point's audits have shown that it changes few enough."""
        left = {
            place: {other: name for other, name in getattr(self, place).items() if other != claim}
            for place in ("for_all", "for_some")
        }
        return self.model_copy(update=left)


Entries = dict[tuple[tuple[str, ...], tuple[str, ...]], Imposed]
"""What is kept, by `Imposed.under`."""


class HoldFile(Config):
    """``hold.json``: servers of other settings may share a draft, and each has what its own audits have shown."""

    entries: tuple[Imposed, ...] = Field(description="one for each set of words and settings")


def words_of(file: PolicyFile) -> tuple[str, ...]:
    """What an operator says in ``policy.json`` about which exits are made. Other words lift what is imposed."""
    switched = (f"{event.when} {event.what}" for event in file.history if event.what.startswith(SWITCH))
    said = {"default": file.default, "mode": file.serving.mode, "hold": file.serving.hold}
    return (*(f"{key}={value}" for key, value in said.items()), *switched)


def said_since(words: tuple[str, ...], later: tuple[str, ...]) -> list[tuple[str | None, str | None]] | None:
    """What an operator has said by the route, and nothing else, between two states of the words.

    Returns:
      Mode and point of each word, None for what it leaves; None where the file itself says something anew.

    Example:
      >>> words = ("default=usual", "mode=exit", "hold=True")
      >>> said_since(words, ("default=usual", "mode=off", "hold=True", "09:00 switch mode=off point=-"))
      [('off', None)]
      >>> said_since(words, ("default=usual", "mode=off", "hold=True")) is None
      True
    """
    (default, mode, *rest), new = words, later[len(words) :]
    said = []
    for word in new:
        named = word.partition(SWITCH)[2].removeprefix("mode=").partition(" point=")
        said.append((_unless_left(named[0]), _unless_left(named[2])))
        mode = mode if said[-1][0] is None else f"mode={said[-1][0]}"
        default = default if said[-1][1] is None else f"default={said[-1][1]}"
    return said if said and later == (default, mode, *rest, *new) else None


def _unless_left(said: str) -> str | None:
    return None if said == "-" else said


def settings_of(serving: Serving) -> tuple[str, ...]:
    """What of that is in force in a server, as its own settings go over those of ``policy.json``."""
    return f"mode={serving.mode}", f"hold={serving.hold}"


def nothing(file: PolicyFile, serving: Serving) -> Imposed:
    """What is imposed on a server before its audits have shown anything."""
    return Imposed(words=words_of(file), settings=settings_of(serving))


def claim_of(point: OperatingPoint) -> str:
    """What audits speak of: the first 16 digits of a hash of a point's policy and certificate, whatever its name.

    Fields that either gets later do not change it, as long as they have their default.
    """
    said = json.dumps(point.model_dump(mode="json", exclude={"name"}, exclude_defaults=True), sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:16]


class Kept:
    """``hold.json`` of a server, which all of its API server processes write.

    Args:
      folder: of the draft.
    """

    def __init__(self, folder: Path):
        self.path = Path(os.environ.get(FOLDER) or folder) / FILE

    @property
    def writable(self) -> bool:
        """Whether what audits impose from now on is there after a restart."""
        return os.access(self.path.parent, os.W_OK)

    def read(self) -> tuple[Imposed, ...]:
        """What is kept, of all servers.

        Raises:
          PolicyError: the file is not what it should be.
        """
        if not self.path.exists():
            return ()
        try:
            return HoldFile.model_validate(read_object(self.path, MAX_BYTES, PolicyError)).entries
        except ValidationError as error:
            problem = error.errors()[0]
            key, value = dotted(problem), shown(problem["input"])
            raise PolicyError(
                f"{self.path}: field {key} is {value}: {problem['msg']}; servers write this file, and without it "
                "nothing is imposed"
            ) from error

    def write(self, imposed: Imposed, *, cleared: str = "") -> None:
        """Keep what is imposed beside what other processes have seen, but for a claim that audits have cleared."""
        under = imposed.under
        self._change(lambda found: found | {under: imposed.also(found.get(under)).without(cleared)})

    def carry(self, before: Imposed, imposed: Imposed) -> None:
        """Keep what is imposed, and what other processes have seen, under other words and settings than before."""
        self._change(
            lambda found: (
                _without(found, before)
                | {imposed.under: imposed.also(found.get(imposed.under)).also(found.get(before.under))}
            )
        )

    def forget(self, imposed: Imposed) -> None:
        """Keep nothing any more of what was imposed under the same words and settings."""
        self._change(lambda found: _without(found, imposed))

    def _change(self, change: Callable[[Entries], Entries]) -> None:
        try:
            with locked(self.path.parent):
                found = {one.under: one for one in self.read()}
                wanted = {under: one for under, one in change(found).items() if one.for_all or one.for_some}
                if wanted == found:
                    return
                if wanted:
                    write_text(self.path, HoldFile(entries=tuple(wanted.values())).model_dump_json(indent=2) + "\n")
                else:
                    self.path.unlink(missing_ok=True)
        except (OSError, PolicyError) as error:
            logger.error("specexit: %s is not up to date, and a restart goes by it: %s", self.path, error)


def _without(found: Entries, imposed: Imposed) -> Entries:
    return {under: one for under, one in found.items() if under != imposed.under}
