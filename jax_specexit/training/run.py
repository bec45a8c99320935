"""What is fixed when a run starts: the draft's config and vocabulary, written once into the run folder."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import yaml
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from jax_specexit.cluster import is_first
from jax_specexit.export import params_from_draft
from jax_specexit.model.draft import Draft, warm_start
from jax_specexit.model.target import Target
from jax_specexit.sharding import BATCH, ROWS
from jax_specexit.training.data import choose_draft_vocab
from jax_specexit.weights import load_target
from specexit.config import ConfigError, write_text
from specexit.data.packing import PackMeta
from specexit.data.sequences import Example
from specexit.drafts.directory import DraftConfig, SpecExitBlock, check_target, read_draft
from specexit.schemas.target import TargetConfig
from specexit.schemas.train import TrainConfig


def draft_config(config: TrainConfig, target: TargetConfig, exit_point: Literal["earliest", "stable"]) -> DraftConfig:
    """The ``config.json`` that this run's draft directory will have."""
    hf, layers = target.hf_config(), config.aux_layers or target.aux_layers
    block = SpecExitBlock(
        source=config.signals.source,
        target=target.name,
        think_start=target.think_start,
        think_end=target.think_end,
        split_endings=target.split_endings,
        split_connectors=target.split_connectors,
        exit_point=exit_point,
    )
    return DraftConfig(
        **config.draft.model_dump(),
        target_hidden_size=hf["hidden_size"],
        vocab_size=hf["vocab_size"],
        rms_norm_eps=hf["rms_norm_eps"],
        rope_theta=hf.get("rope_theta") or hf["rope_parameters"]["rope_theta"],
        max_position_embeddings=hf["max_position_embeddings"],
        eagle_aux_hidden_state_layer_ids=layers,
        num_aux_hidden_states=len(layers),
        target_num_hidden_layers=hf["num_hidden_layers"],
        specexit=block,
    )


class Start(NamedTuple):
    """What is fixed when a run starts, and written into its folder as ``draft.json``."""

    shape: DraftConfig
    vocab: np.ndarray
    """Target id of every draft token."""
    aux_rms: tuple[float, ...]
    """See `jax_specexit.model.draft.Draft`."""
    data: str = ""
    """Which packed data, see `identity`; empty in runs of older versions."""


def start(
    config: TrainConfig, target_config: TargetConfig, meta: PackMeta, rows: Example, mesh: Mesh
) -> tuple[Start, Draft, Target]:
    """Load the target and make the initial draft.

    A run that goes on keeps the constants it was begun with, whatever this machine would measure.

    Args:
      config, target_config: the run's.
      meta: of the packed data.
      rows: a few packed examples, to measure the target's aux hidden states on.
      mesh: that the target is loaded onto.

    Raises:
      ConfigError: ``init_from`` was made for another target or shape.
    """
    before = check_start(config, target_config, meta)
    target = load_target(target_config.folder, config.dtype, mesh)
    shape = draft_config(config, target_config, meta.exit_point)
    layers = shape.eagle_aux_hidden_state_layer_ids
    aux_rms = before.aux_rms if before is not None else measure_aux(target, layers, rows, mesh)
    draft = Draft(shape, rngs=nnx.Rngs(config.seed), aux_rms=aux_rms)
    if config.init_from is None:
        ids = target_config.think_tokens()
        vocab = choose_draft_vocab(meta, config.draft.draft_vocab_size, (ids.end,))
        warm_start(draft, target, jnp.asarray(vocab))
        return Start(shape, vocab, aux_rms, identity(meta)), draft, target
    source, tensors = read_draft(config.init_from)
    check_target(source, config.init_from, target_config.hf_config(), target_config.name)
    source, tensors = widen(source, tensors, shape.eagle_aux_hidden_state_layer_ids)
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
    before, shape = read_start(config.out), draft_config(config, target_config, meta.exit_point)
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


def widen(
    source: DraftConfig, tensors: dict[str, np.ndarray], layers: tuple[int, ...]
) -> tuple[DraftConfig, dict[str, np.ndarray]]:
    """An existing draft with further aux layers, which its ``fc`` reads with zeros: it drafts what it did before.

    As it is where ``layers`` lacks one of its own.
    """
    before, h = source.eagle_aux_hidden_state_layer_ids, source.target_hidden_size
    if not set(before) < set(layers):
        return source, tensors
    fc = np.zeros((len(tensors["fc.weight"]), h * len(layers)), tensors["fc.weight"].dtype)
    for i, layer in enumerate(before):
        to = layers.index(layer)
        fc[:, to * h : (to + 1) * h] = tensors["fc.weight"][:, i * h : (i + 1) * h]
    aux = {"eagle_aux_hidden_state_layer_ids": layers, "num_aux_hidden_states": len(layers)}
    return source.model_copy(update=aux), tensors | {"fc.weight": fc}


def measure_aux(target: Target, layers: tuple[int, ...], rows: Example, mesh: Mesh) -> tuple[float, ...]:
    """Typical RMS of the target's hidden states after each aux layer, as a power of two.

    The median over tokens: a few of them, the first of a sequence above all, have states a hundred times larger. A
    power of two, so that folding it into weights and taking it out again changes no bit of them.
    """

    @partial(jax.jit, out_shardings=NamedSharding(mesh, PartitionSpec()))
    def medians(target: Target, tokens: Array, positions: Array, segments: Array) -> Array:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            _, aux = target(tokens, positions, segments, aux_layers=layers)
        assert aux is not None
        states = aux.reshape(*tokens.shape, len(layers), -1)
        rms = jnp.sqrt(jnp.mean(states**2, axis=-1))
        return jnp.nanmedian(jnp.where(segments[..., None] > 0, rms, jnp.nan), axis=(0, 1))

    names, places = ("tokens", "positions", "segment_ids"), math.prod(mesh.shape[axis] for axis in ROWS)
    copies = places // math.gcd(places, len(rows["tokens"]))  # every device needs a row, and no row counts more
    batch = [jax.device_put(np.tile(rows[name], (copies, 1)), NamedSharding(mesh, BATCH)) for name in names]
    return tuple(2.0 ** int(np.rint(np.log2(x))) for x in np.asarray(medians(target, *batch)))


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
    *("out", "data", "mesh", "topology", "remat", "cluster"),
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
