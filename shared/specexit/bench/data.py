"""``specexit bench-data``: how fast annotate and pack are, how much memory they take, and which tokens rows lose.

The corpus is generated: lognormal lengths, a boundary every few tokens, an answer that settles somewhere. Each command
runs as a process of its own, as a user would start it; its time includes its start, its memory all its processes.
"""

from __future__ import annotations

import json
import resource
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from specexit.bench.process import BenchError
from specexit.buckets import arrow_sink
from specexit.config import versions, write_text
from specexit.data.packed import read_meta
from specexit.data.rows import SCHEMA
from specexit.hardware import describe_hardware, processors
from specexit.outputs import removed_at_the_end
from specexit.processes import python
from specexit.schemas.bench_data import BenchDataConfig
from specexit.schemas.target import TargetConfig, find_target, save_target

GIB = 1 << 30
ROW_GROUP = 64


def bench_data(config: BenchDataConfig) -> dict[str, Any]:
    """Generate the corpus, run the commands, write ``out`` and print it.

    Raises:
      BenchError: a command fails.
    """
    config.out.parent.mkdir(parents=True, exist_ok=True)
    with removed_at_the_end(), tempfile.TemporaryDirectory(prefix=".bench-data-", dir=config.out.parent) as scratch:
        folder = Path(scratch)
        tokens = write_corpus(config, folder / "traces")
        workers = [f"workers={config.workers}"] if config.workers else []
        commands = {"annotate": ["annotate", f"traces={folder / 'traces'}", f"out={folder / 'labelled'}", *workers]}
        for length in config.lengths:
            out = [f"traces={folder / 'labelled'}", f"out={folder / f'packed-{length}'}", f"length={length}"]
            commands[f"pack {length}"] = ["pack", *out, *workers]
        measured = {name: measure(arguments, tokens) for name, arguments in commands.items()}
        for length in config.lengths:
            meta = read_meta(folder / f"packed-{length}")
            row = measured[f"pack {length}"]
            row |= {"lost": (meta.tokens_cut + meta.tokens_dropped) / meta.tokens, "fill": meta.fill, "rows": meta.n}
    result = {
        "traces": config.traces,
        "tokens": tokens,
        "commands": measured,
        "config": config.model_dump(mode="json"),
        "hardware": describe_hardware(),
        "versions": versions(),
    }
    write_text(config.out, json.dumps(result, indent=2) + "\n")
    Console().print(_table(result))
    return result


def write_corpus(config: BenchDataConfig, folder: Path) -> int:
    """Write the corpus as one file; returns how many tokens it has, prompts and answers included."""
    target = find_target(config.target)
    folder.mkdir(parents=True)
    total = 0
    with (
        arrow_sink(folder / "traces.parquet") as sink,
        pq.ParquetWriter(sink, SCHEMA, compression="zstd") as writer,
    ):
        for batch in generate(config, target):
            total += sum(len(batch[name].flatten()) for name in ("prompt_ids", "think_ids", "answer_ids"))
            writer.write_batch(batch)
    save_target(folder, target)
    return total


def generate(config: BenchDataConfig, target: TargetConfig) -> Iterator[pa.RecordBatch]:
    """The corpus in batches. A trace's answer settles after a share of its thinking that is drawn uniformly."""
    rng = np.random.default_rng(config.seed)
    vocab = int(target.hf_config()["vocab_size"]) - 64  # the last ones may be special or padding
    location = np.log(config.mean_tokens) - config.spread**2 / 2
    for start in range(0, config.traces, ROW_GROUP):
        n = min(ROW_GROUP, config.traces - start)
        drawn = rng.lognormal(location, config.spread, n)
        lengths = np.clip(drawn.astype(int), 2, config.longest)
        rows = [_row(config, target.name, start + i, int(lengths[i]), vocab, rng) for i in range(n)]
        yield pa.RecordBatch.from_pylist(rows, schema=SCHEMA)


def _row(
    config: BenchDataConfig, target: str, number: int, n_think: int, vocab: int, rng: np.random.Generator
) -> dict[str, Any]:
    gaps = 2 + rng.poisson(config.step_tokens - 2, int(2 * n_think / config.step_tokens) + 2)
    boundaries = np.cumsum(gaps)
    boundaries = np.append(boundaries[boundaries < n_think], n_think)
    agrees = boundaries >= rng.uniform(0, 1) * n_think
    answer = str(rng.integers(1000))
    guesses = rng.integers(1000, 2000, len(boundaries))
    answers = [answer if same else str(guess) for same, guess in zip(agrees, guesses, strict=True)]
    return {
        "id": f"{number:06d}",
        "prompt": "What is the sum?",
        "prompt_ids": rng.integers(vocab, size=120, dtype=np.int32),
        "think_ids": rng.integers(vocab, size=n_think, dtype=np.int32),
        "answer_ids": rng.integers(vocab, size=300, dtype=np.int32),
        "answer": answer,
        "reference": answer,
        "correct": True,
        "finish_reason": "stop",
        "boundaries": boundaries,
        "boundary_answers": answers,
        "boundary_agrees": agrees,
        "boundary_confidence": rng.uniform(size=len(boundaries)),
        "target": target,
        "sampling": "{}",
        "seed": config.seed,
        "sample": 0,
        "task": f"task {number % 3}",
        "answer_kind": "math",
        "boundary_state": np.where(agrees, "agrees", "differs").tolist(),
        "boundary_trial_tokens": np.full(len(boundaries), 12),
        "trial": "{}",
    }


def measure(arguments: list[str], tokens: int) -> dict[str, Any]:
    """Run one command of ours.

    Returns:
      ``seconds``, ``cpu_seconds``, ``tokens_per_second``, and ``peak_gib``: the most memory that its processes held
      together.

    Raises:
      BenchError: it fails.
    """
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = python("specexit", *arguments)
    with tempfile.TemporaryFile() as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        peak = 0
        try:
            while process.poll() is None:
                peak = max(peak, memory_of_tree(process.pid))
                time.sleep(0.05)
        except BaseException:
            process.terminate()  # not killed: its workers would stay
            raise
        if process.returncode:
            log.seek(0)
            raise BenchError(f"specexit {arguments[0]} failed: {log.read().decode(errors='replace')[-2000:]}")
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "seconds": seconds,
        "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "tokens_per_second": tokens / seconds,
        "peak_gib": peak / GIB,
    }


def memory_of_tree(pid: int) -> int:
    """Bytes that a process and all below it hold; what they share counts once (PSS), where that is known."""
    held = _field(f"/proc/{pid}/smaps_rollup", "Pss:") or _field(f"/proc/{pid}/status", "VmRSS:")
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        children = []  # it has just ended
    return held + sum(memory_of_tree(int(child)) for child in children)


def _field(path: str, name: str) -> int:
    """Bytes that a file of ``/proc`` gives for a name; 0 where the process is gone."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(name)), 0)


def _table(result: dict[str, Any]) -> Table:
    size = f"{result['traces']} traces, {result['tokens'] / 1e6:.1f} M tokens"
    table = Table(title=f"{size}, {processors()} processors")
    for name in ("command", "seconds", "processor seconds", "M tokens/s", "peak GiB", "tokens lost", "rows full"):
        table.add_column(name, justify="left" if name == "command" else "right")
    for name, row in result["commands"].items():
        shares = [f"{row[key]:.1%}" if key in row else "" for key in ("lost", "fill")]
        rate = f"{row['tokens_per_second'] / 1e6:.2f}"
        table.add_row(
            name, f"{row['seconds']:.1f}", f"{row['cpu_seconds']:.1f}", rate, f"{row['peak_gib']:.2f}", *shares
        )
    return table
