"""A target whose layers are not run, because its hidden states are stored: embedding, final norm and LM head.

The token loss asks for nothing else of a target beside its states, whatever the layers in between are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jax_specexit.model.layers import Linear, RMSNorm
from jax_specexit.model.target import TargetShape
from specexit.data.teacher import check_fields, is_tied


def ends_of(fields: Mapping[str, Any], path: Path | str, folder: Path) -> TargetShape:
    """The shape of a target without its layers, of any architecture.

    Args:
      fields: of its ``config.json``.
      path: of that, for errors.
      folder: of its weights, which need not be there: see `is_tied`.

    Raises:
      InputError: its final norm is no RMSNorm, its embedding or logits are scaled, or a field is missing; or see
        `is_tied`.
    """
    check_fields(fields, path)
    return TargetShape(
        vocab_size=fields["vocab_size"],
        hidden_size=fields["hidden_size"],
        intermediate_size=0,
        num_hidden_layers=0,
        num_attention_heads=0,
        num_key_value_heads=0,
        head_dim=0,
        rope_theta=1.0,
        rms_norm_eps=fields["rms_norm_eps"],
        tie_word_embeddings=is_tied(fields, folder),
        architecture=(fields.get("architectures") or ["(none)"])[0],
    )


class CachedTarget(nnx.Module):
    """The two ends of a target.

    Args:
      shape: see `ends_of`.
      layers: ids of those whose states are stored; the last is the target's last layer.
    """

    def __init__(self, shape: TargetShape, layers: Sequence[int], *, rngs: nnx.Rngs):
        self.shape, self.layers = shape, tuple(layers)
        table = 0.02 * jax.random.normal(rngs.params(), (shape.vocab_size, shape.hidden_size), jnp.float32)
        self.embedding = nnx.Param(table)
        self.norm = RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)
        self.lm_head = None if shape.tie_word_embeddings else Linear(shape.hidden_size, shape.vocab_size, rngs=rngs)

    def __call__(
        self,
        states: Array,
        scales: Float[Array, "batch time layers"] | None,
        *,
        aux_layers: Sequence[int],
        dtype: DTypeLike = jnp.float32,
    ) -> tuple[Float[Array, "batch time hidden"], Float[Array, "batch time aux_hidden"]]:
        """What `Target` computes, from stored states.

        Args:
          states: [batch, time, layers, hidden] in the type they are stored in: see `specexit.data.features`.
          scales: of float8 states; None for other types.
          aux_layers: layer ids that are returned, concatenated in this order.
          dtype: of what is returned.
        """
        wide = states.astype(jnp.float32)
        wide = wide if scales is None else wide * scales[..., None]
        aux = jnp.concatenate([wide[:, :, self.layers.index(k)] for k in aux_layers], axis=-1)
        return self.norm(wide[:, :, -1]).astype(dtype), aux.astype(dtype)

    def head(self) -> Float[Array, "hidden vocab"]:
        """The LM head as a matrix; the embedding's transpose where the two are tied."""
        return self.embedding[...].T if self.lm_head is None else self.lm_head.kernel[...]
