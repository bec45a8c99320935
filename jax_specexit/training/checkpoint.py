"""Checkpoints of a run, through orbax: the newest ones to resume from, written as the run goes on, and the best one.

The position in the data is the step itself (see `jax_specexit.training.data`), so nothing but the training state is
stored.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import jax
import orbax.checkpoint as ocp
from rich.console import Console

from jax_specexit.cluster import is_first
from jax_specexit.training.room import room, say_it_once
from jax_specexit.training.step import TrainState
from specexit.config import ConfigError, PassingError
from specexit.schemas.train import CheckpointConfig

FOLDERS = {"latest": "checkpoints", "best": "best"}
"""Which checkpoint -> folder in the run."""

CHUNK = 64 * 2**20
"""Most bytes of an array in one chunk. Writing or reading a parameter takes memory for the array and a few chunks; as
a single chunk, the array would be held twice."""

NONE_BEST = ": the run was never evaluated (set eval_traces), or what best_by names was undefined on its eval_traces"


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, which does not ask JAX's preemption service here, as it would for its logs.

    The service goes by the last number that it was asked with. Orbax asks with the step;
    `jax_specexit.cluster.Preemption` asks more often, with larger numbers, and has to be the only one.
    """

    def reached_preemption(self, step: int) -> bool:
        del step
        return False


class Checkpoints:
    """The checkpoints in ``<run>/checkpoints``, and the best parameters in ``<run>/best``; use as a context manager.

    A kill in the middle of a save leaves an orbax temporary that the next start removes; the step before it is intact.
    In a mounted bucket without a hierarchical namespace a folder is renamed file by file: a kill meanwhile leaves part
    of the step under its final name, which has to be removed by hand. ``gs://`` has no such gap.
    Every process must make the same calls. Every method that saves or waits raises `DiskFullError` where there is no
    room, also for a save that an earlier call began.

    Args:
      run: its folder.
      config: how often, and how many are kept.
      measure: what the scores measure, see `HeldOut.measure`; None where nothing is evaluated.
      check: called before anything is saved; it raises where another run has taken the folder, see `alone_in`.
    """

    def __init__(
        self,
        run: Path,
        config: CheckpointConfig,
        measure: dict[str, str] | None = None,
        check: Callable[[], None] = lambda: None,
    ):
        self.every, self.measure, self.check = config.every, measure, check
        self.manager, self.best = (
            _Manager(
                str((run / folder).absolute()),
                options=ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True),
            )
            for folder, keep in ((FOLDERS["latest"], config.keep), (FOLDERS["best"], 1))
        )
        self.best_score: float | None = None
        self.undefined = False
        """Whether a score was undefined, which is reported once."""
        say_it_once()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        """Wait until everything is on disk."""
        with ExitStack() as closing:  # one that fails does not keep the other from being waited for
            for manager in (self.best, self.manager):
                closing.enter_context(self._room())
                closing.callback(manager.close)

    def _room(self) -> AbstractContextManager[None]:
        def newest() -> int | None:
            self.manager.reload()
            return self.manager.latest_step()

        return room(Path(self.manager.directory), newest)

    def due(self, step: int) -> bool:
        """Whether a regular checkpoint follows this step."""
        return step % self.every == 0

    def save(self, step: int, state: TrainState) -> None:
        """Save the state of a step, unless it is saved already; returns before the files are written."""
        if step != self.manager.latest_step():
            self.check()
            with self._room():
                self.manager.save(step, args=ocp.args.Composite(state=_in_chunks(state)), force=True)

    def save_if_best(self, step: int, params: Any, score: float) -> None:
        """Keep these parameters in place of the best so far, if ``score`` is larger, or equal and the step a later one.

        A NaN is never the best; the first one is reported. Returns when the files are complete on the disk: once the
        evaluation is on record, it is not made again.
        """
        if math.isnan(score):
            self._say_undefined(step)
        elif self.best_score is None or (score, step) > (self.best_score, self.best.latest_step() or 0):
            self.check()
            # The same step, now judged by another measure: orbax overwrites no step. After a kill in between, the next
            # start judges the step again: its evaluation is not on record yet, or it is the last step's.
            if step == self.best.latest_step():
                self.best.delete(step)
            args = ocp.args.Composite(
                state=_in_chunks({"params": params}),
                score=ocp.args.JsonSave({"score": score, "measure": self.measure}),
            )
            with self._room():
                self.best.save(step, args=args, force=True)
                self.best.wait_until_finished()
            self.best_score = score

    def _say_undefined(self, step: int) -> None:
        if self.undefined or not is_first():
            return
        self.undefined = True
        by = "its score" if self.measure is None else self.measure["by"]
        Console(stderr=True).print(
            f"{self.best.directory}: step {step} is not kept, as {by} is undefined on these traces, for instance where "
            "all boundaries are of one kind, and no such step is: choose another best_by",
            soft_wrap=True,
            markup=False,
            highlight=False,
        )

    def restore(self, like: Any) -> tuple[int, TrainState] | None:
        """(step, state) of the newest checkpoint, on the shardings of ``like`` (shapes with shardings).

        The mesh may be another than the one that saved. A best checkpoint of a later step is deleted, as the run comes
        by that step again; the score of one that another measure chose is ignored. Returns None where there is no
        checkpoint yet.

        Raises:
          PassingError: the checkpoint cannot be read, or has other parameters than the recipe; or the best one's score
            cannot be read.
        """
        step = self.manager.latest_step()
        best = self.best.latest_step()
        if best is not None and best > (step or 0):
            self.best.delete(best)
        elif best is not None:
            self._compare(best, self._read_score(best))
        if step is None:
            return None
        with whole(self.manager, step):
            args = ocp.args.Composite(state=ocp.args.StandardRestore(like))
            return step, self.manager.restore(step, args=args)["state"]

    def _read_score(self, step: int) -> dict[str, Any]:
        """The score of the best checkpoint, and its measure."""
        try:
            found = self.best.restore(step, args=ocp.args.Composite(score=ocp.args.JsonRestore()))["score"]
            return {"score": float(found["score"]), "measure": found.get("measure")}
        except (ValueError, KeyError, TypeError, AttributeError, FileNotFoundError) as error:
            raise PassingError(
                f"{self.best.directory / str(step)}: its score cannot be read: {_said(error)}; bring back what "
                "`specexit train` wrote, or remove that folder, and the next evaluation takes its place"
            ) from error

    def _compare(self, step: int, best: dict[str, Any]) -> None:
        """Take over the best score so far where it has the measure of this run; say so where it has another."""
        was = best.get("measure")
        if was == self.measure:
            self.best_score = best["score"]
        elif self.measure is not None and is_first():
            Console(stderr=True).print(
                f"{self.best.directory}: step {step} was chosen by {_words(was)}, but the recipe says "
                f"{_words(self.measure)}: the next evaluation takes its place",
                soft_wrap=True,
                markup=False,
                highlight=False,
            )


def _in_chunks(tree: Any) -> ocp.args.StandardSave:
    """A tree to save with its arrays in chunks, see `CHUNK`."""
    return ocp.args.StandardSave(tree, save_args=jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=CHUNK), tree))


def _words(measure: dict[str, str] | None) -> str:
    return (
        "what an older version did not write down"
        if measure is None
        else f"{measure['by']} on traces {measure['traces']}"
    )


def has_checkpoint(run: Path) -> bool:
    """Whether there is a finished checkpoint to go on from; may be asked before JAX has looked for its devices."""
    return bool(ocp.utils.checkpoint_steps(str((run / FOLDERS["latest"]).absolute())))


@contextmanager
def opened(run: Path, which: Literal["latest", "best"]) -> Iterator[tuple[ocp.CheckpointManager, int]]:
    """Orbax's manager of the newest or the best checkpoint of a run, and its step.

    Raises:
      ConfigError: the run has none.
    """
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax warns that it will not restore what is not asked for
    folder = (run / FOLDERS[which]).absolute()
    if not folder.is_dir():
        evaluated = which == "best" and (run / FOLDERS["latest"]).is_dir()
        hint = NONE_BEST if evaluated else ", expected a run folder that `specexit train` wrote"
        raise ConfigError(f"{run}: no {FOLDERS[which]} folder{hint}")
    options = ocp.CheckpointManagerOptions(read_only=True)
    handlers = {"state": ocp.PyTreeCheckpointHandler(), "score": ocp.JsonCheckpointHandler()}
    with ocp.CheckpointManager(str(folder), item_handlers=handlers, options=options) as manager:
        step = manager.latest_step()
        if step is None:
            hint = NONE_BEST if which == "best" else ""
            raise ConfigError(f"{folder}: no finished checkpoint there{hint}")
        yield manager, step


@contextmanager
def whole(manager: ocp.CheckpointManager, step: int) -> Iterator[None]:
    """Turn the errors of orbax and TensorStore about missing, damaged or other parts of a checkpoint into one line.

    Raises:
      PassingError: in place of those errors; TensorStore's failures to read are a `ValueError`, too.
    """
    try:
        yield
    except Exception as error:
        # An array whose data cannot be read: orbax hides what TensorStore said behind an `Exception` with its settings.
        found = error.__cause__ if type(error) is Exception else error
        if not isinstance(found, (ValueError, KeyError, AttributeError, FileNotFoundError)):
            raise
        others = [other for other in manager.all_steps() if other != step]
        without = f", or that folder removed, and step {max(others)} is taken" if others else ""
        # No type of these errors tells a damaged checkpoint from one of other parameters.
        raise PassingError(
            f"{manager.directory / str(step)}: cannot be read as a checkpoint: {_said(found)}; "
            "expected it whole, as `specexit train` wrote it, with the parameters that its run's recipe makes in this "
            f"version; where a part of it is lost, that brought back{without}"
        ) from error


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def restore_params(run: Path, which: Literal["latest", "best"] = "latest") -> tuple[int, Any]:
    """(step, parameters) of the newest or the best checkpoint, on this machine's default device.

    Any mesh may have saved it; the optimizer's state is not read.

    Raises:
      ConfigError: the run has none.
      PassingError: it cannot be read, see `whole`.
    """
    with opened(run, which) as (manager, step), whole(manager, step):
        saved = manager.item_metadata(step)["state"].tree["params"]
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        like = {"params": jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), saved)}
        args = ocp.args.PyTreeRestore(
            item=like, restore_args=ocp.checkpoint_utils.construct_restore_args(like), partial_restore=True
        )
        return step, manager.restore(step, args=ocp.args.Composite(state=args))["state"]["params"]
