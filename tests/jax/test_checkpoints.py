"""What is kept of a run as it goes on, with parameters of two numbers: which ones are the best, and a full disk."""

import errno
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.experimental import multihost_utils

from jax_specexit.stored import open_checkpoint
from jax_specexit.training import checkpoint
from jax_specexit.training.checkpoint import FOLDERS, Checkpoints, opened, restore_params, whole
from jax_specexit.training.room import DiskFullError
from jax_specexit.training.step import Followed, TrainState
from specexit.config import ConfigError, PassingError
from specexit.schemas.train import CheckpointConfig

LENGTH = {"by": "acceptance_length", "traces": "of these traces"}


def state_of(step: int) -> TrainState:
    followed = Followed(jnp.ones(5), jnp.ones(4), jnp.ones(4))
    return TrainState({"w": jnp.full(2, step, jnp.float32)}, {"m": jnp.zeros(2)}, followed, jnp.int32(step))


def judged(run: Path, measure: dict[str, str] | None, scores: dict[int, float]) -> None:
    """A start of a run that comes by these steps, and evaluates each."""
    with Checkpoints(run, CheckpointConfig(keep=2), measure) as checkpoints:
        checkpoints.restore(jax.eval_shape(lambda: state_of(0)))
        for step, score in scores.items():
            checkpoints.save(step, state_of(step))
            checkpoints.save_if_best(step, state_of(step).params, score)


@pytest.mark.parametrize(
    ("measure", "best"),
    [
        (LENGTH, 4),
        (LENGTH | {"by": "auroc"}, 10),  # of which none is as large as an acceptance length
        (LENGTH | {"traces": "of others"}, 10),
    ],
)
def test_the_best_is_the_best_by_the_measure_of_today(
    tmp_path: Path, capsys: pytest.CaptureFixture, measure: dict[str, str], best: int
) -> None:
    judged(tmp_path, LENGTH, {2: 1.01, 4: 1.02})
    assert restore_params(tmp_path, "best")[0] == 4
    judged(tmp_path, measure, {8: 0.91, 10: 0.94, 12: 0.93})
    assert restore_params(tmp_path, "best")[0] == best
    said = [line for line in capsys.readouterr().err.splitlines() if "step 4 was chosen by acceptance_length" in line]
    assert len(said) == (best != 4)
    assert all(line.endswith("the next evaluation takes its place") for line in said)  # however long the path is


def test_a_checkpoint_of_other_parameters_is_not_called_damaged_alone(tmp_path: Path) -> None:
    """Whoever removed it, as the line said, would have lost a good one."""
    judged(tmp_path, None, {2: 0.0})
    like = jax.eval_shape(lambda: state_of(0))
    # Another shape of one parameter would leave coroutines of orbax's, which warn of themselves in a later test.
    others = like._replace(params=like.params | {"v": like.params["w"]})
    said = "with the parameters that its run's recipe makes in this version; where a part of it is lost"
    with Checkpoints(tmp_path, CheckpointConfig(keep=2), None) as checkpoints, pytest.raises(PassingError, match=said):
        checkpoints.restore(others)


def test_a_step_that_is_judged_again_by_another_measure_is_kept(tmp_path: Path) -> None:
    """As a finished run is that was started once more."""
    judged(tmp_path, LENGTH, {2: 1.01, 4: 1.02})
    judged(tmp_path, LENGTH | {"by": "auroc"}, {4: 0.9})
    judged(tmp_path, LENGTH | {"by": "auroc"}, {6: 0.8})
    assert restore_params(tmp_path, "best")[0] == 4


def test_of_equal_scores_the_last_is_the_best(tmp_path: Path) -> None:
    """As cuts of nothing are, while no problem may be lost: the first one is that of the least trained draft."""
    judged(tmp_path, LENGTH | {"by": "cut"}, {4: 0.0, 8: 0.0})
    assert restore_params(tmp_path, "best")[0] == 8
    judged(tmp_path, LENGTH | {"by": "cut"}, {8: 0.0, 12: -0.1})  # judged again, which no step is saved for twice
    assert restore_params(tmp_path, "best")[0] == 8


def test_the_best_stays_while_nothing_is_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    judged(tmp_path, LENGTH, {2: 1.01})
    judged(tmp_path, None, {})
    assert capsys.readouterr().err == ""
    judged(tmp_path, LENGTH, {4: 1.0})
    assert restore_params(tmp_path, "best")[0] == 2


def test_a_figure_that_is_undefined_is_said_once_and_why_there_is_no_best(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """As auroc is, the default, where all boundaries of a few traces are valid."""
    judged(tmp_path, LENGTH | {"by": "auroc"}, {2: float("nan"), 4: float("nan")})
    [said] = capsys.readouterr().err.splitlines()
    assert f"{tmp_path / 'best'}: step 2 is not kept, as auroc is undefined on these traces" in said
    assert "choose another best_by" in said
    for read in (restore_params, lambda *which: open_checkpoint(*which).__enter__()):
        with pytest.raises(ConfigError, match=r"never evaluated .*, or what best_by names was undefined"):
            read(tmp_path, "best")
    judged(tmp_path, LENGTH, {6: 1.01, 8: float("nan")})
    assert restore_params(tmp_path, "best")[0] == 6


def test_the_best_is_whole_before_its_evaluation_is_on_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a kill between the two would lose it for good: what is on record is not judged again."""
    finalize = ocp.CompositeCheckpointHandler.finalize

    def slow(*arguments: Any) -> None:
        time.sleep(1)
        finalize(*arguments)

    monkeypatch.setattr(ocp.CompositeCheckpointHandler, "finalize", slow)
    with Checkpoints(tmp_path, CheckpointConfig(keep=2), LENGTH) as checkpoints:
        checkpoints.save_if_best(4, state_of(4).params, 1.02)
        assert ocp.utils.checkpoint_steps(str(tmp_path / "best")) == [4]


def test_no_array_is_packed_as_one_where_that_is_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever converted such a checkpoint of one device held its largest parameter twice."""
    monkeypatch.setattr(checkpoint, "CHUNK", 4096)
    params = {"w": jnp.arange(64 * 96, dtype=jnp.float32).reshape(64, 96)}
    with Checkpoints(tmp_path, CheckpointConfig(keep=2), LENGTH) as checkpoints:
        checkpoints.save(4, state_of(4)._replace(params=params))
        checkpoints.save_if_best(4, params, 1.02)
    for which in FOLDERS:
        with opened(tmp_path, which) as (manager, step):
            stored = manager.item_metadata(step)["state"].tree["params"]["w"].storage
        assert math.prod(stored.chunk_shape) * 4 <= 4096
        with open_checkpoint(tmp_path, which) as found:
            np.testing.assert_array_equal(found.read("w"), params["w"])


def test_a_folder_that_another_run_has_taken_gets_no_regular_checkpoint(tmp_path: Path) -> None:
    """Of which a run without evaluations saves no other."""
    check = Mock(side_effect=PassingError("another one has it"))
    with (
        Checkpoints(tmp_path, CheckpointConfig(), check=check) as checkpoints,
        pytest.raises(PassingError, match="another one has it"),
    ):
        checkpoints.save(1, state_of(1))
    assert ocp.utils.checkpoint_steps(str(tmp_path / "checkpoints")) == []


def test_saving_asks_nothing_of_the_preemption_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which goes by the last number that it was asked with, be it for a log: the run's own are larger than steps."""
    asked = Mock(return_value=False)
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", asked)
    judged(tmp_path, LENGTH, {2: 1.01})
    asked.assert_not_called()


FULL = """RESOURCE_EXHAUSTED: Error writing "params.w/0" in OCDBT database at local file "/6.orbax-checkpoint-tmp/":
Failed to write 764674 bytes to file 4: No space left on device [os_error_code='28']"""
"""TensorStore's, from a disk that was."""


@pytest.mark.parametrize(("method", "scores"), [("save", {6: 0.0}), ("close", {})])
@pytest.mark.parametrize("error", [ValueError(FULL), OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))])
def test_a_full_disk_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, scores: dict[int, float], error: Exception
) -> None:
    """It is found behind the step, and said by the next save or at the end."""
    judged(tmp_path, None, {2: 0.0, 4: 0.0})
    monkeypatch.setattr(ocp.CheckpointManager, method, Mock(side_effect=error))
    message = rf"^{tmp_path}/checkpoints: .*no space is left there \([\d,]+ MiB free\).*goes on from step 4$"
    with pytest.raises(DiskFullError, match=message):
        judged(tmp_path, None, scores)


def test_a_file_that_may_not_be_as_large_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under ``ulimit -f``, whatever room the disk has."""
    error = ValueError("OUT_OF_RANGE: Failed writing: File too large [os_error_code='27']")
    monkeypatch.setattr(ocp.CheckpointManager, "save", Mock(side_effect=error))
    message = r"may not be as large as one of it: raise what limits that \(ulimit -f\) .* goes on from the beginning$"
    with pytest.raises(DiskFullError, match=message):
        judged(tmp_path, None, {2: 0.0})


def test_another_failure_to_save_is_no_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ocp.CheckpointManager, "save", Mock(side_effect=ValueError("something else")))
    with pytest.raises(ValueError, match="something else"):
        judged(tmp_path, None, {2: 0.0})


@pytest.mark.parametrize("part", ["state", "state/_METADATA"])
def test_a_checkpoint_that_lacks_parts_is_named_with_the_one_that_can_be_taken(tmp_path: Path, part: str) -> None:
    """It was said not to fit the recipe, in a thousand characters of TensorStore's, or was a traceback."""
    judged(tmp_path, None, {2: 0.0, 4: 0.0})
    newest = tmp_path / "checkpoints" / "4"
    shutil.rmtree(newest / part) if (newest / part).is_dir() else (newest / part).unlink()
    with pytest.raises(
        PassingError, match=rf"^{newest}: cannot be .*or that folder removed, and step 2 is taken$"
    ) as said:
        judged(tmp_path, None, {})
    assert len(str(said.value)) < 500
    shutil.rmtree(newest)
    judged(tmp_path, None, {})


def test_half_a_renamed_checkpoint_is_named_with_the_one_that_can_be_taken(tmp_path: Path) -> None:
    """As a kill leaves it in a mounted bucket, where files move one by one."""
    with Checkpoints(tmp_path, CheckpointConfig(keep=2)) as checkpoints:
        for step in (2, 4):
            checkpoints.save(step, state_of(step))
    newest, temporary = (tmp_path / "checkpoints" / name for name in ("4", "4.orbax-checkpoint-tmp"))
    newest.rename(temporary)
    newest.mkdir()
    (temporary / "_CHECKPOINT_METADATA").rename(newest / "_CHECKPOINT_METADATA")

    like = jax.eval_shape(lambda: state_of(0))
    said = rf"^{newest}: cannot be read as a checkpoint: .*that folder removed, and step 2 is taken$"
    with Checkpoints(tmp_path, CheckpointConfig(keep=2)) as checkpoints, pytest.raises(PassingError, match=said):
        checkpoints.restore(like)
    shutil.rmtree(newest)
    with Checkpoints(tmp_path, CheckpointConfig(keep=2)) as checkpoints:
        restored = checkpoints.restore(like)
    assert restored is not None
    assert restored[0] == 2


def test_what_arrays_lack_is_said_without_the_settings_of_their_store(tmp_path: Path) -> None:
    """Orbax raises an `Exception` of its own from TensorStore's error. It was a traceback."""
    said = "cannot be read as a checkpoint: ValueError: NOT_FOUND: d/1; expected it whole"
    with (
        Checkpoints(tmp_path, CheckpointConfig()) as checkpoints,
        pytest.raises(PassingError, match=said),
        whole(checkpoints.manager, 4),
    ):
        raise Exception("settings") from ValueError("NOT_FOUND: d/1")


@pytest.mark.parametrize("damage", [None, "", "[1]", '{"measure": null}', '{"score": "high"}'])
def test_a_best_checkpoint_whose_score_is_damaged_names_the_folder_to_remove(
    tmp_path: Path, damage: str | None
) -> None:
    """It was a traceback of orbax's, of a run whose newest checkpoint is whole."""
    judged(tmp_path, LENGTH, {2: 1.01})
    best = tmp_path / "best" / "2"
    if damage is None:
        shutil.rmtree(best / "score")
    else:
        (best / "score" / "metadata").write_text(damage)
    with pytest.raises(PassingError, match=rf"^{best}: its score cannot be read: \w+: .*, or remove that folder, and"):
        judged(tmp_path, LENGTH, {})
    shutil.rmtree(best)
    judged(tmp_path, LENGTH, {4: 0.9})
    assert restore_params(tmp_path, "best")[0] == 4
