"""What a step may take: a guess from published shares of the peak, beside the bound of `jax_specexit.planning.plan`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from jax.sharding import AbstractMesh, Mesh

from jax_specexit.planning.aot import Shapes
from jax_specexit.planning.efficiency import Efficiency, efficiency
from jax_specexit.planning.timeline import ATTENTION, EXPERTS, PRODUCTS
from jax_specexit.planning.work import Work, compute_seconds, step_work
from jax_specexit.training.watch import steps_of
from specexit.chips import Chip
from specexit.schemas.plan import PlanConfig
from specexit.schemas.train import TrainConfig

ESTIMATE = (
    "estimate, not a measurement: from published shares of the peak, of other programs and in part of other chips, and "
    "from what the compiled program's collectives do not hide"
)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a step may take; not a bound, and not measured."""

    note: str
    efficiencies: Efficiency
    """Published shares of the peak."""
    seconds: dict[str, float]
    """Time of products, experts' products and attention at these shares, and of waiting for collectives."""
    exposed_seconds: dict[str, float]
    """Mesh axes -> time of waiting for collectives along them, see `jax_specexit.planning.timeline`."""
    run_seconds: float | None
    """Time of a step whose MFU is that of published runs; None where there are none."""
    step_seconds: float
    """The sum of ``seconds`` or ``run_seconds``, whichever is longer, and never less than the bound."""
    mfu: float
    """Useful FLOPs of such a step over the bf16 peak, as a run reports it."""
    tokens_per_second_per_chip: float
    chip_hours: float
    """Of the whole run; steps of `first_step_share` take less, as their FLOPs are fewer."""


def estimate(
    config: PlanConfig,
    shapes: Shapes,
    chip: Chip,
    mesh: Mesh | AbstractMesh,
    bound: float,
    spent: dict[str, float],
) -> Estimate:
    """Estimate the time of a step that takes at least ``bound`` seconds.

    Products are counted from the shapes; attention and waits are read off the compiled program.

    Args:
      config, shapes, chip, mesh: of the plan.
      bound: see `jax_specexit.planning.plan.Plan.step_seconds`.
      spent: see `jax_specexit.planning.timeline.timeline`.
    """
    published, work = shares(shapes, chip), list(step_work(config, shapes, mesh))
    kinds: dict[str, list[Work]] = {PRODUCTS: [], EXPERTS: [], ATTENTION: []}
    for w in work:
        kinds[ATTENTION if w.part.endswith(ATTENTION) else w.part if w.part == EXPERTS else PRODUCTS].append(w)
    exposed = {axes: waited for axes, waited in spent.items() if axes not in kinds}
    seconds = {
        PRODUCTS: compute_seconds(kinds[PRODUCTS], chip) / published.products,
        EXPERTS: compute_seconds(kinds[EXPERTS], chip) / published.experts,
        # Of heads that the kernel does not take, attention is products like others.
        ATTENTION: spent.get(ATTENTION) or compute_seconds(kinds[ATTENTION], chip) / published.products,
        "exposed": sum(exposed.values()),
    }
    useful = compute_seconds((dataclasses.replace(w, flops=w.useful) for w in work), chip)
    run = useful / published.run if published.run else None
    step = max(sum(seconds.values()), run or 0.0, bound)
    shorter = step * compute_seconds(_first_work(config, shapes, mesh), chip) / compute_seconds(work, chip)
    first = max(shorter, first_step_bound(config, shapes, chip, mesh))
    return Estimate(
        note=ESTIMATE,
        efficiencies=published,
        seconds=seconds,
        exposed_seconds=exposed,
        run_seconds=run,
        step_seconds=step,
        mfu=sum(w.useful for w in work) / step / chip.flops,
        tokens_per_second_per_chip=shapes.batch * shapes.length / step / mesh.size,
        chip_hours=chip_hours(config, mesh, step, first),
    )


def chip_hours(config: TrainConfig, mesh: Mesh | AbstractMesh, step: float, first: float) -> float:
    """Chip-hours of a run whose steps take ``step`` seconds, and ``first`` while they have a single TTT step."""
    short = sum(steps_of(config, i) < config.ttt_steps for i in range(1, config.steps + 1))
    return (short * first + (config.steps - short) * step) * mesh.size / 3600


def first_step_bound(config: TrainConfig, shapes: Shapes, chip: Chip, mesh: Mesh | AbstractMesh) -> float:
    """Seconds that a step of one TTT step takes at least, by compute and HBM: what it sends is not looked at."""
    work = _first_work(config, shapes, mesh)
    return max(compute_seconds(work, chip), sum(w.hbm_bytes for w in work) / chip.hbm_bytes_per_second)


def _first_work(config: TrainConfig, shapes: Shapes, mesh: Mesh | AbstractMesh) -> list[Work]:
    return list(step_work(config.model_copy(update={"ttt_steps": 1}), shapes, mesh))


def shares(shapes: Shapes, chip: Chip) -> Efficiency:
    """The published shares of the peak for a recipe's models."""
    return efficiency(chip, shapes.length, shapes.draft.head_dim, bool(shapes.target.num_experts))


def rows(guess: Estimate) -> Iterator[tuple[str, str]]:
    """Table rows (name, text) of the estimate, and of what it is made of."""
    rate = f"{guess.tokens_per_second_per_chip:,.0f} tokens per second and chip, {guess.chip_hours:,.1f} chip-hours"
    yield "step, estimate", f"about {milliseconds(guess.step_seconds)}, an MFU of {guess.mfu:.0%}; {rate}"
    parts, published = (f"{part} {milliseconds(s)}" for part, s in guess.seconds.items() if s), guess.efficiencies
    yield "", f"{', '.join(parts)}: {milliseconds(sum(guess.seconds.values()))} in all, elementwise work left out"
    if published.derived:
        yield "", f"published for other chips alone: the shares of {' and '.join(published.derived)}"
    if guess.run_seconds is not None:
        whole = milliseconds(guess.run_seconds)
        yield "", f"{whole} at the {published.run:.0%} MFU of published whole runs on this chip"
    waits = ", ".join(f"{axes} {milliseconds(s)}" for axes, s in guess.exposed_seconds.items() if s)
    yield "exposed collectives", waits or "none"


def milliseconds(seconds: float) -> str:
    """Seconds in milliseconds, as a table says it.

    Example:
      >>> milliseconds(1.2281)
      '1,228.1 ms'
    """
    return f"{seconds * 1e3:,.1f} ms"
