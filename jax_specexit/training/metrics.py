"""Where a run's numbers go: ``metrics.jsonl``, TensorBoard, Weights & Biases if asked for, and one progress bar."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jax_specexit.cluster import told_by_first
from jax_specexit.training.clock import Clock
from jax_specexit.training.run import read_began
from specexit.buckets import BucketError, BucketPath, location
from specexit.config import ConfigError, PassingError, append_text, write_text
from specexit.errors import install
from specexit.method.signals import NAMES
from specexit.status import whole_lines

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter


def acceptance_estimate(top1: Float[np.ndarray, " step"]) -> float:
    r"""Tokens per decoding step if drafts were accepted independently: :math:`1 + \sum_k \prod_{j \le k} a_j`.

    ``a_j`` is the token top-1 of TTT step j. An estimate: measured acceptance is printed by `specexit bench`.

    Example:
      >>> acceptance_estimate(np.array([0.5, 0.5]))
      1.75
    """
    return float(1 + np.cumprod(top1).sum())


def note(line: Mapping[str, Any]) -> str:
    """A metric line as text for the terminal: what is learned, how fast, and where the time since the last one went.

    Three lines of text that fit 100 columns together with the bar and its counts.
    """
    learned, fast = [f"loss {line['loss']:.3f}"], [f"goodput {line['goodput']:.0%}"]
    trained = "muon" if line["top1"] else "head"  # a frozen trunk drafts what it always did
    if line["top1"] and None not in line["top1"]:
        learned.append(f"acceptance ~{acceptance_estimate(np.asarray(line['top1'])):.2f}")
    if "learning_rate" in line:
        learned.append(f"{trained} rate {line['learning_rate'][trained]:.2g}")
    if line["tokens_per_second"] is not None:
        fast.insert(0, f"{line['tokens_per_second']:,.0f} tok/s")
    fast += [f"MFU {line['mfu']:.0%}"] if "mfu" in line else []
    fast += [f"HBM {line['hbm_peak_gib']:.1f} GiB"] if "hbm_peak_gib" in line else []
    whole = sum(line["seconds"].values()) or 1.0
    named = {"compute" if kind == "step" else kind: spent / whole for kind, spent in line["seconds"].items()}
    time = [f"{name} {share:.0%}" for name, share in named.items() if name in ("data", "compute") or share >= 0.005]
    return "\n".join("  ".join(part) for part in (learned, fast, time))


class _Events:
    """TensorBoard's file, on a disk or in a bucket: what cannot be written goes with the next flush.

    No error leaves it: tensorboardX writes in a thread of its own, which an error would end, and a run would wait for
    that thread forever. The writer for buckets in tensorboardX sends the file once more when Python ends, and tries
    that for minutes where no server answers.
    """

    def __init__(self, path: Path):
        self.path, self.data = path, bytearray()
        self.before = 0
        """Bytes of the file in front of ``data``."""
        self.behind = False
        """Whether the last flush failed."""

    @classmethod
    def open(cls, path: str) -> _Events:
        return cls(_place(path))

    @staticmethod
    def directory_check(path: str) -> None:
        _place(path).mkdir(parents=True, exist_ok=True)

    def write(self, data: bytes) -> None:
        self.data += data

    def flush(self) -> None:
        try:
            self._send()
        except OSError as error:
            if not self.behind:
                self._say(f"is behind, and written later: {error}")
            self.behind = True
        else:
            self.behind = False

    def close(self) -> None:
        """Say what is missing; tensorboardX has flushed before, and no file is open."""
        if self.behind:
            self._say("lacks what came last; metrics.jsonl has it")

    def _send(self) -> None:
        if isinstance(self.path, BucketPath):
            self.path.write_bytes(self.data)  # an object is written whole, never a part
            return
        with self.path.open("ab") as file:
            if self.behind:
                file.truncate(self.before)  # a part may have been written
            file.write(self.data)
            file.flush()
            os.fsync(file.fileno())
        self.before += len(self.data)
        self.data.clear()

    def _say(self, what: str) -> None:
        Console(stderr=True).print(f"{self.path}: {what}", soft_wrap=True, markup=False)


_FACTORY = "specexit"
"""With a colon, the prefix of paths that tensorboardX writes by `_Events`."""


def _place(path: str) -> Path:
    return location(path.removeprefix(f"{_FACTORY}:"))


def _board(run: Path, start: int) -> SummaryWriter:
    """TensorBoard's writer. Only the process that writes makes one: its import takes seconds where PyTorch is there."""
    from tensorboardX import SummaryWriter
    from tensorboardX.record_writer import register_writer_factory

    register_writer_factory(_FACTORY, _Events)
    # Often, as no later start writes what a kill loses of saved steps; less often for an object, which is sent whole.
    seconds = 120 if isinstance(run, BucketPath) else 1
    # A queue of any length: training does not wait for a bucket that is slow.
    return SummaryWriter(f"{_FACTORY}:{run / 'tensorboard'}", purge_step=start + 1, max_queue=0, flush_secs=seconds)


class Metrics:
    """Writes metric lines and drives the progress bar; use as a context manager.

    Args:
      run: folder of the run.
      total: steps of the whole run.
      start: step that it goes on from; what an interrupted run has written of later steps is dropped.
      silent: write and show nothing, as all processes do but the first.
      watch: (updates made, steps that were timed since the last line, seconds that these took) -> further numbers.
      wandb: project at Weights & Biases, or None; with one, every process has to make its own `Metrics`.

    Raises:
      ConfigError: no run can be started there, see `_start_wandb`.
    """

    def __init__(
        self,
        run: Path,
        *,
        total: int,
        start: int,
        silent: bool = False,
        wandb: str | None = None,
        watch: Callable[[int, Sequence[int], float], dict[str, Any]] | None = None,
    ):
        self.silent, self.watch, self.total = silent, watch, total
        self.began, self.trained = read_began(run), 0.0
        self.before, self.started = max(time.time() - self.began, 0.0), time.monotonic()
        """Seconds from the run's first start to this one, and when this one was: a clock may be set while it trains."""
        self.progress = Progress(
            TextColumn("train"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=silent,
        )
        self.task = self.progress.add_task("train", total=total, completed=start, note="compiling")
        self.clock, self.tokens = Clock(), 0
        self.unsent = ""
        """Lines that a bucket or a disk has not taken yet."""
        self.whole = 0
        """Bytes of the file on a disk that are whole lines; behind them may be a part of what it has not taken."""
        self.timed: list[int] = []
        """Steps since the last line, without those that compiled."""
        self.untimed: set[int] = set()
        """Steps that compiled: neither their tokens nor their time tell how fast the others are."""
        self.kept: dict[str, Any] | None = None
        """The line of a step that is being evaluated, see `keep`."""
        self.wandb = None if wandb is None else _start_wandb(run, wandb, silent=silent)
        if silent:
            return
        path, known = run / "metrics.jsonl", []
        if path.exists():
            known = _until(path, start)
            text = "".join(known)
            write_text(path, text)
            self.whole = len(text.encode())
            self.trained = _trained(known)
        self.path, self.aside = path, run / ".metrics-line.json"
        self.board = _board(run, start)
        self._write_kept(start, known)
        self.before = max(self.before, self.trained)

    def __enter__(self) -> Metrics:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
        if self.silent:
            return
        if self.unsent:
            self._send("")
        if lost := self.unsent.count("\n"):
            self._say(f"{self.path}: lacks the last lines: {lost}")
        self.board.close()
        if self.wandb is not None:
            self.wandb.finish()

    def advance(self, step: int, metrics: dict[str, Any]) -> None:
        """Move the bar to ``step``, or print a line where no bar is shown, and log ``metrics``: device arrays, and an
        evaluation where there is one."""
        line, self.kept = self.kept, None
        if line is None:
            line = self._line(step, metrics)
        else:
            line["seconds"]["evaluate"] = round(self.clock.take()["evaluate"], 4)
            line["goodput"] = self._goodput()
        if "evaluation" in metrics:
            line["evaluation"] = metrics["evaluation"]
        self.write(line)
        self._forget_kept()
        self.progress.update(self.task, completed=step, note=note(line))
        if not (self.silent or self.progress.console.is_interactive):  # there rich shows a bar only at the end
            self._say(f"step {step}/{self.total}: {'  '.join(note(line).splitlines())}")

    def keep(self, step: int, metrics: dict[str, Any]) -> None:
        """Put aside the line of a step that is evaluated next: if a kill comes before the evaluation ends, the start
        that resumes from this step writes the line."""
        self.kept = self._line(step, metrics)
        if not self.silent:
            with suppress(OSError):  # a full disk ends no run here: what a kill would lose then is a line
                write_text(self.aside, json.dumps(self.kept) + "\n")

    def _write_kept(self, start: int, known: Sequence[str]) -> None:
        """Write the line of step ``start`` that was put aside, unless it is known or cannot be read."""
        try:
            line = json.loads(self.aside.read_text())
            lacks = line["step"] == start and all(json.loads(text)["step"] != start for text in known)
            trained = float(line["trained_seconds"])
        except (OSError, ValueError, KeyError, TypeError):
            return
        if lacks:
            self.trained = trained
            self.write(line)
        self._forget_kept()

    def _forget_kept(self) -> None:
        if not self.silent:
            with suppress(OSError):
                self.aside.unlink(missing_ok=True)

    def _line(self, step: int, metrics: dict[str, Any]) -> dict[str, Any]:
        """The numbers of a step, and where the time since the last line went; counts the step."""
        host = {key: np.asarray(value) for key, value in metrics.items() if key != "evaluation"}
        self.count(step, int(host["tokens"]))
        return {
            "step": step,
            "loss": float(host["loss"]),
            "token_loss": [x and round(x, 5) for x in map(_counted, host["token_loss"])],
            "top1": [x and round(x, 5) for x in map(_counted, host["top1"])],
            "signal_loss": {name: _counted(x) for name, x in zip(NAMES, host["signal_loss"], strict=True)},
            "weights": {name: float(x) for name, x in zip(NAMES, host["weights"], strict=True)},
            "gradient_norm": float(host["gradient_norm"]),
            **self._times(step - int(host["skipped"])),
        }

    def has_evaluation(self, step: int) -> bool:
        """Whether ``metrics.jsonl`` has an evaluation of that step; False in a silent process."""
        lines = [] if self.silent or not self.path.exists() else map(json.loads, _until(self.path, step))
        return any(line["step"] == step and "evaluation" in line for line in lines)

    def count(self, step: int, tokens: int) -> None:
        """Count the tokens of a step."""
        if step not in self.untimed:
            self.tokens += tokens
            self.timed.append(step)

    def _times(self, update: int) -> dict[str, Any]:
        """Where the time since the last line went, and what follows from it."""
        spent, tokens, timed = self.clock.take(), self.tokens, self.timed
        self.tokens, self.timed = 0, []
        training = spent["data"] + spent["step"]  # what is paused for saving or evaluating is no training
        self.trained += training
        return {
            "seconds": {name: round(value, 4) for name, value in spent.items()},
            "tokens_per_second": round(tokens / training, 1) if tokens else None,
            "trained_seconds": round(self.trained, 3),
            "goodput": self._goodput(),
            **(self.watch(update, timed, training) if self.watch else {}),
        }

    def _goodput(self) -> float:
        wall = self.before + time.monotonic() - self.started
        return round(min(1.0, self.trained / wall), 4) if wall > 0 else 0.0

    def write(self, line: dict[str, Any]) -> None:
        """Append one line to ``metrics.jsonl``, and its numbers to TensorBoard and Weights & Biases.

        A line that a bucket or a disk does not take goes with the next one, for it is not worth ending a run.
        """
        if self.silent:
            return
        self._send(json.dumps(line) + "\n")
        numbers = {name: value for name, value in _flatten(line) if name != "step"}
        for name, value in numbers.items():
            self.board.add_scalar(name, value, line["step"])
        if self.wandb is not None:
            self.wandb.log(numbers, step=line["step"])

    def _send(self, text: str) -> None:
        lines = self.unsent + text
        try:
            if self.unsent and not isinstance(self.path, BucketPath):
                with self.path.open("ab") as file:
                    file.truncate(self.whole)
            append_text(self.path, lines)
        except OSError as error:
            self.unsent = lines
            if text:  # at the end there is no next one
                what = error if isinstance(error, BucketError) else f"{self.path}: cannot be written: {error}"
                self._say(f"{what}; it is tried again with the next line")
        else:
            self.unsent = ""
            self.whole += len(lines.encode())

    def _say(self, what: str) -> None:
        self.progress.console.print(what, soft_wrap=True, markup=False)


def _counted(value: np.floating) -> float | None:
    """A mean of what a batch counts; None where it counts nothing, which is NaN."""
    return None if np.isnan(value) else float(value)


def _until(path: Path, step: int) -> list[str]:
    """The `whole_lines` of a metrics file up to a step; one that cannot be read is left out and said."""
    kept = []
    for i, (text, line) in enumerate(whole_lines(path), 1):
        if line is None:
            said = f"{path}: line {i} is left out: expected a JSON object with a step"
            Console(stderr=True).print(said, soft_wrap=True, markup=False)
            continue
        if line["step"] > step:
            break
        kept.append(f"{text}\n")
    return kept


def _trained(lines: Sequence[str]) -> float:
    """Seconds of training up to the last of these lines that says so: one that holds only an evaluation does not."""
    found = (json.loads(line).get("trained_seconds") for line in reversed(lines))
    return next((float(said) for said in found if isinstance(said, int | float) and 0 <= said < math.inf), 0.0)


def check_wandb(project: str | None) -> None:
    """Check that the package wandb is there, where a project is given.

    Every process has to check: if the first one ended alone, the others would wait for it.

    Raises:
      ConfigError: it is not installed.
    """
    if project is None:
        return
    try:
        import wandb  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise ConfigError(f"wandb={project} needs the package wandb: {install('wandb')}") from error


def _start_wandb(run: Path, project: str, *, silent: bool) -> Any:
    """Start a Weights & Biases run, or resume the one that this run folder has had before; None in a silent process.

    Raises:
      ConfigError: in every process: there is no key, or one that is refused; a `PassingError` where something else
        keeps it from being started, as the network does.
    """
    started, refused, failed = None, "", ""
    if not silent:
        import wandb  # pyright: ignore[reportMissingImports]

        try:
            started = _init_wandb(wandb, run, project)
        except (wandb.errors.UsageError, wandb.errors.AuthenticationError) as error:
            refused = " ".join(f"{type(error).__name__}: {error}".split())
        except wandb.errors.Error as error:
            failed = " ".join(f"{type(error).__name__}: {error}".split())
    refused, failed = told_by_first(refused), told_by_first(failed)  # all raise it: the others would wait for the first
    if refused:
        raise ConfigError(
            f"wandb={project}: {refused}; expected an API key of Weights & Biases in the first process (WANDB_API_KEY, "
            "or `wandb login`), or WANDB_MODE=offline"
        )
    if failed:
        raise PassingError(f"wandb={project}: no run can be started there: {failed}")
    return started


def _init_wandb(wandb: Any, run: Path, project: str) -> Any:
    path = run / "wandb-id"
    if not path.exists():
        write_text(path, wandb.util.generate_id())
    disk = None if isinstance(run, BucketPath) else str(run)  # wandb writes its own files to disk only
    return wandb.init(project=project, id=path.read_text(), resume="allow", dir=disk, name=run.name)


def _flatten(value: Any, prefix: str = "") -> list[tuple[str, float]]:
    if isinstance(value, dict):
        return [pair for key, inner in value.items() for pair in _flatten(inner, f"{prefix}/{key}".lstrip("/"))]
    if isinstance(value, list):
        return [pair for i, inner in enumerate(value) for pair in _flatten(inner, f"{prefix}/{i}")]
    return [(prefix, float(value))] if isinstance(value, (int, float)) else []
