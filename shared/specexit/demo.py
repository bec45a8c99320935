"""``specexit demo``: from nothing to a measured result, as the sequence of commands that a user would type.

Every stage is a command of its own in a process of its own (vLLM and JAX both set process-wide state), and every stage
is written down before it runs. A stage that is done leaves a mark with its command line; an interrupted demo goes on
behind the last mark. Where a stage has to run again, so do all stages behind it.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from specexit.config import ConfigError, find, save_run, write_bytes, write_text
from specexit.processes import run_command
from specexit.schemas.demo import DemoConfig


@dataclass(frozen=True)
class Sizes:
    """How much of everything. `FULL` is what the README quotes."""

    draft: int
    calibration: int
    test: int
    bench: int
    latency: int
    rounds: int
    epsilon: float
    train: tuple[str, ...] = ()
    """What is changed in the draft's recipe, beside paths and the seed."""
    train_fc: tuple[str, ...] = ()
    """What is changed in the recipe of the signals of source fc."""


FULL = Sizes(
    draft=1400,
    calibration=800,
    test=300,
    bench=300,
    latency=40,
    rounds=5,
    epsilon=0.01,
)
QUICK = Sizes(
    draft=375,
    calibration=150,
    test=32,
    bench=32,
    latency=4,
    rounds=2,
    epsilon=0.05,
    # With so few traces, the recipe's boundary weight has the draft learn their boundaries by heart: it is then so sure
    # of its mistakes that no threshold keeps them out.
    train=("steps=560", "signals.boundary_weight=1"),
    train_fc=("steps=60",),
)


@dataclass(frozen=True)
class Stage:
    """One command. ``out`` is removed before a fresh attempt, unless the command goes on in it or only adds to it."""

    title: str
    arguments: list[str]
    out: Path
    resumes: bool = False


MARKS = ".done"
BEGUN = "begun"
"""Mark of a demo that has begun, with the command line of its first stage."""


def stages(config: DemoConfig) -> list[Stage]:
    """The demo as a list of commands."""
    size = QUICK if config.quick else FULL
    run = config.out
    recipe = {name: str(find("recipes", name)) for name in ("tiny-reasoner", "tiny-reasoner-fc")}
    traces, labelled, scores = run / "traces", run / "labelled", run / "scores"
    seed = f"seed={config.seed}"
    out: list[Stage] = []
    splits = ("draft", "calibration", "test")
    arguments = ["collect", f"target={config.target}", f"out={traces}", seed]
    for split in splits:
        arguments += [f"parts.{split}.split={split}", f"parts.{split}.n={getattr(size, split)}"]
    out.append(Stage("collect traces and trial answers", arguments, traces, resumes=True))
    for split in splits:
        arguments = ["annotate", f"traces={traces / split}", f"out={labelled / split}"]
        out.append(Stage(f"find exit points: {split} split", arguments, labelled / split))
    packed = run / "packed"
    arguments = ["pack", f"traces={labelled / 'draft'}", f"out={packed}", "length=768", seed]
    out.append(Stage("pack training examples", arguments, packed))
    for suffix, changes in (("", size.train), ("-fc", size.train_fc)):
        train, draft = run / f"train{suffix}", run / f"draft{suffix}"
        source = "fc" if suffix else "draft"
        arguments = [
            "train",
            recipe[f"tiny-reasoner{suffix}"],
            f"target={config.target}",
            f"data={packed}",
            f"out={train}",
            seed,
            *changes,
        ]
        arguments += [f"eval_traces={labelled / 'calibration'}", "evaluate_n=300"]
        arguments += [f"init_from={run / 'draft'}"] if suffix else []
        out.append(Stage(f"train, signals of source {source}", arguments, train, resumes=True))
        out.append(
            Stage(f"convert to a draft directory ({source})", ["convert", f"run={train}", f"out={draft}"], draft)
        )
        arguments = ["verify", f"draft={draft}", f"traces={labelled / 'test'}", "n=4", "vllm=false"]
        out.append(Stage(f"verify: JAX against PyTorch ({source})", arguments, draft, resumes=True))
        held_out = scores / f"calibration{suffix}"
        arguments = ["score", f"draft={draft}", f"traces={labelled / 'calibration'}", f"out={held_out}"]
        out.append(Stage(f"read the signals of the calibration traces ({source})", arguments, held_out))
        arguments = ["calibrate", f"draft={draft}", f"traces={labelled / 'calibration'}", f"scores={held_out}"]
        arguments += ["risk=accuracy_lost", f"epsilon={size.epsilon}"]
        out.append(Stage(f"calibrate the exit threshold ({source})", arguments, draft, resumes=True))
    arguments = ["score", f"draft={run / 'draft'}", f"traces={labelled / 'test'}", f"out={scores / 'test'}"]
    out.append(Stage("read the signals of the test traces", arguments, scores / "test"))
    curve = run / "simulation.json"
    arguments = ["simulate", f"traces={labelled / 'test'}", f"scores={scores / 'test'}", f"out={curve}"]
    out.append(Stage("simulate other policies", arguments, curve))
    bench = run / "bench"
    arguments = ["bench", f"target={config.target}", f"draft={run / 'draft'}", f"draft_fc={run / 'draft-fc'}"]
    arguments += [f"traces={traces / 'test'}", f"out={bench}", f"n={size.bench}", f"n_latency={size.latency}"]
    arguments += [f"rounds={size.rounds}", f"calibration_traces={labelled / 'calibration'}", seed]
    out.append(Stage("measure in vLLM, methods taking turns", arguments, bench))
    page = run / "report.html"
    arguments = ["report", f"bench={bench}", f"traces={labelled / 'test'}", f"out={page}", f"draft={run / 'draft'}"]
    arguments += [f"scores={scores / 'test'}", f"simulation={curve}", f"run={run / 'train'}"]
    out.append(Stage("write the report", arguments, page))
    return out


def demo(config: DemoConfig) -> None:
    """Run all stages, print the table at the end.

    Raises:
      ConfigError: a stage failed, and its own message stands above; or ``out`` holds something that is no demo.
    """
    console = Console(stderr=True)
    _make_room(config, console)
    started = time.monotonic()
    todo = stages(config)
    marks = [config.out / MARKS / f"{number:02d}" for number in range(1, len(todo) + 1)]
    write_text(config.out / MARKS / BEGUN, json.dumps(todo[0].arguments))
    save_run(config, config.out)
    for number, (stage, mark) in enumerate(zip(todo, marks, strict=True), start=1):
        if mark.exists() and json.loads(mark.read_text()) == stage.arguments and stage.out.exists():
            continue
        for later in marks[number - 1 :]:
            later.unlink(missing_ok=True)
        if not stage.resumes and stage.out.exists():
            shutil.rmtree(stage.out) if stage.out.is_dir() else stage.out.unlink()
        minutes = (time.monotonic() - started) / 60
        console.rule(f"[bold]{number}/{len(todo)}  {stage.title}[/bold]  [dim]{minutes:.1f} min[/dim]", align="left")
        console.print(f"$ specexit {' '.join(stage.arguments)}", style="dim", soft_wrap=True, markup=False)
        # A training step is of one row, which several chips could not share.
        code = run_command(stage.arguments, JAX_PLATFORMS="cpu")
        if code:
            raise ConfigError(
                f"stage {number} ({stage.title}) ended with exit code {code}; run the demo again to go on"
            )
        write_text(mark, json.dumps(stage.arguments))
    write_bytes(config.out / "results.json", (config.out / "bench" / "results.json").read_bytes())
    console.rule(f"[bold]done in {(time.monotonic() - started) / 60:.1f} minutes[/bold]", align="left")
    console.print(f"results  {config.out / 'results.json'}\nreport   {config.out / 'report.html'}", markup=False)


def _make_room(config: DemoConfig, console: Console) -> None:
    """Continue an unfinished demo of the same settings; move another demo aside, nothing is deleted.

    Raises:
      ConfigError: what is there is no demo, or another one around the working directory.
    """
    if not config.out.exists() or (config.out.is_dir() and not any(config.out.iterdir())):
        return
    if not (config.out / MARKS).is_dir():
        what = "holds other things than a demo" if config.out.is_dir() else "is a file"
        raise ConfigError(f"out={config.out}: {what}, expected a folder that is empty, a demo's, or not there yet")
    begun = config.out / MARKS / BEGUN
    same = begun.exists() and json.loads(begun.read_text()) == stages(config)[0].arguments
    if same and not (config.out / "results.json").exists():
        console.print(f"going on with the unfinished demo in {config.out}", markup=False)
        return
    if Path.cwd().is_relative_to(config.out.resolve()):  # what is begun anew would be written into the one moved aside
        raise ConfigError(
            f"out={config.out}: an earlier demo is there, and the working directory lies in it, expected another folder"
        )
    number = 1
    while (aside := config.out.with_name(f"{config.out.name}-{number}")).exists():
        number += 1
    config.out.rename(aside)
    console.print(f"{config.out} held an earlier demo, moved to {aside}", markup=False)
