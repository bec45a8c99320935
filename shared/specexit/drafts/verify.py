"""``specexit verify``: do the JAX and the PyTorch draft say the same on real traces?

Each framework runs its ``probe`` module in a process of its own, on the CPU in float32; this module imports neither.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from jaxtyping import Float
from rich.console import Console
from rich.table import Table

from specexit.data.traces import read_traces, target_named_in
from specexit.drafts.directory import read_config, read_draft
from specexit.errors import InputError
from specexit.method.signals import NAMES, SIGNALS
from specexit.schemas.target import target_reference
from specexit.schemas.verify import VerifyConfig

SIDES = {"jax": "jax_specexit.probe", "torch": "torch_specexit.probe"}
ROWS_SHOWN = 6


class VerifyError(InputError):
    """The two frameworks disagree, or one of them could not run."""


def verify(config: VerifyConfig) -> dict[str, float]:
    """Compare both frameworks and print the result.

    Returns:
      Largest difference of each quantity.

    Raises:
      DraftError, TraceError: an input is unusable.
      VerifyError: a side failed to run, or a difference is beyond the tolerance.
    """
    read_draft(config.draft)
    read_traces(config.traces, config.n)
    with tempfile.TemporaryDirectory() as folder:
        jax, torch = (_probe(side, config, Path(folder) / f"{side}.npz") for side in SIDES)
    differences = compare(jax, torch)
    console = Console()
    console.print(_difference_table(differences, config.tolerance))
    if "signals_0" in jax:
        console.print(_rows_table(jax["signals_0"], torch["signals_0"]))
    beyond = {name: value for name, value in differences.items() if not value <= config.tolerance}
    if beyond:
        listed = ", ".join(f"{name} {value:.2e}" for name, value in beyond.items())
        raise VerifyError(
            f"{config.draft}: JAX and PyTorch differ beyond the tolerance of {config.tolerance:g}: {listed}"
        )
    return differences


def _probe(side: str, config: VerifyConfig, out: Path) -> dict[str, np.ndarray]:
    command = [sys.executable, "-m", SIDES[side], "--draft", str(config.draft), "--traces", str(config.traces)]
    name = read_config(config.draft).target_name or target_named_in(config.traces)
    target = target_reference(config.target, config.draft, config.traces, name=name)
    command += ["--target", target, "--n", str(config.n), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise VerifyError(f"python -m {SIDES[side]} failed with exit code {done.returncode}: {last}")
    with np.load(out) as arrays:
        return dict(arrays)


def compare(jax: dict[str, np.ndarray], torch: dict[str, np.ndarray]) -> dict[str, float]:
    """Largest difference of logits and of each signal over all traces.

    Absolute, but relative for an exponential signal: its values are token counts, and a difference ``d`` before the
    activation becomes ``d`` times the value behind it.

    Raises:
      VerifyError: the two sides do not hold the same arrays.
    """
    shapes = [{name: array.shape for name, array in sorted(side.items())} for side in (jax, torch)]
    if shapes[0] != shapes[1]:
        odd = sorted(name for name in shapes[0] | shapes[1] if shapes[0].get(name) != shapes[1].get(name))
        raise VerifyError(
            f"probe arrays {odd[0]} differ in shape: JAX {shapes[0].get(odd[0])}, PyTorch {shapes[1].get(odd[0])}"
        )
    found: dict[str, float] = {}
    for name in jax:
        kind = name.rpartition("_")[0]
        difference = np.abs(jax[name] - torch[name])
        if kind == "logits":
            _raise_to(found, "logits", difference)
        elif kind == "signals":
            for column, signal in enumerate(SIGNALS):
                scale = 1.0 if signal.activation == "sigmoid" else torch[name][:, column]
                _raise_to(found, signal.name, difference[:, column] / scale)
    return found


def _raise_to(found: dict[str, float], name: str, differences: np.ndarray) -> None:
    # np.maximum, unlike max, lets a NaN through, and a NaN is a difference beyond any tolerance.
    found[name] = float(np.maximum(found.get(name, 0.0), differences.max()))


def _difference_table(differences: dict[str, float], tolerance: float) -> Table:
    table = Table("quantity", "largest difference", "", title="JAX against PyTorch, float32", title_justify="left")
    for name, value in differences.items():
        table.add_row(name, f"{value:.2e}", "ok" if value <= tolerance else f"beyond {tolerance:g}")
    return table


def _rows_table(jax: Float[np.ndarray, "think signals"], torch: Float[np.ndarray, "think signals"]) -> Table:
    table = Table("#", *NAMES, title="First thinking tokens, JAX / PyTorch", title_justify="left")
    for i, (ours, theirs) in enumerate(zip(jax[:ROWS_SHOWN], torch[:ROWS_SHOWN], strict=True)):
        table.add_row(str(i), *(f"{a:.4g} / {b:.4g}" for a, b in zip(ours, theirs, strict=True)))
    return table
