"""``specexit serve``: `vllm serve` with a SpecExit draft, after a check that the two fit."""

from __future__ import annotations

import json
import os
import sys

from rich.console import Console
from rich.table import Table

from specexit.draftdir import check_target, read_config
from specexit.errors import InputError
from specexit.schemas.serve import ServeConfig
from specexit.schemas.target import load_target_config


class ServeError(InputError):
    """The installed vLLM does not fit; the message says what is missing."""


def serve(config: ServeConfig) -> None:
    """Print the table of hooks, or become ``vllm serve``.

    Raises:
      ServeError: a hook does not fit the installed vLLM (it would serve plain EAGLE-3 and say so in its log).
      ConfigError, DraftError: the target or the draft cannot be used, or they do not belong together.
    """
    if config.check:
        Console().print(hook_table())
    misfits = [misfit for hook in _hooks() if (misfit := hook.misfit())]
    if misfits:
        raise ServeError("this vLLM is served without exits: " + "; ".join(misfits))
    if config.check:
        return
    command = serve_command(config)
    os.execvp(command[0], command)


def serve_command(config: ServeConfig) -> list[str]:
    """The command line that serves a target with its draft.

    Raises:
      ConfigError, DraftError: the target or the draft cannot be used, or they do not belong together.
    """
    assert config.target is not None
    assert config.draft is not None
    target = load_target_config(config.target)
    check_target(read_config(config.draft), config.draft, target.hf_config(), target.name)
    speculation = {
        "method": "eagle3",
        "model": str(config.draft),
        "num_speculative_tokens": config.num_speculative_tokens,
    }
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(target.folder)]
    return [*command, "--speculative-config", json.dumps(speculation), *config.arguments]


def hook_table() -> Table:
    """Every place where vLLM is wrapped, and whether the installed version has it as expected."""
    import vllm

    table = Table(title=f"hooks into vLLM {vllm.__version__}", title_justify="left")
    for column in ("hook", "since", "fits", "why", "relies on"):
        table.add_column(column, overflow="fold")
    for hook in _hooks():
        misfit = hook.misfit()
        place = f"{hook.module}\n{hook.owner}.{hook.method}"
        table.add_row(place, hook.since, "yes" if misfit is None else misfit, hook.why, hook.relies_on)
    return table


def _hooks() -> tuple:
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from torch_specexit.plugin.hooks import HOOKS

    return HOOKS
