"""The tensors of the large target, each made when it is written.

Where a value cannot change what comes out, there is noise, so that no hardware profits from zeros: in the columns that
only ever meet zeros, in the keys and queries of heads that are not used, and in the output projections behind values
and gates that are exactly zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Shaped

from specexit.stand_in.shape import OUT_OF_REACH, SPARE, SPARE_SCALE, Fit

Matrix = Shaped[np.ndarray, "_out _in"]
Vector = Shaped[np.ndarray, " _size"]
Weights = Mapping[str, Shaped[np.ndarray, "..."]]
Makers = dict[str, Callable[[], Shaped[np.ndarray, "..."]]]

NOISE_SIZE = 1 << 24
NOISE_SCALE = 0.02
"""Standard deviation, that of a freshly initialised Qwen3."""


class Noise:
    """Matrices of noise, cut from one long piece: billions of new random numbers would take minutes."""

    def __init__(self, dtype: np.dtype, seed: int):
        self._rng = np.random.default_rng(seed)
        piece = NOISE_SCALE * self._rng.standard_normal(NOISE_SIZE, np.float32)
        self._piece = piece.astype(dtype)

    @property
    def dtype(self) -> np.dtype:
        """Of the matrices."""
        return self._piece.dtype

    def __call__(self, rows: int, columns: int) -> Matrix:
        """A new matrix, writable; one that is longer than the piece repeats it."""
        size = rows * columns
        start = int(self._rng.integers(max(1, NOISE_SIZE - size)))
        return np.resize(self._piece[start : start + size], (rows, columns))


def target_tensors(weights: Weights, fit: Fit, noise: Noise) -> Makers:
    """Name -> what makes the tensor, in the order of the file.

    Args:
      weights: the small target's tensors, float32.
      fit: where they go.
      noise: in the type that is written.
    """
    makers: Makers = {"model.embed_tokens.weight": lambda: embedding(weights["model.embed_tokens.weight"], fit, noise)}
    for i in range(fit.large.layers):
        prefix = f"model.layers.{i}."
        if i in fit.places:
            source = f"model.layers.{fit.places.index(i)}."
            small = {name.removeprefix(source): value for name, value in weights.items() if name.startswith(source)}
            parts = attention(small, fit, noise, twice=False) | mlp(small, fit, noise) | norms(small, fit)
        else:
            parts = _passes_through(fit, noise)
        makers |= {prefix + name: make for name, make in parts.items()}
    makers["model.norm.weight"] = lambda: scale(weights["model.norm.weight"], fit, spare=SPARE_SCALE)
    if not fit.large.tied:
        rows = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
        makers["lm_head.weight"] = lambda: head(rows, fit.large.vocab, fit, noise)
    return makers


def embedding(rows: Matrix, fit: Fit, noise: Noise) -> Matrix:
    """The token embedding, which is the head as well where the two are tied."""
    large = noise(fit.large.vocab, fit.large.hidden)
    known = len(rows)
    large[:known] = 0
    large[:known, : fit.small.hidden] = rows
    large[:known, -1] = SPARE
    large[known:, -1] = OUT_OF_REACH
    return large


def head(rows: Matrix, vocab: int, fit: Fit, noise: Noise) -> Matrix:
    """A head of its own: rows of known tokens, then rows that are never the largest."""
    large = noise(vocab, fit.large.hidden)
    large[: len(rows), : fit.small.hidden] = rows
    large[: len(rows), -1] = 0
    large[len(rows) :, -1] = OUT_OF_REACH
    return large


def scale(values: Vector, fit: Fit, *, spare: float = 0.0) -> Vector:
    """The scale of a hidden norm. Channels that hold 0 are scaled by 1, the spare one as said."""
    large = np.ones(fit.large.hidden, np.float32)
    large[: len(values)] = values * fit.norm
    large[-1] = spare * fit.norm
    return large


def norms(small: Weights, fit: Fit) -> Makers:
    """The two norms of a layer."""
    names = ("input_layernorm.weight", "post_attention_layernorm.weight")
    return {name: lambda name=name: scale(small[name], fit) for name in names}


def attention(small: Weights, fit: Fit, noise: Noise, *, twice: bool) -> Makers:
    """An attention block.

    Scores are divided by the root of the head's size, so queries grow by ``sqrt(D / d)``. Norms of queries and keys
    (Qwen3) see more dimensions than are used, which makes both grow by as much: the keys are scaled back.

    Args:
      small: the layer's tensors.
      fit: where they go.
      noise: for everything else.
      twice: the input is two hidden states side by side, as in an EAGLE-3 draft.
    """
    size, dims = fit.large.head_dim, fit.dims
    growth, kv = (size / fit.small.head_dim) ** 0.5, fit.large.kv_heads
    normed = "self_attn.q_norm.weight" in small

    def rows(part: str, heads: int, sources: Mapping[int, int], factor: float, *, blank: bool) -> Matrix:
        width = fit.large.hidden * (2 if twice else 1)
        large = np.zeros((heads * size, width), noise.dtype) if blank else noise(heads * size, width)
        weight = small[f"self_attn.{part}_proj.weight"]
        for place, source in sources.items():
            block = factor * weight[source * len(dims) : (source + 1) * len(dims)]
            filled = noise(len(dims), width)
            for i in range(width // fit.large.hidden):
                at, of = i * fit.large.hidden, i * fit.small.hidden
                filled[:, at : at + fit.small.hidden] = block[:, of : of + fit.small.hidden]
            large[place * size : (place + 1) * size] = 0
            large[place * size + dims] = filled
        return large

    def output() -> Matrix:
        large = noise(fit.large.hidden, fit.large.heads * size)
        with_values = len(fit.kv_sources) * fit.large.heads // kv  # query heads with values, used or not
        for place in range(with_values):
            large[:, place * size + dims] = 0
        for source, place in enumerate(fit.query_places):
            block = small["self_attn.o_proj.weight"][:, source * len(dims) : (source + 1) * len(dims)]
            large[: fit.small.hidden, place * size + dims] = block
        return large

    def head_scale(part: str, factor: float) -> Vector:
        large = np.ones(size, np.float32)
        large[dims] = factor * small[f"self_attn.{part}_norm.weight"]
        return large

    queries = {place: source for source, place in enumerate(fit.query_places)}
    keys = dict(enumerate(fit.kv_sources))
    parts: Makers = {
        "self_attn.q_proj.weight": lambda: rows("q", fit.large.heads, queries, 1.0 if normed else growth, blank=False),
        "self_attn.k_proj.weight": lambda: rows("k", kv, keys, 1.0, blank=False),
        "self_attn.v_proj.weight": lambda: rows("v", kv, keys, 1.0, blank=True),
        "self_attn.o_proj.weight": output,
    }
    if normed:
        parts["self_attn.q_norm.weight"] = lambda: head_scale("q", 1.0)
        parts["self_attn.k_norm.weight"] = lambda: head_scale("k", 1 / growth)
    return parts


def mlp(small: Weights, fit: Fit, noise: Noise) -> Makers:
    """A gated MLP. A unit that is not used has a gate of zero, so whatever stands behind it is multiplied by zero."""
    units, hidden = fit.large.intermediate, fit.large.hidden

    def inward(part: str) -> Matrix:
        weight = small[f"mlp.{part}_proj.weight"]
        large = noise(units, hidden)
        if part == "gate":
            large[len(weight) :] = 0
        large[: len(weight), : fit.small.hidden] = weight
        return large

    def outward() -> Matrix:
        weight = small["mlp.down_proj.weight"]
        large = noise(hidden, units)
        large[:, : weight.shape[1]] = 0
        large[: fit.small.hidden, : weight.shape[1]] = weight
        return large

    return {
        "mlp.gate_proj.weight": lambda: inward("gate"),
        "mlp.up_proj.weight": lambda: inward("up"),
        "mlp.down_proj.weight": outward,
    }


def _passes_through(fit: Fit, noise: Noise) -> Makers:
    """A layer that adds exactly 0: its values and its gates are zero."""
    large, dtype = fit.large, noise.dtype
    heads, kv = large.heads * large.head_dim, large.kv_heads * large.head_dim
    sizes = {"self_attn.q_proj": (heads, large.hidden), "self_attn.k_proj": (kv, large.hidden)}
    sizes |= {"self_attn.o_proj": (large.hidden, heads), "mlp.up_proj": (large.intermediate, large.hidden)}
    sizes |= {"mlp.down_proj": (large.hidden, large.intermediate)}
    parts: Makers = {f"{name}.weight": lambda size=size: noise(*size) for name, size in sizes.items()}
    parts["self_attn.v_proj.weight"] = lambda: np.zeros((kv, large.hidden), dtype)
    parts["mlp.gate_proj.weight"] = lambda: np.zeros((large.intermediate, large.hidden), dtype)
    ones = {"input_layernorm": large.hidden, "post_attention_layernorm": large.hidden}
    ones |= {"self_attn.q_norm": large.head_dim, "self_attn.k_norm": large.head_dim}
    return parts | {f"{name}.weight": lambda size=size: np.ones(size, np.float32) for name, size in ones.items()}
