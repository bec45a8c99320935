"""``specexit score``: run target and draft over collected traces and keep the signals of every thinking token.

These are the values that serving would judge by: the signals at a token depend on the text before it alone. `simulate`
and `calibrate` work from the file this writes. Traces are read in blocks, so that their number costs no memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int
from rich.console import Console

from specexit.config import read_yaml, save_run
from specexit.data.checks import once
from specexit.data.rows import Trace
from specexit.data.scores import ScoreError, ScoreWriter, StoredScores, open_scores, sample_key
from specexit.data.stream import TraceError, blocks, read_batches, shown, values_of
from specexit.data.traces import (
    check_collected,
    check_tokenizer,
    data_sha256,
    read_outlines,
    target_of_both,
    vocab_size_of,
)
from specexit.data.written_by import check_weights
from specexit.differences import differences
from specexit.drafts.computation import config_hashes
from specexit.drafts.directory import DraftConfig, DraftError, check_target, read_config
from specexit.drafts.fingerprints import target_fingerprint
from specexit.drafts.tensors import weights_hash
from specexit.method.signals import activate
from specexit.outputs import new_folder, require_empty
from specexit.schemas.score import ScoreConfig
from specexit.schemas.target import TargetConfig
from torch_specexit.draft import Draft
from torch_specexit.features import TargetFeatures, place

BLOCK_TOKENS = 1_000_000
"""Thinking tokens, about, among which traces of like length are put into one batch."""


@dataclass(frozen=True)
class Text:
    """What is scored of a trace."""

    key: str
    prompt: Int[np.ndarray, " _prompt"]
    think: Int[np.ndarray, " _think"]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.think)


def score(config: ScoreConfig) -> int:
    """Score traces with a draft and write ``scores.parquet`` and ``run.yaml``, where they are not there yet.

    Returns:
      How many traces there are.

    Raises:
      DraftError: the draft is unusable, plain, or made for another target.
      TraceError: the traces are unreadable, there are none, one is there twice, they are of another target,
        tokenizer or weights, or a file is not the one that `collect` wrote.
      ScoreError: a signal is not finite, the device has too little memory, or ``out`` holds other scores.
      ConfigError: the target is unknown, or the one given is not the draft's.
      FileExistsError: the output folder is not empty, and holds no scores.
    """
    if not (config.out / "scores.parquet").exists():
        require_empty(config.out)
    draft_config = read_config(config.draft, needs_policy=False)
    if draft_config.specexit is None:
        raise DraftError(f"{config.draft / 'config.json'}: no specexit block, so this draft has no signals to score")
    target = target_of_both(config.traces, config.draft, draft_config.specexit.target, config.target)
    check_tokenizer(config.traces, target)
    check_weights(config.traces, target)
    check_collected(config.traces)
    weights, computation = weights_hash(config.draft), config_hashes(draft_config)["computation"]
    inputs = weights, target_fingerprint(target.folder), data_sha256(config.traces), computation
    if (there := _scored(config, *inputs)) is not None:
        return there
    with _memory_in_one_line(config, "a larger one"):
        features, draft = load_pair(config, target, draft_config)
    columns = ("id", "sample", "prompt_ids", "think_ids")
    rows = once(read_batches(config.traces, Trace, columns, vocab_size=vocab_size_of(target)), config.traces)
    n = 0
    smaller = f"a smaller batch_tokens than {config.batch_tokens}"
    with _memory_in_one_line(config, smaller), new_folder(config.out) as folder:
        with ScoreWriter(folder / "scores.parquet", draft_config.specexit.source, *inputs) as writer:
            found = blocks(rows, BLOCK_TOKENS)
            scored = (one for block in found for one in score_block(block, features, draft, config.batch_tokens))
            for key, signals in shown(scored, "score", "traces"):
                _check_finite(config, key, signals)
                writer.write(key, signals)
                n += 1
        if not n:
            raise TraceError(f"{config.traces}: holds no traces")
        save_run(config, folder)
    return n


@contextmanager
def _memory_in_one_line(config: ScoreConfig, expected: str) -> Iterator[None]:
    """Turn an error of a device without room in the block into one line, which says what would help.

    Raises:
      ScoreError: there was one.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ScoreError(
            f"{config.out}: the device has too little memory, expected {expected}, dtype=bfloat16 where it was "
            "float32, or device=cpu"
        ) from error


def _scored(config: ScoreConfig, draft: str, target: str | None, data: str, computation: str) -> int | None:
    """How many traces have these very scores in ``out``; None where there are no scores yet."""
    if not (config.out / "scores.parquet").exists():
        return None
    there, traces = _opened(config.out), read_outlines(config.traces)
    was = there.computation_sha256  # None in older scores, which are kept
    old = {"draft": there.draft_blake3, "target": there.target_sha256, "traces": there.data_sha256, "computation": was}
    new = {"draft": draft, "target": target, "traces": data, "computation": was and computation}
    done = {"config": read_yaml(config.out / "run.yaml").get("config"), "inputs": old}
    if told := differences(done, {"config": config.model_dump(mode="json"), "inputs": new}):
        edited = "" if was in (None, computation) else f", as {config.draft / 'config.json'} was changed"
        raise ScoreError(
            f"{config.out}: holds scores with {told}{edited}: delete the folder to score anew, or give another out"
        )
    there.check(traces)
    Console(stderr=True).print(f"{config.out}: there already, with the same config, draft, target and traces")
    return len(traces)


def _opened(out: Path) -> StoredScores:
    """The scores in an output folder.

    Raises:
      ScoreError: they cannot be used; that is mended by no second run of the same command.
    """
    try:
        return open_scores(out)
    except ScoreError as error:
        raise ScoreError(
            f"{out}: holds scores that cannot be used: delete the folder to score anew, or give another out ({error})"
        ) from error


def _check_finite(config: ScoreConfig, key: str, signals: Float[np.ndarray, "_think signals"]) -> None:
    """Refuse a value that is not finite: it would spoil the file for every command that reads it."""
    if not np.isfinite(signals).all():
        at = int(np.argmin(np.isfinite(signals).all(axis=1)))
        raise ScoreError(
            f"{config.traces}: signals of trace {key!r} are {signals[at].tolist()} at thinking token {at}, expected "
            f"finite ones: dtype=float32 overflows last, and {config.draft} may be damaged"
        )


def load_pair(config: ScoreConfig, target: TargetConfig, draft_config: DraftConfig) -> tuple[TargetFeatures, Draft]:
    """Load target and draft: by default on a GPU in the target's dtype, or without one in float32.

    Raises:
      DraftError: see `Draft.load`; also where the two do not belong together.
    """
    check_target(draft_config, config.draft, target.hf_config(), target.name)
    device, dtype = place(config.device, config.dtype, target)
    layers = draft_config.eagle_aux_hidden_state_layer_ids
    features = TargetFeatures(target, layers, dtype=getattr(torch, dtype), device=device)
    return features, Draft.load(config.draft, features.embedding).to(device)


def score_block(
    block: pa.RecordBatch, features: TargetFeatures, draft: Draft, batch_tokens: int
) -> Iterator[tuple[str, Float[np.ndarray, "_think signals"]]]:
    """Key and activated signals of each trace of a block, in their order."""
    ids, samples = block["id"].to_pylist(), block["sample"].to_pylist()
    tokens = (values_of(block[name], np.int64) for name in ("prompt_ids", "think_ids"))
    texts = [Text(sample_key(*row[:2]), *row[2:]) for row in zip(ids, samples, *tokens, strict=True)]
    found: dict[str, np.ndarray] = {}
    for batch in batches(texts, batch_tokens):
        found |= zip((text.key for text in batch), map(activate, raw_signals(features, draft, batch)), strict=True)
    yield from ((text.key, found[text.key]) for text in texts)


def batches(texts: Sequence[Text], tokens: int) -> Iterator[list[Text]]:
    """Cut texts, sorted by length, into batches of at most ``tokens`` padded tokens (or of one text)."""
    batch: list[Text] = []
    for text in sorted(texts, key=len):
        if batch and (len(batch) + 1) * len(text) > tokens:
            yield batch
            batch = []
        batch.append(text)
    if batch:
        yield batch


@torch.inference_mode()
def raw_signals(
    features: TargetFeatures, draft: Draft, batch: Sequence[Text]
) -> list[Float[np.ndarray, "_think signals"]]:
    """Raw signals of each text's thinking tokens, before the activation."""
    tokens = torch.zeros(len(batch), max(map(len, batch)), dtype=torch.long)
    for row, text in zip(tokens, batch, strict=True):
        row[: len(text)] = torch.from_numpy(np.concatenate([text.prompt, text.think]))
    tokens = tokens.to(draft.embedding.device)
    raw = draft.signals(tokens, features(tokens))
    assert raw is not None, "a draft with a specexit block has signals"
    on_host = raw.float().cpu().numpy()
    return [row[len(text.prompt) : len(text)] for row, text in zip(on_host, batch, strict=True)]
