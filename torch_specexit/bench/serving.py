"""``specexit bench-serving``: what it costs to have exits switched on, apart from what they save.

Two engines, one with the plug-in and one without it, answer the same groups of prompts in turns; the ratio of their
tokens per second is the cost. Since a process may be a few percent faster than another of the same program, this is
done with several pairs, one after the other, and the bootstrap interval is over the pairs: all turns of a pair share
how fast its two processes are.

The engine with the plug-in answers twice. In the first answer, every request asks for a validity that no signal
reaches, and so thinks on past the boundary where the draft's policy would have exited. There signals are high: nearly
every boundary is judged, and a step ends at each. That is the most that exits can cost. The second answer is in shadow
mode, which follows the policy as it is, and decides its exits without making them. Behind such an exit no step ends
early, as there would be no step if the exit had been made. Both answers are plain EAGLE-3's text: to the byte in
float32 on a CPU, else up to rounding, as an early end changes the shapes of the steps behind it.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from specexit.bench.process import BenchError, BenchProcess
from specexit.bench.results import NO_INTERVAL, is_interval
from specexit.config import versions, write_text
from specexit.data.traces import Trace, check_tokenizer, read_traces, target_named_in
from specexit.drafts.directory import check_target, plain_copy, read_config
from specexit.hardware import describe_hardware
from specexit.method.statistics import cluster_bootstrap
from specexit.outputs import removed_at_the_end
from specexit.processes import python
from specexit.schemas.bench_serving import BenchServingConfig
from specexit.schemas.target import TargetConfig, find_target
from torch_specexit.bench import worker
from torch_specexit.bench.conditions import refuse_held_back
from torch_specexit.bench.turns import WARM_UP_TOKENS, check_served

NEVER = {"specexit_validity": 1.0}
"""Exits are enabled and never fire, as a probability is below 1."""

METHODS: dict[str, dict[str, Any]] = {"eagle3": {}, "specexit": NEVER, "shadow": {"specexit_mode": "shadow"}}
"""What the requests of each method ask for."""
ENGINES = {"eagle3": "eagle3", "specexit": "specexit", "shadow": "specexit"}
"""Which engine answers each method."""


@dataclass
class Turns:
    """What one method did at one batch size."""

    pairs: list[int] = field(default_factory=list)
    """Which pair of engine processes each turn was of."""
    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    """Generated in each turn, thinking and answers."""
    token_ids: list[list[int]] = field(default_factory=list)
    n_drafts: int = 0
    n_accepted: int = 0

    def add(self, reply: dict[str, Any], pair: int) -> None:
        """Take in a reply of `torch_specexit.bench.worker`."""
        written = [request["token_ids"] for request in reply["requests"]]
        self.pairs.append(pair)
        self.seconds.append(sum(reply["seconds"]))
        self.tokens.append(sum(map(len, written)))
        self.token_ids += written
        self.n_drafts += reply["n_drafts"]
        self.n_accepted += reply["n_accepted"]

    @property
    def tokens_per_second(self) -> float:
        """Of all turns."""
        return sum(self.tokens) / sum(self.seconds)

    def differing(self, other: Turns) -> int:
        """Number of texts that are not the same."""
        return sum(a != b for a, b in zip(self.token_ids, other.token_ids, strict=True))


def bench_serving(config: BenchServingConfig) -> dict[str, Any]:
    """Measure, write ``serving.json`` and print it.

    Raises:
      BenchError: an engine fails; or, in float32 on a CPU, a text differs from plain EAGLE-3's; or exits are
        off, or the plug-in has given up or reports nothing, so that they would cost nothing.
      DraftError, TraceError: the draft or the traces cannot be used, or these are of another tokenizer.
    """
    found = read_config(config.draft)
    target = find_target(
        config.target, config.draft, config.traces, name=found.target_name or target_named_in(config.traces)
    )
    check_target(found, config.draft, target.hf_config(), target.name)
    check_tokenizer(config.traces, target)  # in another one's ids thinking never opens, and exits cost nothing
    if found.specexit is None:
        raise BenchError(f"{config.draft}: no specexit block, so there is nothing whose cost could be measured")
    refuse_held_back(config, config.draft, besides="shadow")  # no exit is made here anyway
    traces = read_traces(config.traces)
    turns = {batch: {name: Turns() for name in METHODS} for batch in config.batches}
    accelerator = None
    with removed_at_the_end(), tempfile.TemporaryDirectory(prefix="specexit-bench-") as scratch:
        plain_copy(config.draft, Path(scratch) / "eagle3")
        drafts = {"eagle3": Path(scratch) / "eagle3", "specexit": config.draft}
        setups = {name: worker.setup_of(config, target, draft, prefixes=False) for name, draft in drafts.items()}
        for pair in range(config.pairs):
            with ExitStack() as stack:
                engines = {
                    name: stack.enter_context(
                        BenchProcess(name, worker.__name__, setup, Path(scratch) / f"{name}-{pair}.log")
                    )
                    for name, setup in setups.items()
                }
                for engine in engines.values():
                    accelerator = engine.wait_ready()["accelerator"]
                for batch, of in turns.items():
                    _take_turns(config, engines, traces, batch, pair, of)
    result = gather(config, target, turns, accelerator)
    write_text(config.out, json.dumps(result, indent=2) + "\n")
    console = Console()
    console.print(table(result))
    console.print(
        f"per step: {result['eager_ops_per_step']} operations of PyTorch on a CPU, "
        f"{result['triton_launches_per_step']} launch(es) of the Triton kernel; a prompt of 131,072 tokens without a "
        f"think marker: {result['prompt_ms']['no marker']:.3f} ms"
    )
    console.print(step_table(result["by_batch"]))
    return result


def _take_turns(
    config: BenchServingConfig,
    engines: dict[str, BenchProcess],
    traces: Sequence[Trace],
    batch: int,
    pair: int,
    turns: dict[str, Turns],
) -> None:
    """Have one pair of engines answer its part of the groups of prompts: one method after the other, and who begins
    alternates."""
    more = min(4, max(config.batches) // batch)  # small batches are quick, and their turns differ more
    rounds = range(pair, config.rounds * more, config.pairs)
    for name in METHODS:
        _ask(engines, name, _group(traces, 0, batch), WARM_UP_TOKENS)
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task(f"pair {pair + 1} of {config.pairs}, batch {batch}", total=len(rounds))
        for turn, i in enumerate(rounds):
            group = _group(traces, i, batch)
            for name in list(METHODS)[:: 1 if turn % 2 else -1]:
                turns[name].add(_ask(engines, name, group, config.max_new_tokens), pair)
            progress.advance(bar)


def _ask(engines: dict[str, BenchProcess], name: str, group: Sequence[Trace], max_new_tokens: int) -> dict[str, Any]:
    """The reply of a method's engine to the prompts of a group, all at once.

    Raises:
      BenchError: the engine fails, or see `check_served`.
    """
    prompts = [trace.prompt_ids for trace in group]
    job = {"prompts": prompts, "batch": len(group), "max_new_tokens": max_new_tokens, "extra_args": METHODS[name]}
    reply = engines[ENGINES[name]].ask(job)
    if ENGINES[name] == "specexit":
        for trace, request in zip(group, reply["requests"], strict=True):
            check_served(name, trace.id, request, shadow_is_fine=True)
    return reply


def _group(traces: Sequence[Trace], i: int, batch: int) -> list[Trace]:
    return [traces[(i * batch + j) % len(traces)] for j in range(batch)]


def gather(
    config: BenchServingConfig, target: TargetConfig, turns: dict[int, dict[str, Turns]], accelerator: str | None
) -> dict[str, Any]:
    """``serving.json``.

    Raises:
      BenchError: a text differs, though nothing was rounded otherwise.
    """
    found = {name: _against(turns, name, config.seed) for name in METHODS if name != "eagle3"}
    for name, of in found.items():
        for batch, differing in of["texts_that_differ"].items():
            if differing and accelerator is None and target.dtype == "float32":
                raise BenchError(f"{name}, batch {batch}: {differing} texts differ, expected plain EAGLE-3's of both")
    speeds = {str(batch): {name: one.tokens_per_second for name, one in of.items()} for batch, of in turns.items()}
    return {
        "target": target.name,
        "dtype": target.dtype,
        **found["specexit"],
        "shadow": found["shadow"],
        "tokens_per_second": speeds,
        **count_operations(interpreted=accelerator is None),
        "definitions": {
            "ratio_to_eagle3": "tokens/s with exits enabled and never firing, whatever the signals say, over plain "
            "EAGLE-3; of all turns, with a bootstrap 95 % interval over pairs of processes, whose turns stay together. "
            "Few of them: read it as rough (simulated, the 95 % of eight pairs are 88 %, of four 81 %, of two 50 %); "
            "of a single one there is none, and both ends are the value",
            "shadow": "the same where the draft's policy is followed and its exits are decided but not made, so that "
            "nothing stops behind them",
            "steps_lost_to_stopping": "share of the plug-in's decoding steps that plain EAGLE-3 did not need, because "
            "acceptance stopped at split tokens",
            "texts_that_differ": "requests whose text is not plain EAGLE-3's; 0 in float32 on a CPU, else rounding",
            "eager_ops_per_step": "aten calls of the rule in a step on a CPU whose verdict is to go on; numpy is not "
            "counted",
            "prompt_ms": "CPU time of a worker for finding out whether a prompt of 131,072 tokens opens the thinking",
            "by_batch": "a step of so many requests without news: launches of the kernel, tensors allocated around it, "
            "rows sent on to the engine core, CPU milliseconds of three processes (of two also with news of 20, "
            "and where all have stop strings), and the most bytes that source fc gathers at a time (hidden size 8,192, "
            "three draft tokens)",
        },
        "hardware": describe_hardware(accelerator),
        "versions": versions(),
        "num_speculative_tokens": config.num_speculative_tokens,
        "max_new_tokens": config.max_new_tokens,
        "pairs": config.pairs,
    }


def _against(turns: dict[int, dict[str, Turns]], name: str, seed: int) -> dict[str, dict[str, Any]]:
    """What a method costs at each batch size."""
    ratios, lost, differing = {}, {}, {}
    for batch, of in turns.items():
        base, ours = of["eagle3"], of[name]
        columns = (base.tokens, base.seconds, ours.tokens, ours.seconds)
        ratios[str(batch)] = list(cluster_bootstrap(_ratio, np.array(base.pairs), *map(np.array, columns), seed=seed))
        lost[str(batch)] = 1 - base.n_drafts / ours.n_drafts
        differing[str(batch)] = ours.differing(base)
    return {"ratio_to_eagle3": ratios, "steps_lost_to_stopping": lost, "texts_that_differ": differing}


def count_operations(*, interpreted: bool) -> dict[str, Any]:
    """What `step_cost` counts, in a process of its own; without a GPU it needs Triton's interpreter.

    Raises:
      BenchError: that process fails.
    """
    command = python("torch_specexit.bench.step_cost")
    environment = os.environ | ({"TRITON_INTERPRET": "1"} if interpreted else {})
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise BenchError(f"{' '.join(command[1:])} ended with code {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def _ratio(*columns: Shaped[np.ndarray, " turns"]) -> float:
    base_tokens, base_seconds, tokens, seconds = (column.sum() for column in columns)
    return float(tokens / seconds * base_seconds / base_tokens)


def table(result: dict[str, Any]) -> Table:
    """The numbers for a person."""
    hardware = result["hardware"]
    where = hardware["accelerator"] or f"{hardware['cores']} cores of {hardware['processor']}"
    out = Table(title=f"exits enabled and not made, against plain EAGLE-3; {where}", title_justify="left")
    for heading in ("batch", "exits", "tokens/s", "ratio (95 %)", "steps lost to stopping"):
        out.add_column(heading, justify="right")
    for batch, speeds in result["tokens_per_second"].items():
        out.add_row(batch, "none", f"{speeds['eagle3']:,.0f}")
        for name, label, of in (("specexit", "never firing", result), ("shadow", "shadow mode", result["shadow"])):
            lost = of["steps_lost_to_stopping"][batch]
            out.add_row("", label, f"{speeds[name]:,.0f}", _shown(*of["ratio_to_eagle3"][batch]), f"{lost:.1%}")
    return out


def _shown(value: float, low: float, high: float) -> str:
    """A ratio with its interval, where there is one."""
    return f"{value:.3f} ({f'{low:.3f}..{high:.3f}' if is_interval((value, low, high)) else NO_INTERVAL})"


def step_table(by_batch: dict[str, dict[str, Any]]) -> Table:
    """What a step without news costs beside the model, for a person."""
    out = Table(title="a step without news, beside the model", title_justify="left")
    out.add_column("batch", justify="right")
    headings = {
        "launches": "launches",
        "allocations": "allocations",
        "rows_sent": "rows sent",
        "worker_ms": "worker ms",
        "engine_core_ms": "engine core ms",
        "front_end_ms": "front end ms",
        "fc_temporary_bytes": "fc, MiB",
    }
    for heading in headings.values():
        out.add_column(heading, justify="right")
    for batch, of in by_batch.items():
        shown = of | {"fc_temporary_bytes": of["fc_temporary_bytes"] / 2**20}
        cells = [f"{shown[name]:.3f}" if isinstance(shown[name], float) else str(shown[name]) for name in headings]
        out.add_row(batch, *cells)
    return out
