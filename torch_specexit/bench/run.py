"""`specexit bench`: the same problems through every method, in turns, on real vLLM engines.

One engine process per draft directory, which methods share; all are started once, and only one works at a time. The
methods take turns slice by slice, and who begins moves on from slice to slice, so that a noisy machine hits all of them
alike. What a slice gave is written down at once: a benchmark that was interrupted goes on after the last one.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from specexit.bench.comparison import by_task, compare, faster, identities, oracle, summarise
from specexit.bench.inputs import finished, read_scores_of, tolerance_of
from specexit.bench.journal import Journal, alone_at
from specexit.bench.methods import Known, Method, Tuning, check_parameters, find_method
from specexit.bench.process import BenchError, BenchProcess
from specexit.bench.requests import Run, write_requests
from specexit.bench.results import BASELINE, DEFINITIONS, Results, result_tables, write_results
from specexit.config import Config, save_run, versions
from specexit.data.overlap import refuse_calibrated, refuse_selected, refuse_shared, refuse_trained, unlisted
from specexit.data.traces import (
    Trace,
    check_tokenizer,
    first_samples,
    read_outlines,
    read_traces,
    target_named_in,
)
from specexit.data.written_by import check_weights
from specexit.drafts.directory import DraftConfig, check_target, plain_copy, read_config
from specexit.drafts.policy import OperatingPoint, PolicyFile, read_policy, write_policy
from specexit.errors import first_problem
from specexit.hardware import describe_hardware
from specexit.method.simulate import write_curves
from specexit.method.splits import behind
from specexit.outputs import new_folder, require_empty
from specexit.schemas.bench import BenchConfig
from specexit.schemas.sampling import SamplingConfig, is_greedy
from specexit.schemas.simulate import SimulateConfig
from specexit.schemas.target import TargetConfig, find_target, target_reference
from torch_specexit.bench import worker
from torch_specexit.bench.conditions import inputs_served, machine, refuse_held_back
from torch_specexit.bench.turns import Entry, measure, warm_up
from torch_specexit.chat import check_read

DEFAULT = ("none", "eagle3", "specexit", "specexit-fc", "budget")


def bench(config: BenchConfig) -> Results:
    """Measure all methods; write ``results.json``, ``requests.jsonl``, ``report.html`` and ``run.yaml``; print. With
    ``scores`` the report has what `simulate` replays of the traces, which is written as well.

    Raises:
      BenchError: the traces are another target's, are too few or lack references, an engine fails, responses run out
        of tokens, or another benchmark was finished or interrupted in the output folder, or measures into it.
      MethodError: a method does not exist, or cannot be run with what is given.
      DraftError: a draft cannot be used, or belongs to another target.
      OverlapError: a draft was trained on some of the problems, its checkpoint was chosen on them, or methods would be
        tuned on them.
      ScoreError: the scores are another draft's.
      FileExistsError: the output folder is not empty, and not a benchmark's.
    """
    from specexit.report.page import report
    from specexit.schemas.report import ReportConfig

    places = config.draft, config.traces
    name = read_config(config.draft).target_name or target_named_in(config.traces)
    config = config.model_copy(update={"target": target_reference(config.target, *places, name=name)})
    target = find_target(config.target, *places, name=name)
    for path in filter(None, (config.traces, config.calibration_traces)):
        refuse_other_target(path, target)
    config = config.model_copy(update={"max_new_tokens": longest_response(config, target)})
    traces = read_problems(config)
    config = as_traced(config, traces)
    asked = asked_of(config, inputs_served(config, target))
    remarks = [one for draft in filter(None, (config.draft, config.draft_fc)) for one in unlisted(draft)]
    if (results := finished(config.out, asked)) is not None:
        return shown(results, f"{config.out}: measured already, with the same config, versions and inputs", *remarks)
    require_empty(config.out)
    with alone_at(config.out):
        with new_folder(config.out) as folder, tempfile.TemporaryDirectory(prefix="specexit-bench-") as scratch:
            # First, as what cannot be replayed is to be refused before hours of measuring.
            simulation = replay_curves(config, folder)
            journal = Journal(config.out, _decisive(asked) | {"machine": machine()})
            runs, results = run_methods(config, target, traces, journal, Path(scratch))
            write_requests(folder / "requests.jsonl", runs)
            write_results(folder / "results.json", results)
            save_run(config, folder)
            given = config.model_dump(include={"traces", "target", "draft", "scores"})
            report(ReportConfig(bench=folder, out=folder / "report.html", simulation=simulation, **given))
        journal.remove()
    return shown(results, *remarks)


def refuse_other_target(path: Path, target: TargetConfig) -> None:
    """Check that traces are a target's.

    Raises:
      BenchError: they are another one's.
      TraceError: they are of another tokenizer or of other weights, or cannot be read.
    """
    if (wrote := target_named_in(path)) != target.name:
        raise BenchError(
            f"{path}: traces of target {wrote!r}, expected those of {target.name!r}: the oracle, and what methods "
            "choose on them, would be another model's"
        )
    check_tokenizer(path, target)
    check_weights(path, target)


def shown(results: Results, *remarks: str) -> Results:
    """Print the tables, and remarks above them."""
    console = Console()
    for one in (*remarks, *result_tables(results)):
        console.print(one)
    return results


def asked_of(config: Config, inputs: Mapping[str, str]) -> dict[str, Any]:
    """What tells one benchmark from another: its config, the versions that measure, and its inputs."""
    return {"config": config.model_dump(mode="json"), "versions": versions(), "inputs": dict(inputs)}


def _decisive(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The same without what only judges replies: an interrupted benchmark goes on with another."""
    return {**asked, "config": {key: value for key, value in asked["config"].items() if key != "max_unfinished"}}


def replay_curves(config: BenchConfig, folder: Path) -> Path | None:
    """Write into the folder what `simulate` makes of the traces; returns the file, None without ``scores``.

    Raises:
      TraceError, ScoreError: traces and scores do not belong together, or no trace can judge.
    """
    if config.scores is None:
        return None
    out = folder / "simulation.json"
    write_curves(SimulateConfig(traces=config.traces, scores=config.scores, out=out), Console(stderr=True))
    return out


def run_methods(
    config: BenchConfig, target: TargetConfig, traces: Sequence[Trace], journal: Journal, scratch: Path
) -> tuple[dict[str, Run], Results]:
    """Measure all methods; ``scratch`` is an empty folder. Returns the run of each method, and the results.

    Raises:
      BenchError, MethodError, DraftError: see `bench`.
    """
    entries = plan_methods(config, target, traces, scratch)
    runs, accelerator = _run_engines(config, target, entries, traces, journal, scratch)
    results = gather(config, target, entries, traces, runs, accelerator)
    return runs, results.model_copy(update={"inputs": journal.asked["inputs"]} | _tolerance(config))


def _tolerance(config: BenchConfig) -> dict[str, Any]:
    """What methods were tuned to lose at most, and why so much; nothing where none was tuned on traces."""
    if config.calibration_traces is None:
        return {}
    lost, why = tolerance_of(config.draft)
    said = f"accuracy that a method may lose on the calibration traces it is tuned on: {100 * lost:g} % ({why})"
    return {"tolerance": lost, "definitions": DEFINITIONS | {"tolerance": said}}


def read_problems(config: BenchConfig) -> list[Trace]:
    """The first ``n`` problems: of each prompt the first trace, as further ones would ask the same again, whatever
    their ids.

    Raises:
      BenchError: there are fewer, or none of some task, two have one id, one has no reference answer, or none has any
        thinking.
      OverlapError: a draft was trained on some of them, its checkpoint was chosen or its policy certified on them,
        or they are among ``calibration_traces``.
    """
    found: dict[str, Trace] = {}
    every = read_traces(config.traces)
    firsts = first_samples(every)
    for trace in every:
        first = firsts[trace.id]  # compared by text: a chat template may put the date among the tokens
        if (trace.prompt, trace.messages) != (first.prompt, first.messages):
            raise BenchError(
                f"{config.traces}: trace {trace.id!r} is of two prompts, expected an id of its own for each"
            )
    for trace in firsts.values():
        found.setdefault(trace.prompt_hash, trace)
    traces = _of_tasks(config, list(found.values()))
    if config.n is not None and len(traces) < config.n:
        of = f" of tasks={list(config.tasks)}" if config.tasks else ""
        raise BenchError(
            f"{config.traces}: traces of {len(traces)} different prompts{of}, expected at least n={config.n}"
        )
    traces = traces[: config.n]
    for draft in filter(None, (config.draft, config.draft_fc)):
        refuse_trained(draft, traces, config.traces)
        stored = read_policy(draft) if read_config(draft).specexit else PolicyFile()
        refuse_selected(draft, stored.selection, traces, config.traces)
        refuse_calibrated(draft, stored, config.traces)
    if config.calibration_traces is not None:
        refuse_shared(read_outlines(config.calibration_traces), config.calibration_traces, traces, config.traces)
    for trace in traces:
        if trace.reference is None:
            raise BenchError(f"{config.traces}: trace {trace.id} has no reference, without which accuracy is unknown")
    if not any(trace.think_ids for trace in traces):
        raise BenchError(
            f"{config.traces}: think_ids are empty in all {len(traces)} traces, so that there is nothing to cut: "
            "expected traces of a target that thinks, with its thinking switched on"
        )
    return traces


def _of_tasks(config: BenchConfig, traces: list[Trace]) -> list[Trace]:
    """The traces of the config's ``tasks``; all of them where it names none.

    Raises:
      BenchError: there are none of some task.
    """
    if config.tasks is None:
        return traces
    known = sorted({trace.task for trace in traces if trace.task is not None})
    for task in config.tasks:
        if task not in known:
            found = ", ".join(known) or "they have none"
            raise BenchError(f"{config.traces}: tasks has {task!r}, expected some of the traces' tasks: {found}")
    return [trace for trace in traces if trace.task in config.tasks]


def as_traced(config: BenchConfig, traces: Sequence[Trace]) -> BenchConfig:
    """The config; where it says no sampling, with the one that its traces were drawn with.

    Raises:
      BenchError: they do not say one, or several; or several responses to a problem would all be the same.
    """
    if config.sampling is not None:
        return config
    told = [json.loads(text or "{}") for text in sorted({trace.sampling for trace in traces})]
    said = [{key: one[key] for key in SamplingConfig.model_fields if key in one} for one in told]
    try:
        sampling, *others = [SamplingConfig.model_validate(one) for one in said]
    except ValidationError as error:
        raise BenchError(f"{config.traces}: sampling: {first_problem(error)}") from error
    if any(other != sampling for other in others) or any("temperature" not in one for one in said):
        raise BenchError(
            f"{config.traces}: sampling is {' and '.join(map(str, told))}, expected one with a temperature, or "
            "sampling.temperature="
        )
    if config.samples > 1 and is_greedy(sampling.model_dump()):
        raise BenchError(
            f"samples={config.samples}: {config.traces} are greedy, and all responses would be the same; expected "
            "sampling.temperature= above 0"
        )
    return config.model_copy(update={"sampling": sampling})


def plan_methods(config: BenchConfig, target: TargetConfig, traces: Sequence[Trace], scratch: Path) -> list[Entry]:
    """The methods that are asked for, or that the config makes possible; writes the drafts they need into ``scratch``.

    Raises:
      DraftError: a draft cannot be used, or belongs to another target.
      MethodError: a method does not exist, or cannot be run with what is given.
      BenchError: eagle3 is not among them, or one is twice, or a draft is served without exits, or a prompt is longer
        than an engine reads.
      ConfigError: an engine would read the target's text wrongly.
      ScoreError: the scores are another draft's, or not of these traces.
    """
    assert config.sampling is not None, "`as_traced` has it"
    found = read_config(config.draft)
    for draft in [config.draft, *([config.draft_fc] if config.draft_fc else [])]:
        check_target(read_config(draft), draft, target.hf_config(), target.name)
    check_read(target, config.engine.extra)
    _refuse_too_long(config, target, traces)
    plain_copy(config.draft, scratch / BASELINE)
    references = config.methods or tuple(name for name in DEFAULT if _possible(name, config, found))
    kinds = [find_method(reference) for reference in references]
    names = [kind.name for kind in kinds]
    if BASELINE not in names or len(set(names)) < len(names):
        raise BenchError(f"methods are {', '.join(names)}: expected different ones, with {BASELINE} among them")
    calibration = read_traces(config.calibration_traces) if config.calibration_traces else []
    tuning = Tuning(calibration, tolerance_of(config.draft).lost, config.budget)
    signals = read_scores_of(config.scores, config.draft).of(traces) if config.scores else None
    known = Known(traces, signals, found.specexit.policy if found.specexit else None)
    trials = trials_of(config, target, traces)
    entries = []
    for reference, kind in zip(references, kinds, strict=True):
        method = check_parameters(reference, kind.tuned(tuning))
        draft, hints = _draft_of(kind, config, found, scratch), tuple(method.hints(known))
        if draft is not None:
            refuse_held_back(config, draft)
        if any(hint is not None for hint in hints):
            _refuse_other_text(kind.name, config, traces, config.sampling)
        entries.append(Entry(kind.name, reference, method, draft, hints, trials, tuning.beyond.get(kind.name)))
    return entries


def _refuse_too_long(config: BenchConfig, target: TargetConfig, traces: Sequence[Trace]) -> None:
    """Refuse a prompt that leaves an engine no room for ``</think>``, with which a method may begin, and a token: the
    engine would end when its turn comes.

    Raises:
      BenchError: there is one.
    """
    most = config.engine.extra.get("max_model_len", target.max_model_len)
    if not isinstance(most, int) or most < 1:  # -1 or a word such as auto: vLLM chooses by itself
        return
    for trace in traces:
        if len(trace.prompt_ids) + 1 >= most:
            raise BenchError(
                f"{config.traces}: the prompt of {trace.id} is {len(trace.prompt_ids)} tokens long, expected room for "
                f"an end marker and a token in max_model_len {most}"
            )


def _refuse_other_text(name: str, config: BenchConfig, traces: Sequence[Trace], sampling: SamplingConfig) -> None:
    """Refuse to replay a recording whose text does not come again: only greedy responses repeat greedy traces.

    Raises:
      BenchError: responses are sampled, or traces were.
    """
    if not is_greedy(sampling.model_dump()):
        raise BenchError(
            f"method {name} replays a recording, and sampled text is another: expected sampling.temperature=0"
        )
    for trace in traces:
        if not is_greedy(recorded := json.loads(trace.sampling or "{}")):
            raise BenchError(
                f"{config.traces}: method {name} replays a recording, and trace {trace.id} was sampled at temperature "
                f"{recorded['temperature']}, so that greedy text is another: expected traces collected with "
                "temperature=0"
            )


def longest_response(config: BenchConfig, target: TargetConfig) -> int:
    """Tokens of a response, thinking included: as the config says, or as the target does.

    Raises:
      BenchError: neither says.
    """
    if config.max_new_tokens is not None:
        return config.max_new_tokens
    if target.sampling is None:
        raise BenchError(f"target {target.name}: sampling.max_tokens is missing, expected it there or max_new_tokens=")
    return target.sampling.max_tokens


def trials_of(config: BenchConfig, target: TargetConfig, traces: Sequence[Trace]) -> tuple[dict[str, Any], ...]:
    """How an answer to each problem is tried, as fields of `specexit.bench.methods.Trial`: as the target says for its
    kind, else answered in full."""
    tokenizer, found = target.tokenizer(), {}
    for kind in {trace.answer_kind for trace in traces}:
        how = target.trial.get(kind) or target.trial.get(kind.partition(":")[0])
        ids = behind(tokenizer, target.think_end, how.text) if how else []
        limit = how.max_tokens if how else longest_response(config, target)
        stop, close = (how.stop, how.close) if how else ((), "")
        found[kind] = {"ids": ids, "max_tokens": limit, "stop": stop, "close": close}
    return tuple(found[trace.answer_kind] for trace in traces)


def _possible(name: str, config: BenchConfig, draft: DraftConfig) -> bool:
    return {
        "specexit": draft.specexit is not None,
        "specexit-fc": config.draft_fc is not None,
        "budget": draft.specexit is not None and not (config.budget is None and config.calibration_traces is None),
    }.get(name, True)


def _draft_of(kind: type[Method], config: BenchConfig, draft: DraftConfig, scratch: Path) -> Path | None:
    """The draft directory that a method runs on.

    Raises:
      BenchError: there is none of that kind, or the one that is given is of another.
    """
    if kind.engine == "none":
        return None
    if kind.engine == "eagle3":
        return scratch / BASELINE
    found = config.draft if kind.engine == "specexit" else config.draft_fc
    if found is None:
        raise BenchError(f"method {kind.name} runs on a draft with signals of source fc: draft_fc is missing")
    if kind.engine == "specexit" and draft.specexit is None:
        raise BenchError(f"method {kind.name}: {config.draft} has no signals, expected a SpecExit draft")
    block = read_config(found).specexit
    if kind.engine == "specexit-fc" and (block is None or block.source != "fc"):
        has = "no signals" if block is None else f"signals of source {block.source}"
        raise BenchError(f"method {kind.name}: draft_fc={found} has {has}, expected a draft with signals of source fc")
    if kind.policy is None:
        return found
    shutil.copytree(found, scratch / kind.name)
    write_policy(scratch / kind.name, PolicyFile(points=(OperatingPoint(name="default", policy=kind.policy),)))
    return scratch / kind.name


def _run_engines(
    config: BenchConfig,
    target: TargetConfig,
    entries: Sequence[Entry],
    traces: Sequence[Trace],
    journal: Journal,
    scratch: Path,
) -> tuple[dict[str, Run], str | None]:
    # Where one method needs prefixes kept, or budgets watched, all get that: what it costs, all pay alike.
    pauses = any(entry.method.pauses for entry in entries)
    budgets = any(entry.method.budgets for entry in entries)
    accelerator = None
    with ExitStack() as stack:
        engines: dict[Path | None, BenchProcess] = {}
        for entry in entries:
            if entry.draft not in engines:
                process = BenchProcess(
                    entry.name,
                    worker.__name__,
                    worker.setup_of(config, target, entry.draft, prefixes=pauses) | {"budgets": budgets},
                    scratch / f"{entry.name}.log",
                )
                engines[entry.draft] = stack.enter_context(process)
        for engine in engines.values():
            accelerator = engine.wait_ready()["accelerator"]
        journal.check_accelerator(accelerator)
        warm_up(config, entries, engines, traces)
        return measure(config, target, entries, engines, traces, journal), accelerator


def gather(
    config: BenchConfig,
    target: TargetConfig,
    entries: Sequence[Entry],
    traces: Sequence[Trace],
    runs: Mapping[str, Run],
    accelerator: str | None,
) -> Results:
    """All measurements as one result."""
    against = {name: compare(run, runs[BASELINE], config.seed) for name, run in runs.items() if name != BASELINE}
    assert config.sampling is not None, "`as_traced` has it"
    greedy = is_greedy(config.sampling.model_dump())
    return Results(
        n=len(traces),
        n_seconds=dict.fromkeys(map(str, (1, *config.batches[:-1])), min(config.n_latency, len(traces)))
        | {str(config.batches[-1]): len(traces) * config.samples},
        target=target.name,
        hardware=describe_hardware(accelerator),
        versions=versions(),
        seed=config.seed,
        num_speculative_tokens=config.num_speculative_tokens,
        budget=next((entry.parameters["tokens"] for entry in entries if entry.name == "budget"), None),
        methods={
            entry.name: summarise(runs[entry.name], says=entry.says, parameters=entry.parameters) for entry in entries
        },
        against_eagle3=against,
        oracle=oracle(traces, against),
        lossless=identities(runs) if greedy else {},
        samples=config.samples,
        sampling=config.sampling.model_dump(),
        tasks=by_task(runs, config.seed),
        specexit_faster=faster(runs, "specexit", seed=config.seed) if "specexit" in runs else {},
    )
