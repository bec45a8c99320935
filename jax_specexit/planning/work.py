"""The arithmetic of one training step on one chip, counted from the shapes of its matrix products.

FLOPs are 2 m k n for every product as it is run: a causal tile counts whole, and what is computed twice counts twice.
Bytes are those of operands and results, each moved once, in bfloat16: less than any real program moves, so a time
computed from them is a lower bound. Elementwise work is left out.

Shape legend: rows are tokens of one chip; tensor is the size of that mesh axis.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from jax.sharding import AbstractMesh, Mesh

from jax_specexit.model.splash import forward_tile, tile_of, wide_of
from jax_specexit.planning.aot import Shapes
from jax_specexit.sharding import CONTEXT, EXPERT, ROWS
from jax_specexit.training.optimizer import NEWTON_SCHULZ
from specexit.chips import Chip
from specexit.data.features import bytes_per_token
from specexit.method.signals import SIGNALS
from specexit.schemas.train import TrainConfig

BYTES = 2
"""Bytes of one number of an operand, in bfloat16."""

SPLASH_BACKWARD = 5
"""Products per tile in the kernel's backward pass: scores, their gradient, and those of queries, keys and values."""

Tiles = tuple[int, int]
"""Rows of attention's tiles, forward and backward."""


@dataclass(frozen=True)
class Work:
    """One part of the step."""

    part: str
    flops: float
    useful: float
    """FLOPs that the method itself asks for: nothing recomputed, no pair with a later token, no optimizer. As if a row
    were one text, padding included: pairs of two texts, which segments mask, are counted."""
    hbm_bytes: float
    int8: bool = False
    """Whether the FLOPs are int8 operations."""


def compute_seconds(work: Iterable[Work], chip: Chip) -> float:
    """Time of all of it at the chip's peaks."""
    return sum(w.flops / (chip.int8_flops if w.int8 else chip.flops) for w in work)


def product(
    part: str, rows: float, inner: float, outer: float, *, passes: float, useful: float | None = None, reads: float = 1
) -> Work:
    """Work of a product ``[rows, inner] @ [inner, outer]`` that is run ``passes`` times.

    Its backward pass counts as two: the same three matrices in other roles, so equal FLOPs and equal bytes.

    Args:
      part: what it belongs to.
      rows, inner, outer: sizes on one chip.
      passes: how often it is run.
      useful: how often it has to be, if less.
      reads: how often the right matrix is read in one pass.
    """
    flops = 2 * rows * inner * outer
    moved = BYTES * (rows * inner + reads * inner * outer + rows * outer)
    return Work(part, flops * passes, flops * (passes if useful is None else useful), moved * passes)


def attention(
    part: str,
    rows: float,
    length: int,
    heads: float,
    dim: int,
    diagonals: int,
    *,
    tiles: Tiles,
    backward: int,
    window: int | None = None,
) -> Work:
    """Work of causal attention plus diagonals: two products a tile forward, ``backward`` ones back (0: no gradient).

    Segments are ignored, as if a row were one text. The blocks of the backward pass are wider than they are high, and
    on the diagonal they are computed whole.
    """
    forward, tile = (min(tile, length & -length) for tile in tiles)
    seen, pairs, own = rows * (length + forward) / 2, rows * (length + 1) / 2, rows * diagonals
    blocks = rows * (length + (tile + wide_of(length, tile)) / 2) / 2
    if window is not None:
        keys = window - diagonals
        seen -= rows * _before_window(length, keys, forward, forward)
        blocks -= rows * _before_window(length, keys, tile, wide_of(length, tile))
        pairs -= rows * _before_window(length, keys, 1, 1)
    per_pair = 2 * heads * dim
    executed = per_pair * (seen * 2 + blocks * backward + own * (2 + 4 * bool(backward)))
    useful = per_pair * (pairs + own) * (2 + 4 * bool(backward))
    moved = BYTES * rows * heads * dim * (4 + 2 * diagonals) * (3 if backward else 1)
    return Work(part, executed, useful, moved)


def _before_window(length: int, keys: int, high: int, wide: int) -> float:
    """Keys that a query is spared on average: whole tiles of ``high`` queries and ``wide`` keys before its window."""
    firsts = range(0, length, high)
    return sum(max(0, first - keys + 1) // wide * wide for first in firsts) / len(firsts)


def step_work(
    config: TrainConfig,
    shapes: Shapes,
    mesh: Mesh | AbstractMesh,
    *,
    tile: int | None = None,
    backward: int = SPLASH_BACKWARD,
) -> Iterator[Work]:
    """Everything that one chip does in one step, apart from collectives.

    Args:
      config: the recipe.
      shapes: sizes of its models.
      mesh: what it runs on.
      tile, backward: rows of a tile and backward products of the attention kernel; without ``tile``, the tiles are the
        splash kernel's own choice. They are those of other kernels where the count is held against a compiled program.
    """
    tensor = mesh.shape["tensor"]
    length, shards = shapes.length, mesh.shape[CONTEXT]
    own = (forward_tile(length, shards, _kind(mesh)), tile_of(length, shards))
    tiles = own if tile is None else (tile, tile)
    rows = shapes.batch * shapes.length / math.prod(mesh.shape[axis] for axis in (*ROWS, CONTEXT))
    t, d = shapes.target, shapes.draft
    q, kv = t.num_attention_heads * t.head_dim / tensor, t.num_key_value_heads * t.head_dim / tensor
    layers = t.num_hidden_layers  # none of them where features are stored
    if shapes.stored is not None:
        each = bytes_per_token(shapes.stored, len(shapes.layers), t.hidden_size)
        yield Work("stored features", 0.0, 0.0, rows * each)
    for inner, outer in ((t.hidden_size, q + 2 * kv), (q, t.hidden_size)):
        yield _of_target(config, product("target", rows, inner, outer, passes=layers))
    yield from _feed_forward_work(config, shapes, rows, mesh)
    one = attention("", rows, shapes.length, t.num_attention_heads / tensor, t.head_dim, 0, tiles=tiles, backward=0)
    yield Work("target attention", one.flops * layers, one.useful * layers, one.hbm_bytes * layers)

    read = d.aux_size if config.signals.source == "fc" else d.hidden_size
    yield product("signals", rows, read, len(SIGNALS), passes=2 if config.signals.source == "fc" else 3)
    if not config.freeze_trunk:
        yield from _trunk_work(config, shapes, rows, mesh, tiles, backward)
        yield _optimizer_work(shapes, mesh)


def _kind(mesh: Mesh | AbstractMesh) -> str:
    """What JAX calls the mesh's chips; empty where it does not say."""
    device = mesh.devices.flat[0] if isinstance(mesh, Mesh) else mesh.abstract_device
    return getattr(device, "device_kind", "")


def _of_target(config: TrainConfig, one: Work) -> Work:
    """A product of the target's layers, as it is run."""
    return replace(one, int8=True, hbm_bytes=one.hbm_bytes / 2) if config.target_int8 else one


def _feed_forward_work(config: TrainConfig, shapes: Shapes, rows: float, mesh: Mesh | AbstractMesh) -> Iterator[Work]:
    """The target's MLPs; of a mixture, those of the experts that a token is given to, evenly spread over the chips.

    All experts' weights are read, since some token of a batch wants each.
    """
    t, layers, tensor = shapes.target, shapes.target.num_hidden_layers, mesh.shape["tensor"]
    part, width, pairs, experts = "target", t.intermediate_size / tensor, rows, 1.0
    if t.num_experts:
        part = "experts"
        yield product("router", rows, t.hidden_size, t.num_experts, passes=layers)
        width, pairs = t.moe_intermediate_size / tensor, rows * t.num_experts_per_tok
        experts = t.num_experts / mesh.shape[EXPERT]
    for inner, outer in ((t.hidden_size, 2 * width), (width, t.hidden_size)):
        yield _of_target(config, product(part, pairs, inner, outer, passes=layers, reads=experts))


def _trunk_work(
    config: TrainConfig, shapes: Shapes, rows: float, mesh: Mesh | AbstractMesh, tiles: Tiles, backward: int
) -> Iterator[Work]:
    d, steps, tensor = shapes.draft, config.ttt_steps, mesh.shape["tensor"]
    h, q, kv = d.hidden_size, d.num_attention_heads * d.head_dim / tensor, d.num_key_value_heads * d.head_dim / tensor
    passes = 4 if config.remat else 3
    yield product("draft", rows, d.aux_size, h, passes=2)  # nothing below it has a gradient
    yield product("draft", rows, h, q + 2 * kv, passes=3)  # what the embeddings add is the same at every step
    for inner, outer, again in (
        (h, q + 2 * kv, passes),
        (q, h, passes),
        (h, 2 * d.intermediate_size / tensor, passes),
        (d.intermediate_size / tensor, h, 3),  # no gradient needs what it yields, so remat leaves it out
    ):
        yield product("draft", rows, inner, outer, passes=again * steps, useful=3 * steps)
    heads = d.num_attention_heads / tensor
    for k in range(steps):
        once_more = 2 if config.remat else 0
        yield attention(
            *("draft attention", rows, shapes.length, heads, d.head_dim, k),
            tiles=tiles,
            backward=backward + once_more,
            window=d.sliding_window,
        )
    chunks, vocab = shapes.length / mesh.shape[CONTEXT] / config.loss_chunk, d.draft_vocab_size / tensor
    yield product("logits", rows, shapes.target.hidden_size, vocab, passes=1, reads=chunks)
    yield product("logits", rows * steps, h, vocab, passes=3, reads=chunks)
    yield product("logits", rows * steps, vocab, 1, passes=1, useful=0)  # for the value of the loss alone
    if config.skip_unknown:  # the target's first choice among all tokens
        t = shapes.target
        yield product("logits", rows, t.hidden_size, t.vocab_size / tensor, passes=1, reads=chunks)


def _optimizer_work(shapes: Shapes, mesh: Mesh | AbstractMesh) -> Work:
    """Muon's Newton-Schulz iterations, and all optimizer state read and written once in float32.

    Products with a sharded matrix are spread over the chips; each chip multiplies the small square ones for itself.
    """
    d = shapes.draft
    h, q, kv = d.hidden_size, d.num_attention_heads * d.head_dim, d.num_key_value_heads * d.head_dim
    matrices = [(d.aux_size, h), (2 * h, q), (2 * h, kv), (2 * h, kv), (q, h)]
    matrices += [(h, d.intermediate_size)] * 2 + [(d.intermediate_size, h)]
    shards = mesh.shape["fsdp"] * mesh.shape["tensor"]
    flops = 0.0
    for m, n in (sorted(pair) for pair in matrices):
        flops += len(NEWTON_SCHULZ) * (4 * m * m * n / shards + 2 * m**3)
    weights = sum(m * n for m, n in matrices)
    moved = 4 * (5 * weights + 7 * h * d.draft_vocab_size)  # parameter, moments: in and out; gradient: in
    return Work("optimizer", flops, 0.0, moved / shards)
