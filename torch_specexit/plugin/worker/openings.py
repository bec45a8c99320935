"""Whether a prompt opens the thinking: the last think marker in it says so.

`opens_thinking` is the definition, on a list. A list of 131,072 tokens takes milliseconds to look through, which no
step has. So a worker looks only at the end of the list, where the marker nearly always is (`opens_at_end`). Where there
is none, it looks at the array in which vLLM itself keeps the prompt: V1's on the host (`opens_in`), V2's on the device
(`opens_on_device`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

TAIL = 256
"""Tokens at the end of a prompt that are looked at in its list."""


def opens_thinking(prompt_ids: Sequence[int], start: int, end: Sequence[int]) -> bool:
    """Whether the last think marker of a prompt is an opening one.

    Args:
      prompt_ids: the prompt.
      start: what opens the thinking.
      end: what closes it, one token or several.

    Example:
      >>> opens_thinking([1, 5, 2, 1, 7], start=1, end=[2]), opens_thinking([1, 5, 2], start=1, end=[2])
      (True, False)
    """
    ids = prompt_ids if isinstance(prompt_ids, list) else list(prompt_ids)
    known = opens_at_end(ids, start, end)
    return _last_in_list(ids, [start], 0) > _last_in_list(ids, end, 0) if known is None else known


def begin_of(prompt_ids: Sequence[int], output_ids: Sequence[int], start: int, end: Sequence[int]) -> int:
    """Where the thinking begins in the output of a request: at its beginning, unless the model itself has opened it.

    Args:
      prompt_ids: of the request.
      output_ids: of the request. Where the prompt has opened the thinking, a marker in here is a part of it, or of the
        answer.
      start: what opens the thinking.
      end: what closes it, one token or several.

    Example:
      >>> begin_of([5], [1, 7, 2], start=1, end=[2]), begin_of([5, 1], [7, 2, 1, 7], start=1, end=[2])
      (1, 0)
    """
    if start not in output_ids or opens_thinking(prompt_ids, start, end):
        return 0
    return output_ids.index(start) + 1


def opens_at_end(prompt_ids: list[int], start: int, end: Sequence[int]) -> bool | None:
    """The same, from the last `TAIL` tokens; None where they hold no marker and there are more. See `opens_thinking`.

    Example:
      >>> opens_at_end([1, *[7] * TAIL], start=1, end=[2]) is None, opens_at_end([5, 7], start=1, end=[2])
      (True, False)
    """
    low = max(len(prompt_ids) - TAIL, 0)
    opened, closed = _last_in_list(prompt_ids, [start], low), _last_in_list(prompt_ids, end, low)
    return None if low and opened == closed else opened > closed


def opens_in(tokens: Int[np.ndarray, " prompt"], start: int, end: Sequence[int]) -> bool:
    """The same, of an array. See `opens_thinking`."""

    def last(piece: Sequence[int]) -> int:
        places = np.flatnonzero(_begins(tokens, piece))
        return int(places[-1]) + len(piece) if len(places) else 0

    return last([start]) > last(end)


def opens_on_device(tokens: Int[Tensor, " prompt"], start: int, end: Sequence[int]) -> Bool[Tensor, ""]:
    """The same, of a tensor, on its device: the host does not wait for it. See `opens_thinking`."""

    def last(piece: Sequence[int]) -> Int[Tensor, ""]:
        found = _begins(tokens, piece)
        behind = torch.arange(len(piece), len(piece) + len(found), dtype=torch.int32, device=tokens.device)
        return torch.where(found, behind, 0).max() if len(found) else tokens.new_zeros((), dtype=torch.int32)

    return last([start]) > last(end)


def _begins(tokens: Int[np.ndarray, " prompt"] | Int[Tensor, " prompt"], piece: Sequence[int]) -> Any:
    """Where a piece begins, as an array of the same kind, shorter by all but one of the piece's tokens."""
    size = max(len(tokens) - len(piece) + 1, 0)
    found = tokens[:size] == piece[0]
    for i, token in enumerate(piece[1:], 1):
        found = found & (tokens[i : i + size] == token)
    return found


def _last_in_list(ids: list[int], piece: Sequence[int], low: int) -> int:
    """Where the last such piece ends that lies behind the first ``low`` tokens; -1 for nowhere."""
    backwards, at = ids[low:], -1
    backwards.reverse()
    while True:
        try:
            at = backwards.index(piece[-1], at + 1)
        except ValueError:
            return -1
        end = len(ids) - at
        if ids[max(end - len(piece), low) : end] == list(piece):
            return end
