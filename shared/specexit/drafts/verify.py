"""``specexit verify``: do the JAX and the PyTorch draft say the same on real traces?

Each framework runs its ``probe`` module in a process of its own, on the CPU in float32; this module imports neither.
One trace is held at a time, and of its logits the rows that `specexit.drafts.probing` keeps. Both would share the
mistakes of a conversion, so the PyTorch side also says how many drafted tokens the text accepts, and whether it accepts
clearly more with one of the classic mistakes undone (`torch_specexit.mistakes`). What was found is written into the
draft directory as ``verify.json``, with the hash of the weights it is true of.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from signal import SIGKILL
from typing import Any

import numpy as np
from jaxtyping import Float
from rich.console import Console
from rich.table import Table

from specexit.config import write_text
from specexit.data.traces import target_named_in
from specexit.drafts.directory import open_draft, read_config
from specexit.drafts.probing import ENGINE, MISTAKES
from specexit.drafts.tensors import weights_hash
from specexit.drafts.verified import FILE, Accepted, acceptance_words, geometry_sha256
from specexit.errors import InputError
from specexit.method.signals import NAMES, SIGNALS
from specexit.schemas.target import target_reference
from specexit.schemas.verify import VerifyConfig

SIDES = {"jax": "jax_specexit.probe", "torch": "torch_specexit.probe"}
VLLM = "vllm"
PROBES = SIDES | {VLLM: "torch_specexit.engine_probe"}
ENGINE_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1, "float16": 0.02}
"""Largest difference of an engine's draft logits from the float32 reference's, as a share of a row's largest one; and
of its signals.

In float32 only the order of sums differs. A number in bfloat16 is right to one part in 256 and one in float16 to one in
2,048; target, cache and draft round anew at every layer, and roundings add up. Measured on the tiny reasoner: 3e-6 of
logits and 2e-5 of signals in float32, 0.013 and 0.034 in bfloat16; float16's is that, eight times as exact, with room.
"""
ACCEPTANCE_TOLERANCE = 0.1
"""Tokens per step; where two drafts are about equal, rounding decides. Measured over some hundred steps: 0.04 in
bfloat16, nothing in float32."""
NEVER = 104.0
"""A token whose logit is so far below its row's largest has probability 0 in float32: ``exp(-104) < 2**-150``."""
ROWS_SHOWN = 6


class VerifyError(InputError):
    """The two frameworks disagree, or one of them could not run."""


def verify(config: VerifyConfig) -> dict[str, float]:
    """Compare both frameworks, print the result and write ``verify.json``.

    Returns:
      Largest difference of each quantity.

    Raises:
      DraftError, TraceError: an input is unusable.
      VerifyError: a side failed to run, a difference is beyond the tolerance, or the draft looks wrongly converted.
    """
    open_draft(config.draft)
    with tempfile.TemporaryDirectory() as scratch:
        sides = {side: _probe(side, config, Path(scratch) / side) for side in SIDES}
        record, first = _compared(config, sides)
        record |= json.loads((sides["torch"] / MISTAKES).read_text())
        if find_spec("vllm") is not None if config.vllm is None else config.vllm:
            served = _probe(VLLM, config, Path(scratch) / VLLM)
            record["vllm"] = _judged(json.loads((served / ENGINE).read_text()))
            record["passed"] &= record["vllm"]["passed"]
    _show(config, record, first)
    differences = dict(record["differences"])
    if not all(np.isfinite(value) for value in differences.values()):
        record["differences"] = {name: str(value) for name, value in differences.items()}  # JSON knows no NaN
    write_text(config.draft / FILE, json.dumps(record, indent=2) + "\n")
    beyond = _beyond(config, differences)
    if beyond:
        listed = ", ".join(f"{name} {value:.2e}" for name, value in beyond.items())
        raise VerifyError(
            f"{config.draft}: JAX and PyTorch differ beyond the tolerance of {config.tolerance:g}: {listed}"
        )
    wrong = record.get("vllm", {}).get("wrong")
    if wrong:
        raise VerifyError(f"{config.draft}: vLLM does not draft as PyTorch does: {wrong}")
    if record["mistakes"]:
        raise VerifyError(f"{config.draft}: {'; '.join(record['mistakes'])}")
    return differences


def _compared(config: VerifyConfig, sides: dict[str, Path]) -> tuple[dict[str, Any], tuple[dict, dict] | None]:
    """What ``verify.json`` says of the two frameworks, and the arrays of the first trace."""
    differences: dict[str, float] = {}
    same = drafts = 0
    first = None
    files = [sorted(path.name for path in side.glob("*.npz")) for side in sides.values()]
    if files[0] != files[1] or not files[0]:
        raise VerifyError(f"{config.traces}: JAX probed {len(files[0])} traces and PyTorch {len(files[1])}")
    for name in files[0]:
        jax, torch = (_arrays(side / name) for side in sides.values())
        for quantity, value in compare(jax, torch).items():
            _raise_to(differences, quantity, np.array(value))
        for key in jax:
            if key.startswith("logits"):
                same += int((jax[key].argmax(-1) == torch[key].argmax(-1)).sum())
                drafts += len(jax[key])
        first = first or (jax, torch)
    record = {
        "format_version": 1,
        "weights_blake3": weights_hash(config.draft),
        "geometry_sha256": geometry_sha256(read_config(config.draft)),
        "n": len(files[0]),
        "steps": config.steps,
        "tolerance": config.tolerance,
        "differences": differences,
        "greedy_drafts": {"compared": drafts, "same": same},
        "passed": not _beyond(config, differences),
    }
    return record, first


def _beyond(config: VerifyConfig, differences: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in differences.items() if not value <= config.tolerance}


def _judged(found: dict[str, Any]) -> dict[str, Any]:
    """An engine's result with ``tolerance``, ``passed`` and, where it is not, what is ``wrong``."""
    tolerance = ENGINE_TOLERANCE[found["dtype"]]
    beyond = {name: value for name, value in found["differences"].items() if not value <= tolerance}
    ours, theirs = (found["acceptance"][side]["length"] for side in ("torch", "vllm"))
    wrong = [f"{name} differs by {value:.1e}, expected at most {tolerance:g}" for name, value in beyond.items()]
    if abs(ours - theirs) > ACCEPTANCE_TOLERANCE:
        wrong.append(f"acceptance length is {theirs:.3f}, {ours:.3f} by the reference on the same text")
    return found | {"tolerance": tolerance, "passed": not wrong, "wrong": "; ".join(wrong)}


def _show(config: VerifyConfig, record: dict[str, Any], first: tuple[dict, dict] | None) -> None:
    console = Console()
    console.print(_difference_table(record["differences"], config.tolerance))
    if first is not None and "signals" in first[0]:
        console.print(_rows_table(first[0]["signals"], first[1]["signals"]))
    if "vllm" in record:
        console.print(_engine_table(record["vllm"]))
    if record["acceptance"] is not None:
        console.print(acceptance_words(Accepted.model_validate(record["acceptance"])), markup=False, highlight=False)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return dict(arrays)


def _probe(side: str, config: VerifyConfig, out: Path) -> Path:
    out.mkdir()
    command = [sys.executable, "-m", PROBES[side], "--draft", str(config.draft), "--traces", str(config.traces)]
    name = read_config(config.draft).target_name or target_named_in(config.traces)
    target = target_reference(config.target, config.draft, config.traces, name=name)
    command += ["--target", target, "--n", str(config.n), "--out", str(out)]
    command += ["--steps", str(config.steps), "--rows", str(config.rows), "--tokens", str(config.tokens)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    if done.returncode == -SIGKILL:
        raise VerifyError(
            f"python -m {PROBES[side]} was killed, as is done where memory runs out: expected a smaller "
            f"tokens={config.tokens}, or more memory"
        )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise VerifyError(f"python -m {PROBES[side]} failed with exit code {done.returncode}: {last}")
    return out


def compare(jax: dict[str, np.ndarray], torch: dict[str, np.ndarray]) -> dict[str, float]:
    """Largest difference of the logits of each draft step and of each signal, in one trace.

    Absolute, but relative for an exponential signal: its values are token counts, and a difference ``d`` before the
    activation becomes ``d`` times the value behind it. Also relative for a logit that PyTorch has `NEVER` below its
    row's largest: where a draft keeps tokens out of reach at -20,000, float32 itself is not right to 1e-4.

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
        difference = np.abs(jax[name] - torch[name])
        if name.startswith("logits"):
            step = int(name.rpartition("_")[2])
            never = torch[name] < torch[name].max(axis=-1, keepdims=True) - NEVER
            scale = np.where(never, np.maximum(np.abs(torch[name]), 1.0), 1.0)
            _raise_to(found, "logits" if step == 0 else f"logits, draft step {step}", difference / scale)
        elif name == "signals":
            for column, signal in enumerate(SIGNALS):
                scale = 1.0 if signal.activation == "sigmoid" else torch[name][:, column]
                _raise_to(found, signal.name, difference[:, column] / scale)
    return found


def _raise_to(found: dict[str, float], name: str, differences: np.ndarray) -> None:
    # np.maximum, unlike max, lets a NaN through, and a NaN is a difference beyond any tolerance.
    found[name] = float(np.maximum(found.get(name, 0.0), differences.max(initial=0.0)))


def _difference_table(differences: dict[str, float], tolerance: float) -> Table:
    table = Table("quantity", "largest difference", "", title="JAX against PyTorch, float32", title_justify="left")
    for name, value in differences.items():
        table.add_row(name, f"{value:.2e}", "ok" if value <= tolerance else f"beyond {tolerance:g}")
    return table


def _engine_table(found: dict[str, Any]) -> Table:
    title = f"vLLM {found['vllm']} in {found['dtype']} against PyTorch in float32, on its own greedy text"
    table = Table("quantity", "vLLM", "PyTorch", "largest difference", "", title=title, title_justify="left")
    for name, value in found["differences"].items():
        table.add_row(name, "", "", f"{value:.2e}", "ok" if value <= found["tolerance"] else "beyond")
    lengths = [f"{found['acceptance'][side]['length']:.3f}" for side in ("vllm", "torch")]
    table.add_row("acceptance length", *lengths, "", "")
    drafts = found["greedy_drafts"]
    table.add_row("greedy drafts", f"{drafts['same']} of {drafts['compared']} the same", "", "", "")
    return table


def _rows_table(jax: Float[np.ndarray, "think signals"], torch: Float[np.ndarray, "think signals"]) -> Table:
    table = Table("#", *NAMES, title="First thinking tokens, JAX / PyTorch", title_justify="left")
    for i, (ours, theirs) in enumerate(zip(jax[:ROWS_SHOWN], torch[:ROWS_SHOWN], strict=True)):
        table.add_row(str(i), *(f"{a:.4g} / {b:.4g}" for a, b in zip(ours, theirs, strict=True)))
    return table
