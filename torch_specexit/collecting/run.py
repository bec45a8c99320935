"""The command: check everything, find what is missing, let an engine of some kind write it, say what came out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

from rich.console import Console

from specexit.data.rows import Trace
from specexit.errors import install
from specexit.schemas.collect import CollectConfig
from specexit.schemas.target import TargetConfig, load_target_config
from torch_specexit.chat import check_read, doubts
from torch_specexit.collecting.ledger import Ledger
from torch_specexit.collecting.parts import check_apart
from torch_specexit.collecting.progress import Bar
from torch_specexit.collecting.summary import check_early, finish
from torch_specexit.collecting.tracer import check_lengths
from torch_specexit.collecting.work import Ask, CollectError, all_asks, check_target, sampling_of, why_no_features

FIRST = 100
"""Traces, in whole chunks, after which a run looks at what it gets; fewer say too little."""

Backend = Callable[
    [CollectConfig, TargetConfig, Sequence[tuple[int, Ask]], Callable[[int, Trace], None], Callable[[dict], None]], None
]
"""Collects numbered asks of a target: calls the first function with each finished trace and its number, and the second
with counts of what was done meanwhile."""


def collect(config: CollectConfig) -> None:
    """Collect traces into ``config.out``, or into a folder in there for each part, from the beginning or from where an
    earlier run stopped.

    Raises:
      ConfigError: unknown target, one that does not say how it is asked, that cannot be trained on or that an engine
        would read wrongly, or the folder holds a run with another config.
      SplitError: the target's tokenizer has no single-token think markers.
      PromptError, AnswerError: the prompts cannot be used, or several parts share some.
      InputError: a prompt is longer than the target can read.
      FileExistsError: the folder holds something else.
      CollectError: an engine failed, another process collects into the folder, or what came out is not worth training
        on; finished traces are kept.
    """
    target = load_target_config(config.target)
    each = config.each()
    if config.parts and (config.out / "run.yaml").exists():
        raise FileExistsError(f"{config.out}: output folder is a run of its own, expected a folder for several parts")
    asks = [all_asks(one, target) for one in each]
    for found in asks:
        check_target(config, target, found)
        check_lengths(config, target, found)
    if not config.endpoints:  # servers are asked what they read
        check_read(target, config.engine.extra)
    doubted = doubts(target)
    if config.any_architecture and (why := why_no_features(target)) is not None:
        doubted.append(f"{why}: `specexit features` will refuse these traces")
    for doubt in doubted:
        Console(stderr=True, soft_wrap=True).print(f"warning: {doubt}", style="yellow", markup=False, highlight=False)
    check_apart(dict(zip(config.parts, asks, strict=False)))  # none where there are no parts
    with ExitStack() as stack:
        ledgers = [stack.enter_context(Ledger(one, target, found)) for one, found in zip(each, asks, strict=True)]
        _fill(config, target, ledgers, asks)
        for ledger in ledgers:
            there = f"{ledger.out}: {len(ledger.place)} traces, {ledger.earlier} of them earlier"
            Console(stderr=True).print(there, markup=False)
        _finish(ledgers, sampling_of(config, target).max_tokens)


def _fill(
    config: CollectConfig, target: TargetConfig, ledgers: Sequence[Ledger], asks: Sequence[Sequence[Ask]]
) -> None:
    """Collect what is missing in any of the folders, one behind the other on the same engines.

    Raises:
      CollectError: an engine failed, or the first traces of a folder are far from worth training on.
    """
    missing = [(ledger, found, number) for ledger, found in zip(ledgers, asks, strict=True) for number in ledger.todo()]
    if not missing:
        return

    # A folder whose run was ended by this look has that many: the same command goes on.
    unseen = {ledger for ledger in ledgers if ledger.counts().traces < FIRST}
    max_tokens = sampling_of(config, target).max_tokens

    def record(i: int, trace: Trace) -> None:
        ledger, _, number = missing[i]
        ledger.record(number, trace)
        if ledger in unseen and ledger.whole.traces >= FIRST:
            unseen.remove(ledger)
            if ledger.todo():  # else `_finish` looks at all of it
                check_early(ledger.config, ledger.counts(), max_tokens, ledger.asked)

    todo = [(i, found[number]) for i, (_, found, number) in enumerate(missing)]
    with Bar(sum(len(ledger.place) for ledger in ledgers), sum(ledger.earlier for ledger in ledgers)) as bar:
        _backend(config)(config, target, todo, record, bar.add)


def _finish(ledgers: Sequence[Ledger], max_tokens: int) -> None:
    """The summaries of all folders, then the failure of the first that is not worth training on.

    Raises:
      CollectError: see `finish`.
    """
    failures = []
    for ledger in ledgers:
        try:
            finish(ledger.config, ledger.counts(), max_tokens)
        except CollectError as error:
            failures.append(error)
    if failures:
        raise failures[0]


def _backend(config: CollectConfig) -> Backend:
    if config.endpoints:
        from torch_specexit.collecting.endpoints import run_endpoints

        return run_endpoints
    if config.ray is not None:
        try:
            from torch_specexit.collecting.cluster import run_cluster
        except ModuleNotFoundError as error:
            if error.name != "ray":
                raise
            raise CollectError(f"ray= needs Ray: {install('ray')}") from error

        return run_cluster
    from torch_specexit.collecting.processes import run_processes

    return run_processes
