"""What a benchmark has measured so far, written down reply by reply, so that an interrupted one goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from specexit.bench.process import BenchError
from specexit.config import append_text, write_text
from specexit.differences import differences
from specexit.locks import take, this_process


class Journal:
    """Replies by what was asked, beside the output folder until that is complete.

    Args:
      out: the output folder.
      asked: ``config``, ``versions``, ``inputs`` and ``machine`` of the benchmark, as JSON has them.

    Raises:
      BenchError: there is a journal of another benchmark, whose replies must not be mixed with this one's.
    """

    def __init__(self, out: Path, asked: Mapping[str, Any]):
        self.path, self.asked = journal_of(out), asked
        self._replies: dict[str, dict[str, Any]] = {}
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        header, *replies = [line for line in map(_parsed, lines) if line is not None] or [asked]
        if replies and (told := differences(header, asked)):
            raise self._other(told)
        self._replies = {line["asked"]: line["reply"] for line in replies}
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in [asked, *replies]))

    def __len__(self) -> int:
        return len(self._replies)

    def reply(self, asked: str, ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The reply to a question, from the journal or, if it is not there yet, from whoever answers it."""
        if asked not in self._replies:
            self._replies[asked] = ask()
            append_text(self.path, json.dumps({"asked": asked, "reply": self._replies[asked]}) + "\n")
        return self._replies[asked]

    def check_accelerator(self, accelerator: str | None) -> None:
        """Check that every reply was measured on this accelerator.

        Raises:
          BenchError: a reply names another one.
        """
        for reply in self._replies.values():
            if (there := reply.get("accelerator")) != accelerator:
                raise self._other(f"accelerator {there} (now {accelerator})")

    def _other(self, told: str) -> BenchError:
        return BenchError(
            f"{self.path}: an interrupted benchmark has measured with {told}: delete this file to measure anew, or "
            "give back what it began with"
        )

    def remove(self) -> None:
        """Delete the journal: the benchmark is complete."""
        self.path.unlink(missing_ok=True)


@contextmanager
def alone_at(out: Path) -> Iterator[None]:
    """Keep other benchmarks from an output and its journals, until this one ends, be it by ``kill -9``.

    Raises:
      BenchError: another one measures there; the message says which process, where and since when.
    """
    path = out.with_name(f".{out.name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _held(path, out) as file:
        file.truncate(0)
        file.write(f"{this_process()}\n")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _held(path: Path, out: Path) -> IO[str]:
    while True:
        file = path.open("a+")
        try:
            take(file, path)
        except BlockingIOError as error:
            with file:
                file.seek(0)
                by = file.read().strip() or "another process"
            raise BenchError(
                f"out={out}: {by} measures into it: wait until that has ended, or choose another `out`"
            ) from error
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()  # whoever had it has ended and removed it since it was opened


def journal_of(out: Path) -> Path:
    """Where the journal of an output folder lies."""
    return out.with_name(f".{out.name}.journal.jsonl")


def _parsed(line: str) -> dict[str, Any] | None:
    # The last one may have been cut off.
    try:
        return json.loads(line)
    except ValueError:
        return None
