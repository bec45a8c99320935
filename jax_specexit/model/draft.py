"""The EAGLE-3 draft with its signal heads, in Flax NNX.

One Llama decoder layer over ``concat(norm(embed(x_{t+1})), norm(h_t))``, where ``h_t = fc(f_t)`` fuses the target's aux
hidden states at t; its normed output predicts ``x_{t+2}``. The wiring is vLLM's ``llama_eagle3.py``, tested against it.

Where the signals are read (``source``):

* ``draft``: a linear head on the layer's normed output, trained jointly with the tokens. Row t has seen the token
  ``x_{t+1}``, and its signals belong to that token.
* ``fc``: extra rows of the ``fc`` projection, a linear probe on the target (the released reference code). The signals
  of row t belong to the token ``x_t``.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jax_specexit.model.attention import ttt_attention
from jax_specexit.model.cached import CachedTarget
from jax_specexit.model.layers import (
    Linear,
    RMSNorm,
    SwiGLU,
    rotary,
    rotary_factor,
    rotary_frequencies,
    split_heads,
)
from jax_specexit.model.target import Target
from jax_specexit.sharding import constrain
from specexit.drafts.directory import DraftConfig
from specexit.method.signals import SIGNALS

KeyValues = tuple[list[Array], list[Array]]
"""Keys and values of the TTT steps so far."""

Projected = tuple[Array, Array, Array]
"""What one input adds to queries, keys and values, before heads are split: each [batch, time, heads * dim]."""


class Draft(nnx.Module):
    """The trainable part. The token embedding is the target's, frozen, and handed in, unless the draft has its own.

    Aux hidden states are divided by ``aux_rms``, one power of two per aux layer, before anything reads them. A residual
    stream grows with depth (to an RMS of 83 at the tiny reasoner's last layer), and a layer that adds to a state of
    that size learns slowly: token top-1 was .91 after 1.2M tokens without the division, .985 after 0.9M with it.
    `jax_specexit.export` folds the constants into ``fc``, so that a draft directory knows nothing of them.
    """

    def __init__(self, config: DraftConfig, *, rngs: nnx.Rngs, aux_rms: tuple[float, ...] | None = None):
        c = self.config = config.model_copy(update={"specexit": None})  # static NNX fields must be hashable
        self.aux_rms = aux_rms or (1.0,) * c.num_aux_hidden_states
        h, q, kv = c.hidden_size, c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
        self.source = config.specexit.source if config.specexit else None
        norm = partial(RMSNorm, eps=c.rms_norm_eps)
        self.input_norm = norm(c.aux_size) if c.norm_before_fc else None
        layers = range(c.num_aux_hidden_states if c.fc_norm else 0)
        self.fc_norm = nnx.Dict({f"layer_{i}": norm(c.target_hidden_size) for i in layers})
        self.fc = Linear(c.aux_size, h, rngs=rngs)
        # Apart from fc although they are one tensor on disk: H + 4 columns cannot be sharded evenly.
        width = c.aux_size if self.source == "fc" else h
        head = partial(Linear, width, len(SIGNALS), rngs=rngs, std=0.1 * width**-0.5)
        self.signal_head = head() if self.source else None
        self.embed_norm, self.hidden_norm = norm(h), norm(h)
        bias = c.attention_bias
        self.q, self.k, self.v = (Linear(2 * h, width, rngs=rngs, bias=bias) for width in (q, kv, kv))
        self.q_norm, self.k_norm = (norm(c.head_dim) if c.model_type == "qwen3" else None for _ in "qk")
        self.o = Linear(q, h, rngs=rngs, bias=bias, std=0.5 * q**-0.5)
        self.post_norm = norm(h)
        self.mlp = SwiGLU(h, c.intermediate_size, rngs=rngs)
        self.norm = norm(h)
        self.lm_head = Linear(h, c.draft_vocab_size, rngs=rngs)
        self.embedding = nnx.Param(jnp.zeros((c.vocab_size, h), jnp.float32)) if c.own_embeddings else None

    def normalise(self, aux: Float[Array, "batch time aux_hidden"]) -> Float[Array, "batch time aux_hidden"]:
        """Divide every aux layer by its constant."""
        return aux / jnp.repeat(jnp.asarray(self.aux_rms, aux.dtype), aux.shape[-1] // len(self.aux_rms))

    def fuse(self, aux: Float[Array, "batch time aux_hidden"]) -> Float[Array, "batch time hidden"]:
        """``h = fc(f)``: one hidden state from the target's normalised aux hidden states."""
        aux = self.normalise(aux)
        if self.input_norm is not None:
            aux = self.input_norm(aux)
        elif self.config.fc_norm:
            layers = jnp.split(aux, self.config.num_aux_hidden_states, axis=-1)
            aux = jnp.concatenate([self.fc_norm[f"layer_{i}"](x) for i, x in enumerate(layers)], axis=-1)
        return self.fc(aux)

    def ahead(self, embeds: Float[Array, "batch time hidden"]) -> Projected:
        """What the embeddings of tokens add to queries, keys and values: the same at every TTT step."""
        return self._projected(self.embed_norm(embeds), slice(None, self.config.hidden_size))

    def _projected(self, x: Float[Array, "batch time hidden"], half: slice) -> Projected:
        """One half of what queries, keys and values read, through its rows of their kernels."""
        q, k, v = (x @ linear.kernel[...][half].astype(x.dtype) for linear in self._qkv)
        return q, k, v

    @property
    def _qkv(self) -> tuple[Linear, Linear, Linear]:
        return self.q, self.k, self.v

    def layer(
        self,
        ahead: Projected,
        hidden: Float[Array, "batch time hidden"],
        positions: Int[Array, "batch time"],
        segment_ids: Int[Array, "batch time"],
        past: KeyValues,
    ) -> tuple[Float[Array, "batch time hidden"], KeyValues]:
        """One TTT step.

        Args:
          ahead: `ahead` of the embeddings of the tokens one ahead of each row.
          hidden: fused target state at step 0, the previous step's output later.
          positions: rotary positions.
          segment_ids: of packed rows.
          past: keys and values of the earlier steps.

        Returns:
          The output before the final norm (what the next step is fed), and ``past`` with this step's entry.
        """
        c = self.config
        frequency = rotary_frequencies(c.head_dim, c.rope_theta, c.rope_scaling)
        normed = self.hidden_norm(hidden)
        hidden = normed if c.norm_before_residual else hidden
        own, heads = self._projected(normed, slice(c.hidden_size, None)), c.num_key_value_heads
        q, k, v = (
            split_heads(linear.biased(a + b), n)
            for linear, a, b, n in zip(self._qkv, ahead, own, (c.num_attention_heads, heads, heads), strict=True)
        )
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = (rotary(part, positions, frequency, rotary_factor(c.rope_scaling)) for part in (q, k))
        keys, values = [*past[0], k], [*past[1], v]
        mixed = ttt_attention(q, keys, values, segment_ids, c.sliding_window)
        hidden = constrain(hidden + self.o(mixed.reshape(*hidden.shape[:2], -1)), "batch", "time", None)
        return constrain(hidden + self.mlp(self.post_norm(hidden)), "batch", "time", None), (keys, values)

    def signals(
        self, aux: Float[Array, "batch time aux_hidden"], normed: Float[Array, "batch time hidden"] | None
    ) -> Float[Array, "batch time signals"]:
        """Raw signals of every row, in float32: source fc reads ``aux``, and source draft reads ``normed``."""
        read = self.normalise(aux) if self.source == "fc" else normed
        assert read is not None
        assert self.signal_head is not None, "a plain EAGLE-3 draft has no signals"
        # TPUs would multiply float32 in one pass of bfloat16, and whether to exit hangs on these numbers.
        return jnp.matmul(read.astype(jnp.float32), self.signal_head.kernel[...], precision=jax.lax.Precision.HIGHEST)


def warm_start(draft: Draft, target: Target | CachedTarget, draft_vocab: Int[Array, " draft_vocab"]) -> None:
    """Make the draft begin as a continuation of the target instead of from noise (in place).

    ``fc`` passes the last aux layer through; the final norm and the LM head are the target's: before the first step the
    draft speaks the target's language and only has to learn to look one token further. Needs equal hidden sizes.
    """
    h = draft.config.hidden_size
    kernel = 0.1 * draft.fc.kernel[...]
    draft.fc.kernel[...] = kernel.at[-h:].add(jnp.eye(h))
    draft.norm.scale[...] = target.norm.scale[...]
    draft.lm_head.kernel[...] = target.head()[:, draft_vocab].astype(jnp.float32)
