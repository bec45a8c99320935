"""``specexit score``: run target and draft over collected traces and keep the signals of every thinking token.

These are the values that serving would judge by: a trace is one greedy text, and the signals at a token depend on the
text before it alone. `simulate` and `calibrate` work from the file this writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from rich.console import Console
from rich.progress import Progress

from specexit.config import save_run
from specexit.data.scores import Scores, draft_sha256, key_of, write_scores
from specexit.data.traces import Trace, read_traces
from specexit.drafts.directory import DraftConfig, DraftError, check_target, read_config
from specexit.method.signals import activate
from specexit.outputs import new_folder, require_empty
from specexit.schemas.score import ScoreConfig
from specexit.schemas.target import TargetConfig, find_target
from torch_specexit.draft import Draft
from torch_specexit.features import TargetFeatures


def score(config: ScoreConfig) -> Scores:
    """Score traces with a draft and write ``scores.parquet`` and ``run.yaml``.

    Raises:
      DraftError: the draft is unusable, plain, or made for another target.
      TraceError: the traces are unreadable.
      FileExistsError: the output folder is not empty.
    """
    require_empty(config.out)
    draft_config, traces = read_config(config.draft), read_traces(config.traces)
    if draft_config.specexit is None:
        raise DraftError(f"{config.draft / 'config.json'}: no specexit block, so this draft has no signals to score")
    target = find_target(config.target, config.draft, config.traces, name=draft_config.specexit.target)
    features, draft = load_pair(config, target, draft_config)
    found: dict[str, np.ndarray] = {}
    console = Console()
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("score", total=len(traces))
        for batch in batches(traces, config.batch_tokens):
            found |= zip(map(key_of, batch), map(activate, raw_signals(features, draft, batch)), strict=True)
            progress.advance(task, len(batch))
    scores = Scores(
        draft_config.specexit.source,
        draft_sha256(config.draft),
        {key_of(trace): found[key_of(trace)] for trace in traces},
    )
    with new_folder(config.out) as folder:
        write_scores(folder / "scores.parquet", scores)
        save_run(config, folder)
    return scores


def load_pair(config: ScoreConfig, target: TargetConfig, draft_config: DraftConfig) -> tuple[TargetFeatures, Draft]:
    """Load target and draft in float32.

    Raises:
      DraftError: see `Draft.load`; also where the two do not belong together.
    """
    check_target(draft_config, config.draft, target.hf_config(), target.name)
    features = TargetFeatures(target, draft_config.eagle_aux_hidden_state_layer_ids)
    return features, Draft.load(config.draft, features.embedding)


def batches(traces: Sequence[Trace], tokens: int) -> Iterator[list[Trace]]:
    """Cut traces, sorted by length, into batches of at most ``tokens`` padded tokens (or of one trace)."""
    batch: list[Trace] = []
    for trace in sorted(traces, key=_length):
        if batch and (len(batch) + 1) * _length(trace) > tokens:
            yield batch
            batch = []
        batch.append(trace)
    if batch:
        yield batch


def _length(trace: Trace) -> int:
    return len(trace.prompt_ids) + len(trace.think_ids)


@torch.inference_mode()
def raw_signals(
    features: TargetFeatures, draft: Draft, batch: Sequence[Trace]
) -> list[Float[np.ndarray, "_think signals"]]:
    """Raw signals of each trace's thinking tokens, before the activation."""
    tokens = torch.zeros(len(batch), max(map(_length, batch)), dtype=torch.long)
    for row, trace in zip(tokens, batch, strict=True):
        row[: _length(trace)] = torch.tensor(trace.prompt_ids + trace.think_ids)
    raw = draft(tokens, features(tokens)).raw_signals
    assert raw is not None, "a draft with a specexit block has signals"
    starts = [len(trace.prompt_ids) for trace in batch]
    return [
        row[start : start + len(trace.think_ids)].numpy() for row, start, trace in zip(raw, starts, batch, strict=True)
    ]
