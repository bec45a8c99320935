"""vLLM engines on this machine, one process each; a trace goes to whichever has room for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import islice
from typing import IO

from specexit.config import ConfigError
from specexit.data.rows import Trace
from specexit.processes import python, unsaid
from specexit.schemas.collect import CollectConfig
from specexit.schemas.target import TargetConfig
from torch_specexit.collecting.claim import HIDDEN
from torch_specexit.collecting.work import Ask, CollectError, engine_room, gpus_each


def run_processes(
    config: CollectConfig,
    target: TargetConfig,
    todo: Sequence[tuple[int, Ask]],
    record: Callable[[int, Trace], None],
    report: Callable[[dict], None],
) -> None:
    """Start the engines, keep all of them full, and record what they finish.

    Raises:
      CollectError: an engine failed.
      ConfigError: more engines are asked for than there are GPUs.
    """
    del target  # every worker reads it again
    devices = worker_devices(config)[: len(todo)]
    room = engine_room(config, len(todo), len(devices))
    queue, lock = iter(todo), threading.Lock()
    workers = [_Worker(config, gpus, i, len(devices)) for i, gpus in enumerate(devices)]

    def kept(number: int, trace: Trace) -> None:
        with lock:
            record(number, trace)
            report({"judged": 1})

    def counted(counts: dict[str, int]) -> None:
        with lock:
            report(counts)

    def taken(count: int) -> list[tuple[int, Ask]]:
        with lock:
            return list(islice(queue, count))

    try:
        with ThreadPoolExecutor(len(workers)) as pool:
            try:
                for done in as_completed([pool.submit(worker.work, room, taken, kept, counted) for worker in workers]):
                    done.result()
            except BaseException:
                for worker in workers:  # else the pool would wait for those that still run
                    worker.end()
                raise
    finally:
        for worker in workers:
            worker.close()


def worker_devices(config: CollectConfig) -> list[list[str]]:
    """The GPUs of each worker, as ``CUDA_VISIBLE_DEVICES`` names them; an empty list for a worker on the CPU.

    Raises:
      ConfigError: fewer GPUs are visible than the workers take.
    """
    gpus = _visible_gpus()
    if not gpus:
        return [[]] * (config.workers or 2)
    each = gpus_each(config)
    groups = [gpus[i : i + each] for i in range(0, len(gpus) - each + 1, each)]
    if not groups or (config.workers or 1) > len(groups):
        raise ConfigError(
            f"workers is {config.workers or 1} with {each} GPUs each, but only {len(gpus)} GPUs are visible"
        )
    return groups[: config.workers]


def _visible_gpus() -> list[str]:
    """Names of the GPUs as the environment has them; none where it hides all of them, or torch was built for a CPU."""
    import torch

    count, visible = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    # Not as many as are counted: of several MIG devices a process sees one alone, and each worker gets its own.
    return visible.split(",") if visible and count else [str(i) for i in range(count)]


class _Worker:
    """One engine process.

    Args:
      config: the run's.
      gpus: those that it may use.
      number: which of the run's engine processes it is, from 0.
      of: how many there are.
    """

    def __init__(self, config: CollectConfig, gpus: Sequence[str], number: int, of: int):
        shard, shards = config.part
        self.kept_log = config.each()[0].out / HIDDEN / f"shard-{shard}-of-{shards}-engine-{number}.log"
        self.of, self.ended = of, False
        # Two engines that pin their threads by themselves would pick the same cores.
        environment = os.environ | unsaid({"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"})
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        self.log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self.process = subprocess.Popen(
            python("torch_specexit.collecting.worker"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=environment,
            text=True,
        )
        self._send({"config": config.model_dump(mode="json")})

    def work(
        self,
        room: int,
        taken: Callable[[int], list[tuple[int, Ask]]],
        kept: Callable[[int, Trace], None],
        counted: Callable[[dict[str, int]], None],
    ) -> None:
        """Keep ``room`` traces going in the engine until there are no more.

        Args:
          room: traces under way at once.
          taken: gives the next asks, so many at most, with their numbers.
          kept: is called with each finished trace and its number.
          counted: is called with counts of what was done meanwhile.

        Raises:
          CollectError: the engine failed.
        """
        going = self._give(taken(room))
        assert self.process.stdout is not None
        for line in self.process.stdout if going else ():
            if not line.endswith("\n"):  # killed in the midst of a message
                break
            message = json.loads(line)
            if "trace" not in message:
                counted(message)
                continue
            kept(message["number"], Trace(**message["trace"]))
            going += self._give(taken(1)) - 1
            if going == 0:
                break
        self._close_input()
        if (code := self.process.wait()) and not self.ended:
            raise CollectError(self._failure(code))
        if going:
            raise CollectError(f"a collect worker ended with {going} traces unfinished")

    def _failure(self, code: int) -> str:
        """How the process ended, for a person; keeps its log in the output folder."""
        self.log.seek(0)
        said, kept = self.log.read(), f"what it said is in {self.kept_log}"
        try:
            self.kept_log.write_bytes(said)
        except OSError as error:  # a disk that is full may be why it ended
            kept = f"what it said cannot be kept in {self.kept_log}: {error.strerror}"
        goes_on = f"{kept}; the same command goes on with what is finished"
        if code > 0:
            last = said.decode(errors="replace").splitlines()[-15:]
            return "\n".join([f"an engine ended with exit code {code}; {goes_on}; its last lines:", *last])
        number = -code
        name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
        lower = f"workers ({self.of} here) or engine.kv_cache_gib" if self.of > 1 else "engine.kv_cache_gib"
        memory = f", as Linux does where memory runs out: lower {lower}" if number == signal.SIGKILL else ""
        return f"an engine was killed by {name}{memory}; {goes_on}"

    def _give(self, asks: Sequence[tuple[int, Ask]]) -> int:
        for number, ask in asks:
            self._send({"number": number, "ask": ask.to_json()})
        return len(asks)

    def _send(self, message: dict) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return  # it is gone; `work` says why when its output ends

    def _close_input(self) -> None:
        self._send({"done": True})

    def end(self) -> None:
        """End the process if it still runs."""
        self.ended = True
        self.process.kill()

    def close(self) -> None:
        """End the process, and close its pipes and its log."""
        self.end()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.log):
            assert stream is not None
            try:
                stream.close()
            except BrokenPipeError:
                continue
