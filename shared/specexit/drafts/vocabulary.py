"""The draft vocabulary of a published draft: offsets or ids, with or without the target's side of it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from specexit.drafts.config import DraftError

Form = Literal["offsets", "ids", "whole"]
"""How a draft token's target token is stated: what is added to it, the token itself, or not at all: it is the same."""


def read_vocabulary(
    d2t: np.ndarray | None, t2d: np.ndarray | None, size: int, vocab_size: int, path: Path
) -> tuple[np.ndarray, Form]:
    """Target id of every draft token, and how ``d2t`` states it.

    Args:
      d2t: as published; None where the draft has none.
      t2d: whether a target token has a draft token; None where the draft does not say.
      size, vocab_size: of the draft's vocabulary and of the target's.
      path: named in errors.

    Raises:
      DraftError: ``d2t`` is missing though the draft's vocabulary, or what ``t2d`` marks, is a part of the target's;
        its values are neither offsets nor ids, they could be both, or ``t2d`` says otherwise.
    """
    known = None if t2d is None else _known(t2d, vocab_size, path)
    if d2t is None:
        if size != vocab_size:
            raise DraftError(f"{path}: tensor d2t is missing, but draft_vocab_size is {size} of {vocab_size} tokens")
        if known is not None and not known.all():
            raise DraftError(
                f"{path}: tensor t2d says that target token {known.argmin()} has no draft token, but draft_vocab_size "
                f"is {size}, as many as the target has, and there is no d2t"
            )
        return np.arange(size), "whole"
    if d2t.dtype.kind not in "iu" or d2t.shape != (size,):
        raise DraftError(
            f"{path}: tensor d2t is {d2t.dtype} {list(d2t.shape)}, expected integers [{size}], draft_vocab_size"
        )
    numbers = d2t.astype(np.int64)
    readings: dict[Form, np.ndarray] = {"offsets": numbers + np.arange(size), "ids": numbers}
    fits: dict[Form, np.ndarray] = {
        form: ids for form, ids in readings.items() if _is_vocabulary(ids, vocab_size, known)
    }
    if len(fits) == 2 and not np.array_equal(fits["offsets"], fits["ids"]):
        add = f"add t2d, true or false for each of the {vocab_size} target tokens" if known is None else "t2d fits both"
        raise DraftError(
            f"{path}: tensor d2t begins with {numbers[:4].tolist()} and can be read as offsets and as ids: {add}"
        )
    if not fits:
        first = numbers[0] if size else None
        against = "" if known is None else " that t2d marks"
        raise DraftError(
            f"{path}: tensor d2t begins with {first} and holds neither offsets nor ids of {size} different tokens "
            f"below vocab_size {vocab_size}{against}"
        )
    form: Form = "offsets" if "offsets" in fits else "ids"
    return fits[form], form


def _known(t2d: np.ndarray, vocab_size: int, path: Path) -> np.ndarray:
    if t2d.shape != (vocab_size,) or t2d.dtype.kind not in "biu" or not np.isin(t2d, (0, 1)).all():
        raise DraftError(f"{path}: tensor t2d is {t2d.dtype} {list(t2d.shape)}, expected true or false [{vocab_size}]")
    return t2d.astype(bool)


def _is_vocabulary(ids: np.ndarray, vocab_size: int, known: np.ndarray | None) -> bool:
    if ids.size and (ids.min() < 0 or ids.max() >= vocab_size):
        return False
    counts = np.bincount(ids, minlength=vocab_size)
    return bool(counts.max(initial=0) <= 1) and (known is None or np.array_equal(counts > 0, known))
