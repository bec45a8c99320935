"""``specexit status``: how far a training run is, for the script around it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

from specexit.config import PassingError
from specexit.errors import LASTING
from specexit.schemas.status import StatusConfig

Status = Literal["running", "preempted", "stopped", "finished"]
"""Of a training run, as it was last written: what was killed says ``running`` still."""

GOES_ON = 75
"""Exit code of a run that the same command would go on with: sysexits.h calls it a temporary failure."""


def status(config: StatusConfig) -> None:
    """Print a run's status and step; returns where it is finished.

    Raises:
      PassingError: not a run folder, or not yet; the exit code is 1, as for anything that is wrong with the command.
      SystemExit: with `specexit.errors.LASTING` where it was stopped by what is not finite, so that it must not be
        started anew as it is; with `GOES_ON` where it is not finished for another reason.
    """
    found, step, steps = read_status(config.run)
    print(f"{config.run}: {found}, step {step} of {steps}")
    if found == "stopped":
        said = f"{config.run}: was stopped behind step {step} by a loss or gradient that is not finite"
        print(f"error: {said}", file=sys.stderr)
        raise SystemExit(LASTING)
    if found != "finished":
        raise SystemExit(GOES_ON)


def read_status(run: Path) -> tuple[Status, int, int]:
    """(status, last step that is kept, steps of the whole run) from ``status.json``.

    Raises:
      PassingError: it is not there or says something else.
    """
    path = run / "status.json"
    try:
        found = json.loads(path.read_text())
        status, step, steps = found["status"], int(found["step"]), int(found["steps"])
    except (FileNotFoundError, NotADirectoryError) as error:
        raise PassingError(f"{path}: file does not exist, expected a run folder that `specexit train` wrote") from error
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise PassingError(f"{path}: cannot be read as the status of a training run: {error!r}") from error
    if status not in get_args(Status):
        raise PassingError(f"{path}: status is {status!r}, expected one of {', '.join(get_args(Status))}")
    return status, step, steps


def whole_lines(path: Path) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Each line of a run's ``metrics.jsonl``, and the JSON object that it is; None where it is not one with a step, as
    a power failure leaves lines.

    A last line without its end, which a kill has cut or which is being written, does not count.

    Raises:
      OSError: the file is not there or cannot be read.
    """
    for text in path.read_bytes().decode(errors="replace").split("\n")[:-1]:
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        yield text, line if isinstance(line, dict) and type(line.get("step")) is int else None


def check_finished(run: Path) -> None:
    """Check that a run is finished: its process also ends with 0 where a preemption notice has stopped it.

    Raises:
      PassingError: it is not; or see `read_status`.
    """
    status, step, steps = read_status(run)
    if status != "finished":
        raise PassingError(f"the run in {run} is {status}, at step {step} of {steps}; start again to go on")
