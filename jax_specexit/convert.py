"""``specexit convert``: an orbax checkpoint of a run, the newest or the best, becomes a draft directory."""

from __future__ import annotations

from rich.console import Console

from jax_specexit.export import tensors_from_params
from jax_specexit.training.checkpoint import restore_params
from jax_specexit.training.run import read_start
from specexit.drafts.directory import write_draft
from specexit.drafts.policy import read_policy, write_policy
from specexit.drafts.selection import selection_of
from specexit.schemas.convert import ConvertConfig
from specexit.schemas.target import find_target, save_target


def convert(config: ConvertConfig) -> None:
    """Write the draft directory.

    Raises:
      ConfigError: ``run`` is not a run folder or holds no checkpoint.
      SelectionError: the best checkpoint is wanted, and the traces that chose it are gone.
      DraftError: the checkpoint does not fit the run's own description, or holds NaN.
      FileExistsError: ``out`` is there and not empty.
    """
    start = read_start(config.run)
    selection = selection_of(config.run) if config.which == "best" else None
    step, params = restore_params(config.run, config.which)
    tensors = tensors_from_params(start.shape, params, start.vocab, start.aux_rms)
    write_draft(config.out, start.shape, tensors)
    write_policy(config.out, read_policy(config.out).model_copy(update={"selection": selection}))
    assert start.shape.specexit is not None
    save_target(config.out, find_target(None, config.run, name=start.shape.specexit.target))
    Console(stderr=True).print(f"checkpoint of step {step} -> {config.out}")
