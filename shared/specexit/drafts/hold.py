"""``hold.json``: points of ``policy.json`` whose audits have shown, on some server, that they change too many answers.

Servers write it beside the policies, or elsewhere, and hold those points back. It speaks of policies and certificates,
not of weights or places, so it goes where they go.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container
from itertools import dropwhile
from pathlib import Path

from pydantic import Field, ValidationError

from specexit.config import Config
from specexit.drafts.files import read_object
from specexit.drafts.policy import OperatingPoint, PolicyError, PolicyFile
from specexit.errors import first_problem

FILE = "hold.json"
MAX_BYTES = 10_000_000
SWITCH = "switch "
"""Beginning of the events by which an operator's word to one API server process reaches the others."""


WRITTEN = 3
"""How many of the `words_of` a file are written there by hand: `default`, `mode` and `hold`."""


class Imposed(Config):
    """Points whose audits have shown that they change too many answers, on the servers of the same words and settings.

    What serves in their place follows from ``policy.json``.
    """

    words: tuple[str, ...] = Field(description="the operator's in policy.json at that time, see `words_of`")
    settings: tuple[str, ...] = Field(
        description="of these servers, see `torch_specexit.plugin.frontend.imposed.settings_of`"
    )
    for_all: dict[str, str] = Field(
        default={}, description="claim -> name of a point that served by default: nobody gets anything bolder"
    )
    for_some: dict[str, str] = Field(
        default={}, description="claim -> name of another point: those who ask for it get a stricter one"
    )
    shared: bool = Field(
        default=False, description="whether servers of a folder for several drafts wrote it, and a claim may be of any"
    )

    @property
    def under(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Words and settings together: a server changes only what is imposed under its own."""
        return self.words, self.settings

    def also(self, other: Imposed | None) -> Imposed:
        """A copy that adds what another process has seen under the same words and settings."""
        if other is None:
            return self
        both = {"for_all": other.for_all | self.for_all, "for_some": other.for_some | self.for_some}
        return self.model_copy(update=both | {"shared": self.shared or other.shared})

    @property
    def claims(self) -> frozenset[str]:
        """What is claimed of all these points."""
        return frozenset(self.for_all | self.for_some)

    def among(self, claims: frozenset[str]) -> Imposed:
        """A copy with some of the claims alone."""
        return self.without(self.claims - claims)

    def without(self, claims: Container[str]) -> Imposed:
        """A copy without some of the claims."""
        left = {
            place: {claim: name for claim, name in getattr(self, place).items() if claim not in claims}
            for place in ("for_all", "for_some")
        }
        return self.model_copy(update=left)


class HoldFile(Config):
    """``hold.json``: servers of other settings may share a draft, and each has what its own audits have shown."""

    entries: tuple[Imposed, ...] = Field(description="one for each set of words and settings")


def words_of(file: PolicyFile) -> tuple[str, ...]:
    """What an operator says in ``policy.json`` about which exits are made. Changing it lifts what is imposed."""
    said = {"default": file.default, "mode": file.serving.mode, "hold": file.serving.hold}
    return (*(f"{key}={value}" for key, value in said.items()), *switches_of(file))


def switches_of(file: PolicyFile) -> tuple[str, ...]:
    """What operators have said by the route of an API server that shares the file with others, each with its time."""
    return tuple(f"{event.when} {event.what}" for event in file.history if event.what.startswith(SWITCH))


def said_by_route(words: tuple[str, ...], later: tuple[str, ...]) -> tuple[str, ...]:
    """What operators have said by the route between two states of the words.

    Each word has its time, so it is told from those before it where the history has been shortened meanwhile.

    Example:
      >>> words = ("default=usual", "mode=exit", "hold=True", "08:00 switch mode=off point=-")
      >>> said_by_route(words, (*words, "09:00 switch mode=exit point=-"))
      ('09:00 switch mode=exit point=-',)
      >>> said_by_route(words, (*words[:3], "09:00 switch mode=exit point=-"))
      ('09:00 switch mode=exit point=-',)
    """
    known = iter(words[WRITTEN:])
    return tuple(dropwhile(lambda word: word in known, later[WRITTEN:]))  # each is looked for behind the one before


def nothing_said(words: tuple[str, ...], later: tuple[str, ...]) -> bool:
    """Whether what was imposed under some words holds under later ones as well: the history alone may be shorter."""
    return words[:WRITTEN] == later[:WRITTEN] and not said_by_route(words, later)


def claim_of(point: OperatingPoint) -> str:
    """What audits speak of: the first 16 digits of a hash of a point's policy and certificate, whatever its name.

    Fields that are added to either later do not change it while they have their default.
    """
    said = json.dumps(point.model_dump(mode="json", exclude={"name"}, exclude_defaults=True), sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def read_hold(path: Path) -> tuple[Imposed, ...]:
    """The entries of a ``hold.json``, of all servers; none where there is no such file.

    Raises:
      PolicyError: the file is not what it should be.
    """
    if not path.exists():
        return ()
    try:
        return HoldFile.model_validate(read_object(path, MAX_BYTES, PolicyError)).entries
    except ValidationError as error:
        raise PolicyError(
            f"{path}: field {first_problem(error)}; servers write this file, and without it nothing is imposed"
        ) from error


def held_points(folder: Path, file: PolicyFile) -> list[str]:
    """Names of the points that some server holds back, by the ``hold.json`` in the draft directory.

    Args:
      folder: the draft directory.
      file: its policies.

    Raises:
      PolicyError: see `read_hold`.
    """
    words = words_of(file)
    imposed = [one for one in read_hold(folder / FILE) if nothing_said(one.words, words)]
    claims = {claim for one in imposed for claim in one.claims}
    return [point.name for point in file.points if claim_of(point) in claims]
