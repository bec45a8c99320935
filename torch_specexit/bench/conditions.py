"""The conditions of a benchmark besides its config: how drafts are served here, on what machine, with what code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from specexit.bench.inputs import inputs_of
from specexit.bench.process import BenchError
from specexit.config import revision
from specexit.drafts.directory import read_config
from specexit.drafts.policy import FILE, Mode, Serving
from specexit.hardware import describe_hardware
from specexit.schemas.bench import BenchConfig
from specexit.schemas.bench_serving import BenchServingConfig
from specexit.schemas.target import TargetConfig
from torch_specexit.plugin.settings import ENVIRONMENT, serving_over


def machine() -> dict[str, Any]:
    """What seconds depend on: processor, cores, system, threads, and the revision of the code.

    A machine answers the same whenever it is asked, so its memory is left out, of which a kernel reports what it has
    left over. Engines tell their accelerator, see `specexit.bench.journal.Journal.check_accelerator`.
    """
    hardware = describe_hardware()
    found = {name: hardware[name] for name in ("processor", "cores", "system")}
    # As `torch_specexit.engine.set_environment` has it.
    return found | {"threads": os.environ.get("OMP_NUM_THREADS") or "1", "revision": revision()}


def inputs_served(config: BenchConfig, target: TargetConfig) -> dict[str, str]:
    """`inputs_of`, with the drafts' serving settings as the environment and ``engine.extra`` change them.

    Raises:
      DraftError, TraceError: see `inputs_of`.
      ConfigError: one of the two sets something that does not exist.
    """
    return inputs_of(config, target, lambda below: _in_force(config, below))


def refuse_held_back(config: BenchConfig | BenchServingConfig, draft: Path, *, besides: Mode | None = None) -> None:
    """Check that a SpecExit draft's engine makes exits: without any it would look like a method that loses nothing.

    Args:
      config: of the benchmark.
      draft: its folder.
      besides: another mode that will do.

    Raises:
      BenchError: it is served in another mode; the message says what makes it so.
      DraftError, ConfigError: see `inputs_served`.
    """
    block = read_config(draft).specexit
    mode = "exit" if block is None else _in_force(config, block.serving).mode
    if block is None or mode in ("exit", besides):
        return
    if block.serving.mode not in ("exit", besides):
        raise BenchError(
            f"{draft / FILE}: serving.mode is {block.serving.mode!r}, so that nothing exits: expected 'exit'"
        )
    raise BenchError(
        f"{ENVIRONMENT}={os.environ.get(ENVIRONMENT, '')!r}, engine.extra={config.engine.extra}: the mode in force is "
        f"{mode!r}, so that nothing exits: expected 'exit', unset {ENVIRONMENT} or leave mode out of it"
    )


def _in_force(config: BenchConfig | BenchServingConfig, below: Serving) -> Serving:
    return serving_over(below, config.engine.extra.get("additional_config"))
