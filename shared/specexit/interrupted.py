"""What a command that Ctrl-C has ended says: what is kept, and how to go on."""

from __future__ import annotations

GOES_ON = {
    "demo": "the stages that are done are kept",
    "collect": "the traces that are finished are kept",
    "features": "the shards that are finished are kept",
    "train": "the last checkpoint is kept",
    "bench": "what is measured is kept beside `out`",
    "bench-full-size": "what is measured is kept beside `out`",
    "bench-recipe": "the runs and their last checkpoints are kept",
    "ablate": "what was trained for `trained` is kept",
}
"""Command -> what of its work is not lost. The same command goes on with it."""

WRITE_NOTHING = ("chat", "inspect", "serve", "status")
"""Commands that have nothing to keep, or to begin anew."""


def interrupted(name: str) -> str:
    """What the command line says where Ctrl-C has ended a command.

    Example:
      >>> interrupted("score")
      'interrupted: nothing is written, and the same command begins anew'
    """
    if name in WRITE_NOTHING:
        return "interrupted"
    if name in GOES_ON:
        return f"interrupted: {GOES_ON[name]}, and the same command goes on"
    return "interrupted: nothing is written, and the same command begins anew"
