"""``specexit bench-full-size``: what exits save at a real target's size, on a stand-in that any machine can write.

Three pairs of engines, one after the other, answer the same problems with EAGLE-3 and with SpecExit: the small target;
the stand-in in float32, whose texts have to be the small target's; the stand-in in bfloat16, which is measured.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from specexit.bench.inputs import draft_inputs, settings_sha256
from specexit.bench.journal import Journal, alone_at, journal_of
from specexit.bench.process import BenchError
from specexit.bench.requests import Request, Run
from specexit.bench.results import Results, result_tables, write_results
from specexit.config import write_text
from specexit.data.traces import target_named_in
from specexit.drafts.directory import read_config
from specexit.drafts.fingerprints import target_fingerprint
from specexit.hardware import processors
from specexit.outputs import removed_at_the_end
from specexit.processes import unsaid
from specexit.schemas.bench import BenchConfig
from specexit.schemas.bench_full_size import BenchFullSizeConfig
from specexit.schemas.sampling import SamplingConfig
from specexit.schemas.stand_in import StandInConfig
from specexit.schemas.target import TargetConfig, find_target, load_target_config, target_reference
from specexit.stand_in import Shape, stand_in
from specexit.stand_in.files import parameters
from specexit.stand_in.write import read_shape
from torch_specexit.bench.conditions import inputs_served, machine
from torch_specexit.bench.run import asked_of, read_problems, refuse_other_target, run_methods

METHODS = ("eagle3", "specexit")

WHAT_IT_IS = (
    "the small target's weights inside matrices of these sizes, and its draft's likewise: the times are those of a "
    "target and a draft of this size on this machine, for texts of the small target's lengths, acceptance and exits"
)
WHAT_IT_IS_NOT = "anything about how long a real model thinks, how well it is drafted, or how often its exits are right"

SAME_EXITS = 0.98
"""Share of the exits in bfloat16 that are expected to be the small target's: rounding moves few of them."""


def bench_full_size(config: BenchFullSizeConfig) -> Results:
    """Measure, write ``full-size.json`` and print it.

    Raises:
      BenchError: an engine fails, the traces are another target's or too few, or another benchmark was interrupted
        here, or measures here; or, on a CPU, a text in float32 is not that of a small target in float32: nothing is
        measured then.
      StandInError, DraftError, ConfigError: the stand-in cannot be made, or the target given is not the draft's.
      TraceError: the traces are of another tokenizer or other weights than the small target's, or cannot be read.
      FileExistsError: something else lies in its place.
    """
    # Unlike the small one, a model of this size gains from every core (see `torch_specexit.engine`).
    os.environ.update(unsaid({"OMP_NUM_THREADS": str(processors())}))
    with alone_at(config.out):
        results, shape = _measure_all(config)
    console = Console()
    for table in result_tables(results):
        console.print(table)
    console.print(f"{shape['parameters'] / 1e9:.2f} billion parameters, {shape['dtype']}; {results.hardware}")
    for what, (same, n) in shape["same"].items():
        least = SAME_EXITS if "bfloat16" in what else 1.0
        if same / n >= least:
            console.print(f"{what}: {same} of {n}")
        else:
            doubt = "the times are not those of the small target's texts"
            console.print(f"{what}: {same} of {n}, expected {100 * least:.0f} %: {doubt}", style="yellow")
    return results


def _measure_all(config: BenchFullSizeConfig) -> tuple[Results, dict[str, Any]]:
    """Measure and write; returns the results, and the ``shape`` in them."""
    places = config.draft, config.traces
    name = read_config(config.draft).target_name or target_named_in(config.traces)
    small = target_reference(config.target, *places, name=name)
    refuse_other_target(config.traces, find_target(config.target, *places, name=name))
    exact = write_stand_in(config, small, "float32") if config.n_exact else None
    target, draft = write_stand_in(config, small, "bfloat16")
    runs = {"small": _measure(config, "small", small, config.draft)[0]}
    if exact is not None:
        runs["float32"], found = _measure(config, "float32", str(exact[0]), exact[1])
        _refuse_other_texts(config, load_target_config(small), found, runs)
    runs["bfloat16"], results = _measure(config, "bfloat16", str(target), draft)
    shape = describe(load_target_config(str(target)), runs)
    shape["of"] = small_inputs(small, config.draft)
    results = results.model_copy(update={"shape": shape})
    write_results(config.out, results)
    _forget(config)
    return results, shape


def write_stand_in(config: BenchFullSizeConfig, small: str, dtype: Literal["bfloat16", "float32"]) -> tuple[Path, Path]:
    """Write a stand-in, unless one of the same settings and inputs is there; returns its YAML and its draft.

    Raises:
      StandInError, DraftError, ConfigError: it cannot be made.
      FileExistsError: something else lies in its place.
    """
    folder = config.models / f"{read_shape(config.shape)[0]}-{dtype}"
    wanted = StandInConfig(
        target=small, shape=config.shape, draft=config.draft, out=folder, dtype=dtype, seed=config.seed
    )
    made_of, mark = json.dumps(made_from(wanted, config.draft), indent=1) + "\n", folder / "made-from.json"
    if not mark.exists() or mark.read_text() != made_of:
        if mark.exists():
            shutil.rmtree(folder, ignore_errors=True)
        elif folder.exists() and any(folder.iterdir()):  # of others, or one whose writing was cut off
            raise FileExistsError(
                f"{folder}: output folder is not empty, expected a new or empty one, or a stand-in of this command: "
                "remove it, or choose another folder as models="
            )
        stand_in(wanted)
        write_text(mark, made_of)
    return folder / "target.yaml", folder / "draft"


def made_from(wanted: StandInConfig, draft: Path) -> dict[str, Any]:
    """All that a stand-in depends on: its settings, the sizes that it has, and hashes of the small target, its YAML and
    the draft.

    Raises:
      StandInError, DraftError, ConfigError: one cannot be read.
    """
    _, fields, read = read_shape(wanted.shape)
    settings = wanted.model_dump(mode="json", exclude={"target", "shape", "draft", "out"})
    small = small_inputs(wanted.target, draft) | {"target.settings": settings_sha256(load_target_config(wanted.target))}
    return settings | small | {"shape": dict(sorted(fields.items())), "layers": list(read)}


def small_inputs(target: str, draft: Path) -> dict[str, str]:
    """Hashes of the small target and draft, by the keys of ``inputs`` in ``results.json``.

    Raises:
      DraftError, ConfigError: one cannot be read.
    """
    return {"target": target_fingerprint(load_target_config(target).folder) or "unknown"} | draft_inputs(draft)


def describe(target: TargetConfig, runs: Mapping[str, Mapping[str, Run]]) -> dict[str, Any]:
    """``shape`` in the results: the sizes, what was compared with the small target, and what the numbers mean."""
    pairs = _pairs(runs["small"]["specexit"], runs["bfloat16"]["specexit"])
    exits = _count(pairs, lambda a, b: (a.reason, a.thinking_tokens) == (b.reason, b.thinking_tokens))
    return {
        "name": target.name,
        **Shape.read(target.hf_config(), target.name).fields(),
        "parameters": parameters(target.folder),
        "dtype": target.dtype,
        "threads": os.environ["OMP_NUM_THREADS"],
        "same": _same_texts(runs) | {"specexit: exits in bfloat16": exits},
        "is": WHAT_IT_IS,
        "is_not": WHAT_IT_IS_NOT,
    }


def _same_texts(runs: Mapping[str, Mapping[str, Run]]) -> dict[str, tuple[int, int]]:
    """For each method, how many texts in float32 are the small target's, and of how many; empty where none was asked
    for."""
    if "float32" not in runs:
        return {}
    pairs = {method: _pairs(runs["small"][method], runs["float32"][method]) for method in METHODS}
    return {
        f"{method}: texts in float32": _count(of, lambda a, b: a.token_ids == b.token_ids)
        for method, of in pairs.items()
    }


def _refuse_other_texts(
    config: BenchFullSizeConfig, small: TargetConfig, found: Results, runs: Mapping[str, Mapping[str, Run]]
) -> None:
    """Check that the stand-in in float32 writes what the small target writes, unless something rounds otherwise.

    Raises:
      BenchError: it does not.
    """
    if small.dtype != "float32" or found.hardware["accelerator"] is not None:
        return
    for what, (same, n) in _same_texts(runs).items():
        if same < n:
            _forget(config)  # else each further start would end here, whatever has been mended
            raise BenchError(
                f"{found.target}, {what}: {same} of {n} are the small target's, expected all of them on a CPU; "
                "n_exact=0 measures without a look at them"
            )


def _forget(config: BenchFullSizeConfig) -> None:
    """Remove the journals."""
    for path in _journals(config).values():
        journal_of(path).unlink(missing_ok=True)


def _measure(config: BenchFullSizeConfig, kind: str, target: str, draft: Path) -> tuple[dict[str, Run], Results]:
    """Measure one pair of engines; returns the run of each method, and the results.

    The small target and float32 are only compared, not timed: one round, and a single problem at batch 1.
    """
    measured = kind == "bfloat16"
    n = min(config.n, config.n_exact) if kind == "float32" else config.n
    bench = BenchConfig(
        target=target,
        draft=draft,
        traces=config.traces,
        out=_journals(config)[kind],
        methods=METHODS,
        n=n,
        tasks=config.tasks,
        n_latency=min(n, config.n_latency) if measured else 1,
        batches=(config.batch,),
        rounds=config.rounds if measured else 1,
        max_new_tokens=config.max_new_tokens,
        sampling=SamplingConfig(),  # texts are compared, and sampled ones differ
        num_speculative_tokens=config.num_speculative_tokens,
        engine=config.engine,
        seed=config.seed,
    )
    found = load_target_config(target)
    journal = Journal(bench.out, asked_of(config, inputs_served(bench, found)) | {"machine": machine()})
    with removed_at_the_end(), tempfile.TemporaryDirectory(prefix="specexit-bench-") as scratch:
        return run_methods(bench, found, read_problems(bench), journal, Path(scratch))


def _journals(config: BenchFullSizeConfig) -> dict[str, Path]:
    kinds = ("small", "float32", "bfloat16")
    return {kind: config.out.with_name(f"{config.out.stem}-{kind}") for kind in kinds}


def _pairs(ours: Run, theirs: Run) -> list[tuple[Request, Request]]:
    """Requests of the same problems: of the float32 stand-in there may be fewer."""
    found = {request.id: request for request in ours.all_requests}
    return [(found[request.id], request) for request in theirs.all_requests]


def _count(pairs: Sequence[tuple[Request, Request]], same: Callable[[Request, Request], bool]) -> tuple[int, int]:
    return sum(same(a, b) for a, b in pairs), len(pairs)
