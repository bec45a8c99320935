"""What has been collected: an append-only log of traces, Parquet files of finished chunks, a manifest of their hashes.

A finished trace is in the log, on the disk, before the next one is taken up. When a chunk has all of its rows, it
becomes a Parquet file, which is then entered into the manifest. Its rows stay in the log until most of the log is in
files; then the log is written anew. A kill may leave a row in both places, never in neither, and a row that is in a
file is not taken from a log. A row of a prompt that no server answered counts as missing when a run goes on. Locks and
logs live in ``.collect``.
"""

from __future__ import annotations

import json
import os
import socket
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from specexit.config import ConfigError, write_text
from specexit.data.engine import TYPES, types_in_metadata
from specexit.data.rows import FAILED, Trace
from specexit.data.stream import MANIFEST
from specexit.data.traces import WEIGHTS, TraceError, read_traces, said_of, tokenizer_sha256, write_traces
from specexit.differences import file_sha256
from specexit.drafts.fingerprints import target_fingerprint
from specexit.errors import InputError
from specexit.locks import take
from specexit.outputs import put
from specexit.schemas.collect import CollectConfig
from specexit.schemas.target import TargetConfig
from torch_specexit.chat import template_sha256
from torch_specexit.collecting.asked import asked_files, asks_sha256, check_same_prompts, save_asked
from torch_specexit.collecting.claim import HIDDEN, claim, exclusive, rename_prompts
from torch_specexit.collecting.manifest import Finished, Manifest, read_files, read_manifest, same_model
from torch_specexit.collecting.summary import Counts, count
from torch_specexit.collecting.work import Ask, Chunk, CollectError, chunks


class Ledger:
    """The output folder of a run, while it is this process's to write to.

    Args:
      config: the run's.
      target: the model.
      asks: what all shards together ask.

    Raises:
      ConfigError: there are fewer files than shards.
    """

    def __init__(self, config: CollectConfig, target: TargetConfig, asks: Sequence[Ask]):
        self.config, self.out, self.chunks, self.asks = config, config.out, chunks(config, asks), asks
        self.target = target
        self.tokenizer = tokenizer_sha256(target)
        self.model = {
            "weights": None if config.endpoints else target_fingerprint(target.folder),
            "tokenizer": self.tokenizer,
            "template": template_sha256(target),
        }
        """What finished rows depend on, as `same_model` compares it."""
        self.types = None if config.endpoints else types_in_metadata(config.engine.extra, target)
        self.place = {chunk.start + i: (chunk, i) for chunk in self.chunks for i in range(len(chunk.asks))}
        self.rows: dict[int, Trace] = {}
        self.logged = 0
        """Rows in the log, those that are in a file already included."""
        self.done: set[str] = set()
        self.earlier = 0
        self.whole = Counts()
        """Counts of the chunks that this process has finished."""
        self._entered: set[str] = set()
        """Files of these chunks that were in the manifest at the start; nobody else enters any."""
        self._weights: str | None = None
        """Hash of the weights that the manifest names, as of the last entry."""
        self._resumed: set[str] = set()
        """Files of chunks with rows that an engine of one's own may have written in an earlier run."""
        self._locks: list[IO[str]] = []

    @property
    def asked(self) -> int:
        """Number of traces that all shards together are asked for."""
        return len(self.asks)

    def __enter__(self) -> Ledger:
        """Make the folder this run's own, and find what an earlier one finished.

        Raises:
          ConfigError: it holds a run with another config, of a target that is asked in another way, shards with other
            prompts, or more finished traces than are asked for.
          CollectError: another process collects into it, the disk is full, or it has no locks and this is a shard.
          TraceError: a file in it is damaged, or of other prompts.
          FileExistsError: it holds something else.
        """
        try:
            self._begin()
        except BaseException:
            self._release()
            raise
        return self

    def _begin(self) -> None:
        files = asked_files(self.config, self.asks)
        with _in_one_line(self.out):
            with claim(self.config, self.target):
                if not self.config.is_whole:
                    check_same_prompts(self.config, self.asks, files)
                self._lock()
            ours = tuple(f".{chunk.file}." for chunk in self.chunks)
            for leftover in self.out.glob(".traces-*"):
                if leftover.name.startswith(ours):
                    leftover.unlink()
            self._recover()
            if self.config.is_whole:  # every finished row was found to be of these prompts
                save_asked(self.config, files)
            rename_prompts(self.config)

    def __exit__(self, *_: object) -> None:
        # Before another process can have the log; rows that are in no file yet, as the disk is full, stay in it.
        if all(chunk.file in self.done for chunk in self.chunks):
            Path(self._log.name).unlink(missing_ok=True)
        self._release()

    def todo(self) -> list[int]:
        """Numbers of the rows that are missing, in order."""
        return [i for i in sorted(self.place) if self._missing(i)]

    def record(self, number: int, trace: Trace) -> None:
        """Keep a finished trace, which counts as done from then on. One that is there already is ignored.

        Raises:
          CollectError: the disk is full, or cannot be written to for another reason.
        """
        if not self._missing(number):
            return
        with _in_one_line(self.out):
            self._log.write(_line(number, trace))
            self._log.flush()
            os.fsync(self._log.fileno())
            self.logged += 1
            self.rows[number] = trace
            chunk = self.place[number][0]
            if self._complete(chunk):
                self._finish(chunk)

    def counts(self) -> Counts:
        """Counts of the folder's finished files, of all shards."""
        return sum((entry.counts for entry in read_files(self.out).values()), Counts())

    # The folder.

    def _lock(self) -> None:
        """Take this shard's lock. Those of another division of the work (another n of ``i/n``) must be free."""
        folder = self.out / HIDDEN
        number, of = self.config.part
        for path in sorted(folder.glob("shard-*-of-*.lock")):
            if path.name.endswith(f"-of-{of}.lock") and path.name != f"shard-{number}-of-{of}.lock":
                continue
            with path.open("r+") as held:
                _take(held, self.out, held.read().strip() or "another process")
        lock = (folder / f"shard-{number}-of-{of}.lock").open("w")
        self._locks.append(lock)
        if not _take(lock, self.out, "another process") and not self.config.is_whole:
            raise CollectError(
                f"{self.out}: cannot be locked, and shards that write at once would lose what others enter into "
                f"{MANIFEST}: collect without shard={self.config.shard}, or on a disk that has locks"
            )
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        self._log = (folder / f"shard-{number}-of-{of}.jsonl").open("a+b")

    def _release(self) -> None:
        for lock in self._locks:
            lock.close()
        if hasattr(self, "_log"):
            with suppress(OSError):  # what the disk had no place for is lost, and `record` has said so
                self._log.close()

    # What is done.

    def _missing(self, number: int) -> bool:
        return number not in self.rows and self.place[number][0].file not in self.done

    def _recover(self) -> None:
        manifest = read_files(self.out)
        self._entered = manifest.keys() & {chunk.file for chunk in self.chunks}
        for chunk in self.chunks:
            self._look_at(chunk, manifest.get(chunk.file))
        there = 0
        for log in sorted((self.out / HIDDEN).glob("shard-*.jsonl")):
            for number, trace in _read_log(log):
                if trace.finish_reason == FAILED:
                    continue
                there = max(there, number + 1)
                if number in self.place and self._missing(number):
                    self._check(log, number, trace)
                    self.rows[number] = trace
                    self._resumed.add(self.place[number][0].file)
        # Read behind the logs: a shard that finishes enters its files before its log is gone.
        self._check_enough(max([there, *(self._behind(name, entry) for name, entry in read_files(self.out).items())]))
        self._enter({})
        self.earlier = len(self.place) - len(self.todo())
        for chunk in self.chunks:
            if chunk.file not in self.done and self._complete(chunk):
                self._finish(chunk)
        self._rewrite_log()

    def _look_at(self, chunk: Chunk, entry: Finished | None) -> None:
        """Take over a chunk's file if it is there: as a whole, or row by row where the chunk has grown since or prompts
        have failed.

        Raises:
          TraceError: the file is damaged, or of other prompts.
        """
        path = self.out / chunk.file
        if not path.exists():
            return
        if entry is not None and file_sha256(path) != entry.sha256:
            raise TraceError(f"{path}: its content is not what {MANIFEST} says; remove the file to collect it again")
        if entry is not None and entry.asks == asks_sha256(chunk.asks) and not entry.counts.failed:
            self.done.add(chunk.file)
            return
        traces = read_traces(path)
        if said_of(path, WEIGHTS) is not None:
            self._resumed.add(chunk.file)
        self._check_enough(chunk.start + len(traces))
        for i, trace in enumerate(traces):
            self._check(path, chunk.start + i, trace)
            if trace.finish_reason != FAILED:
                self.rows[chunk.start + i] = trace

    def _behind(self, name: str, entry: Finished) -> int:
        """Number of the row behind a file's last one; 0 where the file is gone or all of its prompts have failed."""
        if entry.counts.failed == entry.counts.traces or not (self.out / name).exists():
            return 0
        return int(Path(name).stem.removeprefix("traces-")) * self.config.chunk + entry.counts.traces

    def _check_enough(self, there: int) -> None:
        """Refuse a run that asks for fewer rows than are finished, which are those in front of row ``there``."""
        if there <= self.asked:
            return
        n = "not given" if self.config.n is None else self.config.n
        raise ConfigError(
            f"{self.out}: n is {n}, with which the prompts give {self.asked} traces, but finished ones are there up "
            f"to the {there}th: expected n={-(-there // self.config.samples)} or more, or a new folder; nothing is lost"
        )

    def _check(self, path: Path, number: int, trace: Trace) -> None:
        chunk, i = self.place[number]
        for field, expected in chunk.asks[i].columns(self.target).items():
            if (found := getattr(trace, field)) != expected:
                raise TraceError(
                    f"{path}: holds traces of other prompts than the config gives ({field} of row {i} is "
                    f"{found!r:.200}, expected {expected!r:.200}); have the prompts changed?"
                )

    def _complete(self, chunk: Chunk) -> bool:
        return all(i in self.rows for i in range(chunk.start, chunk.start + len(chunk.asks)))

    def _finish(self, chunk: Chunk) -> None:
        """Write a chunk's file, enter it, and let go of its rows."""
        traces = [self.rows[i] for i in range(chunk.start, chunk.start + len(chunk.asks))]
        path = self.out / chunk.file
        if chunk.file in self._entered:  # of another content, which a kill before the next entry would leave
            self._enter({chunk.file: None})
        # Rows of an earlier run are of its weights, which the manifest names, though servers finish their file.
        ours = not self.config.endpoints or chunk.file in self._resumed
        write_traces(path, traces, self.tokenizer, {WEIGHTS: self._weights if ours else None, TYPES: self.types})
        counts = sum(map(count, traces), Counts())
        entry = Finished(sha256=file_sha256(path), asks=asks_sha256(chunk.asks), counts=counts)
        self._enter({chunk.file: entry})
        self.whole += counts
        self.done.add(chunk.file)
        for i in range(chunk.start, chunk.start + len(chunk.asks)):
            self.rows.pop(i)
        if self.logged > 2 * len(self.rows):  # at every chunk it would write all waiting rows again
            self._rewrite_log()

    def _enter(self, files: Mapping[str, Finished | None]) -> None:
        """Enter files into the manifest, and take out those that are None. It is written without any, too, as it says
        how much is to come."""
        with exclusive(self.out):
            there = read_manifest(self.out)
            entered = {name: entry for name, entry in sorted({**there.files, **files}.items()) if entry is not None}
            model = same_model(self.out, there, self.target, self.model)
            record = Manifest(traces=self.asked, files=entered, **model)
            write_text(self.out / MANIFEST, record.model_dump_json() + "\n")
        self._weights = record.weights

    def _rewrite_log(self) -> None:
        """Keep in the log what is in no file yet."""
        path = Path(self._log.name)
        self._log.close()
        beside = path.with_suffix(".new")
        with beside.open("wb") as file:
            file.writelines(_line(number, trace) for number, trace in self.rows.items())
        put(beside, path)
        self.logged = len(self.rows)
        self._log = path.open("ab")


@contextmanager
def _in_one_line(out: Path) -> Iterator[None]:
    """Turn an error of the disk inside the block into one line.

    Raises:
      CollectError: there was one.
    """
    try:
        yield
    except (InputError, FileExistsError, FileNotFoundError):
        raise
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else error  # Arrow has words of its own
        raise CollectError(
            f"{out}: cannot be written to: {why}; what is finished is kept, and the same command goes on with it"
        ) from error


def _take(lock: IO[str], out: Path, who: str) -> bool:
    try:
        return take(lock, out)
    except BlockingIOError as error:
        raise CollectError(
            f"{out}: {who} is collecting into it; wait for it, or share the work with shard=i/n"
        ) from error


def _line(number: int, trace: Trace) -> bytes:
    text = json.dumps([number, vars(trace)], ensure_ascii=False).encode("utf-8", "surrogatepass")
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _read_log(path: Path) -> Iterator[tuple[int, Trace]]:
    """The rows of a log; none where its shard has finished meanwhile, and it is gone. A line that a kill cut short is
    passed over, its trace is collected again.

    Raises:
      TraceError: a line is whole, and no row of this version.
    """
    with suppress(FileNotFoundError), path.open("rb") as file:
        for line in file:
            checksum, _, text = line.rstrip(b"\n").partition(b" ")
            if checksum == b"%08x" % zlib.crc32(text):
                try:
                    number, fields = json.loads(text.decode("utf-8", "surrogatepass"))
                    trace = Trace(**fields)
                except (TypeError, ValueError) as error:
                    raise TraceError(
                        f"{path}: holds a trace as another version of SpecExit wrote it ({error!s:.200}): go on with "
                        "that one, or remove the file to collect its traces again"
                    ) from error
                yield number, trace
