"""``specexit pack``: labelled traces to packed training examples on disk, and the readers of these.

A packed folder holds ArrayRecord shards, one example per record (so that the trainer can read any of them, in any
order, on any number of hosts), and ``meta.json``: what is in them, where it came from, and how often each token was
generated, from which the trainer chooses its draft vocabulary. A record is an uncompressed ``.npz``.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, ValidationError
from rich.console import Console
from rich.progress import track

from specexit.config import Config, save_run, write_text
from specexit.data.sequences import Example, TrainingSequence, assemble, best_fit, make_sequence
from specexit.data.traces import LabelledTrace, check_tokenizer, data_sha256, read_labelled, target_of, tokenizer_sha256
from specexit.errors import InputError
from specexit.method.signals import NAMES
from specexit.outputs import new_folder
from specexit.schemas.pack import PackConfig
from specexit.schemas.target import TargetConfig, save_target

FORMAT_VERSION = 1
FIELDS = ("tokens", "segment_ids", "positions", "loss_mask", "signal_labels", "signal_mask")


class PackError(InputError):
    """Packed data that cannot be made or used; the message names the file, the field and what was expected."""


class PackMeta(Config):
    """``meta.json`` of a packed folder."""

    format_version: int
    n: int = Field(gt=0, description="examples")
    length: int = Field(gt=0, description="tokens in an example")
    shards: dict[str, int] = Field(description="file name -> size in bytes")
    traces: int = Field(gt=0, description="traces in the examples")
    dropped: int = Field(ge=0, description="traces that are longer than an example")
    fill: float = Field(gt=0, le=1, description="share of the examples' tokens that is not padding")
    signals: tuple[str, ...]
    exit_point: Literal["earliest", "stable"]
    truncate: bool
    target: str
    tokenizer_sha256: str = Field(description="of the target's tokenizer.json")
    data_sha256: str = Field(description="of the labelled traces")
    config_sha256: str = Field(description="of the pack command's config, input and output paths apart")
    token_counts: tuple[int, ...] = Field(description="how often each token id of the target was generated")


def pack(config: PackConfig) -> PackMeta:
    """Pack the labelled traces of ``config.traces`` into the new folder ``config.out``.

    Raises:
      TraceError: the traces cannot be used, or were written with another tokenizer.
      ConfigError: their target is unknown or not the one given.
      PackError: no trace fits an example.
      FileExistsError: the output folder is not empty.
    """
    traces = read_labelled(config.traces)
    target = target_of(traces, config.target, config.traces)
    check_tokenizer(config.traces, target)
    with new_folder(config.out) as folder:
        sequences = _sequences(config, traces, target)
        bins = best_fit([len(sequence) for sequence in sequences], config.length)
        order = np.random.default_rng(config.seed).permutation(len(bins))
        names = [f"examples-{i:05d}-of-{config.shards:05d}.array_record" for i in range(config.shards)]
        for i, name in enumerate(names):
            rows = [[sequences[item] for item in bins[number]] for number in order[i :: config.shards]]
            _write_shard(folder / name, [assemble(row, config.length) for row in rows])
        used = sum(map(len, sequences))
        meta = PackMeta(
            format_version=FORMAT_VERSION,
            n=len(bins),
            length=config.length,
            shards={name: (folder / name).stat().st_size for name in names},
            traces=len(sequences),
            dropped=len(traces) - len(sequences),
            fill=used / (len(bins) * config.length),
            signals=NAMES,
            exit_point=config.exit_point,
            truncate=config.truncate,
            target=target.name,
            tokenizer_sha256=tokenizer_sha256(target),
            data_sha256=data_sha256(config.traces),
            config_sha256=hashlib.sha256(config.model_dump_json(exclude={"traces", "out"}).encode()).hexdigest(),
            token_counts=_token_counts(sequences, int(target.hf_config()["vocab_size"])),
        )
        write_text(folder / "meta.json", meta.model_dump_json(indent=2) + "\n")
        save_target(folder, target)
        save_run(config, folder)
    Console(stderr=True).print(
        f"{config.out}: {meta.traces} traces in {meta.n} examples of {meta.length} tokens, {meta.fill:.1%} full; "
        f"{meta.dropped} traces were longer"
    )
    return meta


def _sequences(config: PackConfig, traces: Sequence[LabelledTrace], target: TargetConfig) -> list[TrainingSequence]:
    """The traces as sequences, without those that are too long."""
    end = target.think_tokens().end
    console = Console(stderr=True)
    shown = track(traces, "pack", console=console, disable=not console.is_terminal)
    laid_out = [make_sequence(trace, end, config.exit_point, truncate=config.truncate) for trace in shown]
    fitting = [sequence for sequence in laid_out if len(sequence) <= config.length]
    if not fitting:
        shortest = min(map(len, laid_out))
        raise PackError(
            f"{config.traces}: the shortest trace has {shortest} tokens, expected length to be at least that"
        )
    return fitting


def _token_counts(sequences: Sequence[TrainingSequence], vocab_size: int) -> tuple[int, ...]:
    generated = np.concatenate([sequence.tokens[sequence.loss_mask] for sequence in sequences])
    return tuple(np.bincount(generated, minlength=vocab_size).tolist())


def _write_shard(path: Path, examples: Sequence[Example]) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1")
    for example in examples:
        writer.write(write_example(example))
    writer.close()


def write_example(example: Example) -> bytes:
    """One record."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **example)
    return buffer.getvalue()


def read_example(record: bytes) -> Example:
    """The arrays of one record, see `specexit.data.sequences.Example`.

    Raises:
      PackError: the record is damaged or holds other fields.
    """
    try:
        with np.load(io.BytesIO(record)) as arrays:
            example = {name: arrays[name] for name in arrays.files}
    except (zipfile.BadZipFile, ValueError, OSError, EOFError) as error:
        raise PackError(f"packed example of {len(record)} bytes cannot be read: {error}") from error
    if set(example) != set(FIELDS):
        raise PackError(f"packed example has the fields {', '.join(example)}, expected {', '.join(FIELDS)}")
    return example


def read_meta(folder: Path) -> PackMeta:
    """Read ``meta.json`` and check that the shards it names are there and whole.

    Raises:
      PackError: it is missing or wrong, of another format version or of other signals, or a shard is not whole.
    """
    path = folder / "meta.json"
    try:
        fields = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise PackError(f"{path}: cannot be read, expected the output of specexit pack: {error}") from error
    version = fields.get("format_version") if isinstance(fields, dict) else None
    if version != FORMAT_VERSION:
        raise PackError(f"{path}: format_version is {version}, expected {FORMAT_VERSION}: pack again")
    try:
        meta = PackMeta.model_validate(fields)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise PackError(f"{path}: {where} is {problem['input']!r}: {problem['msg']}") from error
    if meta.signals != NAMES:
        raise PackError(f"{path}: signals are {', '.join(meta.signals)}, expected {', '.join(NAMES)}: pack again")
    for name, size in meta.shards.items():
        found = (folder / name).stat().st_size if (folder / name).exists() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes"
            raise PackError(f"{folder / name}: {state}, expected {size} bytes as meta.json says")
    return meta


def check_target(meta: PackMeta, folder: Path, target: TargetConfig) -> None:
    """Check that packed data belongs to a target.

    Raises:
      PackError: they were packed for another one, or with another tokenizer.
    """
    if meta.target != target.name:
        raise PackError(f"{folder / 'meta.json'}: target is {meta.target!r}, expected {target.name!r}")
    ours = tokenizer_sha256(target)
    if meta.tokenizer_sha256 != ours:
        raise PackError(
            f"{folder / 'meta.json'}: tokenizer_sha256 is {meta.tokenizer_sha256[:12]}..., "
            f"expected {ours[:12]}... of {target.folder / 'tokenizer.json'}"
        )
