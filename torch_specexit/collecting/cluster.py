"""vLLM engines on the machines of a Ray cluster, fed by Ray Data; a trace is one of its tasks.

An engine is an actor. Where a machine or an engine is lost, Ray starts another one and gives it the traces that were
under way there; all others are recorded already. Ray would do so for ever, so an engine that dies again and again
before it has finished a trace is an error.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import ray
import ray.data
import ray.exceptions

from specexit.data.rows import Trace
from specexit.schemas.collect import CollectConfig
from specexit.schemas.target import TargetConfig
from specexit.tiny import EMBEDDED
from torch_specexit.collecting.local import LocalEngine
from torch_specexit.collecting.tracer import Tracer
from torch_specexit.collecting.work import Ask, CollectError, engine_room, gpus_each

ENGINE_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
"""Two engines that pin their threads by themselves would pick the same cores."""


MOST_STARTS = 3
"""Starts of one engine in a row without a trace in between: another one would end as they did."""


_RAISED = re.compile(
    r"^(?:\w+\.)*(?P<name>\w*(?:Error|Exception|Exit)): "
    r"(?P<words>.+(?:\n(?!\s*(?:For further|File |Traceback|ray::)).+)*)",
    re.M,
)
"""The last lines of a traceback: an exception and its message, which may have several lines."""


class Starts:
    """How often each engine was started since it last finished a trace. Lives in an actor, as an engine that dies
    forgets it."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def began(self, engine: str) -> int:
        """Count a start; returns how many there were in a row, with this one."""
        self.counts[engine] += 1
        return self.counts[engine]

    def finished(self, engine: str) -> None:
        """The engine has finished a trace."""
        del self.counts[engine]


class Collector:
    """One engine, in an actor that Ray Data keeps: rows with an ask become rows with a trace.

    Args:
      config: the run's.
      target: the model.
      starts: handle of the cluster's `Starts`.
    """

    def __init__(self, config: CollectConfig, target: TargetConfig, starts: Any):
        self.config, self.target, self.starts = config, target, starts
        self.name = ray.get_runtime_context().get_actor_id()  # stays when Ray starts the actor again
        self.starting: asyncio.Task[asyncio.Task[None]] | None = None
        self.counted = False

    async def _start(self) -> asyncio.Task[None]:
        """Start the engine in the thread that steps it; returns the task that does.

        Raises:
          CollectError: it has died `MOST_STARTS` times in a row before it had finished a trace.
        """
        if await self.starts.began.remote(self.name) > MOST_STARTS:
            raise CollectError(
                f"an engine was started {MOST_STARTS} times and died each time before it had finished a trace; what it "
                "said is in the worker logs of its machine's Ray session"
            )
        engine = LocalEngine(self.config, self.target)
        self.tracer = Tracer(self.config, self.target, engine, lambda **_: None)
        return asyncio.get_running_loop().create_task(engine.run())

    async def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with its trace; raises the engine's failure where that fails."""
        if self.starting is None:
            self.starting = asyncio.get_running_loop().create_task(self._start())
        stepping = await asyncio.shield(self.starting)
        going = asyncio.ensure_future(self.tracer.trace(Ask.from_json(json.loads(row["ask"]))))
        await asyncio.wait({going, stepping}, return_when=asyncio.FIRST_COMPLETED)
        if not going.done():
            going.cancel()
            stepping.result()
        found = {"number": row["number"], "trace": json.dumps(vars(going.result()))}
        if not self.counted:
            await self.starts.finished.remote(self.name)
            self.counted = True
        return found


def run_cluster(
    config: CollectConfig,
    target: TargetConfig,
    todo: Sequence[tuple[int, Ask]],
    record: Callable[[int, Trace], None],
    report: Callable[[dict], None],
) -> None:
    """Collect on a Ray cluster, and record traces as they come.

    Raises:
      CollectError: the cluster cannot be reached, has too few GPUs, or an engine failed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # of this process; what it says of actors helps nobody
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what fails is said by `_reason`
    try:
        ray.init(address=config.ray, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise CollectError(f"ray is {config.ray!r}: {error}; expected a cluster's address, auto or local") from error
    if target.path not in EMBEDDED:  # an engine works in another folder
        target = target.model_copy(update={"path": str(target.folder.resolve())})
    try:
        for batch in _traces(config, target, todo).iter_batches(batch_size=None, prefetch_batches=0):
            for number, text in zip(batch["number"].tolist(), batch["trace"].tolist(), strict=True):
                trace = Trace(**json.loads(text))
                record(number, trace)
                tokens = len(trace.think_ids) + len(trace.answer_ids) + sum(trace.boundary_trial_tokens)
                report({"generated": 1, "judged": 1, "tokens": tokens})
    except ray.exceptions.RayError as error:
        raise CollectError(f"an engine on the cluster failed: {_reason(error)}") from error
    finally:
        ray.shutdown()


def _reason(error: BaseException) -> str:
    """What an engine died of, in one line. Ray names the cause only in a traceback's text, where it comes first."""
    found = _RAISED.search(str(error))
    if found is None:
        return " ".join(str(error).split())[:500]
    words = " ".join(found["words"].split())[:500]
    return words if found["name"] == CollectError.__name__ else f"{found['name']}: {words}"


def _traces(config: CollectConfig, target: TargetConfig, todo: Sequence[tuple[int, Ask]]) -> ray.data.Dataset:
    """The traces, computed as they are read."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    each = gpus_each(config)
    gpus = int(ray.cluster_resources().get("GPU", 0))
    machines = sum(node["Alive"] for node in ray.nodes())
    engines = config.workers or (gpus // each if gpus else 2 * machines)
    if gpus and not 0 < engines <= gpus // each:
        raise CollectError(f"workers is {engines} with {each} GPUs each, but the cluster has {gpus} GPUs")
    engines = min(engines, len(todo))
    room = engine_room(config, len(todo), engines)
    rows = [{"number": number, "ask": json.dumps(ask.to_json())} for number, ask in todo]
    # A block is what a task works on, and what is computed again where an engine is lost: one trace.
    return ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        Collector,  # type: ignore[arg-type] - a class of which each actor makes one
        fn_constructor_args=(config, target, ray.remote(Starts).options(num_cpus=0).remote()),
        compute=ray.data.ActorPoolStrategy(
            size=engines, max_tasks_in_flight_per_actor=room, max_concurrent_calls_per_actor=room
        ),
        num_cpus=None if gpus else 1,
        num_gpus=each if gpus else None,
        runtime_env={"env_vars": ENGINE_ENVIRONMENT},
    )
