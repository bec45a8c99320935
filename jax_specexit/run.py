"""What is fixed when a run starts: the draft's config and vocabulary, written once into the run folder."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jax_specexit.data import choose_draft_vocab
from jax_specexit.draft import Draft, warm_start
from jax_specexit.export import params_from_draft
from jax_specexit.target import Target, load_target
from specexit.config import ConfigError, write_text
from specexit.draftdir import DraftConfig, SpecExitBlock, check_target, read_draft
from specexit.packing import PackMeta
from specexit.schemas.target import TargetConfig
from specexit.schemas.train import TrainConfig


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


def start(config: TrainConfig, target_config: TargetConfig, meta: PackMeta) -> tuple[Draft, Target, np.ndarray]:
    """Load the target and make the initial draft.

    Returns:
      The draft, the target, and the draft vocabulary (target id of each draft token).

    Raises:
      ConfigError: ``init_from`` was made for another target or shape.
    """
    target = load_target(target_config.folder)
    shape = draft_config(config, target_config, meta)
    draft = Draft(shape, rngs=nnx.Rngs(config.seed))
    if config.init_from is None:
        ids = target_config.think_tokens()
        vocab = choose_draft_vocab(meta, config.draft.draft_vocab_size, (ids.end,))
        warm_start(draft, target, jnp.asarray(vocab))
        return draft, target, vocab
    source, tensors = read_draft(config.init_from)
    check_target(source, config.init_from, target_config.hf_config(), target_config.name)
    for field in ("hidden_size", "intermediate_size", "draft_vocab_size", "eagle_aux_hidden_state_layer_ids"):
        if getattr(source, field) != getattr(shape, field):
            raise ConfigError(
                f"init_from={config.init_from}: {field} is {getattr(source, field)}, "
                f"but the recipe says {getattr(shape, field)}"
            )
    params = params_from_draft(source, tensors)
    if source.specexit is None or source.specexit.source != config.signals.source:
        params.pop("signal_head", None)  # rows read elsewhere: start those afresh
    nnx.update(draft, jax.tree.map(jnp.asarray, params))
    return draft, target, tensors["d2t"] + np.arange(source.draft_vocab_size)


def save_draft_files(run: Path, shape: DraftConfig, vocab: np.ndarray) -> None:
    """Write what `export` needs beside the checkpoints."""
    write_text(run / "draft.json", json.dumps({"config": shape.model_dump(mode="json"), "vocab": vocab.tolist()}))


def read_draft_files(run: Path) -> tuple[DraftConfig, np.ndarray]:
    """Read `save_draft_files`' file.

    Raises:
      ConfigError: not a run folder.
    """
    path = run / "draft.json"
    if not path.exists():
        raise ConfigError(f"{path}: file does not exist, expected a run folder that `specexit train` wrote")
    data = json.loads(path.read_text())
    return DraftConfig.model_validate(data["config"]), np.asarray(data["vocab"], np.int64)
