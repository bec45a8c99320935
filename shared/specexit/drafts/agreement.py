"""How far apart two computations of one draft may be, in each dtype, and how that is measured."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from specexit.errors import InputError
from specexit.method.signals import SIGNALS

TOLERANCE = {"float32": 1e-4, "bfloat16": 0.04, "float16": 0.005}
"""How far logits and signals may be apart, see `compare` and `overall`.

In float32 only the order of sums differs. A number in bfloat16 is right to one part in 256 and one in float16 to one in
2,048; target, cache and draft round anew at every layer, each side at places of its own, and roundings add up as the
steps of a random walk do: ten times that is allowed. Measured in bfloat16: 0.003 of logits and 0.013 of signals on the
tiny reasoner, 0.004 and 0.019 on a stand-in of Qwen3-0.6B with its 28 layers, where another RMS eps on one side, the
smallest of six mistakes, made 0.09 and 0.26.
"""
DRAFTS_APART = {"float32": 0.001, "bfloat16": 0.05, "float16": 0.01}
"""Share of greedy drafts that may differ: where two tokens are about equally likely, rounding decides. One always may.

Measured, JAX against PyTorch on the tiny reasoner: none of 3,034 in float32, none of 6,095 in float16 and 11 of 6,095
(0.2 %) in bfloat16. In bfloat16 a draft of random weights had 6 of 363 (1.7 %), a third of what is allowed.
"""
NEVER = 104.0
"""A token whose logit is so far below its row's largest has probability 0 in float32: ``exp(-104) < 2**-150``."""


class VerifyError(InputError):
    """Two computations of one draft disagree, or one of them could not run."""


def compare(jax: dict[str, np.ndarray], torch: dict[str, np.ndarray], dtype: str) -> dict[str, float]:
    """How far apart the two sides are in one trace, by the logits of each draft step and by each signal.

    In float32 it is the largest difference. It is absolute, but for an exponential signal, whose values are token
    counts, relative: a difference ``d`` before the activation becomes ``d`` times the value behind it. In a dtype that
    rounds it is the root mean square, of logits as shares of their row's largest, see `logits_apart`, and of signals
    before their activation, see `signals_apart`.

    Args:
      jax, torch: arrays of the two probes, see `specexit.drafts.probing`.
      dtype: that both were computed in.

    Returns:
      ``logits`` (``logits, draft step K`` for later steps) and the names of the signals -> their difference.

    Raises:
      VerifyError: the two sides do not hold the same arrays.
    """
    shapes = [{name: array.shape for name, array in sorted(side.items())} for side in (jax, torch)]
    if shapes[0] != shapes[1]:
        odd = sorted(name for name in shapes[0] | shapes[1] if shapes[0].get(name) != shapes[1].get(name))
        raise VerifyError(
            f"probe arrays {odd[0]} differ in shape: JAX {shapes[0].get(odd[0])}, PyTorch {shapes[1].get(odd[0])}"
        )
    exact = dtype == "float32"
    found: dict[str, float] = {}
    for name in jax:
        if name.startswith("logits"):
            step = int(name.rpartition("_")[2])
            apart = logits_apart(jax[name], torch[name], absolute=exact)
            found["logits" if step == 0 else f"logits, draft step {step}"] = overall(apart, dtype)
    if "signals" in jax:
        apart = _of_signals(jax, torch, exact=exact)
        found |= {signal.name: overall(apart[:, column], dtype) for column, signal in enumerate(SIGNALS)}
    return found


def _of_signals(
    jax: dict[str, np.ndarray], torch: dict[str, np.ndarray], *, exact: bool
) -> Float[np.ndarray, "rows signals"]:
    """Differences of signals: behind their activation if ``exact``, else before it, see `compare`."""
    if not exact:
        return signals_apart(jax["raw"], torch["raw"])
    scale = np.where([signal.activation == "sigmoid" for signal in SIGNALS], 1.0, torch["signals"])
    return np.abs(jax["signals"] - torch["signals"]) / scale


def drafts_agree(same: int, compared: int, dtype: str) -> bool:
    """Whether it is enough that ``same`` of ``compared`` greedy drafts are equal, see `DRAFTS_APART`.

    Example:
      >>> drafts_agree(99, 100, "float32"), drafts_agree(98, 100, "float32"), drafts_agree(0, 0, "float32")
      (True, False, True)
    """
    return compared - same <= max(1, DRAFTS_APART[dtype] * compared)


def overall(apart: Float[np.ndarray, "*n"], dtype: str) -> float:
    """Many differences as one number: the largest in float32, their root mean square in a dtype that rounds.

    Where signals are steep, at the end of a step of reasoning, rounding alone moves one of them far, so that the
    largest of many says little. A NaN stays NaN in both, which is beyond any tolerance. No differences at all are 0.

    Example:
      >>> overall(np.array([0.0, 0.0, 0.3, 0.4]), "float32"), overall(np.array([0.0, 0.0, 0.3, 0.4]), "bfloat16")
      (0.4, 0.25)
    """
    if not apart.size:
        return 0.0
    return float(apart.max() if dtype == "float32" else np.sqrt(np.mean(np.square(apart, dtype=np.float64))))


def logits_apart(
    found: Float[np.ndarray, "*rows vocab"], wanted: Float[np.ndarray, "*rows vocab"], *, absolute: bool = False
) -> Float[np.ndarray, "*rows vocab"]:
    """Differences of logits, as shares of the largest size of a logit in their row unless ``absolute``.

    A logit more than `NEVER` below its row's largest is measured against its own size, and does not count as the row's
    largest: at -20,000, where a draft may keep tokens out of reach, float32 itself is not right to 1e-4.

    Example:
      >>> logits_apart(np.array([[9.0, 4.0, -19_000.0]]), np.array([[10.0, 5.0, -20_000.0]])).round(2).tolist()
      [[0.1, 0.1, 0.05]]
    """
    size = np.abs(wanted)
    never = wanted < wanted.max(axis=-1, keepdims=True) - NEVER
    largest = 1.0 if absolute else np.where(never, 0.0, size).max(axis=-1, keepdims=True)
    return np.abs(found - wanted) / np.where(never, np.maximum(size, 1.0), largest)


def signals_apart(
    found: Float[np.ndarray, "*rows signals"], wanted: Float[np.ndarray, "*rows signals"]
) -> Float[np.ndarray, "*rows signals"]:
    """Differences of signals before their activation, as shares of the signal's size, or of 1 where that is smaller."""
    return np.abs(found - wanted) / np.maximum(1.0, np.abs(wanted))


def raise_to(found: dict[str, float], name: str, value: float) -> None:
    """Keep the largest value of ``name`` so far; np.maximum, unlike max, lets a NaN through."""
    found[name] = float(np.maximum(found.get(name, 0.0), value))
