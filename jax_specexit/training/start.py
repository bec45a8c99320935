"""How a run starts: load the target, measure it, make the draft, fresh or from an existing one."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from pydantic import ValidationError

from jax_specexit.model.cached import CachedTarget
from jax_specexit.model.draft import Draft, warm_start
from jax_specexit.model.splash import check_version
from jax_specexit.model.target import Target, TargetShape
from jax_specexit.planning.hbm import fitting
from jax_specexit.sharding import check_mesh, shardings
from jax_specexit.training.checkpoint import has_checkpoint
from jax_specexit.training.data import choose_draft_vocab
from jax_specexit.training.measure import measure_aux, measure_stored
from jax_specexit.training.run import Start, read_start
from jax_specexit.training.warm import Tensors, chosen_on, read_source, warm_config, warm_params
from jax_specexit.weights import load_ends, load_target
from specexit.config import ConfigError
from specexit.data.features import decode, read_manifest
from specexit.data.packed import PackMeta
from specexit.data.sequences import Example
from specexit.differences import leaves
from specexit.drafts.begun import imported_as
from specexit.drafts.config import DraftConfig, SpecExitBlock
from specexit.drafts.directory import read_draft
from specexit.drafts.fingerprints import target_fingerprint
from specexit.drafts.policy import Selection
from specexit.drafts.target_weights import target_files
from specexit.drafts.tensors import FLOATS
from specexit.schemas.target import FOR_DRAFTS, TargetConfig
from specexit.schemas.train import TrainConfig


def start(
    config: TrainConfig,
    target_config: TargetConfig,
    meta: PackMeta,
    rows: Example,
    mesh: Mesh,
    before: Start | None = None,
) -> tuple[Start, Draft, Target | CachedTarget]:
    """Load the target, or its ends where its states are stored, and make the initial draft.

    A run that goes on keeps the constants it was begun with, whatever this machine would measure.

    Args:
      config, target_config: the run's.
      meta: of the packed data.
      rows: a few packed examples, to measure the target's aux hidden states on; with stored ones, where there are any.
      mesh: that the target is loaded onto.
      before: what `check_start` has found; it reads all weights of the target, which takes minutes in a bucket.

    Raises:
      ConfigError, DraftError: ``init_from`` cannot be read, or was made for another target or shape; or the mesh does
        not divide the models.
      FeatureError: stored hidden states that are not finite.
      InputError: on a TPU, another JAX than its attention was checked with; or hidden states that are not finite.
    """
    if jax.default_backend() == "tpu":
        check_version()
    shape = draft_config(config, target_config, meta.exit_point) if before is None else before.shape
    layers = shape.eagle_aux_hidden_state_layer_ids
    check_division(config, target_config, shape, mesh)
    source = _read_whole(config, before)
    target: Target | CachedTarget
    if config.features is None:
        with fitting("quantize"):
            target = load_target(target_config.folder, config.dtype, mesh, int8=config.target_int8)
    else:
        target = load_ends(target_config.folder, read_manifest(config.features).layers, config.dtype, mesh)
    if before is not None:
        aux_rms = before.aux_rms
    elif shape.aux_norm_shapes:
        aux_rms = (1.0,) * len(layers)  # the draft's own norms scale the states
    elif isinstance(target, CachedTarget):
        assert config.features is not None
        aux_rms = measure_stored(layers, config.features, rows, decode(rows))
    else:
        aux_rms = measure_aux(target, layers, rows, mesh, config.dtype)
    draft = Draft(shape, rngs=nnx.Rngs(config.seed), aux_rms=aux_rms)
    if config.init_from is None:
        vocab = choose_draft_vocab(meta, config.draft.draft_vocab_size, (target_config.think_tokens().end,))
        warm_start(draft, target, jnp.asarray(vocab))
    elif source is None:
        assert before is not None
        vocab = before.vocab  # its parameters are in the checkpoint
    else:
        params, vocab = warm_params(*source, shape, aux_rms)
        nnx.update(draft, jax.tree.map(jnp.asarray, params))
    fixed = Start(
        *(shape, vocab, aux_rms, meta.identity),
        stored=config.features and read_manifest(config.features).dtype,
        target_sha256=target_fingerprint(target_config.folder) if before is None else before.target_sha256,
    )
    if before is not None:
        known = {"selection": before.selection, "before": before.before, "imported": before.imported}
        fixed = fixed._replace(**known, kept=before.kept)
    if config.init_from is not None and source is not None:  # which may be another draft than a kill left here
        kept = _type_of(source[1]) if config.freeze_trunk else None
        fixed = fixed._replace(before=chosen_on(config.init_from), imported=imported_as(config.init_from), kept=kept)
    return fixed, draft, target


def _type_of(tensors: Tensors) -> str:
    """The type of a draft's weights; float32, which holds the others exactly, where they are of several."""
    found = {tensor.dtype.name for tensor in tensors.values()} & FLOATS.keys()
    return found.pop() if len(found) == 1 else "float32"


def _read_whole(config: TrainConfig, before: Start | None) -> tuple[DraftConfig, Tensors] | None:
    """The draft in ``init_from``, read before the target, so that a damaged file is found before minutes of loading.

    None without ``init_from``, and where the run has a checkpoint: the folder may be gone by then.
    """
    if config.init_from is None or (before is not None and has_checkpoint(config.out)):
        return None
    return read_draft(config.init_from, needs_policy=False)


def chosen_before(config: TrainConfig, before: Start | None) -> Selection | None:
    """Which prompts chose the draft that a run begins with, as far as anything says so; None without such a draft.

    Args:
      config: the run's.
      before: what `check_start` has found. Where there is a checkpoint, the folder in ``init_from`` may be gone since;
        where there is none, it is what the run begins with, whatever it was when it was begun first.

    Raises:
      PolicyError: the ``policy.json`` in ``init_from`` cannot be used.
    """
    if before is not None and has_checkpoint(config.out):
        return before.before
    return None if config.init_from is None else chosen_on(config.init_from)


def check_division(config: TrainConfig, target_config: TargetConfig, shape: DraftConfig, mesh: Mesh) -> None:
    """Check that the mesh divides the batch, the target's heads and experts, and every parameter of the draft.

    Raises:
      ConfigError: it does not; says which axis to change.
    """
    target = () if config.features is not None else (TargetShape.read(target_config.folder),)
    check_mesh(mesh, config.batch_size, (*target, shape))
    shardings(nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: Draft(shape, rngs=nnx.Rngs(0))))), mesh)


def draft_config(
    config: TrainConfig,
    target: TargetConfig,
    exit_point: Literal["earliest", "stable"],
    source: DraftConfig | None = None,
) -> DraftConfig:
    """The ``config.json`` that this run's draft directory will have.

    Args:
      config, target: the run's.
      exit_point: of its data.
      source: the draft in ``init_from``; None to read it there.

    Raises:
      ConfigError, DraftError: the target lacks a layer, or its config a field; the draft's sizes do not go together,
        or a fresh one is not as wide as its target, or has heads that no engine reads; or ``init_from`` cannot be read,
        is of another target or does not fit the recipe.
    """
    layers = target.layers_read(config.aux_layers)
    block = SpecExitBlock(
        source=config.signals.source,
        target=target.name,
        think_start=target.think_start,
        think_end=target.think_end,
        split_endings=target.split_endings,
        split_connectors=target.split_connectors,
        exit_point=exit_point,
    )
    if config.init_from is not None:
        source = source or read_source(config.init_from, target)
        if source.sliding_window is not None and source.sliding_window < config.ttt_steps:
            raise ConfigError(
                f"init_from={config.init_from}: sliding_window is {source.sliding_window}, but the recipe says "
                f"ttt_steps={config.ttt_steps}, expected at most {source.sliding_window}"
            )
        return warm_config(source, config.init_from, target, config.draft, layers, block)
    found = target.needed(*FOR_DRAFTS)
    found |= {f"target_{name}": found.pop(name) for name in ("hidden_size", "num_hidden_layers")}
    longest = max(found["max_position_embeddings"], target.max_model_len)  # a draft's own RoPE has no end
    found["max_position_embeddings"] = longest
    width, expected = config.draft.hidden_size, found["target_hidden_size"]
    if width != expected:
        raise ConfigError(
            f"draft.hidden_size={width}, expected the target's {expected}: a fresh draft embeds tokens as its target "
            "does, and only one in init_from can have embeddings of its own"
        )
    if width % (heads := config.draft.num_attention_heads):
        raise ConfigError(
            f"draft.num_attention_heads={heads}, expected a divisor of draft.hidden_size={width}: transformers, and so "
            "an engine, reads no other Llama layer, whatever its head_dim is"
        )
    try:
        return DraftConfig(
            **config.draft.model_dump(),
            **found,
            eagle_aux_hidden_state_layer_ids=layers,
            num_aux_hidden_states=len(layers),
            specexit=block,
        )
    except ValidationError as error:
        why = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ConfigError(f"draft.*: {why}; its sizes are {config.draft.model_dump()}") from error


def check_start(config: TrainConfig, target_config: TargetConfig, meta: PackMeta) -> Start | None:
    """Check what the run in ``config.out`` was begun with, and return it; None where there is no run.

    ``max_position_embeddings`` may differ, as training computes nothing with it, and is today's in what is returned:
    older versions kept a published draft's.

    Raises:
      ConfigError, DraftError: it was begun with another target, or with other weights or other data under the same
        name, or with features that are stored in another type; or see `draft_config`.
      TensorError: files are missing that the index of the target's weights names.
    """
    path = config.out / "draft.json"
    before = read_start(config.out) if path.exists() else None
    source = before.shape if before is not None and has_checkpoint(config.out) else None
    shape = draft_config(config, target_config, meta.exit_point, source)
    if before is None:
        return None
    was, now = (dict(leaves("", one.model_dump())) for one in (before.shape, shape))
    for field in {**was, **now}:
        if was.get(field) != now.get(field) and field != "max_position_embeddings":
            raise ConfigError(
                f"{path}: this run was begun with {field}={was.get(field)}, but target and data now say "
                f"{now.get(field)}"
            )
    if before.data not in ("", meta.identity):
        raise ConfigError(
            f"{path}: this run was begun with the data {before.data}, but {config.data / 'meta.json'} is that of "
            f"{meta.identity}: its position in the data means nothing there"
        )
    weights = target_fingerprint(target_config.folder)
    if weights is None and before.target_sha256 is not None:
        target_files(target_config.folder)  # which says what is missing
    if before.target_sha256 not in (None, weights):
        raise ConfigError(
            f"{path}: this run was begun with weights of the target whose fingerprint is {before.target_sha256}, but "
            f"those in {target_config.folder} have {weights}: it would learn from another model; restore them, "
            "config.json and file names included, or choose another `out`"
        )
    stored = config.features and read_manifest(config.features).dtype
    if before.stored not in (None, stored):
        raise ConfigError(
            f"{path}: this run was begun with features stored as {before.stored}, but those in {config.features} are "
            f"{stored}: it would go on with other rounding errors"
        )
    return before._replace(shape=shape, target_sha256=weights)
