"""``specexit collect``: let the target write traces, and what it would have answered at every step boundary.

The prompts are cut into chunks. A chunk is one Parquet file, made by one engine from the chunk and the config alone,
so a run that was killed goes on with the chunks that are missing and ends with the same rows. This process only
hands chunks to `torch_specexit.collect_worker` processes and shows their progress.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import IO, Any

import yaml
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from specexit.config import ConfigError, save_run
from specexit.data.prompts import Prompt, read_prompts, split_prompts
from specexit.data.traces import TraceError, read_traces
from specexit.errors import InputError
from specexit.schemas.collect import CollectConfig
from specexit.schemas.target import load_target_config

SPLIT_SIZE = 500
"""Problems of a split, unless the config says how many."""

FREE_TO_CHANGE = ("out", "workers")
"""Keys that a resumed run may change, as no row depends on them."""


class CollectError(InputError):
    """A worker failed; the message ends with its last lines."""


def load_prompts(config: CollectConfig) -> list[Prompt]:
    """The prompts that a config asks for, in order.

    Raises:
      PromptError: the prompt file cannot be used.
    """
    if config.prompts is not None:
        return read_prompts(config.prompts, config.columns, n=config.n, seed=config.seed)
    assert config.split is not None
    return split_prompts(config.split, config.n or SPLIT_SIZE, config.seed)


def chunks(prompts: Sequence[Prompt], size: int) -> list[Sequence[Prompt]]:
    """The prompts in pieces of ``size``, the last one shorter where it does not divide."""
    return [prompts[i : i + size] for i in range(0, len(prompts), size)]


def chunk_path(folder: Path, index: int) -> Path:
    """File of a chunk."""
    return folder / f"traces-{index:05d}.parquet"


def collect(config: CollectConfig) -> None:
    """Collect traces into ``config.out``, from the beginning or from where an earlier run stopped.

    Raises:
      ConfigError: unknown target, or the folder holds a run with another config.
      SplitError: the target's tokenizer has no single-token think markers.
      PromptError: the prompt file cannot be used.
      FileExistsError: the folder holds something else.
      CollectError: a worker failed; finished chunks are kept.
    """
    target = load_target_config(config.target)
    target.hf_config()
    target.think_tokens()
    parts = chunks(load_prompts(config), config.chunk)
    _claim(config)
    missing = [i for i, part in enumerate(parts) if not _is_done(chunk_path(config.out, i), part)]
    n, done = sum(map(len, parts)), sum(len(part) for i, part in enumerate(parts) if i not in missing)
    if missing:
        _run_workers(config, missing, n, done)
    Console(stderr=True).print(f"{config.out}: {n} traces in {len(parts)} files, {done} of them from an earlier run")


def _claim(config: CollectConfig) -> None:
    """Make the folder this config's own, or check that it is."""
    run = config.out / "run.yaml"
    if not run.exists():
        if config.out.exists() and any(config.out.iterdir()):
            raise FileExistsError(f"{config.out}: output folder is not empty and holds no run.yaml to resume from")
        save_run(config, config.out)
        return
    earlier = yaml.safe_load(run.read_text())["config"]
    now = config.model_dump(mode="json")
    differing = [k for k in {**earlier, **now} if k not in FREE_TO_CHANGE and earlier.get(k) != now.get(k)]
    if differing:
        listed = ", ".join(f"{key} is {now.get(key)!r}, was {earlier.get(key)!r}" for key in differing)
        raise ConfigError(f"{run}: the folder holds a run with another config ({listed}); take a new folder")
    for leftover in config.out.glob(".traces-*.parquet.*"):
        leftover.unlink()


def _is_done(path: Path, part: Sequence[Prompt]) -> bool:
    """Whether a chunk is there, with exactly the prompts it should have."""
    if not path.exists():
        return False
    found = [(trace.id, trace.prompt, trace.reference) for trace in read_traces(path)]
    if found != [(prompt.id, prompt.text, prompt.reference) for prompt in part]:
        raise TraceError(f"{path}: holds traces of other prompts than the config gives; have the prompts changed?")
    return True


def _visible_gpus() -> list[str]:
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]


def _worker_devices(config: CollectConfig) -> list[list[str]]:
    """The GPUs of each worker, an empty list for one on the CPU."""
    gpus = _visible_gpus()
    if not gpus:
        return [[]] * (config.workers or 2)
    each = config.engine.extra.get("tensor_parallel_size", 1)
    groups = [gpus[i : i + each] for i in range(0, len(gpus) - each + 1, each)]
    if not groups or (config.workers or 1) > len(groups):
        raise ConfigError(f"workers is {config.workers} with {each} GPUs each, but only {len(gpus)} GPUs are visible")
    return groups[: config.workers]


class _Worker:
    """A worker process, its chunks sent."""

    def __init__(self, config: CollectConfig, indices: Sequence[int], gpus: Sequence[str]):
        # Two engines that pin their threads by themselves would pick the same cores.
        environment = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"} | os.environ
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        self.log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "torch_specexit.collect_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=environment,
            text=True,
        )
        assert self.process.stdin is not None
        task = {"config": config.model_dump(mode="json"), "chunks": list(indices)}
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()

    def follow(self, report: Callable[[dict[str, int]], None]) -> None:
        """Pass reports on until the process ends.

        Raises:
          CollectError: it failed.
        """
        assert self.process.stdout is not None
        for line in self.process.stdout:
            report(json.loads(line))
        code = self.process.wait()
        if code:
            self.log.seek(0)
            last = self.log.read().decode(errors="replace").splitlines()[-15:]
            raise CollectError("\n".join([f"a collect worker ended with exit code {code}; its last lines:", *last]))

    def close(self) -> None:
        """End the process if it still runs."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.log):
            assert stream is not None
            stream.close()


def _run_workers(config: CollectConfig, missing: Sequence[int], n: int, done: int) -> None:
    devices = _worker_devices(config)[: len(missing)]
    workers = [_Worker(config, missing[i :: len(devices)], gpus) for i, gpus in enumerate(devices)]
    try:
        with _Bar(n, done) as bar, ThreadPoolExecutor(len(workers)) as pool:
            try:
                for future in as_completed([pool.submit(worker.follow, bar.add) for worker in workers]):
                    future.result()
            except BaseException:
                for worker in workers:  # else the pool would wait for those that still run
                    worker.process.kill()
                raise
    finally:
        for worker in workers:
            worker.close()


class _Bar:
    """Progress of all workers: half a trace for its text, half for its trial answers."""

    def __init__(self, n: int, done: int):
        self.counts = {"generated": done, "judged": done, "tokens": 0}
        self.n = n
        columns = (
            TextColumn("collect"),
            BarColumn(),
            TextColumn("{task.fields[judged]}/{task.fields[n]} traces"),
            TextColumn("{task.fields[rate]:.0f} tokens/s"),
            TimeRemainingColumn(),
        )
        console = Console(stderr=True)
        self.progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self.task = self.progress.add_task("collect", total=2 * n, completed=2 * done, judged=done, n=n, rate=0.0)

    def __enter__(self) -> _Bar:
        self.progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.progress.stop()

    def add(self, counts: dict[str, int]) -> None:
        """Count what a worker has done."""
        for key, value in counts.items():
            self.counts[key] += value
        elapsed = self.progress.tasks[0].elapsed or 0.0
        self.progress.update(
            self.task,
            completed=self.counts["generated"] + self.counts["judged"],
            judged=self.counts["judged"],
            rate=self.counts["tokens"] / elapsed if elapsed else 0.0,
        )
