"""The target model's forward pass in Flax NNX: dense Qwen3, Qwen2 and Llama, read from a Hugging Face folder.

It gives the two things that draft training needs from the target: the residual stream at the aux layers (the
features EAGLE-3 reads) and the logits (the teacher). It is also what trains the tiny reasoner.

Layer ids follow vLLM: id ``k`` is the residual stream after ``k`` decoder layers, before any final norm.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jax_specexit.attention import ttt_attention
from jax_specexit.layers import Linear, RMSNorm, RopeScaling, SwiGLU, rotary, rotary_frequencies
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
    """Of the query, key and value projections."""
    rope_scaling: RopeScaling | None = None

    @property
    def qk_norm(self) -> bool:
        """Whether queries and keys are normed per head."""
        return self.architecture == "Qwen3ForCausalLM"

    @classmethod
    def read(cls, folder: Path) -> TargetShape:
        """Read ``config.json``.

        Raises:
          InputError: an architecture or a variant of one that is not implemented, or a field is missing.
        """
        path = folder / "config.json"
        config = json.loads(path.read_text())
        architecture = (config.get("architectures") or ["(none)"])[0]
        if architecture not in ARCHITECTURES:
            raise InputError(f"{path}: architectures is {architecture}, expected one of {', '.join(ARCHITECTURES)}")
        for field, only in (("mlp_bias", False), ("use_sliding_window", False), ("hidden_act", "silu")):
            if config.get(field, only) != only:
                raise InputError(f"{path}: {field} is {config[field]!r}, only {only!r} is implemented")
        if architecture == "LlamaForCausalLM" and config.get("attention_bias"):
            raise InputError(f"{path}: attention_bias is true, which is implemented for Qwen2 only")
        rope = (config.get("rope_scaling") or {}) | (config.get("rope_parameters") or {})
        config["rope_theta"] = config.get("rope_theta") or rope.get("rope_theta")
        if config.get("head_dim") is None and {"hidden_size", "num_attention_heads"} <= config.keys():
            config["head_dim"] = config["hidden_size"] // config["num_attention_heads"]
        config |= {
            "architecture": architecture,
            "attention_bias": architecture == "Qwen2ForCausalLM",
            "tie_word_embeddings": config.get("tie_word_embeddings", False),
        }
        missing = [f.name for f in dataclasses.fields(cls) if config.get(f.name) is None and f.name != "rope_scaling"]
        if missing:
            raise InputError(f"{path}: no value for {', '.join(missing)}")
        config["rope_scaling"] = read_rope_scaling(path, rope)
        return cls(**{f.name: config[f.name] for f in dataclasses.fields(cls)})


ARCHITECTURES = {"Qwen3ForCausalLM": "qwen3", "Qwen2ForCausalLM": "qwen2", "LlamaForCausalLM": "llama"}
"""Hugging Face architecture -> its ``model_type``."""


def read_rope_scaling(path: Path, rope: dict[str, Any]) -> RopeScaling | None:
    """The scaling in a config's ``rope_parameters``, formerly ``rope_scaling``.

    Raises:
      InputError: of a kind that is not implemented.
    """
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind not in ("linear", "llama3"):
        raise InputError(f"{path}: rope_type is {kind!r}, expected 'default', 'linear' or 'llama3'")
    names = [f.name for f in dataclasses.fields(RopeScaling) if f.name != "kind"]
    return RopeScaling(kind, **{name: rope[name] for name in names if name in rope})


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
        s, (batch, time, _) = self.shape, x.shape
        q = self.q(x).reshape(batch, time, s.num_attention_heads, s.head_dim)
        k = self.k(x).reshape(batch, time, s.num_key_value_heads, s.head_dim)
        v = self.v(x).reshape(batch, time, s.num_key_value_heads, s.head_dim)
        if s.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        frequency = rotary_frequencies(s.head_dim, s.rope_theta, s.rope_scaling)
        q, k = rotary(q, positions, frequency), rotary(k, positions, frequency)
        mixed = ttt_attention(q, [k], [v], segment_ids)
        return self.o(mixed.reshape(batch, time, -1))


class DecoderLayer(nnx.Module):
    """Pre-norm attention and SwiGLU, each added to the residual stream, which stays in float32."""

    def __init__(self, shape: TargetShape, *, rngs: nnx.Rngs):
        self.input_norm = RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)
        self.attention = Attention(shape, rngs=rngs)
        self.post_norm = RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)
        self.mlp = SwiGLU(shape.hidden_size, shape.intermediate_size, rngs=rngs)

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


class Target(nnx.Module):
    """A causal language model."""

    def __init__(self, shape: TargetShape, *, rngs: nnx.Rngs):
        self.shape = shape
        table = 0.02 * jax.random.normal(rngs.params(), (shape.vocab_size, shape.hidden_size), jnp.float32)
        self.embedding = nnx.Param(table)
        self.layers = nnx.List([DecoderLayer(shape, rngs=rngs) for _ in range(shape.num_hidden_layers)])
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
    ) -> tuple[Float[Array, "batch time hidden"], Float[Array, "batch time aux_hidden"] | None]:
        """Run the model over packed segments.

        Args:
          tokens, positions, segment_ids: packed examples; segment 0 is padding.
          aux_layers: layer ids whose residual stream is returned, concatenated in this order.
          dtype: of the matrix products and of what is returned; the residual stream is float32 either way.

        Returns:
          The final hidden state after the last norm (what the LM head reads), and the aux hidden states (None
          when no layer is asked for).
        """
        x = self.embedding[...][tokens]
        stream = [x]
        for layer in self.layers:
            x = layer(x, positions, segment_ids, dtype)
            stream.append(x)
        aux = jnp.concatenate([stream[k] for k in aux_layers], axis=-1).astype(dtype) if aux_layers else None
        return self.norm(x).astype(dtype), aux

    def head(self) -> Float[Array, "hidden vocab"]:
        """The LM head as a matrix; the embedding's transpose where the two are tied."""
        return self.embedding[...].T if self.lm_head is None else self.lm_head.kernel[...]


def _hf_names(shape: TargetShape) -> dict[tuple[str | int, ...], tuple[str, bool]]:
    """NNX state path -> (Hugging Face tensor name, whether it is transposed)."""
    names: dict[tuple[str | int, ...], tuple[str, bool]] = {
        ("embedding",): ("model.embed_tokens.weight", False),
        ("norm", "scale"): ("model.norm.weight", False),
    }
    if not shape.tie_word_embeddings:
        names["lm_head", "kernel"] = ("lm_head.weight", True)
    for i in range(shape.num_hidden_layers):
        hf = f"model.layers.{i}"
        names["layers", i, "input_norm", "scale"] = (f"{hf}.input_layernorm.weight", False)
        names["layers", i, "post_norm", "scale"] = (f"{hf}.post_attention_layernorm.weight", False)
        for part in "qkvo":
            names["layers", i, "attention", part, "kernel"] = (f"{hf}.self_attn.{part}_proj.weight", True)
        for part in ("q_norm", "k_norm") if shape.qk_norm else ():
            names["layers", i, "attention", part, "scale"] = (f"{hf}.self_attn.{part}.weight", False)
        for part in "qkv" if shape.attention_bias else "":
            names["layers", i, "attention", part, "bias"] = (f"{hf}.self_attn.{part}_proj.bias", False)
        for part in ("gate", "up", "down"):
            names["layers", i, "mlp", part, "kernel"] = (f"{hf}.mlp.{part}_proj.weight", True)
    return names


def load_target(folder: Path) -> Target:
    """Load a target from a Hugging Face folder, weights in float32, one tensor at a time.

    Raises:
      InputError: unknown architecture, a tensor is missing or has another shape than the config says.
    """
    from safetensors import safe_open

    shape = TargetShape.read(folder)
    abstract = nnx.eval_shape(lambda: Target(shape, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(abstract)
    flat = dict(nnx.to_flat_state(state))
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"{folder}: no .safetensors file")
    wanted = {name: (path, transposed) for path, (name, transposed) in _hf_names(shape).items()}
    for file in files:
        with safe_open(file, framework="numpy") as handle:
            for name in wanted.keys() & set(handle.keys()):
                path, transposed = wanted.pop(name)
                value = handle.get_tensor(name)
                value = value.T if transposed else value
                if value.shape != flat[path].shape:
                    raise InputError(f"{file}: tensor {name} has shape {value.shape}, expected {flat[path].shape}")
                flat[path] = flat[path].replace(jnp.asarray(value, jnp.float32))
    if wanted:
        raise InputError(f"{folder}: tensor {min(wanted)} is missing")
    return nnx.merge(graph, nnx.from_flat_state(flat))


def export_target(target: Target, folder: Path, **config: object) -> None:
    """Write ``config.json`` and ``model.safetensors`` (bfloat16) in Hugging Face layout.

    Args:
      target: the model.
      folder: created if need be; a tokenizer in it is left alone.
      config: further fields of ``config.json``, e.g. ``eos_token_id``.
    """
    import ml_dtypes
    from safetensors.numpy import save_file

    flat = dict(nnx.to_flat_state(nnx.state(target)))
    tensors = {}
    for path, (name, transposed) in _hf_names(target.shape).items():
        value = np.asarray(flat[path][...])
        tensors[name] = np.ascontiguousarray(value.T if transposed else value).astype(ml_dtypes.bfloat16)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    shape, rope = dataclasses.asdict(target.shape), {"rope_type": "default", "rope_theta": target.shape.rope_theta}
    architecture, scaling = shape.pop("architecture"), shape.pop("rope_scaling")
    if scaling:
        rope |= {"rope_type": scaling.pop("kind"), **scaling}
    fields = {
        "architectures": [architecture],
        "model_type": ARCHITECTURES[architecture],
        **shape,
        "rope_parameters": rope,
        "hidden_act": "silu",
        "torch_dtype": "float32",
        **config,
    }
    (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
