"""Which prompts chose a checkpoint: what they say of it is flattering, so they may not calibrate it."""

from __future__ import annotations

from pathlib import Path

import yaml

from specexit.buckets import location
from specexit.data.traces import TraceError, read_outlines
from specexit.drafts.policy import Selection
from specexit.errors import InputError


class SelectionError(InputError):
    """Nobody can tell any more which prompts chose a checkpoint."""


def selection_of(run: Path) -> Selection:
    """The prompts on which the best checkpoint of a run was chosen.

    Args:
      run: folder that `specexit train` wrote.

    Raises:
      SelectionError: ``run.yaml`` does not say where they are, or they are not there any more.
    """
    path = run / "run.yaml"
    try:
        config = yaml.safe_load(path.read_text())["config"]
        traces, n, by = location(config["eval_traces"]), config["evaluate_n"], config["best_by"]
        chosen = read_outlines(traces, n)
    except (OSError, KeyError, TypeError, yaml.YAMLError, TraceError) as error:
        raise SelectionError(
            f"{path}: its best checkpoint was chosen on eval_traces, which cannot be read ({error}); expected them "
            "where the run found them, so that `calibrate` can refuse their prompts, or which=latest"
        ) from error
    return Selection(by=by, prompts=tuple(f"{prompt:016x}" for prompt in chosen.prompts()))
