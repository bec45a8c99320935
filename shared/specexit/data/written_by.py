"""Which weights wrote traces, against those that a target has now."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from specexit.data.stream import TraceError
from specexit.data.traces import WEIGHTS, said_of
from specexit.drafts.fingerprints import target_fingerprint
from specexit.schemas.target import TargetConfig


def check_weights(path: Path, target: TargetConfig) -> None:
    """Check that traces were written by the weights that the target has now: text, answers and labels are of no others.

    Files that do not name their weights pass, and so do all where the target's are not at hand.

    Raises:
      TraceError: other weights wrote them, or several; or they cannot be read.
    """
    if (other := other_weights(said_of(path, WEIGHTS), target)) is not None:
        raise TraceError(f"{path}: written by weights {other}")


def doubt_weights(path: Path, wrote: str | None, target: TargetConfig, ours: str | None = None) -> None:
    """Warn where weights other than the target's wrote what a draft learns or is judged on: those of a quantised copy
    may, but what a model wrote that was replaced is another's text and answers.

    Args:
      path: what they wrote.
      wrote: their fingerprint, where it is known.
      target: the target.
      ours: fingerprint of its weights; by default it is looked for, which in a bucket takes many requests.
    """
    if (other := other_weights(wrote, target, ours)) is not None:
        Console(stderr=True).print(
            f"warning: {path}: written by weights {other}. Where those are a quantised copy of these, go on",
            soft_wrap=True,
            markup=False,
        )


def other_weights(wrote: str | None, target: TargetConfig, ours: str | None = None) -> str | None:
    """Words on the weights that wrote traces and those that the target has now; None where they are the same, or one
    of the two is not known. See `doubt_weights`."""
    if ours is None and wrote is not None and target.folder.exists():
        ours = target_fingerprint(target.folder)
    if wrote is None or ours in (None, wrote):
        return None
    return (
        f"with the fingerprint {wrote[:12]}..., but those of target {target.name!r} in {target.folder} have "
        f"{ours[:12]}...: collect again with these, or say target=FILE.yaml, a copy of the target whose path has the "
        "others. A config.json that was edited, or weights saved anew, count as others"
    )
