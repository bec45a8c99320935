"""The command: check everything, find what is missing, let an engine of some kind write it, say what came out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console

from specexit.data.rows import Trace
from specexit.schemas.collect import CollectConfig
from specexit.schemas.target import TargetConfig, load_target_config
from torch_specexit.collecting.ledger import Ledger
from torch_specexit.collecting.progress import Bar
from torch_specexit.collecting.summary import finish
from torch_specexit.collecting.tracer import check_lengths
from torch_specexit.collecting.work import Ask, CollectError, all_asks, check_target, chunks, sampling_of

Backend = Callable[
    [CollectConfig, TargetConfig, Sequence[tuple[int, Ask]], Callable[[int, Trace], None], Callable[[dict], None]], None
]
"""Collects numbered asks: hands over every trace as it is finished, and counts of what is done in between."""


def collect(config: CollectConfig) -> None:
    """Collect traces into ``config.out``, from the beginning or from where an earlier run stopped.

    Raises:
      ConfigError: unknown target, one that does not say how it is asked or that cannot be trained on, or the folder
        holds a run with another config.
      SplitError: the target's tokenizer has no single-token think markers.
      PromptError, AnswerError: the prompts cannot be used.
      InputError: a prompt is longer than the target can read.
      FileExistsError: the folder holds something else.
      CollectError: an engine failed, another process collects into the folder, or what came out is not worth training
        on; finished traces are kept.
    """
    target = load_target_config(config.target)
    asks = all_asks(config, target)
    check_target(config, target, asks)
    check_lengths(target, asks)
    with Ledger(config, target, chunks(config, asks)) as ledger:
        todo = [(number, asks[number]) for number in ledger.todo()]
        if todo:
            with Bar(len(ledger.place), ledger.earlier) as bar:
                _backend(config)(config, target, todo, ledger.record, bar.add)
        Console(stderr=True).print(f"{config.out}: {len(ledger.place)} traces, {ledger.earlier} of them earlier")
        finish(config, ledger.counts(), sampling_of(config, target).max_tokens)


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
            raise CollectError("ray= needs Ray: pip install 'specexit[ray]'") from error

        return run_cluster
    from torch_specexit.collecting.processes import run_processes

    return run_processes
