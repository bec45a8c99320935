"""``specexit pack``: labelled traces to packed training examples on disk, see `specexit.data.packed`."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from jaxtyping import Int
from rich.console import Console

from specexit.buckets import BucketPath
from specexit.config import save_run, write_text
from specexit.data.checks import once
from specexit.data.overlap import write_prompts
from specexit.data.packed import FORMAT_VERSION, PackError, PackMeta, room_for, write_example
from specexit.data.rows import LabelledTrace, ids_sha256, short_hash
from specexit.data.seen import Seen
from specexit.data.sequences import COLUMNS, TraceArrays, arrays_of, assemble, best_fit, make_sequence
from specexit.data.stream import blocks, deserialised, in_parallel, read_batches, shown
from specexit.data.traces import (
    WEIGHTS,
    check_tokenizer,
    data_sha256,
    said_of,
    target_of_file,
    tokenizer_sha256,
    vocab_size_of,
)
from specexit.data.written_by import check_weights
from specexit.method.signals import NAMES
from specexit.outputs import new_folder, require_empty
from specexit.schemas.pack import PackConfig
from specexit.schemas.target import TargetConfig, save_target

BLOCK_TOKENS = 1_000_000
"""Tokens in a block, whose rows are made together and take 33 MB."""
DEFAULT_LENGTH = 8192
"""Tokens in an example, unless the config says how many or the target takes fewer."""


@dataclass
class _Tally:
    """What has been packed so far."""

    rows: int = 0
    used: int = 0
    """Tokens in rows."""
    traces: int = 0
    cut: int = 0
    tokens_cut: int = 0
    dropped: int = 0
    tokens_dropped: int = 0
    prompts: set[int] | Seen = field(default_factory=set)
    """Their hashes: of one block in memory, of all on the disk."""
    counts: Int[np.ndarray, " vocab"] = field(default_factory=lambda: np.zeros(0, np.int64))
    """How often each token was generated, in rows."""

    def add(self, other: _Tally) -> None:
        """Count another part's too."""
        for name in ("rows", "used", "traces", "cut", "tokens_cut", "dropped", "tokens_dropped"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.prompts.update(other.prompts)
        self.counts = other.counts if not len(self.counts) else self.counts + other.counts


def pack(config: PackConfig) -> PackMeta:
    """Pack the labelled traces of ``config.traces`` into the new folder ``config.out``.

    Traces are read in blocks. A block is packed by itself, in a process of its own, and its rows are written in an
    order drawn from the seed.

    Raises:
      TraceError: the traces cannot be used, one is there twice, or they were written with another tokenizer or by other
        weights.
      ConfigError: their target is unknown or not the one given.
      PackError: no trace fits an example, the boundaries were tried for another exit point, or there are to be more
        shards than files may be open.
      FileExistsError: the output folder is not empty.
    """
    require_empty(config.out)
    _check_shards(config)
    target = target_of_file(config.traces, config.target)
    check_tokenizer(config.traces, target)
    check_weights(config.traces, target)
    _check_tried(config)
    length = config.length or min(DEFAULT_LENGTH, target.max_model_len)
    layout = Layout(
        target.think_tokens().end,
        config.exit_point,
        config.truncate,
        length,
        config.seed,
        vocab_size_of(target),
    )
    with new_folder(config.out) as folder:
        names = [f"examples-{i:05d}-of-{config.shards:05d}.array_record" for i in range(config.shards)]
        columns = ("id", "sample", *COLUMNS)
        batches = read_batches(config.traces, LabelledTrace, columns, vocab_size=layout.vocab_size)
        found = blocks(_first(once(batches, config.traces), config.n), BLOCK_TOKENS, length)
        tally = _write_shards([folder / name for name in names], found, layout, config.workers)
        if not tally.rows:
            raise PackError(
                f"{config.traces}: no trace's prompt fits an example of {length} tokens, expected a greater length"
            )
        shards = {name: (folder / name).stat().st_size for name in names}
        meta = _meta(config, target, length, shards, tally)
        write_prompts(folder, tally.prompts)
        write_text(folder / "meta.json", meta.model_dump_json(indent=2) + "\n")
        save_target(folder, target)
        save_run(config, folder)
    Console(stderr=True).print(_summary(config.out, meta), soft_wrap=True, markup=False)
    return meta


def _meta(config: PackConfig, target: TargetConfig, length: int, shards: dict[str, int], tally: _Tally) -> PackMeta:
    """What ``meta.json`` says of rows of that length, in shards of these sizes in bytes."""
    asked = config.model_copy(update={"length": length})  # the target may say another one by the next time
    return PackMeta(
        format_version=FORMAT_VERSION,
        n=tally.rows,
        length=length,
        shards=shards,
        traces=tally.traces,
        prompts=len(tally.prompts),
        dropped=tally.dropped,
        cut=tally.cut,
        tokens=tally.used + tally.tokens_cut + tally.tokens_dropped,
        tokens_cut=tally.tokens_cut,
        tokens_dropped=tally.tokens_dropped,
        fill=tally.used / (tally.rows * length),
        signals=NAMES,
        exit_point=config.exit_point,
        truncate=config.truncate,
        target=target.name,
        tokenizer_sha256=tokenizer_sha256(target),
        target_sha256=said_of(config.traces, WEIGHTS),
        data_sha256=data_sha256(config.traces),
        config_sha256=hashlib.sha256(asked.model_dump_json(exclude=NO_INFLUENCE).encode()).hexdigest(),
        token_counts=tuple(tally.counts.tolist()),
    )


def _first(batches: Iterable[pa.RecordBatch], n: int | None) -> Iterator[pa.RecordBatch]:
    """The first ``n`` traces, or all."""
    left = sys.maxsize if n is None else n
    for batch in batches:
        yield batch.slice(0, left)
        left -= batch.num_rows
        if left <= 0:
            return


NO_INFLUENCE = {"traces", "out", "workers"}
"""Keys of the config on which no example depends; ``data_sha256`` stands for what lies at ``traces``."""


def _summary(folder: Path, meta: PackMeta) -> str:
    lost = (meta.tokens_cut + meta.tokens_dropped) / meta.tokens
    held = f"{_counted(meta.traces, 'trace')} in {_counted(meta.n, 'example')} of {meta.length} tokens"
    full = f"{folder}: {held}, {meta.fill:.1%} full."
    if not lost:
        return f"{full} No token was left out."
    why = []
    if meta.cut:
        why.append(
            f"{meta.tokens_cut / meta.tokens:.1%} behind the end of a row, of {_counted(meta.cut, 'trace')} longer "
            "than one (a greater length keeps them)"
        )
    if meta.dropped:
        dropped = _counted(meta.dropped, "trace")
        why.append(f"{meta.tokens_dropped / meta.tokens:.1%} of {dropped} whose prompt alone fills a row")
    return f"{full} {lost:.1%} of all tokens were left out: {', '.join(why)}."


def _counted(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


FILES_BESIDE = 64
"""Files, at most, that `pack` has open beside shards."""


def _check_shards(config: PackConfig) -> None:
    """Refuse more shards than can be open at once, as all are until the last row is written.

    Raises:
      PackError: ``shards`` is more than that.
    """
    each = 2 if isinstance(config.out, BucketPath) else 1  # see `shard_writer`
    most = room_for(each * config.shards)
    if each * config.shards > most - FILES_BESIDE:
        raise PackError(
            f"shards={config.shards}: all are open at once, and this process may have {most:,} files open in all: "
            f"expected at most {max(most - FILES_BESIDE, 0) // each:,} shards, or a higher limit (ulimit -n)"
        )


def _check_tried(config: PackConfig) -> None:
    """Refuse to pack earliest exit points of traces whose trials looked for the stable one alone.

    Raises:
      PackError: ``exit_point`` is earliest, and a trace is such a one.
    """
    if config.exit_point == "stable":
        return
    for batch in read_batches(config.traces, LabelledTrace, ("id", "trial")):
        for name, trial in zip(batch["id"].to_pylist(), batch["trial"].to_pylist(), strict=True):
            how = json.loads(trial).get("boundaries")
            if how in ("stable", "bisect"):
                raise PackError(
                    f"{config.traces}: trace {name!r} was collected with boundaries={how}, which finds the stable exit "
                    "point alone; exit_point is earliest, expected stable (or collect with boundaries=refine)"
                )


@dataclass(frozen=True)
class Layout:
    """How traces become rows."""

    end: int
    exit_point: Literal["earliest", "stable"]
    truncate: bool
    length: int
    seed: int
    vocab_size: int


def _write_shards(
    paths: Sequence[Path], found: Iterable[pa.RecordBatch], layout: Layout, workers: int | None
) -> _Tally:
    """Pack blocks and deal their rows to the shards in turn."""
    tally = _Tally(prompts=Seen())
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(shard_writer(path)) for path in paths]
        for records, part in shown(in_parallel(partial(_pack_block, layout), found, workers), "pack", "blocks"):
            for i, record in enumerate(records, start=tally.rows):
                writers[i % len(writers)].write(record)
            tally.add(part)
    return tally


@contextlib.contextmanager
def shard_writer(path: Path) -> Iterator[Any]:
    """Open an ArrayRecord file to write records into.

    The library reads from buckets, but writes only files. So a shard for a bucket is made in memory (an anonymous file
    of Linux) and sent when it is whole.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    if not isinstance(path, BucketPath):
        writer = ArrayRecordWriter(str(path), "group_size:1")
        yield writer
        writer.close()
        return
    with os.fdopen(os.memfd_create(path.name), "rb") as memory:
        writer = ArrayRecordWriter(f"/proc/self/fd/{memory.fileno()}", "group_size:1")
        yield writer
        writer.close()
        with path.open("wb") as sent:
            shutil.copyfileobj(memory, sent, 1 << 24)


def _pack_block(layout: Layout, number: int, block: bytes) -> tuple[list[bytes], _Tally]:
    """Rows of one block, as records, in an order drawn from the seed and the block's number."""
    part = _Tally(counts=np.zeros(layout.vocab_size, np.int64))
    traces, lengths = [], []
    for trace in arrays_of(deserialised(block)):
        length = trace.length(layout.exit_point, truncate=layout.truncate)
        if len(trace.prompt) >= layout.length:
            part.dropped += 1
            part.tokens_dropped += length
            continue
        if length > layout.length:
            part.cut += 1
            part.tokens_cut += length - layout.length
        traces.append(trace)
        lengths.append(min(length, layout.length))
        part.prompts.add(short_hash(ids_sha256(trace.prompt.tolist())))
    part.traces, part.used = len(traces), sum(lengths)
    bins = best_fit(lengths, layout.length)
    part.rows = len(bins)
    order = np.random.default_rng([layout.seed, number]).permutation(len(bins))
    rows = ([traces[item] for item in bins[i]] for i in order)
    return [_pack_row(layout, row, part.counts) for row in rows], part


def _pack_row(layout: Layout, traces: Sequence[TraceArrays], counts: Int[np.ndarray, " vocab"]) -> bytes:
    """A row as a record; the tokens that the target generated in it are added to ``counts``."""
    kind, length = layout.exit_point, layout.length
    sequences = [make_sequence(t, layout.end, kind, truncate=layout.truncate, length=length) for t in traces]
    example = assemble(sequences, length)
    counts += np.bincount(example["tokens"][example["loss_mask"]], minlength=layout.vocab_size)
    return write_example(example)
