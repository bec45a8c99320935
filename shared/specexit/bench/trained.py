"""Alternatives of `ablate` that replays alone cannot compare: for each a draft is trained, and its exits are replayed.

All start from the same recipe, seed and initial weights. A draft that two questions ask for is trained once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from specexit.config import ConfigError, find, load
from specexit.data.traces import data_sha256
from specexit.processes import run_command
from specexit.schemas.ablate import Alternative, TrainedConfig
from specexit.schemas.serve import ServeConfig
from specexit.schemas.train import TrainConfig
from specexit.status import check_finished

DRAFTED = ServeConfig.model_fields["num_speculative_tokens"].default
"""Draft tokens by which all alternatives are judged, however many TTT steps they were trained with."""


@dataclass(frozen=True)
class TrainedDraft:
    """What one alternative has left."""

    traces: Path
    """On which its exits are replayed."""
    scores: Path
    """Its signals of them."""
    acceptance_length: float
    """Tokens a step with as many drafted as `serve` drafts, replayed on them."""


def train_alternatives(config: TrainedConfig, traces: Path) -> dict[str, dict[str, TrainedDraft]]:
    """Train, convert and score every alternative; what is there already is kept, and interrupted runs are continued.

    Args:
      config: the recipe and its alternatives.
      traces: labelled ones, on which exits are replayed where an alternative names no others.

    Returns:
      Question -> alternative -> what it has left.

    Raises:
      ConfigError: an alternative is no recipe, a run is gone and what was made from it is not, or a command failed,
        whose own message stands above, or was preempted.
    """
    path, folders = find("recipes", config.recipe), _folders(config)
    for alternative, folder in folders.items():
        load(TrainConfig, path, [*_overrides(config, alternative), f"out={folder / 'run'}"])
        _refuse_left(folder)
    drafts = {
        alternative: _draft(config, path, alternative, alternative.traces or traces, folder)
        for alternative, folder in folders.items()
    }
    return {
        name: {label: drafts[alternative] for label, alternative in question.variants.items()}
        for name, question in config.questions.items()
    }


def _folders(config: TrainedConfig) -> dict[Alternative, Path]:
    """The folder of each alternative, named by the first question that asks for it; ``recipe`` for no change."""
    found: dict[Alternative, Path] = {}
    for name, question in config.questions.items():
        for label, alternative in question.variants.items():
            called = f"{name}-{label.replace(' ', '-')}" if alternative != Alternative() else "recipe"
            found.setdefault(alternative, config.out / called)
    return found


def _overrides(config: TrainedConfig, alternative: Alternative) -> list[str]:
    steps = [] if config.steps is None else [f"steps={config.steps}"]
    # The last checkpoint is taken, not the best: these traces are to judge it.
    return [f"data={config.data}", "eval_traces=null", *steps, *alternative.change]


def _draft(config: TrainedConfig, recipe: Path, alternative: Alternative, traces: Path, folder: Path) -> TrainedDraft:
    mark = data_sha256(traces)[:8]  # what other traces, or more of them, have said is no answer
    evaluation = folder / f"evaluation-{mark}-{config.evaluate_n or 'all'}.json"
    run, draft, scores = (folder / name for name in ("run", "draft", f"scores-{mark}"))
    _command("train", [str(recipe), *_overrides(config, alternative), f"out={run}"])
    check_finished(run)
    if not evaluation.exists():
        some = [] if config.evaluate_n is None else [f"n={config.evaluate_n}"]
        _command("evaluate", [f"run={run}", f"traces={traces}", *some, f"ttt_steps={DRAFTED}", f"out={evaluation}"])
    if not draft.exists():
        _command("convert", [f"run={run}", f"out={draft}"])
    if not scores.exists():
        _command("score", [f"draft={draft}", f"traces={traces}", f"out={scores}"])
    return TrainedDraft(traces, scores, json.loads(evaluation.read_text())["acceptance_length"])


def _refuse_left(folder: Path) -> None:
    """Refuse a folder whose run is gone, as the one trained in its place is none that its numbers would be of.

    Raises:
      ConfigError: it is such a folder.
    """
    left = sorted(path for name in ("draft", "evaluation-*", "scores-*") for path in folder.glob(name))
    if left and not (folder / "run").exists():
        raise ConfigError(
            f"{left[0]}: was made from {folder / 'run'}, which is gone: delete {folder} as a whole to train anew"
        )


def _command(name: str, arguments: Sequence[str]) -> None:
    Console(stderr=True).print(f"$ specexit {name} {' '.join(arguments)}", style="dim", soft_wrap=True, markup=False)
    if code := run_command([name, *arguments]):
        raise ConfigError(f"{name} {arguments[-1]} ended with exit code {code}; start again to go on")
