"""``specexit bench-labels``: how fast boundaries are tried, against one prefix at a time, on one engine in one run.

Traces are collected first, and every trial that they asked for is remembered. The same trials are then made again as
`collect` makes them (all traces side by side, those of a trace one after the other, prefixes cached) and as a plain
loop would (one request at a time, nothing cached of an earlier one). Neither begins with anything in the cache.

The trials are those at all boundaries. So it is known, too, how many of them each way of choosing boundaries makes, and
on how many traces it finds the same exit points.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Coroutine
from dataclasses import asdict
from typing import Any

from rich.console import Console

from specexit.bench.refinement import LETTERS, Tried, refinement
from specexit.config import versions, write_text
from specexit.data.rows import Trace
from specexit.hardware import describe_hardware
from specexit.schemas.bench_labels import BenchLabelsConfig
from specexit.schemas.collect import CollectConfig
from specexit.schemas.target import load_target_config
from torch_specexit.collecting.local import LocalEngine
from torch_specexit.collecting.tracer import Response, Tracer
from torch_specexit.collecting.work import Ask, CollectError, Decoding, all_asks, check_target
from torch_specexit.engine import accelerator_name

Request = tuple[list[int], Decoding]


def bench_labels(config: BenchLabelsConfig) -> dict[str, Any]:
    """Collect, make the trials both ways, write ``out`` and print it.

    Raises:
      ConfigError, PromptError, AnswerError: as `collect`.
      CollectError: no trace has a boundary to try.
    """
    collecting = CollectConfig(
        target=config.target,
        out=config.out.parent,  # nothing is written there but the result
        prompts=config.prompts,
        split=config.split,
        n=config.n,
        engine=config.engine,
        free_share=0.0,
        boundaries="all",
    )
    target = load_target_config(config.target)
    if config.split_endings:
        target = target.model_copy(update={"split_endings": config.split_endings})
    asks = all_asks(collecting, target)
    check_target(collecting, target, asks)
    engine = LocalEngine(collecting, target)
    recorder = _Recorder(engine)
    tracer = Tracer(collecting, target, recorder, lambda **_: None)
    result = asyncio.run(_beside(engine, _measure(engine, recorder, tracer, asks)))
    result |= {
        "config": config.model_dump(mode="json"),
        "hardware": describe_hardware(accelerator_name()),
        "versions": versions(),
    }
    write_text(config.out, json.dumps(result, indent=2) + "\n")
    together, alone = (result[way]["trials_per_second"] for way in ("together", "alone"))
    Console().print(
        f"{result['trials']} trials of {result['traces']} traces: {together:.1f} a second together, {alone:.1f} one "
        f"prefix at a time ({result['speedup']:.1f}x); "
        f"{result['same']} of {result['trials']} wrote the same tokens\n"
        + "\n".join(_compared(result[how]) for how in ("refine", "stable", "bisect")),
        soft_wrap=True,
    )
    return result


def _compared(found: dict[str, Any]) -> str:
    return (
        f"boundaries={found['boundaries']} tries {found['trials']} of {found['all_trials']} boundaries; of "
        f"{found['traces']} traces {found['same_earliest']} have the earliest and {found['same_stable']} the stable "
        "exit point of all trials"
    )


class _Recorder:
    """An engine that remembers what each task asked of it."""

    def __init__(self, engine: LocalEngine):
        self.engine = engine
        self.asked: defaultdict[Any, list[Request]] = defaultdict(list)

    async def generate(self, ids: list[int], how: Decoding) -> Response:
        """The continuation of a prompt."""
        self.asked[asyncio.current_task()].append((ids, how))
        return await self.engine.generate(ids, how)


async def _beside(engine: LocalEngine, work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    """Do the work while the engine steps; raises the engine's failure where that fails."""
    working, stepping = asyncio.create_task(work), asyncio.create_task(engine.run())
    await asyncio.wait({working, stepping}, return_when=asyncio.FIRST_COMPLETED)
    if not working.done():
        working.cancel()
        stepping.result()
    stepping.cancel()
    return working.result()


async def _measure(engine: LocalEngine, recorder: _Recorder, tracer: Tracer, asks: list[Ask]) -> dict[str, Any]:
    traces = await asyncio.gather(*(asyncio.create_task(tracer.trace(ask)) for ask in asks))
    tried = [_tried(trace, tracer.stated(trace)) for trace in traces if trace.boundaries]
    trials = [requests[1:] for requests in recorder.asked.values()]  # the first one is the trace itself
    n = sum(map(len, trials))
    if not n:
        raise CollectError(f"{len(asks)} traces have no boundary to try, expected some: do they finish and answer?")

    async def of_one_trace(requests: list[Request]) -> list[Response]:
        return [await engine.generate(*request) for request in requests]

    engine.engine.reset_prefix_cache()
    start = time.perf_counter()
    together = await asyncio.gather(*map(of_one_trace, trials))
    seconds_together = time.perf_counter() - start

    alone, seconds_alone = [], 0.0
    for request in (request for requests in trials for request in requests):
        engine.engine.reset_prefix_cache()
        start = time.perf_counter()
        alone.append(await engine.generate(*request))
        seconds_alone += time.perf_counter() - start

    stride = CollectConfig.model_fields["stride"].default
    pairs = zip((response for found in together for response in found), alone, strict=True)
    return {
        "traces": len(asks),
        "trials": n,
        "trial_tokens": sum(len(response.ids) for response in alone),
        "prefix_tokens": sum(len(ids) for requests in trials for ids, _ in requests),
        "together": {"seconds": seconds_together, "trials_per_second": n / seconds_together},
        "alone": {"seconds": seconds_alone, "trials_per_second": n / seconds_alone},
        "speedup": seconds_alone / seconds_together,
        "same": sum(a.ids == b.ids for a, b in pairs),
        **{how: asdict(refinement(tried, how, stride)) for how in ("refine", "stable", "bisect")},
        "tried": [asdict(trace) for trace in tried],
    }


def _tried(trace: Trace, stated: list[int]) -> Tried:
    states = "".join(LETTERS[state] for state in trace.boundary_state)
    at_end = trace.boundaries[-1] == len(trace.think_ids)
    return Tried(states, tuple(trace.boundary_trial_tokens), tuple(stated), at_end)
