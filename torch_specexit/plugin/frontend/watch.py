"""The watched file: a changed ``policy.json`` is in force for the next request, in every API server process."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from specexit.config import ConfigError
from specexit.drafts.certified import doubts
from specexit.drafts.directory import SpecExitBlock
from specexit.drafts.hold import SWITCH
from specexit.drafts.locking import locked
from specexit.drafts.policy import FILE, Event, Mode, PolicyError, PolicyFile, Serving, read_policy, write_policy
from torch_specexit.plugin.frontend.operation import Operation
from torch_specexit.plugin.settings import COMMAND_LINE, ENVIRONMENT, check_transition, serving_over

logger = logging.getLogger("vllm.specexit")

SECONDS = 1.0
"""Between two looks at the file."""

AT_START = ("thinking_margin", "transition", "loop_period", "loop_repeats")
"""Settings that the workers read when the engine starts."""


def policies_for(folder: Path, block: SpecExitBlock, additional_config: object) -> tuple[PolicyFile, Serving]:
    """The policies of a draft, and the server's settings over those in the file.

    Args:
      folder: of the draft.
      block: of its config as it was loaded; workers judge by its kind of smoothing.
      additional_config: of vLLM.

    Raises:
      PolicyError: the file cannot be used, or has a point that the workers cannot judge.
      ConfigError: the server's settings cannot be used.
    """
    file, path = read_policy(folder), folder / FILE
    for point in file.points:
        if point.policy.smoothing != block.policy.smoothing:
            raise PolicyError(
                f"{path}: point {point.name} has smoothing {point.policy.smoothing!r}, expected that of all points, "
                f"{block.policy.smoothing!r}"
            )
        if not point.policy.thresholds:
            raise PolicyError(f"{path}: point {point.name} has no thresholds, expected one: every request would exit")
    serving = serving_over(file.serving, additional_config)
    try:
        PolicyFile.model_validate(file.model_dump() | {"serving": serving.model_dump()})
    except ValidationError as error:
        said = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{COMMAND_LINE} or {ENVIRONMENT}, over {path}: {said}") from error
    check_transition(serving, block)
    return file, serving


def _check_unchanged(serving: Serving, started: Serving, path: Path) -> None:
    """Check that settings differ from those of the start in nothing that is made or read at the start alone.

    Raises:
      PolicyError: they do.
    """
    for key in AT_START:
        given, kept = getattr(serving, key), getattr(started, key)
        if given != kept:
            raise PolicyError(
                f"{path}: serving.{key} is {given!r}, expected {kept!r}, with which the engine was started: restart "
                "the server to change it"
            )
    if serving.audit_rate > 0 and started.audit_rate == 0:
        raise PolicyError(
            f"{path}: serving.audit_rate is {serving.audit_rate:g}, expected 0, with which the server was started: "
            "restart it to have audits"
        )


class PolicyWatch:
    """Looks at a draft's policy file as requests come in, once a second at most, for changes since it was made.

    Args:
      folder: of the draft.
      block: see `policies_for`.
      additional_config: see `policies_for`.
      served: fingerprints of what is served.
    """

    def __init__(self, folder: Path, block: SpecExitBlock, additional_config: object, served: Mapping[str, str | None]):
        self.folder, self.block, self.additional_config, self.served = folder, block, additional_config, dict(served)
        self._seen, self._looked = self._stamp(), time.monotonic()
        self._logged: tuple[object, str] | None = None
        """The file and its error that were logged last."""

    def _stamp(self) -> tuple[int, ...] | None:
        try:
            found = (self.folder / FILE).stat()
        except OSError:
            return None
        # The size, as clocks of files tick coarsely: what was read half-written may have the time of the whole. The
        # time of the change, as whoever copies into the file may give it any other time.
        return found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size

    def changed(self, operation: Operation, *, at_once: bool = False) -> bool:
        """Take a changed file in, and say whether that was done. One that cannot be used is logged, and read again at
        the next look: the fault may be the machine's, as where no file can be opened for a while.

        Args:
          operation: takes it in.
          at_once: look, however short a time ago that was done.
        """
        now = time.monotonic()
        if now - self._looked < SECONDS and not at_once:
            return False
        self._looked, stamp = now, self._stamp()
        if stamp == self._seen:
            return False
        try:
            return self.reload(operation)
        except (PolicyError, ConfigError) as error:
            if (stamp, str(error)) != self._logged:
                logger.error("specexit: the policy stays as it was: %s", error)
            self._logged = stamp, str(error)
            return False

    def reload(self, operation: Operation, point: str | None = None) -> bool:
        """Read the file, whether it has changed or not, and say whether it holds anything new.

        A file that says what is served already lifts nothing: it may have been copied, or touched.

        Args:
          operation: takes it in.
          point: an operating point that must be in it.

        Raises:
          PolicyError, ConfigError: see `policies_for`; or the file is not there, or changes what only a start can
            change. Nothing has been changed then.
        """
        stamp, path = self._stamp(), self.folder / FILE
        if stamp is None:  # an older directory, whose policy is in config.json and has not changed
            raise PolicyError(f"{path}: is not there, expected the file to read again")
        file, serving = policies_for(self.folder, self.block, self.additional_config)
        file.point(point)
        _check_unchanged(serving, operation.started, path)
        self._seen = stamp
        if (file, serving) == (operation.file, operation.serving):
            return False
        self._say_what_is_overruled(file.serving, serving, operation)
        operation.load(file, serving, doubts(file, self.served, serving.transition))
        logger.warning("specexit: %s read again: mode %s, point %s", path, operation.mode, operation.served().name)
        if doubted := operation.uncertified_because():
            logger.warning("specexit: exits are served uncertified: %s", "; ".join(doubted))
        return True

    def changed_in_start(self, started: Serving) -> str | None:
        """Why it is unknown which settings the workers have: they read them at some time of the start.

        Args:
          started: settings that the front end has read first.

        Returns:
          None where none of these has changed meanwhile.
        """
        try:
            _, serving = policies_for(self.folder, self.block, self.additional_config)
        except (PolicyError, ConfigError):
            return None  # which the first request logs
        keys = [f"serving.{key}" for key in AT_START if getattr(serving, key) != getattr(started, key)]
        return f"{', '.join(keys)} of {FILE} changed while the engine started: restart the server" if keys else None

    def order(self, operation: Operation, mode: Mode | None, point: str | None) -> str | None:
        """Write an operator's word into the file, for all who watch it, beside the words that others have got.

        Args:
          operation: of this server, which does not take it in yet; see `reload`.
          mode: the file's from now on, or None for the one that it has.
          point: its default from now on, or None.

        Returns:
          Why it could not be written; None where it is.

        Raises:
          PolicyError: there is no such point, or the server's settings go over the mode. Nothing is written then.
        """
        path = self.folder / FILE
        if self._stamp() is None:
            return f"{path} is not there (specexit migrate writes it)"
        try:
            with locked(self.folder):
                return self._order(operation, mode, point)
        except OSError as error:
            return f"{path} cannot be written: {error}"

    def _order(self, operation: Operation, mode: Mode | None, point: str | None) -> str | None:
        try:
            file, _ = policies_for(self.folder, self.block, self.additional_config)
            serving = file.serving.model_copy(update={"mode": mode or file.serving.mode})
            merged = serving_over(serving, self.additional_config)
            _check_unchanged(merged, operation.started, self.folder / FILE)
        except (PolicyError, ConfigError) as error:
            return str(error)
        if mode is not None and merged.mode != mode:
            raise PolicyError(f"mode {mode} has no effect: {COMMAND_LINE} or {ENVIRONMENT} says {merged.mode}")
        now = datetime.now(UTC).isoformat(timespec="seconds")
        event = Event(when=now, what=f"{SWITCH}mode={mode or '-'} point={point or '-'}")
        # Said again, a word takes the place of the older one, which it leaves nothing of: else a program that says it
        # every minute fills the file. Within a second their order tells them apart, so all of that are kept.
        older = [said for said in file.history if said.what != event.what or said.when == now]
        changes = {"default": file.point(point).name, "serving": serving, "history": (*older, event)}
        try:
            write_policy(self.folder, file.model_copy(update=changes))
        except PolicyError as error:  # its history is full, perhaps: that must not keep this server from obeying
            return str(error)
        return None

    def _say_what_is_overruled(self, own: Serving, merged: Serving, operation: Operation) -> None:
        """Log what is new in the file and has no effect, as the server was started with something else."""
        for key in Serving.model_fields:
            is_new = getattr(own, key) != getattr(operation.file.serving, key)
            if is_new and getattr(merged, key) == getattr(operation.serving, key) != getattr(own, key):
                logger.error(
                    "specexit: serving.%s of %s has no effect: %s or %s goes over it",
                    key,
                    self.folder / FILE,
                    COMMAND_LINE,
                    ENVIRONMENT,
                )
