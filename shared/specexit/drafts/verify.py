"""``specexit verify``: do the JAX and the PyTorch draft say the same on real traces?

Each framework runs its ``probe`` module in a process of its own, in the same dtype; this module imports neither. One
trace is held in memory at a time. Logits lie on the disk until both have run, of so few rows of each trace that they
fit there whatever the number of traces, see `specexit.drafts.probing`.

Both frameworks would share the mistakes of a conversion, so the PyTorch side also says how many drafted tokens the text
accepts, and whether it accepts clearly more with one of the classic mistakes undone (`torch_specexit.mistakes`). What
was found is written into the draft directory as ``verify.json``, with the hash of the weights it is true of.
"""

from __future__ import annotations

import json
import os
import subprocess
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
from specexit.data.traces import check_tokenizer, target_named_in, target_of_both, vocab_size_of
from specexit.drafts.agreement import DRAFTS_APART, TOLERANCE, VerifyError, compare, drafts_agree, raise_to
from specexit.drafts.directory import DraftConfig, open_draft, read_config
from specexit.drafts.fingerprints import target_fingerprint
from specexit.drafts.probing import (
    ENGINE,
    MISTAKES,
    RAN,
    SCRATCH,
    first_traces,
    is_judged,
    length_of,
    most_rows,
    needed,
)
from specexit.drafts.tensors import weights_hash
from specexit.drafts.verified import FILE, Accepted, acceptance_words, geometry_sha256
from specexit.errors import install
from specexit.method.signals import NAMES
from specexit.outputs import removed_at_the_end
from specexit.processes import python
from specexit.schemas.target import TargetConfig, target_reference
from specexit.schemas.verify import VerifyConfig
from specexit.trainable import untrainable

VLLM = "vllm"
PROBES = {"jax": "jax_specexit.probe", "torch": "torch_specexit.probe", VLLM: "torch_specexit.engine_probe"}
ACCEPTANCE_TOLERANCE = 0.1
"""Tokens per step; where two drafts are about equal, rounding decides. Measured over some hundred steps: 0.04 in
bfloat16, nothing in float32."""
ROWS_SHOWN = 6
NAMED = 8
"""How many of the traces that do not count a warning names."""


def verify(config: VerifyConfig) -> dict[str, float]:
    """Compare both frameworks, print the result and write ``verify.json``.

    Returns:
      Quantity -> its difference, the largest of all traces; see `specexit.drafts.agreement.compare`.

    Raises:
      DraftError, TraceError: an input is unusable, or draft and traces are of different targets, or of different
        tokenizers.
      ConfigError: the target is unknown, its model is not there, or the one given is not theirs.
      VerifyError: a framework is not installed, JAX has no forward pass of the target, no trace says anything of the
        draft, a side failed to run, a difference is beyond the tolerance, the two draft otherwise, or the draft looks
        wrongly converted.
    """
    missing = [name for name in ("jax", "torch") if find_spec(name) is None]
    if missing:
        raise VerifyError(f"specexit verify needs {' and '.join(missing)}: {install('train,serve')}")
    draft, _ = open_draft(config.draft)
    target = target_of_both(config.traces, config.draft, draft.target_name, config.target)
    target.model_file("config.json")  # where the model is gone, no side has to start
    if (why := untrainable(target.hf_config())) is not None:
        raise VerifyError(
            f"{target.config_place}: {why}: there is nothing to compare PyTorch with. Judge the draft with `specexit "
            "score` and `specexit simulate`"
        )
    check_tokenizer(config.traces, target)  # another one's ids are other text, which no draft guesses
    config, asked = _within(config, draft, target), config.tokens
    n, passed_over = _passed_over(config, vocab_size_of(target), asked)
    config = config.model_copy(update={"n": n})
    rows = _kept(config, draft)
    with removed_at_the_end(), tempfile.TemporaryDirectory() as scratch:
        torch = _probe("torch", config, Path(scratch) / "torch")
        ran = json.loads((torch / RAN).read_text())  # PyTorch knows whether there is a GPU
        dtype, device = ran["dtype"], ran["device"]
        config = config.model_copy(
            update={"dtype": dtype, "device": device, "tolerance": config.tolerance or TOLERANCE[dtype]}
        )
        jax = _probe("jax", config, Path(scratch) / "jax")
        devices = {"jax": json.loads((jax / RAN).read_text())["device"], "torch": device}
        record, first = _compared(config, (jax, torch))
        record["target_fingerprint"] = target_fingerprint(target.folder)
        record |= {"passed_over": passed_over, "rows": rows, "dtype": dtype, "devices": devices}
        record |= json.loads((torch / MISTAKES).read_text())
        if find_spec("vllm") is not None if config.vllm is None else config.vllm:
            served = _probe(VLLM, config, Path(scratch) / VLLM)
            record["vllm"] = _judged(json.loads((served / ENGINE).read_text()), dtype)
            record["passed"] &= record["vllm"]["passed"]
    _show(record, first)
    write_text(config.draft / FILE, json.dumps(_in_words(record), indent=2, allow_nan=False) + "\n")
    _raise_what_is_wrong(config, record)
    return record["differences"]


def _in_words(value: Any) -> Any:
    """The same with NaN and infinity as words, which JSON has no numbers for."""
    if isinstance(value, dict):
        return {name: _in_words(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_in_words(inner) for inner in value]
    return str(value) if isinstance(value, float) and not np.isfinite(value) else value


def _raise_what_is_wrong(config: VerifyConfig, record: dict[str, Any]) -> None:
    """Raise the first of what speaks against the draft."""
    beyond, dtype = _beyond(record["differences"], record["tolerance"]), record["dtype"]
    drafts = record["greedy_drafts"]
    if beyond:
        listed = ", ".join(f"{name} {value:.2e}" for name, value in beyond.items())
        raise VerifyError(
            f"{config.draft}: JAX and PyTorch differ beyond the tolerance of {record['tolerance']:g}, {dtype}: {listed}"
        )
    if not drafts["passed"]:
        raise VerifyError(
            f"{config.draft}: JAX and PyTorch draft otherwise: {drafts['same']} of {drafts['compared']} greedy drafts "
            f"are the same, {dtype}, expected all but a share of {DRAFTS_APART[dtype]:g}, which rounding may decide"
        )
    wrong = record.get("vllm", {}).get("wrong")
    if wrong:
        raise VerifyError(f"{config.draft}: vLLM does not draft as PyTorch does: {wrong}")
    if record["mistakes"]:
        raise VerifyError(f"{config.draft}: {'; '.join(record['mistakes'])}")


def _within(config: VerifyConfig, draft: DraftConfig, target: TargetConfig) -> VerifyConfig:
    """The config with no more ``tokens`` than draft and target have positions; warns where traces are longer.

    Raises:
      ConfigError: the target's config cannot be read.
      TraceError: a trace cannot be read.
    """
    limits = {config.draft / "config.json": draft.max_position_embeddings, target.config_place: target.positions()}
    file, most = min(limits.items(), key=lambda limit: limit[1])
    if config.tokens <= most:
        return config
    longer = sum(length_of(trace) > most for trace in first_traces(config.traces, config.n))
    if longer:
        _warn(
            f"{file}: there are {most:.0f} positions (max_position_embeddings, and RoPE's scaling), beyond which "
            f"nothing is served, so {longer} traces are read up to there only, and not up to tokens={config.tokens}"
        )
    return config.model_copy(update={"tokens": int(most)})


def _passed_over(config: VerifyConfig, vocab_size: int, asked: int) -> tuple[int, list[str]]:
    """How many traces there are up to the n-th, and the ids of those that cannot judge a draft, of which it warns.

    Args:
      config: of the command, as `_within` returns it.
      vocab_size: of the target.
      asked: the ``tokens`` that it had before.

    Raises:
      VerifyError: none can judge, see `specexit.drafts.probing.is_judged`.
      TraceError: a trace cannot be read, or has a token beyond ``vocab_size``.
    """
    n, over, more = 0, list[str](), list[int]()
    for trace in first_traces(config.traces, config.n, vocab_size):
        n += 1
        if not is_judged(trace, config.tokens, config.steps):
            over.append(trace.id)
            more += [least] if is_judged(trace, least := needed(trace, config.steps), config.steps) else []
    if len(over) == n:
        expected = "traces of shorter prompts" if more else "longer traces"
        if more and config.tokens == asked:  # else there are no more positions
            expected = f"at least tokens={min(more)}, or {expected}"
        raise VerifyError(
            f"{config.traces}: of {n} traces none has thinking and the tokens of steps={config.steps} draft "
            f"steps behind its prompt within tokens={config.tokens}, expected {expected}"
        )
    if not over:
        return n, []
    listed = ", ".join(over[:NAMED]) + (", ..." if len(over) > NAMED else "")
    _warn(
        f"{config.traces}: {len(over)} of {n} traces do not count, as their prompts fill "
        f"tokens={config.tokens} or they end at once: {listed}"
    )
    return n, over


def _warn(text: str) -> None:
    Console(stderr=True).print(text, style="yellow", soft_wrap=True, markup=False, highlight=False)


def _kept(config: VerifyConfig, draft: DraftConfig) -> int:
    """How many rows of each trace have their logits compared; warns where that is fewer than asked for."""
    rows = most_rows(config.rows, config.n, config.steps, draft.draft_vocab_size)
    if rows < config.rows:
        _warn(
            f"rows={config.rows}: {rows} rows of each of {config.n} traces are compared, as the logits of all "
            f"{draft.draft_vocab_size} draft tokens take at most {SCRATCH / 2**30:g} GiB of temporary files a side; "
            "acceptance and mistakes are looked for in all"
        )
    return rows


def _compared(config: VerifyConfig, sides: tuple[Path, Path]) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Compare what both probes have written, and remove each trace's files once they are compared.

    Args:
      config: with ``dtype`` and ``tolerance``.
      sides: folders of the JAX and the PyTorch probe.

    Returns:
      What ``verify.json`` says of the two frameworks, and the signals of both on the first trace, none of a plain
      draft.

    Raises:
      VerifyError: the two have not written the same traces, or not the same arrays of one.
    """
    assert config.dtype is not None, "the PyTorch side says it"
    assert config.tolerance is not None, "the dtype says it"
    differences: dict[str, float] = {}
    same = drafts = 0
    first = list[np.ndarray]()
    files = [sorted(path.name for path in side.glob("*.npz")) for side in sides]
    if files[0] != files[1] or not files[0]:
        raise VerifyError(f"{config.traces}: JAX probed {len(files[0])} traces and PyTorch {len(files[1])}")
    for name in files[0]:
        jax, torch = (_arrays(side / name) for side in sides)
        for quantity, value in compare(jax, torch, config.dtype).items():
            raise_to(differences, quantity, value)
        for key in jax:
            if key.startswith("logits"):
                same += int((jax[key].argmax(-1) == torch[key].argmax(-1)).sum())
                drafts += len(jax[key])
        first = first or [side["signals"] for side in (jax, torch) if "signals" in side]
        for side in sides:
            (side / name).unlink()
    agree = drafts_agree(same, drafts, config.dtype)
    record = {
        "format_version": 1,
        "weights_blake3": weights_hash(config.draft),
        "geometry_sha256": geometry_sha256(read_config(config.draft)),
        "n": len(files[0]),
        "steps": config.steps,
        "tolerance": config.tolerance,
        "differences": differences,
        "greedy_drafts": {"compared": drafts, "same": same, "passed": agree},
        "passed": agree and not _beyond(differences, config.tolerance),
    }
    return record, first


def _beyond(differences: dict[str, float], tolerance: float) -> dict[str, float]:
    return {name: value for name, value in differences.items() if not value <= tolerance}


def _judged(found: dict[str, Any], dtype: str) -> dict[str, Any]:
    """An engine's result with its ``tolerance``, whether it ``passed``, and what is ``wrong``, empty where nothing is.

    Args:
      found: what its probe wrote.
      dtype: of the reference, which may be the one that rounds more.
    """
    tolerance = max(TOLERANCE[found["dtype"]], TOLERANCE[dtype])
    beyond = _beyond(found["differences"], tolerance)
    ours, theirs = (found["acceptance"][side]["length"] for side in ("torch", "vllm"))
    wrong = [f"{name} differs by {value:.1e}, expected at most {tolerance:g}" for name, value in beyond.items()]
    if abs(ours - theirs) > ACCEPTANCE_TOLERANCE:
        wrong.append(f"acceptance length is {theirs:.3f}, {ours:.3f} by the reference on the same text")
    return found | {"tolerance": tolerance, "passed": not wrong, "wrong": "; ".join(wrong)}


def _show(record: dict[str, Any], first: list[np.ndarray]) -> None:
    console = Console()
    console.print(_difference_table(record))
    if first:
        console.print(_rows_table(*first))
    if "vllm" in record:
        console.print(_engine_table(record["vllm"], record["dtype"]))
    if record["acceptance"] is not None:
        console.print(acceptance_words(Accepted.model_validate(record["acceptance"])), markup=False, highlight=False)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return dict(arrays)


def _probe(side: str, config: VerifyConfig, out: Path) -> Path:
    out.mkdir()
    command = python(PROBES[side], "--draft", str(config.draft), "--traces", str(config.traces))
    target = target_reference(config.target, config.draft, config.traces, name=target_named_in(config.traces))
    command += ["--target", target, "--n", str(config.n), "--out", str(out)]
    command += ["--steps", str(config.steps), "--rows", str(config.rows), "--tokens", str(config.tokens)]
    command += [f"--{name}={value}" for name in ("dtype", "device") if (value := getattr(config, name))]
    platforms = {} if config.device == "cuda" else {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | platforms)
    if done.returncode == -SIGKILL:
        raise VerifyError(
            f"python -m {PROBES[side]} was killed, as is done where memory runs out: expected a smaller "
            f"tokens={config.tokens}, dtype=bfloat16, or more memory"
        )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise VerifyError(f"python -m {PROBES[side]} failed with exit code {done.returncode}: {last}")
    return out


def _difference(dtype: str) -> str:
    return "largest difference" if dtype == "float32" else "difference (rms)"


def _difference_table(record: dict[str, Any]) -> Table:
    devices, tolerance = record["devices"], record["tolerance"]
    where = "" if set(devices.values()) == {"cpu"} else f" (JAX on {devices['jax']}, PyTorch on {devices['torch']})"
    title = f"JAX against PyTorch, {record['dtype']}{where}"
    table = Table("quantity", _difference(record["dtype"]), "", title=title, title_justify="left")
    for name, value in record["differences"].items():
        table.add_row(name, f"{value:.2e}", "ok" if value <= tolerance else f"beyond {tolerance:g}")
    drafts = record["greedy_drafts"]
    same = f"{drafts['same']} of {drafts['compared']} the same"
    table.add_row("greedy drafts", same, "ok" if drafts["passed"] else f"beyond {DRAFTS_APART[record['dtype']]:g}")
    return table


def _engine_table(found: dict[str, Any], dtype: str) -> Table:
    engine = f"vLLM {found['vllm']} ({found['runner']} runner) in {found['dtype']}"
    title = f"{engine} against PyTorch in {dtype}, on its own greedy text"
    rounded = dtype if found["dtype"] == "float32" else found["dtype"]
    table = Table("quantity", "vLLM", "PyTorch", _difference(rounded), "", title=title, title_justify="left")
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
