"""Where the parts of a small Qwen3 go in a large one: channels, heads, rotary pairs, layers.

* Hidden channels: the first ones. The others stay exactly 0 in the residual stream, but for the last, the *spare*
  channel, which holds a small constant: behind the last norm it keeps the tokens that the small model does not know
  out of reach. A root-mean-square over more channels is smaller by ``sqrt(small / large)``, which the scales of the
  norms make up for.
* Rotary pairs: pair ``i`` of ``d / 2`` goes to ``i * D / d`` of ``D / 2``, where the angles are the same.
* Heads: a query head goes to a head whose group shares the key and value that it had.
* Layers: spread over the depth so that every layer that the draft reads is one that the large model's draft would
  read. The layers between them add 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int

from specexit.errors import InputError, shown

SPARE = 2.0**-13
"""What the spare channel holds: so little that the norms do not see it, and a power of two, so that nothing rounds."""

SPARE_SCALE = 2.0**24
"""Scale of the last norm in the spare channel."""

OUT_OF_REACH = -64.0
"""Row entry of an unknown token in the spare channel. Its logit is ``-2**17 / rms`` of the last residual stream."""

NAMES = {
    "hidden": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "intermediate": "intermediate_size",
    "vocab": "vocab_size",
}
"""Fields of `Shape` in a model's ``config.json``."""


class StandInError(InputError):
    """A stand-in that cannot be made; the message names the model, the field and what was expected."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a dense Qwen3."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool

    @classmethod
    def read(cls, fields: Mapping[str, Any], model: str) -> Shape:
        """From the fields of a ``config.json``.

        Raises:
          StandInError: another architecture, or a size is missing or no number above 0.
        """
        found = fields.get("architectures")
        if found != ["Qwen3ForCausalLM"]:
            raise StandInError(
                f"{model}: architectures is {shown(found)}, expected ['Qwen3ForCausalLM'], a dense Qwen3"
            )
        for name in (*NAMES.values(), "tie_word_embeddings"):
            if name not in fields:
                raise StandInError(f"{model}: {name} is missing")
            kind, expected = (bool, "true or false") if name == "tie_word_embeddings" else (int, "a number above 0")
            if type(fields[name]) is not kind or fields[name] < (kind is int):
                raise StandInError(f"{model}: {name} is {shown(fields[name])}, expected {expected}")
        size = cls(**{ours: fields[theirs] for ours, theirs in NAMES.items()}, tied=fields["tie_word_embeddings"])
        if size.heads % size.kv_heads:
            raise StandInError(
                f"{model}: num_attention_heads is {size.heads}, expected a multiple of num_key_value_heads, "
                f"{size.kv_heads}"
            )
        return size

    def fields(self) -> dict[str, Any]:
        """The sizes as fields of a ``config.json``."""
        return {theirs: getattr(self, ours) for ours, theirs in NAMES.items()} | {"tie_word_embeddings": self.tied}


@dataclass(frozen=True)
class Fit:
    """How a small model lies in a large one.

    Args:
      small, large: their sizes.
      read: layers that the draft of the small model reads, in vLLM's counting.
      readable: layers that a draft of the large model would read.

    Raises:
      StandInError: it does not fit.
    """

    small: Shape
    large: Shape
    read: tuple[int, ...]
    readable: tuple[int, ...]

    def __post_init__(self) -> None:
        small, large = self.small, self.large
        for name in ("hidden", "head_dim", "intermediate", "vocab", "layers"):
            least = getattr(small, name) + (name in ("hidden", "vocab"))  # one channel and one token are spare
            if getattr(large, name) < least:
                raise StandInError(
                    f"{NAMES[name]} is {getattr(large, name)}, expected at least {least} to hold the small model"
                )
        if large.head_dim % small.head_dim:
            raise StandInError(f"head_dim is {large.head_dim}, expected a multiple of {small.head_dim}")
        if len(self.kv_sources) > large.kv_heads:
            raise StandInError(
                f"num_key_value_heads is {large.kv_heads}, expected at least {len(self.kv_sources)}: a group holds "
                f"{large.heads // large.kv_heads} query heads"
            )
        if large.tied and not small.tied:
            raise StandInError("tie_word_embeddings is true, but the small model has a head of its own")
        _ = self.places

    @property
    def norm(self) -> float:
        """Factor of the scales of the hidden norms."""
        return (self.small.hidden / self.large.hidden) ** 0.5

    @property
    def dims(self) -> Int[np.ndarray, " small_dim"]:
        """Where the small model's dimensions lie in a head."""
        half, step = self.small.head_dim // 2, self.large.head_dim // self.small.head_dim
        first = np.arange(half) * step
        return np.concatenate([first, self.large.head_dim // 2 + first])

    @cached_property
    def kv_sources(self) -> list[int]:
        """For each key-value head that is used, the small model's that it holds; repeated where a group of query heads
        needs several."""
        group, room = self.small.heads // self.small.kv_heads, self.large.heads // self.large.kv_heads
        return [head for head in range(self.small.kv_heads) for _ in range(-(-group // room))]

    @cached_property
    def query_places(self) -> list[int]:
        """Where each query head of the small model lies."""
        group, room = self.small.heads // self.small.kv_heads, self.large.heads // self.large.kv_heads
        copies = -(-group // room)
        return [
            (head // group * copies + head % group // room) * room + head % group % room
            for head in range(self.small.heads)
        ]

    @cached_property
    def reads(self) -> list[int]:
        """For each layer in ``read``, the index in ``readable`` of the layer that stands for it.

        Raises:
          StandInError: ``readable`` has fewer.
        """
        if len(self.read) > len(self.readable):
            raise StandInError(
                f"num_hidden_layers is {self.large.layers}: its draft reads layers {list(self.readable)}, expected as "
                f"many as the small one's reads, {list(self.read)}"
            )
        spread = np.linspace(0, len(self.readable) - 1, len(self.read))
        return [round(place) for place in spread]

    @cached_property
    def places(self) -> list[int]:
        """For each layer of the small model, the large one's that holds it.

        Raises:
          StandInError: too few layers lie between two that the draft reads.
        """
        small = [0, *self.read, self.small.layers]
        large = [0, *(self.readable[i] for i in self.reads), self.large.layers]
        found: list[int] = []
        for i in range(len(small) - 1):
            n, room = small[i + 1] - small[i], large[i + 1] - large[i]
            if n > room:
                raise StandInError(
                    f"num_hidden_layers is {self.large.layers}: aux layers {large[i]} and {large[i + 1]} have {room} "
                    f"layers between them, expected at least {n}"
                )
            found += spread_over(n, large[i], room)
        return found


def spread_over(n: int, start: int, room: int) -> list[int]:
    """``n`` of ``room`` places from ``start`` on, evenly.

    Example:
      >>> spread_over(2, 10, 8)
      [12, 16]
    """
    return [start + (2 * i + 1) * room // (2 * n) for i in range(n)]


def eagle3_layers(layers: int) -> Sequence[int]:
    """The layers that EAGLE-3 reads, 2, L/2 and L - 3, and the last one, as our own drafts do.

    Example:
      >>> eagle3_layers(28)
      (2, 14, 25, 28)
    """
    return tuple(sorted({min(2, layers), layers // 2, max(layers - 3, 0), layers}))
