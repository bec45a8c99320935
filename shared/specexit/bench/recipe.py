"""``specexit bench-recipe``: what a change of a recipe does to its drafts.

Each variant is trained on the same data in the same order, from the same initial weights, with everything else the
same. Variants are compared seed by seed, since what a seed does is common to them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from rich.console import Console
from rich.table import Table

from specexit.bench.shuffled import shuffle_labels
from specexit.config import ConfigError, find, load, versions, write_text
from specexit.data.packed import read_meta
from specexit.hardware import describe_hardware
from specexit.processes import run_command
from specexit.schemas.bench_recipe import BenchRecipeConfig
from specexit.schemas.train import TrainConfig
from specexit.status import check_finished

LOSS = "1"
"""Points of accuracy that the cut may cost; a key of an evaluation's ``cut``."""

Values = Mapping[str, Float[np.ndarray, " _seeds"]]
"""Quantity -> its value with each seed."""


def bench_recipe(config: BenchRecipeConfig) -> dict[str, Any]:
    """Train all variants with all seeds, write ``recipe.json`` and print it.

    Raises:
      ConfigError: a variant is no recipe, or a run failed, whose own message stands above, or was preempted.
      PackError: the data whose labels are to be shuffled cannot be read.
    """
    path, given = find("recipes", config.recipe), config.model_dump(mode="json", exclude_none=True)
    # Named by what it was made from: other data in the same place are not taken for these.
    shuffled = config.out / f"shuffled-{read_meta(config.data).identity}" if config.shuffle_labels else None
    if shuffled:
        given["data"] = str(shuffled)
    common = [f"{key}={given[key]}" for key in ("data", "eval_traces", "evaluate_n", "steps") if key in given]
    for overrides in config.variants.values():
        load(TrainConfig, path, [*common, *overrides, f"out={config.out}"])
    if shuffled and not shuffled.exists():
        shuffle_labels(config.data, shuffled)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in config.variants}
    for seed in config.seeds:
        for name, overrides in config.variants.items():
            run = config.out / f"{name.replace(' ', '-')}-{seed}"
            found[name].append(_trained(path, [*common, *overrides, f"seed={seed}"], run))
    columns = {name: {key: np.array([row[key] for row in rows]) for key in rows[0]} for name, rows in found.items()}
    result = gather(config.seeds, columns)
    recipe = load(TrainConfig, path, [*common, f"out={config.out}"]).model_dump(mode="json")
    result |= {"recipe": recipe, "variants": {name: list(keys) for name, keys in config.variants.items()}}
    result |= {"hardware": describe_hardware(), "versions": versions()}
    write_text(config.out / "recipe.json", json.dumps(result, indent=2) + "\n")
    Console().print(table(result))
    return result


def _trained(recipe: Path, overrides: Sequence[str], run: Path) -> dict[str, float]:
    """What a run's last evaluation says of its draft; the run is begun, continued, or found finished."""
    arguments = ["train", str(recipe), *overrides, f"out={run}"]
    Console(stderr=True).print(f"$ specexit {' '.join(arguments)}", style="dim", soft_wrap=True, markup=False)
    if code := run_command(arguments):
        raise ConfigError(f"the run in {run} ended with exit code {code}; start again to go on")
    check_finished(run)
    return quantities(json.loads((run / "evaluation.json").read_text()))


def quantities(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """What is compared of an ``evaluation.json``, whose definitions stand in it: shares in per cent."""
    counted = {step: top1 for step, top1 in enumerate(evaluation["top1"]) if top1 is not None}
    found = {f"top-1, TTT step {step}, %": 100 * top1 for step, top1 in counted.items()}
    found["acceptance length"] = evaluation["acceptance_length"]
    if evaluation.get("cut"):
        found[f"thinking cut at {LOSS} point, %"] = 100 * evaluation["cut"][LOSS]
        auroc = evaluation["hard_boundaries"]["auroc"]
        # Without boundaries of both kinds, which depends on the traces alone, there is none.
        found |= {} if auroc is None else {"validity's AUROC, hard boundaries, %": 100 * auroc}
    return found


def gather(seeds: Sequence[int], values: Mapping[str, Values]) -> dict[str, Any]:
    """``recipe.json``, but for what describes the recipe and the machine."""
    first, *others = values
    return {
        "seeds": list(seeds),
        "values": {name: {key: column.tolist() for key, column in of.items()} for name, of in values.items()},
        "differences": {
            name: {
                key: _spread(values[name][key] - column) for key, column in values[first].items() if key in values[name]
            }
            for name in others
        },
        "definitions": {
            "values": "variant -> quantity -> its value with each seed, as evaluation.json of the run defines it",
            "differences": f"variant -> quantity -> its value minus that of {first!r} with the same seed; mean and "
            "sample standard deviation over the seeds; only of what both have, as drafts of fewer TTT steps have less",
        },
    }


def _spread(column: Float[np.ndarray, " seeds"]) -> dict[str, Any]:
    return {"mean": float(column.mean()), "sd": float(column.std(ddof=1)), "by_seed": column.tolist()}


def table(result: Mapping[str, Any]) -> Table:
    """The numbers for a person: a row for each quantity of each variant that has it, however many there are."""
    first = next(iter(result["values"]))
    seeds = ", ".join(map(str, result["seeds"]))
    out = Table(title=f"seeds {seeds}; mean ± standard deviation, held against {first!r}", title_justify="left")
    out.add_column("")
    for heading in ("variant", "", "difference", "by seed"):
        out.add_column(heading, justify="left" if heading == "variant" else "right")
    for key in dict.fromkeys(chain.from_iterable(result["values"].values())):
        having = {name: values[key] for name, values in result["values"].items() if key in values}
        for i, (name, column) in enumerate(having.items()):
            spread, change = _spread(np.array(column)), result["differences"].get(name, {}).get(key)
            out.add_row(
                "" if i else key,
                name,
                f"{spread['mean']:.2f} ± {spread['sd']:.2f}",
                f"{change['mean']:+.2f} ± {change['sd']:.2f}" if change else "",
                ", ".join(f"{one:+.2f}" for one in change["by_seed"]) if change else "",
            )
    return out
