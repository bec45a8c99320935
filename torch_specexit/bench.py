"""`specexit bench`: the same problems through every method, in turns, on real vLLM engines.

One engine process per draft, all started once; only one works at a time. The methods take turns slice by slice, and
who begins moves on from slice to slice, so that a noisy machine hits all of them alike. Prefix caching is off: the
batched pass asks again what the latency pass has asked.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from specexit.bench.comparison import (
    BASELINE,
    Request,
    Run,
    compare,
    identities,
    oracle,
    reason_of,
    summarise,
    write_requests,
)
from specexit.bench.process import BenchError, BenchProcess
from specexit.bench.results import Results, result_tables, write_results
from specexit.config import save_run, versions
from specexit.data.answers import extract_answer, same_answer
from specexit.data.traces import Trace, read_traces, target_named_in
from specexit.drafts.directory import check_target, plain_copy, read_config
from specexit.hardware import describe_hardware
from specexit.method.calibrate import calibrate_budget
from specexit.method.splits import FastTokenizer, marker
from specexit.outputs import new_folder
from specexit.schemas.bench import BenchConfig
from specexit.schemas.target import TargetConfig, find_target, target_reference
from torch_specexit import bench_worker
from torch_specexit.engine import one_of_several

WARM_UP_TOKENS = 32
BUDGET_TOLERANCE = 0.01
"""Accuracy that the fixed budget may lose on the traces it is chosen on: what SpecExit is held to as well."""


@dataclass(frozen=True)
class Method:
    """What is compared: a draft (or none) and what its requests ask of the plug-in."""

    name: str
    draft: Path | None
    extra_args: dict[str, Any]
    exits: bool
    """Whether the plug-in has to report an outcome."""


def bench(config: BenchConfig) -> Results:
    """Measure all methods; write ``results.json``, ``requests.jsonl``, ``report.html`` and ``run.yaml``; print.

    Raises:
      BenchError: the traces are too few or lack references, or an engine fails.
      DraftError: a draft cannot be used, or belongs to another target.
      FileExistsError: the output folder is not empty.
    """
    from specexit.report.page import report
    from specexit.schemas.report import ReportConfig

    places = config.draft, config.traces
    name = read_config(config.draft).target_name or target_named_in(config.traces)
    config = config.model_copy(update={"target": target_reference(config.target, *places, name=name)})
    target = find_target(config.target, *places, name=name)
    traces = read_problems(config)
    config = config.model_copy(update={"budget": choose_budget(config)})
    with new_folder(config.out) as folder, tempfile.TemporaryDirectory(prefix="specexit-bench-") as scratch:
        methods = plan_methods(config, target, Path(scratch))
        runs, accelerator = _run_engines(config, target, methods, traces, Path(scratch))
        results = gather(config, target, traces, runs, accelerator)
        write_requests(folder / "requests.jsonl", runs)
        write_results(folder / "results.json", results)
        save_run(config, folder)
        out = folder / "report.html"
        report(ReportConfig(bench=folder, traces=config.traces, target=config.target, draft=config.draft, out=out))
    console = Console()
    for table in result_tables(results):
        console.print(table)
    return results


def read_problems(config: BenchConfig) -> list[Trace]:
    """The first ``n`` traces.

    Raises:
      BenchError: there are fewer, or one has no reference answer.
    """
    traces = read_traces(config.traces)[: config.n]
    if len(traces) < config.n:
        raise BenchError(f"{config.traces}: {len(traces)} traces, expected at least n={config.n}")
    for trace in traces:
        if trace.reference is None:
            raise BenchError(f"{config.traces}: trace {trace.id} has no reference, without which accuracy is unknown")
    return traces


def choose_budget(config: BenchConfig) -> int | None:
    """The fixed thinking budget: as given, or the smallest that loses at most one point on the calibration traces.

    Raises:
      TraceError: the calibration traces cannot be read.
    """
    if config.budget is not None or config.calibration_traces is None:
        return config.budget
    return calibrate_budget(read_traces(config.calibration_traces), BUDGET_TOLERANCE)


def plan_methods(config: BenchConfig, target: TargetConfig, scratch: Path) -> list[Method]:
    """The methods that the config makes possible; writes the plain draft into ``scratch``.

    Raises:
      DraftError: a draft cannot be used, or belongs to another target.
    """
    drafts = [config.draft] + ([config.draft_fc] if config.draft_fc else [])
    configs = [read_config(draft) for draft in drafts]
    for draft, found in zip(drafts, configs, strict=True):
        check_target(found, draft, target.hf_config(), target.name)
    plain_copy(config.draft, scratch / BASELINE)
    methods = [Method("none", None, {}, exits=False), Method(BASELINE, scratch / BASELINE, {}, exits=False)]
    if configs[0].specexit:
        methods.append(Method("specexit", config.draft, {}, exits=True))
    if config.draft_fc:
        methods.append(Method("specexit-fc", config.draft_fc, {}, exits=True))
    if configs[0].specexit and config.budget is not None:
        # Validity is at least 0, so the first boundary behind the budget always exits.
        always = {
            "specexit_validity": 0.0,
            "specexit_patience": 1,
            "specexit_min_thinking_tokens": config.budget,
        }
        methods.append(Method("budget", config.draft, always, exits=True))
    return methods


def _run_engines(
    config: BenchConfig, target: TargetConfig, methods: Sequence[Method], traces: Sequence[Trace], scratch: Path
) -> tuple[dict[str, Run], str | None]:
    accelerator = None
    with ExitStack() as stack:
        engines: dict[Path | None, BenchProcess] = {}
        for method in methods:
            if method.draft not in engines:
                process = BenchProcess(
                    method.name, bench_worker.__name__, _setup(config, target, method), scratch / f"{method.name}.log"
                )
                engines[method.draft] = stack.enter_context(process)
        for engine in engines.values():
            accelerator = engine.wait_ready()["accelerator"]
        for method in methods:
            for batch in (1, config.batch):
                prompts = [trace.prompt_ids for trace in traces[:batch]]
                engines[method.draft].ask(_job(method, prompts, batch, WARM_UP_TOKENS))
        return measure(config, target, methods, engines, traces), accelerator


def _setup(config: BenchConfig, target: TargetConfig, method: Method) -> dict[str, Any]:
    extra = config.engine.extra | {"enable_prefix_caching": False}
    engine = one_of_several(config.engine, max_num_seqs=config.batch, extra=extra)
    return {
        "target": target.model_dump(mode="json"),
        "engine": engine.model_dump(mode="json"),
        "draft": str(method.draft) if method.draft else None,
        "num_speculative_tokens": config.num_speculative_tokens,
        "seed": config.seed,
    }


def _job(method: Method, prompts: list[list[int]], batch: int, max_new_tokens: int) -> dict[str, Any]:
    return {
        "prompts": prompts,
        "batch": batch,
        "max_new_tokens": max_new_tokens,
        "extra_args": method.extra_args,
    }


def measure(
    config: BenchConfig,
    target: TargetConfig,
    methods: Sequence[Method],
    engines: Mapping[Path | None, BenchProcess],
    traces: Sequence[Trace],
) -> dict[str, Run]:
    """Ask every engine for every problem, slice by slice, first one at a time, then in batches."""
    tokenizer = target.tokenizer()
    end = marker(tokenizer, target.think_end)
    runs = {method.name: Run() for method in methods}
    sizes = {1: config.n_latency, config.batch: config.n}
    console = Console()
    with Progress(console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("bench", total=len(methods) * sum(sizes.values()))
        for batch, n in sizes.items():
            for method, part in turns(methods, traces[:n], config.rounds):
                progress.update(bar, description=f"{method.name} @ {batch}")
                job = _job(method, [trace.prompt_ids for trace in part], batch, config.max_new_tokens)
                reply = engines[method.draft].ask(job)
                requests = [
                    read_request(method, trace, raw, tokenizer, end)
                    for trace, raw in zip(part, reply["requests"], strict=True)
                ]
                runs[method.name].add(batch, requests, reply["seconds"], reply["n_drafts"], reply["n_accepted"])
                progress.advance(bar, len(part))
    return runs


def turns(methods: Sequence[Method], traces: Sequence[Trace], rounds: int) -> Iterator[tuple[Method, Sequence[Trace]]]:
    """Slices of the problems, each given to all methods before the next; the first to go moves on by one a slice."""
    edges = [len(traces) * i // rounds for i in range(rounds + 1)]
    for i, (start, stop) in enumerate(pairwise(edges)):
        if start < stop:
            first = i % len(methods)
            for method in [*methods[first:], *methods[:first]]:
                yield method, traces[start:stop]


def read_request(method: Method, trace: Trace, raw: dict[str, Any], tokenizer: FastTokenizer, end: int) -> Request:
    """One reply of a worker, its answer extracted and judged.

    Raises:
      BenchError: the method needs the plug-in, and no outcome came back.
    """
    ids, outcome = raw["token_ids"], raw["outcome"]
    if method.exits and outcome is None:
        raise BenchError(
            f"method {method.name}: vLLM reported no outcome for {trace.id}, expected one from the specexit plug-in; "
            "is it installed, and is VLLM_PLUGINS unset or does it name specexit?"
        )
    thinking = ids.index(end) if end in ids else len(ids)
    answer = extract_answer(tokenizer.decode(ids[thinking + 1 :]))
    return Request(
        id=trace.id,
        token_ids=ids,
        thinking_tokens=thinking,
        reason=reason_of(outcome, closed=end in ids, finish_reason=raw["finish_reason"]),
        answer=answer,
        correct=same_answer(answer, trace.reference),
        signals=(outcome or {}).get("signals", {}),
    )


def gather(
    config: BenchConfig, target: TargetConfig, traces: Sequence[Trace], runs: Mapping[str, Run], accelerator: str | None
) -> Results:
    """All measurements as one result."""
    against = {name: compare(run, runs[BASELINE], config.seed) for name, run in runs.items() if name != BASELINE}
    return Results(
        n=config.n,
        n_seconds={"1": config.n_latency, str(config.batch): config.n},
        target=target.name,
        hardware=describe_hardware(accelerator),
        versions=versions(),
        seed=config.seed,
        num_speculative_tokens=config.num_speculative_tokens,
        budget=config.budget,
        methods={name: summarise(run) for name, run in runs.items()},
        against_eagle3=against,
        oracle=oracle(traces, against),
        lossless=identities(runs),
    )
