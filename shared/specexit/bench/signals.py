"""``specexit bench-signals``: what joint signal training costs the tokens.

A recipe is trained as it is, and with signals whose pull on the shared state is next to nothing: the same data in the
same order, the same initial weights, the same everything else. Seed by seed, since both have what a seed does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from rich.console import Console
from rich.table import Table

from specexit.config import ConfigError, find, load, versions, write_text
from specexit.demo import ALLOCATOR
from specexit.hardware import describe_hardware
from specexit.schemas.bench_signals import BenchSignalsConfig
from specexit.schemas.train import TrainConfig

NO_PULL = 1e-9
"""Share of the tokens' pull on the shared state: lost in float32's rounding of their sum."""

Top1 = Float[np.ndarray, "seed step"]


def bench_signals(config: BenchSignalsConfig) -> dict[str, Any]:
    """Train all pairs, write ``signals.json`` and print it.

    Raises:
      ConfigError: the recipe's signals are not trained jointly, or a run failed; its own message stands above.
    """
    path, given = find("recipes", config.recipe), config.model_dump(mode="json", exclude_none=True)
    common = [f"{key}={given[key]}" for key in ("data", "eval_traces", "evaluate_n", "steps") if key in given]
    recipe = load(TrainConfig, path, [*common, f"out={config.out}"])
    if recipe.signals.source != "draft":
        raise ConfigError(f"{path}: signals.source is {recipe.signals.source!r}, expected 'draft', trained jointly")
    arms = {"joint": common, "tokens_only": [*common, f"signals.share={NO_PULL}"]}
    found: dict[str, list[list[float]]] = {name: [] for name in arms}
    for seed in config.seeds:
        for name, overrides in arms.items():
            found[name].append(_trained(path, [*overrides, f"seed={seed}"], config.out / f"{name}-{seed}"))
    result = gather(config.seeds, {name: np.array(rows) for name, rows in found.items()})
    result |= {"recipe": recipe.model_dump(mode="json"), "hardware": describe_hardware(), "versions": versions()}
    write_text(config.out / "signals.json", json.dumps(result, indent=2) + "\n")
    Console().print(table(result))
    return result


def _trained(recipe: Path, overrides: list[str], run: Path) -> list[float]:
    """Top-1 of each TTT step at the end of a run, which is begun, continued, or found finished."""
    command = [sys.executable, "-m", "specexit", "train", str(recipe), *overrides, f"out={run}"]
    Console(stderr=True).print(f"[dim]$ specexit {' '.join(command[3:])}[/dim]", soft_wrap=True)
    code = subprocess.run(command, env=os.environ | ALLOCATOR).returncode
    if code:
        raise ConfigError(f"the run in {run} ended with exit code {code}; start again to go on")
    return json.loads((run / "evaluation.json").read_text())["top1"]


def gather(seeds: tuple[int, ...], top1: dict[str, Top1]) -> dict[str, Any]:
    """``signals.json``, but for what describes the machine."""
    lost = 100 * (top1["tokens_only"] - top1["joint"])
    return {
        "top1_points_lost": [
            {
                "mean": round(float(one.mean()), 3),
                "sd": round(float(one.std(ddof=1)), 3),
                "by_seed": one.round(3).tolist(),
            }
            for one in lost.T
        ],
        "top1": {name: values.tolist() for name, values in top1.items()},
        "seeds": list(seeds),
        "definitions": {
            "top1_points_lost": "by TTT step: top-1 of tokens_only minus joint, in percentage points; mean and sample "
            "standard deviation over the seeds",
            "tokens_only": f"the recipe with signals.share={NO_PULL}, whose gradients vanish in rounding",
        },
    }


def table(result: dict[str, Any]) -> Table:
    """The numbers for a person."""
    out = Table(title=f"token top-1, seeds {', '.join(map(str, result['seeds']))}", title_justify="left")
    for heading in ("TTT step", "tokens only", "with signals", "points lost", "by seed"):
        out.add_column(heading, justify="right")
    means = {name: np.mean(values, axis=0) for name, values in result["top1"].items()}
    for step, lost in enumerate(result["top1_points_lost"]):
        out.add_row(
            str(step),
            f"{means['tokens_only'][step]:.2%}",
            f"{means['joint'][step]:.2%}",
            f"{lost['mean']:+.2f} ± {lost['sd']:.2f}",
            ", ".join(f"{one:+.2f}" for one in lost["by_seed"]),
        )
    return out
