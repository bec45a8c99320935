"""Tables that lie on the disk for as long as they are used, so that memory stays the same whatever they hold."""

from __future__ import annotations

import sqlite3
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

from specexit.errors import InputError

CACHE_KIB = 1 << 12
"""KiB of the file that are kept in memory."""
AT_ONCE = 1 << 12
"""Rows that are fetched together."""


class Scratch:
    """An SQLite database in a temporary file of its own, which is removed once nothing refers to the object.

    Args:
      tables: statements that make its tables.

    Raises:
      InputError: in any method, where there is no room for what is written or sorted.

    Example:
      >>> file = Scratch("create table seen (value integer)")
      >>> file.write("insert into seen values (?)", [(3,), (1,), (2,)])
      3
      >>> list(file.ask("select value from seen where value < ? order by value", 3))
      [(1,), (2,)]
    """

    def __init__(self, tables: str):
        # Nothing is ever rolled back, so no journal is kept; one transaction, never ended, spares waits for the disk.
        # The garbage collector may close the file in another thread.
        self._file = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._file.executescript(f"pragma journal_mode = off; pragma cache_size = -{CACHE_KIB}; begin; {tables}")
        weakref.finalize(self, self._file.close)

    def write(self, statement: str, rows: Iterable[tuple[Any, ...]]) -> int:
        """Run a statement with each row in turn, and return how many rows of the table it changed."""
        with _room():
            return self._file.executemany(statement, rows).rowcount

    def pieces(self, query: str, *values: Any) -> Iterator[list[tuple[Any, ...]]]:
        """The rows that a query finds, `AT_ONCE` of them at a time."""
        with _room():
            found = self._file.execute(query, values)
            while some := found.fetchmany(AT_ONCE):
                yield some

    def ask(self, query: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        """The rows that a query finds, one by one."""
        return chain.from_iterable(self.pieces(query, *values))

    def first(self, query: str, *values: Any) -> tuple[Any, ...] | None:
        """The first row that a query finds; None where there is none."""
        with _room():
            return self._file.execute(query, values).fetchone()


@contextmanager
def _room() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise InputError(f"TMPDIR: a temporary file cannot be written: {error}, expected a folder with room") from error
