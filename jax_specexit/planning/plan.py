"""``specexit plan``: what a recipe needs on a TPU slice, before one is rented.

The recipe's own training step is compiled by libtpu for the real slice, with no TPU present. Memory and collectives are
the compiled program's; FLOPs and HBM traffic are counted from the shapes (`jax_specexit.planning.work`). Each of
them divided by the chip's published peak is a time that no run can beat: a bound, not a measurement.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh
from rich.console import Console
from rich.table import Table

from jax_specexit.planning.aot import Lowered, Shapes, lower_step, rows_evaluated, shapes_of, topology_devices
from jax_specexit.planning.estimate import (
    Estimate,
    chip_hours,
    estimate,
    first_step_bound,
    milliseconds,
    rows,
    shares,
)
from jax_specexit.planning.hbm import SHORTER, smaller, too_much
from jax_specexit.planning.hlo import SLICES, collectives
from jax_specexit.planning.timeline import timeline
from jax_specexit.planning.work import Work, compute_seconds, step_work
from jax_specexit.sharding import CONTEXT, ROWS
from jax_specexit.training.place import check_place
from specexit.chips import Chip
from specexit.config import ConfigError, write_text
from specexit.data.features import bytes_per_token
from specexit.schemas.plan import PlanConfig
from specexit.schemas.target import load_target_config

GIB = 2**30
SPARE = 0.1
"""Share of the HBM that a batch should leave free."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """HBM of one chip while the step runs, in GiB."""

    arguments: float
    """Parameters, optimizer state and the batch."""
    temporaries: float
    total: float
    capacity: float
    spare: float
    """Share of the capacity that is left."""


@dataclasses.dataclass(frozen=True)
class Program:
    """Another program of the run, compiled for the same slice, or a step of it that only moves arrays."""

    hbm_gib: Memory
    """Everything on a chip while it runs, the run's whole state included; while quantizing there is no state yet."""
    compile_seconds: float
    """0 where nothing is compiled."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What `plan` prints and writes. Per step and per chip unless the name says otherwise."""

    note: str
    target: str
    topology: str
    slices: int
    chips: int
    """Of all slices."""
    mesh: dict[str, int]
    batch_size: int
    length: int
    evaluation: dict[str, int] | None
    """``rows`` at once and their ``length``: the largest that an evaluation may take, which ``evaluate`` is compiled
    for; None where nothing is evaluated."""
    ttt_steps: int
    dtype: str
    peaks: dict[str, float]
    """The published numbers that the bound assumes."""
    hbm_gib: Memory
    batch_that_fits: int
    """Rows per step that should leave a tenth of the HBM free, 0 where one a chip leaves less; extrapolated from this
    compilation, not compiled."""
    flops: float
    flops_by_part: dict[str, float]
    useful_flops: float
    """Share of the FLOPs that the method itself asks for."""
    hbm_bytes: float
    collective_bytes: dict[str, float]
    """Mesh axes -> bytes sent."""
    collectives: list[dict[str, Any]]
    """The same one by one: kind, axes, shapes of the results, runs per step, bytes sent in all of them."""
    seconds: dict[str, float]
    """Time at peak of compute, hbm, interconnect and, of several slices, the network between them, where its rate is
    published; the step takes at least the longest."""
    compute_seconds_of_target: dict[str, float]
    """Time at peak of compute with the target's layers in ``dtype`` and in ``int8``, whichever the recipe has."""
    binds: str
    step_seconds: float
    estimate: Estimate
    tokens_per_second_per_chip: float
    chip_hours: float
    """Of the whole run, of whose shorter steps (`first_step_share`) compute and HBM alone are counted."""
    cached_features_tib: float
    """Size of the target's hidden states of all rows that the run reads, whether they are stored or computed. A row
    counts as often as it is read, so on a disk they take this much only in a run of one epoch."""
    compile_seconds: float
    others: dict[str, Program]
    """What it does -> the programs that a run compiles beside this step."""


NOTE = "lower bound from published peaks, not a measurement"


def note_of(config: PlanConfig) -> str:
    """A plan's note: that it is a bound, not a measurement, and what of the recipe could not be read for it."""
    if config.init_from is None or config.init_from.exists():
        return NOTE
    return (
        f"{NOTE}; init_from={config.init_from} is not there to be read, so this is the plan of a draft with nothing "
        "but the recipe's own sizes: embeddings, norms or biases that it has beside them, or a window, are not in it"
    )


def plan(config: PlanConfig) -> Plan:
    """Compile, print, and write ``plan.json`` into the run folder.

    Raises:
      ConfigError: no such topology, an ``out`` that cannot be written, a mesh that does not divide model or batch, or a
        step or another program of the run that does not fit the HBM.
      BucketError: ``out`` is in a bucket that cannot be written.
      InputError: libtpu is not installed, or JAX is another than attention on TPUs was checked with.
    """
    if config.topology is None:
        raise ConfigError("topology is not set, expected a TPU slice such as topology=v5e:4x4")
    if config.mesh.dcn_data < 1:
        raise ConfigError(
            f"mesh.dcn_data={config.mesh.dcn_data}: expected how many slices to plan for; a run alone can count them"
        )
    target_config = load_target_config(config.target)
    shapes = shapes_of(config, target_config)
    chip, devices = topology_devices(config.topology, config.mesh.dcn_data)
    check_place(config.out)
    lowered = lower_step(config, shapes, devices, target_config.dtype)
    begin = time.perf_counter()
    compiled = _compile(lowered, chip, shapes)
    seconds = time.perf_counter() - begin
    others = {name: _program(name, lower, lowered, chip) for name, lower in lowered.others.items()}
    others |= {"restore": _moving(lowered, chip, _whole_draft(lowered)), "save": _moving(lowered, chip, 0.0)}
    found = summarise(config, shapes, chip, lowered.mesh, compiled, seconds, others)
    show(found, config.out, as_json=config.as_json)
    return found


def show(found: Plan, out: Path, *, as_json: bool) -> None:
    """Print a plan, then write it into a folder: so what took minutes to compile is seen even if the disk is full."""
    text, path = json.dumps(dataclasses.asdict(found), indent=2), out / "plan.json"
    if as_json:
        print(text)
    else:
        Console().print(table(found))
    write_text(path, text + "\n")
    if not as_json:
        Console().print(f"{found.note}; the same in {path}", style="dim", markup=False)


def _program(name: str, lower: Callable[[], jax.stages.Lowered], of: Lowered, chip: Chip) -> Program:
    """Compile another program of a run.

    Raises:
      ConfigError: it does not fit beside what else is on a chip then.
    """
    begin = time.perf_counter()
    try:
        compiled = lower().compile()
    except jax.errors.JaxRuntimeError as error:
        used = too_much(str(error), bytes_on_one_chip((of.state, of.frozen)) / GIB)
        if used is None:
            raise
        raise ConfigError(
            f"{name} needs {used[0]:.1f} GiB of HBM per chip, a {chip.name} has {used[1]:.2f}: choose {smaller(name)}"
        ) from error
    memory = memory_of(compiled, chip)
    held = _held(name, memory, of)
    total = memory.total - memory.arguments + held
    memory = dataclasses.replace(memory, arguments=held, total=total, spare=1 - total / chip.hbm_gib)
    has = chip.usable_gib or chip.hbm_gib
    if total > has:
        raise ConfigError(
            f"{name} needs {total:.1f} GiB of HBM per chip with what else is on it then, a {chip.name} has "
            f"{has:g}: choose {smaller(name)}"
        )
    return Program(memory, time.perf_counter() - begin)


def _held(name: str, memory: Memory, of: Lowered) -> float:
    """GiB that are on a chip when a program starts: its arguments, and whatever else of the run is there by then."""
    frozen = bytes_on_one_chip(of.frozen) / GIB
    if name == "begin":
        return memory.arguments + frozen + _whole_draft(of)
    if name == "quantize":  # a matrix as it is stored, and all of the target but what comes of it; no state yet
        yielded = memory.total - memory.arguments - memory.temporaries
        return memory.arguments + frozen - yielded
    return max(memory.arguments, bytes_on_one_chip(of.state) / GIB + frozen)


def _moving(of: Lowered, chip: Chip, beside: float) -> Program:
    """Memory while a checkpoint is saved or restored: arrays move shard by shard, ``beside`` GiB are there as well."""
    state = bytes_on_one_chip((of.state, of.frozen)) / GIB
    total = state + beside
    return Program(Memory(total, 0.0, total, chip.hbm_gib, 1 - total / chip.hbm_gib), 0.0)


def _whole_draft(of: Lowered) -> float:
    """The draft that a run starts from, in GiB: until there is a state, it is on the first chip of each process."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(of.state.params)) / GIB


def _compile(lowered: Lowered, chip: Chip, shapes: Shapes) -> jax.stages.Compiled:
    try:
        return lowered.step.compile()
    except jax.errors.JaxRuntimeError as error:
        arguments = bytes_on_one_chip((lowered.state, lowered.frozen)) / GIB
        stored = _stored_batch(shapes, lowered.mesh)
        used = too_much(str(error), arguments + stored)
        if used is None:
            raise
        need, has = used
        beside = need - arguments + stored  # of which this step's batch of features is a part, and the next one's
        batch = _batch_that_fits(arguments, beside, chip.hbm_gib, shapes, lowered.mesh)
        raise ConfigError(
            f"batch_size={shapes.batch} of length {shapes.length} needs {need:.1f} GiB of HBM per chip, a {chip.name} "
            f"has {has:.2f}: choose {_smaller_step(batch)} (estimated), or remat=true, or a smaller loss_chunk"
        ) from error


def _smaller_step(batch: int) -> str:
    return f"batch_size={batch}" if batch else SHORTER


def bytes_on_one_chip(tree: Any) -> int:
    """Bytes that a tree of shapes with shardings takes on one chip."""

    def one(leaf: jax.ShapeDtypeStruct) -> int:
        assert leaf.sharding is not None
        shard = jax.ShapeDtypeStruct(leaf.sharding.shard_shape(leaf.shape), leaf.dtype)
        return shard.size * shard.dtype.itemsize

    return sum(map(one, jax.tree.leaves(tree)))


def _stored_batch(shapes: Shapes, mesh: Mesh | AbstractMesh) -> float:
    """GiB of stored features in one step's batch on a chip; rows of tokens alone are too few bytes to count."""
    if shapes.stored is None:
        return 0.0
    rows = shapes.batch / math.prod(mesh.shape[axis] for axis in (*ROWS, CONTEXT))
    return rows * shapes.length * bytes_per_token(shapes.stored, len(shapes.layers), shapes.target.hidden_size) / GIB


def _beside_the_next(memory: Memory, batch: float, fits: int, shapes: Shapes, chip: Chip) -> Memory:
    """A step's memory with the next batch of so many GiB, which comes while the step runs; ``fits`` is the largest
    batch size of which that is so.

    Raises:
      ConfigError: a program of the chip cannot have as much.
    """
    total, has = memory.total + batch, chip.usable_gib or chip.hbm_gib
    if batch and total > has:  # what has compiled without one fits
        raise ConfigError(
            f"batch_size={shapes.batch} of length {shapes.length} needs {total:.1f} GiB of HBM per chip with the next "
            f"batch of features beside it, a {chip.name} has {has:g}: choose {_smaller_step(fits)} (estimated)"
        )
    arguments, spare = memory.arguments + batch, 1 - total / chip.hbm_gib
    return dataclasses.replace(memory, arguments=arguments, total=total, spare=spare)


def _batch_that_fits(
    arguments: float, temporaries: float, capacity: float, shapes: Shapes, mesh: Mesh | AbstractMesh
) -> int:
    """Rows per step, if temporaries, and stored features, grow like the rows of a chip (the former grow slower, so a
    larger batch is safe).

    0 where weights and state alone leave no room for a row on each chip.
    """
    shards = math.prod(mesh.shape[axis] for axis in ROWS)
    each = shapes.batch // shards
    return max(0, int(each * ((1 - SPARE) * capacity - arguments) / temporaries)) * shards


def memory_of(compiled: jax.stages.Compiled, chip: Chip) -> Memory:
    """HBM that the compiler has allocated for a program."""
    found: Any = compiled.memory_analysis()
    arguments, temporaries = found.argument_size_in_bytes / GIB, found.temp_size_in_bytes / GIB
    kept = (found.output_size_in_bytes - found.alias_size_in_bytes + found.generated_code_size_in_bytes) / GIB
    total = arguments + temporaries + kept
    return Memory(arguments, temporaries, total, chip.hbm_gib, 1 - total / chip.hbm_gib)


def summarise(
    config: PlanConfig,
    shapes: Shapes,
    chip: Chip,
    mesh: Mesh,
    compiled: jax.stages.Compiled,
    compile_seconds: float,
    others: dict[str, Program],
) -> Plan:
    """The plan of a compiled step."""
    assert config.topology is not None
    batch = _stored_batch(shapes, mesh)
    memory = memory_of(compiled, chip)
    # Of its arguments one such batch is no weights, and grows with the rows; so does the next.
    fits = _batch_that_fits(memory.arguments - batch, memory.temporaries + 2 * batch, chip.hbm_gib, shapes, mesh)
    memory = _beside_the_next(memory, batch, fits, shapes, chip)
    work = list(step_work(config, shapes, mesh))
    flops = sum(w.flops for w in work)
    by_part, by_axis = defaultdict(float), defaultdict(float)
    for w in work:
        by_part[w.part] += w.flops
    one_slice = Mesh(mesh.devices[: len(mesh.devices) // config.mesh.dcn_data], mesh.axis_names)
    text = compiled.as_text() or ""
    sent = [c for c in collectives(text, one_slice) if c.axes]  # a group of one chip sends nothing
    for c in sent:
        by_axis["+".join(c.axes)] += c.sent * c.times
    seconds = _bounds(config, work, by_axis, chip)
    binds = max(seconds, key=lambda part: seconds[part])
    spent = timeline(text, one_slice, chip, shares(shapes, chip))
    tokens = shapes.batch * shapes.length
    stored = (shapes.stored or "bfloat16", len(shapes.layers), shapes.target.hidden_size)
    held_out = rows_evaluated(shapes, mesh)
    return Plan(
        note=note_of(config),
        target=config.target,
        topology=config.topology,
        slices=config.mesh.dcn_data,
        chips=mesh.size,
        mesh=dict(mesh.shape),
        batch_size=shapes.batch,
        length=shapes.length,
        evaluation=None if config.eval_traces is None else {"rows": held_out.at_once, "length": held_out.length},
        ttt_steps=config.ttt_steps,
        dtype=config.dtype,
        peaks={f.name: getattr(chip, f.name) for f in dataclasses.fields(chip) if f.name.endswith(PEAKS)},
        hbm_gib=memory,
        batch_that_fits=fits,
        flops=flops,
        flops_by_part=dict(by_part),
        useful_flops=sum(w.useful for w in work) / flops,
        hbm_bytes=sum(w.hbm_bytes for w in work),
        collective_bytes=dict(by_axis),
        collectives=[dataclasses.asdict(c) | {"sent": c.sent * c.times} for c in sent],
        seconds=seconds,
        compute_seconds_of_target={
            kind: compute_seconds(step_work(config.model_copy(update={"target_int8": int8}), shapes, mesh), chip)
            for kind, int8 in (("dtype", False), ("int8", True))
        },
        binds=binds,
        step_seconds=seconds[binds],
        estimate=estimate(config, shapes, chip, mesh, seconds[binds], spent),
        tokens_per_second_per_chip=tokens / seconds[binds] / mesh.size,
        chip_hours=chip_hours(config, mesh, seconds[binds], first_step_bound(config, shapes, chip, mesh)),
        cached_features_tib=config.steps * tokens * bytes_per_token(*stored) / 2**40,
        compile_seconds=compile_seconds,
        others=others,
    )


def _bounds(config: PlanConfig, work: list[Work], sent: Mapping[str, float], chip: Chip) -> dict[str, float]:
    """Seconds that each part of a chip is busy at its peak; ``sent`` is in bytes, by mesh axis."""
    between = sent.get(SLICES, 0.0)
    seconds = {
        "compute": compute_seconds(work, chip),
        "hbm": sum(w.hbm_bytes for w in work) / chip.hbm_bytes_per_second,
        "interconnect": (sum(sent.values()) - between) / chip.ici_bytes_per_second,
    }
    if config.mesh.dcn_data > 1 and chip.dcn_bytes_per_second is not None:
        seconds["network"] = between / chip.dcn_bytes_per_second
    return seconds


PEAKS = ("flops", "hbm_gib", "per_second")
"""Ends of the names of a chip's peaks."""


def table(plan: Plan) -> Table:
    """The plan as a table."""
    where = plan.topology if plan.slices == 1 else f"{plan.slices} slices of {plan.topology}"
    out = Table(title=f"{plan.target} on {where}", title_justify="left", show_header=False)
    m, p, s = plan.hbm_gib, plan.peaks, plan.seconds
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    out.add_row("mesh", f"{mesh} = {plan.chips} chips")
    out.add_row("batch", f"{plan.batch_size} rows of {plan.length:,} tokens, {plan.ttt_steps} TTT steps")
    if held_out := plan.evaluation:
        out.add_row("evaluation", f"at most {held_out['rows']} rows of {held_out['length']:,} tokens at once")
    out.add_row(
        "HBM per chip",
        f"{m.total:.1f} of {m.capacity:g} GiB, {m.spare:.0%} to spare ({m.arguments:.1f} parameters and state, "
        f"{m.temporaries:.1f} temporary)",
    )
    for name, program in plan.others.items():
        one, seconds = program.hbm_gib, program.compile_seconds
        compiled = f"compiled in {seconds:.0f} s" if seconds else "nothing to compile"
        out.add_row(f"  {name}", f"{one.total:.1f} GiB, {one.spare:.0%} to spare; {compiled}")
    out.add_row("batch that fits", f"about {plan.batch_that_fits} rows, leaving {SPARE:.0%} free (not compiled)")
    parts = ", ".join(f"{part} {flops / plan.flops:.0%}" for part, flops in plan.flops_by_part.items())
    out.add_row(
        "compute", f"{plan.flops / 1e12:.1f} TFLOP at {p['flops'] / 1e12:g} TFLOP/s: {milliseconds(s['compute'])}"
    )
    out.add_row("", f"{plan.useful_flops:.0%} useful ({parts})")
    of = plan.compute_seconds_of_target
    said = f"{milliseconds(of['dtype'])}, in int8 {milliseconds(of['int8'])} ({of['int8'] / of['dtype'] - 1:+.0%})"
    out.add_row("", f"with the target's layers in {plan.dtype} {said}")
    for name, said in _traffic(plan):
        out.add_row(name, said)
    out.add_row("step, bound", f"at least {milliseconds(plan.step_seconds)}; {plan.binds} binds")
    for name, said in rows(plan.estimate):
        out.add_row(name, said)
    rate = f"at most {plan.tokens_per_second_per_chip:,.0f} per second and chip"
    out.add_row("tokens, bound", f"{rate}, in steps of {plan.ttt_steps} TTT steps")
    out.add_row("whole run, bound", f"at least {plan.chip_hours:,.1f} chip-hours")
    disk = f"{plan.cached_features_tib:,.1f} TiB"
    computed = "stored features" not in plan.flops_by_part
    out.add_row(
        "features on disk", f"{disk} if they were cached; computed online: none" if computed else f"{disk} are read"
    )
    return out


def _traffic(plan: Plan) -> Iterator[tuple[str, str]]:
    """Rows of what is moved, and how long that takes at the least."""
    p, s = plan.peaks, plan.seconds
    rate = p["hbm_bytes_per_second"] / 1e9
    yield "HBM traffic", f"{plan.hbm_bytes / 1e9:.1f} GB at {rate:,.0f} GB/s: {milliseconds(s['hbm'])}"
    sent = {axis: f"{axis} {sent / 1e9:.2f} GB" for axis, sent in plan.collective_bytes.items() if axis != SLICES}
    rate = p["ici_bytes_per_second"] / 1e9
    said = f"sends {', '.join(sent.values()) or 'nothing'} at {rate:,.0f} GB/s: {milliseconds(s['interconnect'])}"
    yield "interconnect", said
    if plan.slices > 1:
        between = f"sends {plan.collective_bytes.get(SLICES, 0.0) / 1e9:.3f} GB"
        known = (
            f" at {p['dcn_bytes_per_second'] / 1e9:.3g} GB/s: {milliseconds(s['network'])}" if "network" in s else ""
        )
        yield "network of slices", between + (known or ", and no rate of it is published: not in the bound")
