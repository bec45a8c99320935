"""The sliding window of a draft's attention: what it means, and how a ``config.json`` says it.

With a window of ``W`` a query attends to itself and to the ``W - 1`` positions before it, as in vLLM (``W - 1`` to the
left), transformers (``key > query - W``) and speculators. A later draft step stands further on: step ``k`` of row ``t``
is at position ``t + k``, and sees of the first pass the last ``W - k`` rows up to ``t``, then one key for each step
since. vLLM serves that, so PyTorch and JAX compute it, in training, too. speculators 0.9.0 trains with a window that
stays where the first pass had it: a later step sees ``k`` rows more at its far end.

vLLM goes by ``layer_types`` and takes the width from ``sliding_window``. ``use_sliding_window`` is transformers':
without it, a Qwen3 config forgets the width. To a draft that says none vLLM gives its target's, where all layers of the
target have one (``CacheConfig.sliding_window``); a draft whose signals would be read in it is refused there, see
`torch_specexit.plugin.compat.checks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from specexit.errors import InputError, shown

SLIDING = ["sliding_attention"]
"""``layer_types`` of a draft with a window."""
MOST = 2**31 - 1
"""Widest window that has a meaning: positions are int32."""


def window_fields(width: int | None) -> dict[str, Any]:
    """What a ``config.json`` says of a window, for every program that reads one; nothing of full attention."""
    return {} if width is None else {"sliding_window": width, "use_sliding_window": True, "layer_types": SLIDING}


def window_of(config: Mapping[str, Any]) -> int | None:
    """The window that a ``config.json`` says; None of full attention.

    Example:
      >>> window_of({"sliding_window": 2048, "use_sliding_window": True, "layer_types": ["sliding_attention"]})
      2048

    Raises:
      ValueError: its keys contradict each other, or the width is no number of tokens.
    """
    types, width, used = (config.get(key) for key in ("layer_types", "sliding_window", "use_sliding_window"))
    if types != SLIDING:
        if used is not False and width is not None:
            raise ValueError(
                f"sliding_window is {shown(width)}, but layer_types {shown(types)}, expected {SLIDING}, by which vLLM "
                "goes, or no window"
            )
        return None
    if used is not True:
        raise ValueError(f"use_sliding_window is {shown(used)}, expected True with layer_types {SLIDING}")
    if type(width) is not int or not 0 < width <= MOST:
        raise ValueError(
            f"sliding_window is {shown(width)}, expected a number from 1 to {MOST} with layer_types {SLIDING}"
        )
    return width


def first_pass_rows(window: int, step: int) -> int:
    """How many rows of the first pass draft step ``step`` sees, its own the last of them.

    Raises:
      InputError: there are none.
    """
    if window <= step:
        raise InputError(f"sliding_window is {window}, expected more than {step}, the draft steps before the last one")
    return window - step
