"""What is fixed when a run starts: the draft's config and vocabulary, written once into the run folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import yaml
from flax import nnx

from jax_specexit.cluster import is_first
from jax_specexit.data import choose_draft_vocab
from jax_specexit.draft import Draft, warm_start
from jax_specexit.export import params_from_draft
from jax_specexit.target import Target, load_target
from specexit.config import ConfigError, write_text
from specexit.draftdir import DraftConfig, SpecExitBlock, check_target, read_draft
from specexit.packing import PackMeta
from specexit.schemas.target import TargetConfig
from specexit.schemas.train import TrainConfig
from specexit.sequences import Example


def draft_config(config: TrainConfig, target: TargetConfig, meta: PackMeta) -> DraftConfig:
    """The ``config.json`` that this run's draft directory will have."""
    hf = target.hf_config()
    block = SpecExitBlock(
        source=config.signals.source,
        target=target.name,
        think_start=target.think_start,
        think_end=target.think_end,
        split_endings=target.split_endings,
        split_connectors=target.split_connectors,
        exit_point=meta.exit_point,
    )
    return DraftConfig(
        **config.draft.model_dump(),
        target_hidden_size=hf["hidden_size"],
        vocab_size=hf["vocab_size"],
        rms_norm_eps=hf["rms_norm_eps"],
        rope_theta=hf.get("rope_theta") or hf["rope_parameters"]["rope_theta"],
        max_position_embeddings=hf["max_position_embeddings"],
        eagle_aux_hidden_state_layer_ids=target.aux_layers,
        num_aux_hidden_states=len(target.aux_layers),
        target_num_hidden_layers=hf["num_hidden_layers"],
        specexit=block,
    )


class Start(NamedTuple):
    """What is fixed when a run starts, and written into its folder as ``draft.json``."""

    shape: DraftConfig
    vocab: np.ndarray
    """Target id of every draft token."""
    aux_rms: tuple[float, ...]
    """See `jax_specexit.draft.Draft`."""
    data: str = ""
    """Which packed data, see `identity`; empty in runs of older versions."""


def start(
    config: TrainConfig, target_config: TargetConfig, meta: PackMeta, rows: Example
) -> tuple[Start, Draft, Target]:
    """Load the target and make the initial draft.

    A run that goes on keeps the constants it was begun with, whatever this machine would measure.

    Args:
      config, target_config: the run's.
      meta: of the packed data.
      rows: a few packed examples, to measure the target's aux hidden states on.

    Raises:
      ConfigError: ``init_from`` was made for another target or shape.
    """
    before = check_start(config, target_config, meta)
    target = load_target(target_config.folder)
    shape = draft_config(config, target_config, meta)
    layers = shape.eagle_aux_hidden_state_layer_ids
    aux_rms = before.aux_rms if before is not None else measure_aux(target, layers, rows)
    draft = Draft(shape, rngs=nnx.Rngs(config.seed), aux_rms=aux_rms)
    if config.init_from is None:
        ids = target_config.think_tokens()
        vocab = choose_draft_vocab(meta, config.draft.draft_vocab_size, (ids.end,))
        warm_start(draft, target, jnp.asarray(vocab))
        return Start(shape, vocab, aux_rms, identity(meta)), draft, target
    source, tensors = read_draft(config.init_from)
    check_target(source, config.init_from, target_config.hf_config(), target_config.name)
    for field in ("hidden_size", "intermediate_size", "draft_vocab_size", "eagle_aux_hidden_state_layer_ids"):
        if getattr(source, field) != getattr(shape, field):
            raise ConfigError(
                f"init_from={config.init_from}: {field} is {getattr(source, field)}, "
                f"but the recipe says {getattr(shape, field)}"
            )
    params = params_from_draft(source, tensors, aux_rms)
    if source.specexit is None or source.specexit.source != config.signals.source:
        params.pop("signal_head", None)  # rows read elsewhere: start those afresh
    nnx.update(draft, jax.tree.map(jnp.asarray, params))
    vocab = tensors["d2t"] + np.arange(source.draft_vocab_size)
    return Start(shape, vocab, aux_rms, identity(meta)), draft, target


def identity(meta: PackMeta) -> str:
    """Names packed data by what it was made from and how, wherever it lies."""
    return f"{meta.data_sha256[:16]}-{meta.config_sha256[:16]}"


def check_start(config: TrainConfig, target_config: TargetConfig, meta: PackMeta) -> Start | None:
    """What the run in ``config.out`` was begun with; None where there is none.

    Raises:
      ConfigError: that was another target, or other data under the same name.
    """
    path = config.out / "draft.json"
    if not path.exists():
        return None
    before, shape = read_start(config.out), draft_config(config, target_config, meta)
    for field in type(shape).model_fields:
        was, now = getattr(before.shape, field), getattr(shape, field)
        if was != now:
            raise ConfigError(f"{path}: this run was begun with {field}={was}, but target and data now say {now}")
    if before.data not in ("", identity(meta)):
        raise ConfigError(
            f"{path}: this run was begun with the data {before.data}, but {config.data / 'meta.json'} is that of "
            f"{identity(meta)}: its position in the data means nothing there"
        )
    return before


def measure_aux(target: Target, layers: tuple[int, ...], rows: Example) -> tuple[float, ...]:
    """Typical RMS of the target's hidden states after each aux layer, as a power of two.

    The median over tokens: a few of them, the first of a sequence above all, have states a hundred times larger. A
    power of two, so that folding it into weights and taking it out again changes no bit of them.
    """
    tokens, segments = jnp.asarray(rows["tokens"]), jnp.asarray(rows["segment_ids"])
    _, aux = target(tokens, jnp.asarray(rows["positions"]), segments, aux_layers=layers)
    assert aux is not None
    states = np.asarray(aux)[rows["segment_ids"] > 0].reshape(-1, len(layers), aux.shape[-1] // len(layers))
    rms = np.median(np.sqrt(np.mean(states**2, axis=-1)), axis=0)
    return tuple(2.0 ** int(np.rint(np.log2(x))) for x in rms)


def save_start(run: Path, fixed: Start) -> None:
    """Write what evaluation and conversion need beside the checkpoints."""
    data = {
        "config": fixed.shape.model_dump(mode="json"),
        "vocab": fixed.vocab.tolist(),
        "aux_rms": list(fixed.aux_rms),
        "data": fixed.data,
    }
    write_text(run / "draft.json", json.dumps(data))


def read_start(run: Path) -> Start:
    """Read `save_start`'s file.

    Raises:
      ConfigError: not a run folder.
    """
    path = run / "draft.json"
    if not path.exists():
        raise ConfigError(f"{path}: file does not exist, expected a run folder that `specexit train` wrote")
    data = json.loads(path.read_text())
    shape = DraftConfig.model_validate(data["config"])
    vocab = np.asarray(data["vocab"], np.int64)
    return Start(shape, vocab, tuple(data["aux_rms"]), data.get("data", ""))


MAY_CHANGE = {
    *("out", "data", "mesh", "cluster"),
    *("checkpoint", "log_every", "wandb", "profile_steps", "max_nonfinite"),
    *("eval_traces", "evaluate_every", "evaluate_n", "best_by"),
}
"""Keys that a run may go on with in another form: where things are and what is watched, not what is learned."""


def check_folder(config: TrainConfig) -> None:
    """A run folder is new, or is continued by the recipe that began it.

    Raises:
      ConfigError: it was begun by another recipe, or holds something else.
    """
    path = Path(config.out) / "run.yaml"
    if not path.exists():
        others = [p.name for p in config.out.glob("*") if not p.name.startswith(".")]
        if others:
            raise ConfigError(f"{config.out}: holds {min(others)} but no run.yaml, expected a new folder or a run's")
        return
    try:
        before = TrainConfig.model_validate(yaml.safe_load(path.read_text())["config"]).model_dump(mode="json")
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as the recipe of a training run: {error}") from error
    now = config.model_dump(mode="json")
    for key in now:
        if key not in MAY_CHANGE and before[key] != now[key]:
            raise ConfigError(
                f"{path}: this run was begun with {key}={before[key]}, but the recipe says {now[key]}; "
                "choose another `out` or restore the recipe"
            )


Status = Literal["running", "preempted", "stopped", "finished"]


def write_status(run: Path, status: Status, step: int, steps: int) -> None:
    """Write ``status.json``, for the script around a run: what is not ``finished`` goes on from ``step``."""
    if is_first():
        write_text(run / "status.json", json.dumps({"status": status, "step": step, "steps": steps}) + "\n")
