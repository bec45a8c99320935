"""Signal values of traces on disk: what a draft says at every thinking token, for `simulate` and `calibrate`.

One Parquet row per trace. The file's metadata names the schema version, where the signals were read (``source``) and
the hashes of the draft's and the target's weights and of the draft's computation, so that scores of other models
cannot be taken for theirs.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float

from specexit.buckets import arrow_source
from specexit.data.outlines import Outlines
from specexit.data.parts import IN_FRONT, PartsWriter, missing_part, parts_of
from specexit.data.rows import AnyTrace
from specexit.data.scratch import Scratch
from specexit.data.seen import Seen
from specexit.data.stream import values_of
from specexit.differences import SHOWN
from specexit.drafts.computation import config_hashes
from specexit.drafts.config import read_config
from specexit.drafts.tensors import weights_hash
from specexit.errors import InputError
from specexit.method.signals import NAMES
from specexit.outputs import put

SCHEMA_VERSION = "3"
READABLE_VERSIONS = ("2", SCHEMA_VERSION)
"""Version 2 keeps sample 1 of prompt ``q`` and sample 0 of a prompt ``q#1`` under one key."""
ROWS_AT_ONCE = 16

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("signals", pa.list_(pa.float32()), nullable=False),
    ]
)
"""``signals`` is [thinking tokens, signals], flattened row by row: values after the activation, at the token they
belong to."""


class ScoreError(InputError):
    """A score file that cannot be used; the message names the file and what was expected."""


def key_of(trace: AnyTrace) -> str:
    """What a trace's scores are kept under, see `sample_key`."""
    return sample_key(trace.id, trace.sample)


def sample_key(id: str, sample: int) -> str:
    """Key of one sample of a prompt: the prompt's id, and behind it the sample's number where that is not 0. An id that
    already ends like such a key gets the number in any case, so that no two samples have one key.

    Example:
      >>> sample_key("q", 0), sample_key("q", 1), sample_key("q#1", 0), sample_key("q#1", 1)
      ('q', 'q#1', 'q#1#0', 'q#1#1')
    """
    return id if sample == 0 and not re.search(r"#\d+\Z", id) else f"{id}#{sample}"


def _older_key(id: str, sample: int) -> str:
    """`sample_key` in files of version 2."""
    return id if sample == 0 else f"{id}#{sample}"


Key = Callable[[str, int], str]


class _OfADraft:
    """What scores say of the draft that gave them."""

    draft_blake3: str
    computation_sha256: str | None

    @property
    def draft_inputs(self) -> dict[str, str]:
        """Hashes of the draft that gave them, as far as they are known, by the keys of `specexit.bench.inputs`."""
        known = {"draft.weights": self.draft_blake3, "draft.computation": self.computation_sha256}
        return {key: value for key, value in known.items() if value is not None}


@dataclass(frozen=True)
class Scores(_OfADraft):
    """Signal values of traces, by each trace's `key_of`."""

    source: str
    draft_blake3: str
    """See `specexit.drafts.tensors.weights_hash`."""
    signals: dict[str, Float[np.ndarray, "think signals"]]
    target_sha256: str | None = None
    """See `specexit.drafts.fingerprints.target_fingerprint`; None in older files."""
    path: Path = Path("scores")
    """The file, for messages."""
    key: Key = sample_key
    computation_sha256: str | None = None
    """Of the draft, see `specexit.drafts.computation`; None in older files."""

    def of(self, traces: Sequence[AnyTrace]) -> list[Float[np.ndarray, "think signals"]]:
        """Signals of the given traces, in their order.

        Raises:
          ScoreError: a trace has no scores, or scores of another number of thinking tokens, or two have one key.
        """
        keys = _keys(self.path, traces, self.key, self.signals)
        for key, trace in zip(keys, traces, strict=True):
            _check_length(self.path, key, trace, self.signals[key])
        return [self.signals[key] for key in keys]


Place = tuple[int, int]
"""Number of a part, and of a row group in it."""


class Places(Container[str]):
    """Where the scores of each key lie in a score file: a table on the disk, found by a hash of the key.

    Args:
      keys: with their places.
    """

    def __init__(self, keys: Iterable[tuple[str, Place]]):
        self._file = Scratch("create table places (hash integer, part, row_group); create index at on places (hash)")
        self._file.write("insert into places values (?, ?, ?)", ((hash(key), *place) for key, place in keys))

    def __getitem__(self, key: str) -> Place | None:
        """Place of a key; None where the file does not have the key."""
        return self._file.first("select part, row_group from places where hash = ?", hash(key))

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self[key] is not None

    def doubled(self) -> tuple[int, int] | None:
        """Hash of the first key that is there more than once, and how often; None where there is none."""
        query = "select hash, count(*) from places group by hash having count(*) > 1 order by min(rowid) limit 1"
        return self._file.first(query)  # pyright: ignore[reportReturnType]


@dataclass(frozen=True)
class StoredScores(_OfADraft):
    """Signal values of traces that stay on the disk: whenever they are asked for, they are read a few at a time, in the
    file's order.

    Row groups without any of the traces are passed over. So whoever goes through the traces in blocks reads a group
    once for each block that has some of its traces: mostly once if the file is in the traces' order, as `score` writes
    it, and a block has more traces than a group; more often if the traces are long, or in another order.

    Args:
      path: the file.
      source: see `Scores`.
      draft_blake3: see `Scores`.
      places: of all keys in the file.
      target_sha256: see `Scores`.
      key: makes a trace's key, as files of this version have it.
      traces: whose values are given.
      data_sha256: of the trace files, see `specexit.data.traces.data_sha256`; None in older files.
      computation_sha256: see `Scores`.
    """

    path: Path
    source: str
    draft_blake3: str
    places: Places
    target_sha256: str | None = None
    key: Key = sample_key
    traces: Sequence[AnyTrace] = ()
    data_sha256: str | None = None
    computation_sha256: str | None = None

    def of(self, traces: Sequence[AnyTrace]) -> StoredScores:
        """The same file, for the given traces.

        Raises:
          ScoreError: a trace has no scores, or two have one key.
        """
        _keys(self.path, traces, self.key, self.places)
        return replace(self, traces=traces)

    def check(self, traces: Outlines) -> None:
        """Check that each trace has scores under a key of its own.

        Raises:
          ScoreError: see `of`.
        """
        taken = Seen()
        for id, sample in traces.names():
            key = self.key(id, sample)
            if key not in self.places:
                raise _missing(self.path, key)
            if not taken.add(hash(key)):
                raise _shared(self.path, key, 2)

    def __iter__(self) -> Iterator[tuple[int, Float[np.ndarray, "_think signals"]]]:
        """Index of a trace, and its values; every trace once.

        Raises:
          ScoreError: values are of another number of thinking tokens, or not finite.
        """
        wanted = {self.key(trace.id, trace.sample): i for i, trace in enumerate(self.traces)}
        places = {self.places[key] for key in wanted}
        for key, values in _read(self.path, sorted(place for place in places if place is not None)):
            if (i := wanted.get(key)) is not None:
                _check_length(self.path, key, self.traces[i], values)
                yield i, values


def _keys(path: Path, traces: Sequence[AnyTrace], key: Key, known: Container[str]) -> list[str]:
    """Keys of the traces, if each of them is known and no two are the same."""
    keys = [key(trace.id, trace.sample) for trace in traces]
    for name, n in Counter(keys).items():
        if name not in known:
            raise _missing(path, name)
        if n > 1:
            raise _shared(path, name, n)
    return keys


def _missing(path: Path, key: str) -> ScoreError:
    return ScoreError(f"{path}: trace {key!r} is missing, expected scores of the same traces")


def _shared(path: Path, key: str, n: int) -> ScoreError:
    return ScoreError(f"{path}: {n} traces have their scores under {key!r}, expected one: score them again")


def _check_length(path: Path, key: str, trace: AnyTrace, values: np.ndarray) -> None:
    if len(values) != trace.n_think:
        raise ScoreError(
            f"{path}: trace {key!r} has {len(values)} rows, expected one for each of its {trace.n_think} thinking "
            "tokens"
        )


class ScoreWriter:
    """Writes scores to a Parquet file, see `PartsWriter`, trace by trace; few of them are in memory at once.

    Args:
      path: the file.
      source: where the signals were read.
      draft_blake3: of the draft's weights.
      target_sha256: of the target's, where it is known.
      data_sha256: of the trace files, see `specexit.data.traces.data_sha256`, where it is known.
      computation_sha256: see `Scores`, where it is known.
    """

    GROUP = 64
    """Traces that are written at once."""

    def __init__(
        self,
        path: Path,
        source: str,
        draft_blake3: str,
        target_sha256: str | None = None,
        data_sha256: str | None = None,
        computation_sha256: str | None = None,
    ):
        metadata = {
            "specexit.scores": SCHEMA_VERSION,
            "specexit.source": source,
            "specexit.draft_blake3": draft_blake3,
        }
        known = {"target": target_sha256, "data": data_sha256, "computation": computation_sha256}
        metadata |= {f"specexit.{name}_sha256": value for name, value in known.items() if value is not None}
        self._source, self._schema = source, SCHEMA.with_metadata(metadata)
        self._file = PartsWriter(path, self._schema)
        self._keys: list[str] = []
        self._values: list[np.ndarray] = []

    def __enter__(self) -> ScoreWriter:
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        if kind is None:
            self._flush()
        self._file.__exit__(kind, *rest)

    def write(self, key: str, signals: Float[np.ndarray, "_think signals"]) -> None:
        """Write the signals of one trace under its `key_of`."""
        self._keys.append(key)
        self._values.append(signals.astype(np.float32).ravel())
        if len(self._keys) == self.GROUP:
            self._flush()

    def _flush(self) -> None:
        if not self._keys:
            return
        ends = np.cumsum([0, *map(len, self._values)]).astype(np.int32)
        signals = pa.ListArray.from_arrays(pa.array(ends), pa.array(np.concatenate(self._values)))
        columns = [pa.array(self._keys), pa.array([self._source] * len(self._keys)), signals.cast(SCHEMA.field(2).type)]
        self._file.write(pa.RecordBatch.from_arrays(columns, schema=self._schema))
        self._keys, self._values = [], []


def write_scores(path: Path, scores: Scores) -> None:
    """Write scores to a Parquet file, which appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        of = scores.source, scores.draft_blake3, scores.target_sha256, None, scores.computation_sha256
        with ScoreWriter(Path(folder) / path.name, *of) as writer:
            for key, values in scores.signals.items():
                writer.write(key, values)
        for part in parts_of(Path(folder) / path.name):
            put(part, path.with_name(part.name))


def read_scores(path: Path) -> Scores:
    """Read a score file, or ``scores.parquet`` in a folder.

    Raises:
      ScoreError: see `open_scores`; also where values are not finite.
    """
    stored = open_scores(path)
    signals = dict(_read(stored.path))
    known = stored.target_sha256, stored.path, stored.key, stored.computation_sha256
    return Scores(stored.source, stored.draft_blake3, signals, *known)


def open_scores(path: Path) -> StoredScores:
    """As `read_scores`, but the values stay on the disk.

    Raises:
      ScoreError: nothing there, not Parquet, a column is missing or of another type, of another schema version, without
        its metadata, a part is missing or of another file, or a trace is there twice.
    """
    path = path / "scores.parquet" if path.is_dir() else path
    metadata = _metadata(path)
    for part in parts_of(path):
        if _metadata(part) != metadata:
            raise ScoreError(f"{part}: is no part of what `score` wrote into {path}, expected the two in one go")
    places = Places(_keys_in(path))
    if doubled := places.doubled():
        key = next(key for key, _ in _keys_in(path) if hash(key) == doubled[0])
        raise ScoreError(f"{path}: trace {key!r} is there {doubled[1]} times, expected every trace once: score again")
    return StoredScores(
        path,
        metadata["specexit.source"],
        metadata["specexit.draft_blake3"],
        places,
        metadata.get("specexit.target_sha256"),
        sample_key if metadata["specexit.scores"] == SCHEMA_VERSION else _older_key,
        data_sha256=metadata.get("specexit.data_sha256"),
        computation_sha256=metadata.get("specexit.computation_sha256"),
    )


def _metadata(path: Path) -> dict[str, str]:
    """What a score file says of itself."""
    with _opened(path) as file:
        schema = file.schema_arrow
    if gone := missing_part(path, schema):
        raise ScoreError(f"{gone}: is gone, though {path.name} names it: take a whole copy")
    for field in SCHEMA:
        if field.name not in schema.names or schema.field(field.name).type != field.type:
            raise ScoreError(f"{path}: column {field.name!r} ({field.type}) is missing or of another type")
    metadata = {key.decode(): value.decode() for key, value in (schema.metadata or {}).items() if key != IN_FRONT}
    version = metadata.get("specexit.scores", "none")
    if version not in READABLE_VERSIONS:
        raise ScoreError(f"{path}: score schema version is {version}, expected {' or '.join(READABLE_VERSIONS)}")
    for name in ("specexit.source", "specexit.draft_blake3"):
        if name not in metadata:
            raise ScoreError(f"{path}: metadata has no {name}, expected what `score` writes: score again")
    return metadata


def _keys_in(path: Path) -> Iterator[tuple[str, Place]]:
    for number, part in enumerate(parts_of(path)):
        with _opened(part) as file:
            for group in range(file.num_row_groups):
                for key in file.read_row_group(group, ["id"])["id"].to_pylist():
                    yield key, (number, group)


def _read(path: Path, places: list[Place] | None = None) -> Iterator[tuple[str, Float[np.ndarray, "_think signals"]]]:
    """Keys and values in some places, or in all, a few traces in memory at once."""
    for number, part in enumerate(parts_of(path)):
        groups = None if places is None else [group for of, group in places if of == number]
        if groups == []:
            continue
        with _opened(part) as file:
            yield from _values(part, file.iter_batches(ROWS_AT_ONCE, groups, ["id", "signals"], use_threads=False))


def _values(path: Path, batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[str, Float[np.ndarray, "_think signals"]]]:
    for batch in batches:
        for key, flat in zip(batch["id"].to_pylist(), values_of(batch["signals"], np.float32), strict=True):
            if flat.size % len(NAMES) or not np.isfinite(flat).all():
                raise ScoreError(
                    f"{path}: signals of trace {key!r} hold NaN or infinity, or do not come in rows of {len(NAMES)}"
                )
            yield key, flat.reshape(-1, len(NAMES))


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with arrow_source(path) as source, pq.ParquetFile(source, buffer_size=1 << 20, pre_buffer=False) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise ScoreError(f"{path}: cannot be read as Parquet: {error}") from error


def check_scores_of(draft: Path, scores: Scores | StoredScores, path: Path) -> None:
    """Check that a draft gave the scores, with the signals that it has.

    Args:
      draft: its folder.
      scores: that were read.
      path: of their file, for the message.

    Raises:
      ScoreError: they are another draft's, of what its ``config.json`` said before an edit, or of another source.
      DraftError, TensorError: the draft cannot be read.
    """
    ours, config = weights_hash(draft), read_config(draft, needs_policy=False)
    block, computed = config.specexit, config_hashes(config)["computation"]
    if scores.draft_blake3 != ours:
        raise ScoreError(
            f"{path}: scores come from a draft with hash {scores.draft_blake3[:SHOWN]}, but {draft} has "
            f"{ours[:SHOWN]}: expected scores of this draft, score the traces with it first"
        )
    if scores.computation_sha256 not in (None, computed):
        raise ScoreError(
            f"{path}: {draft / 'config.json'} was changed since they were made (computation {computed[:SHOWN]}, was "
            f"{scores.computation_sha256[:SHOWN]}): score the traces again, or change it back"
        )
    if block is not None and scores.source != block.source:
        raise ScoreError(
            f"{path}: scores of source {scores.source!r}, but {draft} has source {block.source!r}: expected scores of "
            "this draft, score the traces with it first"
        )
