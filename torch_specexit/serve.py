"""``specexit serve``: `vllm serve` with a SpecExit draft, after a check that the two fit."""

from __future__ import annotations

import importlib.metadata
import json
import os
from argparse import ArgumentTypeError
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from rich.console import Console
from rich.table import Table

from specexit.drafts.config import DraftConfig
from specexit.drafts.directory import check_target, read_draft
from specexit.drafts.verified import doubt_of
from specexit.errors import InputError, printable
from specexit.processes import python
from specexit.schemas.serve import ServeConfig
from specexit.schemas.target import TargetConfig, find_target
from torch_specexit.chat import check_read
from torch_specexit.engine import vllm_platform
from torch_specexit.kv_cache import free_bytes, kv_cache_gib, weight_bytes
from torch_specexit.plugin.compat.fit import Hook
from torch_specexit.plugin.compat.sources import Imported, Release, Sources

LENGTH = "--max-model-len"
NAMES = "--served-model-name"
KV_CACHE_SPACE = "VLLM_CPU_KVCACHE_SPACE"
CPU_ARGUMENTS = ["--enforce-eager", "--block-size", "32"]
"""On a CPU compiling takes half a minute of every start, and attention is fast at multiples of 32."""

TOKENIZER = "--tokenizer"
MOST_SAID = 3
"""Hooks that do not fit and that an error names; of what is no vLLM at all it would be every one."""

TEMPLATE = "--default-chat-template-kwargs"
"""What a request's prompt is rendered with, beside what the request says itself."""


class ServeError(InputError):
    """The installed vLLM does not fit; the message says what is missing."""


def serve(config: ServeConfig) -> None:
    """Print the table of hooks, or become ``vllm serve``.

    Raises:
      ServeError: a hook does not fit this vLLM (it would serve plain EAGLE-3 and say so in its log).
      SourceError: the folder to check holds no vLLM.
      InputError: the installed vLLM is for other machines.
      ConfigError, DraftError: the target or the draft cannot be used, or they do not belong together.
    """
    if config.check:
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # not for the server, whose log has more to say
    release = Imported() if config.sources is None else Sources(config.sources)
    hooks = [hook for hook in _hooks() if hook.concerns(release)]
    on_cpu = not config.check and vllm_platform().is_cpu()
    if config.check:
        Console().print(hook_table(hooks, release))
    misfits = [misfit for hook in hooks if hook.without is None and (misfit := hook.misfit(release))]
    if misfits:
        more = len(misfits) - MOST_SAID
        rest = [f"and {more} hooks more, all of them in the table of `specexit serve --check`"] if more > 0 else []
        raise ServeError(f"vLLM {release.version} is served without exits: {'; '.join(misfits[:MOST_SAID] + rest)}")
    if config.check:
        return
    command = serve_command(config, on_cpu=on_cpu)
    os.execvp(command[0], command)


def serve_command(config: ServeConfig, *, on_cpu: bool = False) -> list[str]:
    """The command line that serves a target with its draft; on a CPU its environment is set, too.

    Raises:
      ConfigError, DraftError: the target or the draft cannot be used, or they do not belong together.
      KVCacheError: a CPU machine has too little free memory.
    """
    assert config.draft is not None
    draft, _ = read_draft(config.draft)
    target = find_target(config.target, config.draft, name=draft.target_name)
    target.model_file("config.json")  # vLLM would take a path that is not there for a name of the hub's
    _say_doubt(config.draft, target)
    _say_unwatched(config.draft, draft)
    check_target(draft, config.draft, target.hf_config(), target.name)
    own = (
        TOKENIZER,
        "--trust-remote-code",
    )  # with either of these the engine's tokenizer is not the one that would be checked
    if draft.specexit is not None and not any(_spelled(argument).startswith(own) for argument in config.arguments):
        check_read(target, {})
    speculation = {
        "method": "eagle3",
        "model": str(config.draft),
        "num_speculative_tokens": config.num_speculative_tokens,
    }
    length = min(target.max_model_len, draft.max_position_embeddings)
    asked = any(_spelled(argument).startswith(LENGTH) for argument in config.arguments)
    if length < target.max_model_len and not asked:
        _say_length(config.draft, draft, target)
    ours = ["--dtype", target.dtype, LENGTH, str(length)]
    if not any(_spelled(argument).partition("=")[0] in (NAMES, "--config") for argument in config.arguments):
        ours += [NAMES, target.name, str(target.folder)]  # vLLM's own name for it would be the folder alone
    if target.chat and not any(_spelled(argument).startswith(TEMPLATE) for argument in config.arguments):
        ours += [TEMPLATE, json.dumps(target.chat, default=str)]
    if on_cpu:
        ours += CPU_ARGUMENTS
        _leave_memory(target, config.draft, length, _asked_length(config.arguments, length))
    if any(argument.partition("=")[0] == "--config" for argument in config.arguments):
        _say_what_is_overruled([*ours, "--speculative-config"])
    return [*_server(str(target.folder)), *ours, "--speculative-config", json.dumps(speculation), *config.arguments]


def _say_doubt(draft: Path, target: TargetConfig) -> None:
    """Warn where a draft is not verified: one that was converted wrongly serves all the same, and is merely slow."""
    doubt = doubt_of(draft, target.folder)
    if doubt is not None:
        said = f"{draft}: verified: {printable(doubt)}"  # which may repeat what a stranger's file says
        Console(stderr=True).print(said, style="yellow", markup=False, highlight=False)


def _say_unwatched(folder: Path, draft: DraftConfig) -> None:
    """Warn that a draft without signals, as imports are, is served without the plug-in's alarm."""
    if draft.specexit is None:
        Console(stderr=True).print(
            f"{folder}: has no signals, so the server has no metrics of exits, nor their alarm where acceptance stays "
            "near 1: watch vllm:spec_decode_num_accepted_tokens_total, as the alert SpecExitDraftUseless does",
            style="yellow",
            markup=False,
            highlight=False,
        )


def _say_length(folder: Path, draft: DraftConfig, target: TargetConfig) -> None:
    """Warn that the draft allows shorter requests than the target, whose thinking may need its full length."""
    length, asked, most = draft.max_position_embeddings, target.max_model_len, draft.most_positions
    longest = asked if most is None else min(asked, most)
    remedy = end = "RoPE has no end" if most is None else f"its rope_scaling 'yarn' ends at {most}"
    if longest > length:
        those = "those" if longest == asked else "more of those"
        remedy = f"set it to {longest} there to serve {those}, as {end}, and run `specexit verify` again"
    Console(stderr=True, soft_wrap=True).print(
        f"{folder / 'config.json'}: max_position_embeddings is {length}, so requests have at most {length} tokens and "
        f"not the {asked} of {target.name}: {remedy}",
        style="yellow",
        markup=False,
        highlight=False,
    )


def _say_what_is_overruled(ours: Sequence[str]) -> None:
    """Warn which options in a file of ``--config`` do not count: vLLM puts them in front of ours, which win."""
    options = ", ".join(word for word in ours if word.startswith("--"))
    Console(stderr=True, soft_wrap=True).print(
        f"arguments has --config: what its file says of {options} does not count, expected in arguments themselves",
        style="yellow",
        markup=False,
        highlight=False,
    )


def _leave_memory(target: TargetConfig, draft: Path, length: int, asked: int) -> None:
    """Set the size of the KV cache, unless the environment has one: for requests of the length ``asked``; or, where
    that is negative, as much for those of ``length`` as there is room."""
    if not os.environ.get(KV_CACHE_SPACE):
        weights = weight_bytes(target.folder, draft)
        longest, least = (length, 1) if asked < 0 else (asked, asked)
        gib = kv_cache_gib(target.hf_config(), target.dtype, longest, weights, free_bytes(), least=least)
        os.environ[KV_CACHE_SPACE] = str(gib)


def _asked_length(arguments: Sequence[str], default: int) -> int:
    """The longest request in tokens that `vllm serve` is told in its own words, such as ``8k``; -1 for ``auto``."""
    from vllm.utils.argparse_utils import human_readable_int_or_auto

    words = [word for argument in arguments for word in _spelled(argument).split("=", 1)]
    values = [after for word, after in pairwise(words) if word == LENGTH]
    try:
        return human_readable_int_or_auto(values[-1]) if values else default
    except (ValueError, ArgumentTypeError):  # which vLLM will name
        return default


def _spelled(argument: str) -> str:
    """An option in the spelling of vLLM's documentation; it takes underscores, too."""
    option, equals, value = argument.partition("=")
    return (option.replace("_", "-") if option.startswith("--") else option) + equals + value


def _server(model: str) -> list[str]:
    """``vllm serve``; see `torch_specexit.vllm_cpu` for where vLLM was installed as vllm-cpu."""
    try:
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        return python("torch_specexit.vllm_cpu", "serve", model)
    return python("vllm.entrypoints.cli.main", "serve", model)


def hook_table(hooks: Sequence[Hook], release: Release) -> Table:
    """Every place where vLLM is wrapped, and whether a version of it has everything as expected."""
    table = Table(title=f"hooks into vLLM {release.version}", title_justify="left", show_lines=True)
    for column in ("hook", "since", "fits", "why", "relies on", "upstream", "can go"):
        table.add_column(column, overflow="fold")
    for hook in hooks:
        misfit = hook.misfit(release)
        fits = "yes" if misfit is None else f"no: {misfit}"
        lost = "" if misfit is None else f"\nwithout it: {hook.without or 'plain EAGLE-3'}"
        place = f"{hook.module}\n{hook.owner}.{hook.method}"
        table.add_row(place, hook.since, fits + lost, hook.why, hook.relies_on, hook.upstream, hook.until)
    return table


def _hooks() -> tuple[Hook, ...]:
    from torch_specexit.plugin.compat.frontend_hooks import FRONTEND_HOOKS
    from torch_specexit.plugin.compat.hooks import HOOKS
    from torch_specexit.plugin.compat.repairs import REPAIRS

    return (*HOOKS, *FRONTEND_HOOKS, *REPAIRS)
