"""The run folder: what is fixed when a run starts, whether it may be continued, and how far it is."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import yaml
from pydantic import BaseModel, Field, ValidationError

from jax_specexit.cluster import is_first
from specexit.config import ConfigError, read_yaml, write_text
from specexit.data.features import StoredType
from specexit.differences import leaves
from specexit.drafts.directory import DraftConfig
from specexit.drafts.policy import Selection
from specexit.errors import first_problem, shown
from specexit.schemas.train import TrainConfig
from specexit.status import Status


class Start(NamedTuple):
    """What is fixed when a run starts, and written into its folder as ``draft.json``."""

    shape: DraftConfig
    vocab: np.ndarray
    """Target id of every draft token."""
    aux_rms: tuple[float, ...]
    """See `jax_specexit.model.draft.Draft`."""
    data: str = ""
    """Which packed data, see `PackMeta.identity`; empty in runs of older versions."""
    selection: Selection | None = None
    """Which prompts choose the best checkpoint, by what."""
    stored: StoredType | None = None
    """Type of the stored features that it learns from; None where they are computed, and in runs of older versions."""
    before: Selection | None = None
    """Which prompts chose the draft that the run begins with: on them, the trained draft looks too good as well."""
    imported: str | None = None
    """Layout of the published draft that it goes back to, see `specexit.drafts.begun.imported_as`."""
    target_sha256: str | None = None
    """Which weights the target has, see `target_fingerprint`; None in runs of older versions and converted drafts."""
    kept: str | None = None
    """Type of the weights of a frozen trunk; None where the trunk is trained, and in runs of older versions."""


class _Written(BaseModel):
    """What ``draft.json`` holds; see `Start`, whose ``shape`` is called ``config`` there."""

    config: DraftConfig
    vocab: list[Annotated[int, Field(ge=0)]]
    aux_rms: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...]
    data: str = ""
    selection: Selection | None = None
    stored: StoredType | None = None
    before: Selection | None = None
    imported: str | None = None
    target_sha256: str | None = None
    kept: str | None = None


def save_start(run: Path, fixed: Start) -> None:
    """Write ``draft.json``: what evaluation and conversion need beside the checkpoints."""
    data = {
        "config": fixed.shape.model_dump(mode="json"),
        "vocab": fixed.vocab.tolist(),
        "aux_rms": list(fixed.aux_rms),
        "data": fixed.data,
        "stored": fixed.stored,
        "imported": fixed.imported,
        "target_sha256": fixed.target_sha256,
        "kept": fixed.kept,
        **{
            name: found and found.model_dump(mode="json")
            for name, found in (("selection", fixed.selection), ("before", fixed.before))
        },
    }
    write_text(run / "draft.json", json.dumps(data))


def read_start(run: Path) -> Start:
    """Read `save_start`'s file.

    Raises:
      ConfigError: not a run folder, or the file is damaged.
    """
    path = run / "draft.json"
    if not path.exists():
        raise ConfigError(f"{path}: file does not exist, expected a run folder that `specexit train` wrote")
    try:
        found = _Written.model_validate(json.loads(path.read_text()))
    except ValidationError as error:
        raise ConfigError(f"{path}: {first_problem(error)}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: cannot be read as JSON: {error}") from error
    shape = found.config
    counts = (
        ("vocab", len(found.vocab), "config.draft_vocab_size", shape.draft_vocab_size),
        ("aux_rms", len(found.aux_rms), "config.num_aux_hidden_states", shape.num_aux_hidden_states),
    )
    for name, has, field, expected in counts:
        if has != expected:
            raise ConfigError(f"{path}: {name} holds {has} numbers, but {field} is {expected}")
    if len(set(found.vocab)) < len(found.vocab) or max(found.vocab) >= shape.vocab_size:
        raise ConfigError(f"{path}: vocab names a token twice, or one beyond config.vocab_size {shape.vocab_size}")
    names = ("data", "selection", "stored", "before", "imported", "target_sha256", "kept")
    later = {name: getattr(found, name) for name in names}
    return Start(shape, np.asarray(found.vocab, np.int64), found.aux_rms, **later)


def trained_steps(run: Path) -> int:
    """TTT steps that a run was trained with; a recipe's default where no ``run.yaml`` says so, as in a folder that
    `convert` made from a draft directory.

    Raises:
      ConfigError: ``run.yaml`` cannot be read, or says something else.
    """
    path = run / "run.yaml"
    if not path.exists():
        return TrainConfig.model_fields["ttt_steps"].default
    recipe = read_yaml(path).get("config")
    steps = recipe.get("ttt_steps") if isinstance(recipe, dict) else None
    if type(steps) is not int or steps < 1:
        raise ConfigError(f"{path}: config.ttt_steps is {shown(steps)}, expected a number from 1 on")
    return steps


MAY_CHANGE = {
    *("out", "data", "length", "mesh", "topology", "remat", "loss_chunk", "cluster"),
    *("checkpoint", "log_every", "wandb", "profile_steps", "max_nonfinite"),
    *("eval_traces", "evaluate_every", "evaluate_n", "evaluate_length", "best_by"),
}
"""Keys that may change when a run resumes: where things are, how they lie on the devices, what is watched and what
checks the data, not what is learned."""

MAY_MOVE = {"features", "target"}
"""Keys whose value is a place, or a name of one, and may change. What is there is compared instead: name, tokenizer,
layers, sizes and weights of a target; of features also the data, and the type that they are stored in."""


def check_folder(config: TrainConfig) -> None:
    """Check that a run folder is new, or was begun by this recipe.

    Raises:
      ConfigError: it was begun by another recipe, or holds something else.
    """
    path = config.out / "run.yaml"
    if not path.exists():
        others = [p.name for p in config.out.glob("*") if not p.name.startswith(".") and p.name != "plan.json"]
        if others:
            raise ConfigError(f"{config.out}: holds {min(others)} but no run.yaml, expected a new folder or a run's")
        return
    try:
        before = TrainConfig.model_validate(yaml.safe_load(path.read_text())["config"]).model_dump(mode="json")
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as the recipe of a training run: {error}") from error
    now = config.model_dump(mode="json")
    for key in now:
        moved = key in MAY_MOVE and before[key] is not None and now[key] is not None
        if key not in MAY_CHANGE and not moved and before[key] != now[key]:
            was, wanted = dict(leaves(key, before[key])), dict(leaves(key, now[key]))
            one = next(name for name in {**was, **wanted} if was.get(name) != wanted.get(name))
            raise ConfigError(
                f"{path}: this run was begun with {one}={was.get(one)}, but the recipe says {wanted.get(one)}; "
                "choose another `out` or restore the recipe"
            )


def write_status(run: Path, status: Status, step: int, steps: int, started: float | None = None) -> None:
    """Write ``status.json``, which `specexit status` reads.

    A run that is not ``finished`` resumes from ``step``, or from the checkpoint before it if a kill came before that of
    ``step`` was complete. In the file, ``began`` is when the run was first started, in seconds since the epoch: at the
    first start ``started``, by default now; a restart keeps it.
    """
    if is_first():
        found = {"status": status, "step": step, "steps": steps, "began": read_began(run, started)}
        write_text(run / "status.json", json.dumps(found) + "\n")


def read_began(run: Path, started: float | None = None) -> float:
    """When a run was first started, in seconds since the epoch; ``started``, by default now, where nothing says so."""
    try:
        return float(json.loads((run / "status.json").read_text())["began"])
    except (OSError, ValueError, KeyError, TypeError):
        return round(time.time(), 1) if started is None else started
