"""The target model's forward pass in Flax NNX: Qwen3, dense or of experts, Qwen2 and Llama, from a Hugging Face folder.

It gives the two things that draft training needs from the target: the residual stream at the aux layers (the features
EAGLE-3 reads) and the final hidden state, from which `Target.head` makes the teacher's logits. The tiny reasoner is
trained with it, too.

Layer ids follow vLLM: id ``k`` is the residual stream after ``k`` decoder layers, before any final norm.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jax_specexit.model.attention import ttt_attention
from jax_specexit.model.experts import Mixture
from jax_specexit.model.layers import (
    Linear,
    RMSNorm,
    RopeScaling,
    SwiGLU,
    rotary,
    rotary_factor,
    rotary_frequencies,
    split_heads,
)
from jax_specexit.sharding import constrain, look_up
from specexit import trainable
from specexit.drafts.rope import scaling_of
from specexit.errors import InputError


@dataclasses.dataclass(frozen=True)
class TargetShape:
    """The fields of a Hugging Face ``config.json`` that the forward pass needs."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope_theta: float
    rms_norm_eps: float
    tie_word_embeddings: bool
    architecture: str = "Qwen3ForCausalLM"
    attention_bias: bool = False
    """Whether the query, key and value projections have biases."""
    rope_scaling: RopeScaling | None = None
    num_experts: int = 0
    """In every layer; 0 for a dense model, whose MLPs have ``intermediate_size``."""
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0
    norm_topk_prob: bool = False
    """Whether the probabilities of the chosen experts sum to 1."""

    @property
    def qk_norm(self) -> bool:
        """Whether queries and keys are normed per head."""
        return self.architecture in ("Qwen3ForCausalLM", MIXTURE)

    @classmethod
    def read(cls, folder: Path) -> TargetShape:
        """Read ``config.json``; raises what `from_config` raises."""
        path = folder / "config.json"
        return cls.from_config(json.loads(path.read_text()), path)

    @classmethod
    def from_config(cls, fields: Mapping[str, Any], path: Path | str) -> TargetShape:
        """Pick out the fields of a ``config.json``; ``path`` is named in errors.

        Raises:
          InputError: an architecture or a variant of one that is not implemented, or a field is missing.
        """
        config = dict(fields)
        architecture = trainable.architecture(config)
        if architecture not in ARCHITECTURES:
            raise InputError(f"{path}: architectures is {architecture}, expected one of {', '.join(ARCHITECTURES)}")
        if (why := trainable.unimplemented(config)) is not None:
            raise InputError(f"{path}: {why}")
        rope = trainable.rope_of(config)
        config["rope_theta"] = config.get("rope_theta") or rope.get("rope_theta")
        if config.get("head_dim") is None and {"hidden_size", "num_attention_heads"} <= config.keys():
            config["head_dim"] = config["hidden_size"] // config["num_attention_heads"]
        config |= {
            "architecture": architecture,
            "attention_bias": architecture == "Qwen2ForCausalLM",
            "tie_word_embeddings": config.get("tie_word_embeddings", False),
        }
        config |= _mixture(config, path) if architecture == MIXTURE else DENSE
        missing = [f.name for f in dataclasses.fields(cls) if config.get(f.name) is None and f.name != "rope_scaling"]
        if missing:
            raise InputError(f"{path}: no value for {', '.join(missing)}")
        config["rope_scaling"] = scaling_of(rope)
        return cls(**{f.name: config[f.name] for f in dataclasses.fields(cls)})


MIXTURE = "Qwen3MoeForCausalLM"

ARCHITECTURES = {
    **{"Qwen3ForCausalLM": "qwen3", MIXTURE: "qwen3_moe"},
    **{"Qwen2ForCausalLM": "qwen2", "LlamaForCausalLM": "llama"},
}
"""Hugging Face architecture -> its ``model_type``."""
assert sorted(ARCHITECTURES) == sorted(trainable.ARCHITECTURES), "specexit.trainable says what `collect` may accept"


DENSE = {"num_experts": 0, "num_experts_per_tok": 0, "moe_intermediate_size": 0, "norm_topk_prob": False}
"""The fields of a mixture as a dense model has them."""


def _mixture(config: Mapping[str, Any], path: Path | str) -> dict[str, Any]:
    """What a mixture's config says of its experts.

    Raises:
      InputError: more experts are chosen than there are.
    """
    found = {name: config.get(name) for name in DENSE} | {"norm_topk_prob": bool(config.get("norm_topk_prob"))}
    found["num_experts"] = config.get("num_experts") or config.get("num_local_experts")  # transformers' newer name
    chosen, there = found["num_experts_per_tok"], found["num_experts"]
    if chosen and there and not 0 < chosen <= there:
        raise InputError(f"{path}: num_experts_per_tok is {chosen}, expected at most num_experts={there}")
    return found


class Attention(nnx.Module):
    """Grouped-query attention, with a per-head norm of queries and keys (Qwen3) or biases (Qwen2)."""

    def __init__(self, shape: TargetShape, *, rngs: nnx.Rngs):
        s = self.shape = shape
        self.q = Linear(s.hidden_size, s.num_attention_heads * s.head_dim, rngs=rngs, bias=s.attention_bias)
        self.k = Linear(s.hidden_size, s.num_key_value_heads * s.head_dim, rngs=rngs, bias=s.attention_bias)
        self.v = Linear(s.hidden_size, s.num_key_value_heads * s.head_dim, rngs=rngs, bias=s.attention_bias)
        out = s.num_attention_heads * s.head_dim
        self.o = Linear(out, s.hidden_size, rngs=rngs, std=0.5 * out**-0.5)
        if s.qk_norm:
            self.q_norm, self.k_norm = (RMSNorm(s.head_dim, eps=s.rms_norm_eps) for _ in "qk")

    def __call__(
        self, x: Float[Array, "batch time hidden"], positions: Int[Array, "batch time"], segment_ids: Array
    ) -> Float[Array, "batch time hidden"]:
        """Attend causally within segments."""
        s = self.shape
        q = split_heads(self.q(x), s.num_attention_heads)
        k, v = (split_heads(part(x), s.num_key_value_heads) for part in (self.k, self.v))
        if s.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        frequency = rotary_frequencies(s.head_dim, s.rope_theta, s.rope_scaling)
        q, k = (rotary(part, positions, frequency, rotary_factor(s.rope_scaling)) for part in (q, k))
        mixed = ttt_attention(q, [k], [v], segment_ids)
        return self.o(mixed.reshape(*x.shape[:2], -1))


class DecoderLayer(nnx.Module):
    """Pre-norm attention and SwiGLU or experts, each added to the residual stream, which stays in float32."""

    def __init__(self, shape: TargetShape, *, rngs: nnx.Rngs):
        self.input_norm = RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)
        self.attention = Attention(shape, rngs=rngs)
        self.post_norm = RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)
        self.mlp = feed_forward(shape, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch time hidden"],
        positions: Int[Array, "batch time"],
        segment_ids: Int[Array, "batch time"],
        dtype: DTypeLike,
    ) -> Float[Array, "batch time hidden"]:
        """Advance the residual stream ``x``; the matrix products run in ``dtype``."""
        x = x + self.attention(self.input_norm(x).astype(dtype), positions, segment_ids)
        return x + self.mlp(self.post_norm(x).astype(dtype))


def feed_forward(shape: TargetShape, *, rngs: nnx.Rngs) -> SwiGLU | Mixture:
    """The block that follows a layer's attention: experts, or SwiGLU where there are none."""
    s = shape
    if s.num_experts == 0:
        return SwiGLU(s.hidden_size, s.intermediate_size, rngs=rngs)
    sizes = (s.hidden_size, s.moe_intermediate_size, s.num_experts, s.num_experts_per_tok)
    return Mixture(*sizes, normalised=s.norm_topk_prob, rngs=rngs)


def stack(layers: Sequence[DecoderLayer]) -> DecoderLayer:
    """Equal layers as one module whose parameters have a leading axis, what `jax.lax.scan` runs over."""
    graph, _ = nnx.split(layers[0])
    return nnx.merge(graph, jax.tree.map(lambda *x: jnp.stack(x), *map(nnx.state, layers)))


class Target(nnx.Module):
    """A causal language model. Its layers are stacked, so compiling takes as long for 36 of them as for one."""

    def __init__(self, shape: TargetShape, *, rngs: nnx.Rngs):
        self.shape = shape
        table = 0.02 * jax.random.normal(rngs.params(), (shape.vocab_size, shape.hidden_size), jnp.float32)
        self.embedding = nnx.Param(table)
        self.layers = stack([DecoderLayer(shape, rngs=rngs) for _ in range(shape.num_hidden_layers)])
        self.norm = RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)
        self.lm_head = None if shape.tie_word_embeddings else Linear(shape.hidden_size, shape.vocab_size, rngs=rngs)

    def __call__(
        self,
        tokens: Int[Array, "batch time"],
        positions: Int[Array, "batch time"],
        segment_ids: Int[Array, "batch time"],
        *,
        aux_layers: Sequence[int] = (),
        dtype: DTypeLike = jnp.float32,
        remat: bool = False,
    ) -> tuple[Float[Array, "batch time hidden"], Float[Array, "batch time aux_hidden"] | None]:
        """Run the model over packed segments.

        Args:
          tokens, positions, segment_ids: packed examples; segment 0 is padding.
          aux_layers: layer ids whose residual stream is returned, concatenated in this order.
          dtype: of the matrix products and of what is returned; the residual stream is float32 either way.
          remat: keep only each layer's input for a backward pass and compute the rest again there. Of no effect where
            the target is frozen.

        Returns:
          The final hidden state after the last norm (what the LM head reads), and the aux hidden states (None
          when no layer is asked for).
        """
        graph, stacked = nnx.split(self.layers)
        # Every layer writes into the slot of the next aux layer at or above it, so what stays there is that layer's.
        wanted = sorted(set(aux_layers))
        slots = jnp.asarray(np.searchsorted(wanted, np.arange(self.shape.num_hidden_layers + 1)))

        def keep(aux: Array | None, x: Array, slot: Array) -> Array | None:
            return None if aux is None else jax.lax.dynamic_update_index_in_dim(aux, x.astype(dtype), slot, 0)

        def body(carry: tuple[Array, Array | None], xs: tuple[Any, Array]) -> tuple[tuple[Array, Array | None], None]:
            (x, aux), (weights, slot) = carry, xs
            x = constrain(nnx.merge(graph, weights)(x, positions, segment_ids, dtype), "batch", "time", None)
            return (x, keep(aux, x, slot)), None

        x = look_up(self.embedding[...], tokens).astype(jnp.float32)
        aux = jnp.zeros((len(wanted) + 1, *x.shape), dtype) if wanted else None  # the last slot is for what is above
        start = (x, keep(aux, x, slots[0]))
        (x, aux), _ = jax.lax.scan(jax.checkpoint(body) if remat else body, start, (stacked, slots[1:]))
        if aux is not None:
            aux = jnp.concatenate([aux[wanted.index(k)] for k in aux_layers], axis=-1)
        return self.norm(x).astype(dtype), aux

    def head(self) -> Float[Array, "hidden vocab"]:
        """The LM head as a matrix; the embedding's transpose where the two are tied."""
        return self.embedding[...].T if self.lm_head is None else self.lm_head.kernel[...]
