"""``specexit bench-serving``: what it costs to have exits switched on, apart from what they save.

Every request asks for a validity that no signal reaches, so every check, and every stop at a split token, is paid, and
the text is plain EAGLE-3's to the byte. Two engines, one with the plug-in and one without it, answer the same groups
of prompts in turns; the ratio of their tokens per second is the cost, with a paired bootstrap interval over the turns.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from specexit.bench_process import BenchError, BenchProcess
from specexit.config import versions, write_text
from specexit.draftdir import check_target, plain_copy, read_config
from specexit.hardware import describe_hardware
from specexit.schemas.bench_serving import BenchServingConfig
from specexit.schemas.target import TargetConfig, load_target_config
from specexit.stats import paired_bootstrap
from specexit.traces import Trace, read_traces
from torch_specexit import bench_worker

NEVER = {"specexit_validity": 1.0}
"""Enabled, and never firing: a probability is below 1."""

METHODS: dict[str, dict[str, Any]] = {"eagle3": {}, "specexit": NEVER}
WARM_UP_TOKENS = 32


@dataclass
class Turns:
    """What one method did at one batch size."""

    seconds: list[float] = field(default_factory=list)
    token_ids: list[list[int]] = field(default_factory=list)
    n_drafts: int = 0
    n_accepted: int = 0

    def add(self, reply: dict[str, Any]) -> None:
        """Take in a reply of `bench_worker`."""
        self.seconds.append(sum(reply["seconds"]))
        self.token_ids += [request["token_ids"] for request in reply["requests"]]
        self.n_drafts += reply["n_drafts"]
        self.n_accepted += reply["n_accepted"]

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens, thinking and answers."""
        return sum(map(len, self.token_ids)) / sum(self.seconds)


def bench_serving(config: BenchServingConfig) -> dict[str, Any]:
    """Measure, write ``serving.json`` and print it.

    Raises:
      BenchError: an engine fails, or a text differs from plain EAGLE-3's, so that the times cannot be compared.
      DraftError, TraceError: the draft or the traces cannot be used.
    """
    target = load_target_config(config.target)
    found = read_config(config.draft)
    check_target(found, config.draft, target.hf_config(), target.name)
    if found.specexit is None:
        raise BenchError(f"{config.draft}: no specexit block, so there is nothing whose cost could be measured")
    traces = read_traces(config.traces)
    with tempfile.TemporaryDirectory(prefix="specexit-bench-") as scratch, ExitStack() as stack:
        plain_copy(config.draft, Path(scratch) / "eagle3")
        drafts = {"eagle3": Path(scratch) / "eagle3", "specexit": config.draft}
        engines = {
            name: stack.enter_context(
                BenchProcess(name, bench_worker.__name__, _setup(config, target, draft), Path(scratch) / f"{name}.log")
            )
            for name, draft in drafts.items()
        }
        ready = [engine.wait_ready() for engine in engines.values()]
        turns = {batch: _take_turns(config, engines, traces, batch) for batch in config.batches}
    result = gather(config, turns, ready[0]["accelerator"])
    write_text(config.out, json.dumps(result, indent=2) + "\n")
    console = Console()
    console.print(table(result))
    console.print(
        f"per step: {result['eager_ops_per_step']} operations of the eager twin, "
        f"{result['triton_launches_per_step']} launch(es) of the Triton kernel"
    )
    return result


def _setup(config: BenchServingConfig, target: TargetConfig, draft: Path) -> dict[str, Any]:
    extra = config.engine.extra | {"enable_prefix_caching": False}
    engine = config.engine.model_copy(update={"max_num_seqs": max(config.batches), "extra": extra})
    return {
        "target": target.model_dump(mode="json"),
        "engine": engine.model_dump(mode="json"),
        "draft": str(draft),
        "num_speculative_tokens": config.num_speculative_tokens,
        "seed": config.seed,
    }


def _take_turns(
    config: BenchServingConfig, engines: dict[str, BenchProcess], traces: Sequence[Trace], batch: int
) -> dict[str, Turns]:
    """The methods answer one group of prompts after the other, and who begins alternates."""
    turns = {name: Turns() for name in METHODS}
    rounds = config.rounds * (4 if batch == 1 else 1)
    for name, engine in engines.items():
        engine.ask(_job(METHODS[name], _group(traces, 0, batch), batch, WARM_UP_TOKENS))
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task(f"batch {batch}", total=rounds)
        for i in range(rounds):
            prompts = _group(traces, i, batch)
            for name in list(METHODS)[:: 1 if i % 2 else -1]:
                turns[name].add(engines[name].ask(_job(METHODS[name], prompts, batch, config.max_new_tokens)))
            progress.advance(bar)
    if turns["eagle3"].token_ids != turns["specexit"].token_ids:
        raise BenchError(f"batch {batch}: a text differs between the methods, expected plain EAGLE-3's of both")
    return turns


def _group(traces: Sequence[Trace], i: int, batch: int) -> list[list[int]]:
    return [traces[(i * batch + j) % len(traces)].prompt_ids for j in range(batch)]


def _job(extra_args: dict[str, Any], prompts: list[list[int]], batch: int, max_new_tokens: int) -> dict[str, Any]:
    return {"prompts": prompts, "batch": batch, "max_new_tokens": max_new_tokens, "extra_args": extra_args}


def gather(config: BenchServingConfig, turns: dict[int, dict[str, Turns]], accelerator: str | None) -> dict[str, Any]:
    """``serving.json``."""
    ratios, lost, speeds = {}, {}, {}
    for batch, of in turns.items():
        base, ours = of["eagle3"], of["specexit"]
        # The same tokens on both sides, so seconds are enough.
        ratio = paired_bootstrap(_ratio, np.array(base.seconds), np.array(ours.seconds), seed=config.seed)
        ratios[str(batch)] = list(ratio)
        lost[str(batch)] = 1 - base.n_drafts / ours.n_drafts
        speeds[str(batch)] = {name: one.tokens_per_second for name, one in of.items()}
    return {
        "ratio_to_eagle3": ratios,
        "steps_lost_to_stopping": lost,
        "tokens_per_second": speeds,
        **count_operations(),
        "definitions": {
            "ratio_to_eagle3": "tokens/s with exits enabled and never firing over plain EAGLE-3; mean and paired "
            "bootstrap 95 % interval over turns",
            "steps_lost_to_stopping": "share of the plug-in's decoding steps that plain EAGLE-3 did not need, because "
            "acceptance stopped at split tokens",
            "eager_ops_per_step": "aten calls of the eager twin in a step whose verdict is to go on, nested included",
        },
        "hardware": describe_hardware(accelerator),
        "versions": versions(),
        "num_speculative_tokens": config.num_speculative_tokens,
        "max_new_tokens": config.max_new_tokens,
    }


def count_operations() -> dict[str, Any]:
    """What `torch_specexit.plugin.cost` counts, in a process of its own: without a GPU it needs Triton's interpreter.

    Raises:
      BenchError: that process fails.
    """
    command = [sys.executable, "-m", "torch_specexit.plugin.cost"]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    if done.returncode:
        raise BenchError(f"{' '.join(command[1:])} ended with code {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def _ratio(base: Float[np.ndarray, " turns"], ours: Float[np.ndarray, " turns"]) -> float:
    return float(base.sum() / ours.sum())


def table(result: dict[str, Any]) -> Table:
    """The numbers for a person."""
    hardware = result["hardware"]
    where = hardware["accelerator"] or f"{hardware['cores']} cores of {hardware['processor']}"
    out = Table(title=f"exits enabled, never firing, against plain EAGLE-3; {where}", title_justify="left")
    for heading in ("batch", "eagle3 tokens/s", "specexit tokens/s", "ratio (95 %)", "steps lost to stopping"):
        out.add_column(heading, justify="right")
    for batch, (mean, low, high) in result["ratio_to_eagle3"].items():
        speeds = result["tokens_per_second"][batch]
        out.add_row(
            batch,
            f"{speeds['eagle3']:,.0f}",
            f"{speeds['specexit']:,.0f}",
            f"{mean:.3f} ({low:.3f}..{high:.3f})",
            f"{result['steps_lost_to_stopping'][batch]:.1%}",
        )
    return out
