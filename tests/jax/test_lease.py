"""One run at a time in a folder of a bucket, where an object stands for the lock. Some seconds of waiting."""

import threading
import time
from typing import Any

import pytest

from jax_specexit.training import lease
from jax_specexit.training.alone import alone_in
from specexit.buckets import BucketError, BucketPath
from specexit.config import ConfigError
from tests.waiting import wait_for


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Owners write ten times a second; a living one is heard soon, and a busy machine has minutes for it."""
    monkeypatch.setattr(lease, "BEAT", 0.1)
    monkeypatch.setattr(lease, "SILENCE", 300.0)
    monkeypatch.setattr(lease, "SETTLED", 0.01)


def test_a_run_that_lives_is_found_and_one_that_ended_leaves_nothing(bucket: BucketPath) -> None:
    said = rf"out={bucket}: process \d+ on \S+, since .*, trains into this folder"
    with alone_in(bucket):
        for _ in range(2):
            with pytest.raises(ConfigError, match=said), alone_in(bucket):
                pass
        assert (bucket / ".lock").exists()
    assert not (bucket / ".lock").exists()
    with alone_in(bucket):
        pass


def test_a_run_that_was_killed_is_watched_and_then_followed(
    bucket: BucketPath, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(lease, "SILENCE", 0.5)
    (bucket / ".lock").write_text("0123 7\nprocess 1 on host, since long ago,\n")
    begun = time.monotonic()
    with alone_in(bucket):
        assert time.monotonic() - begun >= 0.5
        assert "process 1 on host, since long ago, has not ended as usual" in capsys.readouterr().err
        assert "host, since long ago" not in (bucket / ".lock").read_text()


def test_of_two_that_begin_at_once_one_trains(bucket: BucketPath, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have seen that nobody is there before either has written, and both have written before either reads."""
    write, looked, written, over = lease._write, threading.Barrier(2), threading.Barrier(2), threading.Event()
    refused, trained = [], []

    def both(*args: Any) -> None:
        write(*args)
        if args[2] == 0:
            written.wait(300)

    monkeypatch.setattr(lease, "_refuse_living", lambda lock: looked.wait(300))
    monkeypatch.setattr(lease, "_write", both)

    def start(name: str) -> None:
        try:
            with lease.leased(bucket / ".lock", name):
                trained.append(name)
                over.wait(300)  # one that has ended has taken its name away
        except ConfigError as error:
            refused.append(str(error))
            over.set()

    threads = [threading.Thread(target=start, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [winner], [said] = trained, refused
    assert said.startswith(f"out={bucket}: {winner} trains into this folder")


def test_an_owner_that_finds_another_name_ends(bucket: BucketPath) -> None:
    """That of one which has taken it for dead, or which began at the same moment and wrote late."""
    lock, other = bucket / ".lock", "0123 7\nprocess 1 on host, since now,\n"
    with alone_in(bucket) as check:
        check()

        def looked() -> None:
            lock.write_text(other)  # again: the owner may have been about to write its own
            check()

        with pytest.raises(ConfigError, match=f"out={bucket}: process 1 on host, since now, has taken this folder"):
            wait_for(looked)
    assert lock.read_text() == other


def test_an_owner_whose_object_is_deleted_writes_it_again(bucket: BucketPath) -> None:
    """By hand, or by a rule of the bucket: while there was none, another run could start beside it."""
    lock = bucket / ".lock"
    with alone_in(bucket) as check:
        lock.unlink()
        wait_for(lock.exists)
        with pytest.raises(ConfigError, match="trains into this folder"), alone_in(bucket):
            pass
        check()
    assert not lock.exists()


def test_an_owner_that_was_silent_finds_no_object_and_ends(bucket: BucketPath, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one may have taken it for dead, trained, and deleted its own object at its end."""
    monkeypatch.setattr(lease, "SILENCE", 0.0)
    with alone_in(bucket) as check:

        def looked() -> None:
            (bucket / ".lock").unlink(missing_ok=True)  # again: the owner may have been about to write it
            check()

        with pytest.raises(ConfigError, match=f"out={bucket}: another process has taken this folder"):
            wait_for(looked)


def test_a_write_that_fails_is_made_up_for_by_the_next(bucket: BucketPath, monkeypatch: pytest.MonkeyPatch) -> None:
    write, failed = lease._write, threading.Event()

    def flaky(*args: object) -> None:
        if args[2] == 1:
            failed.set()
            raise BucketError("no connection")
        write(*args)

    monkeypatch.setattr(lease, "_write", flaky)
    with alone_in(bucket):
        assert failed.wait(300)
        before = (bucket / ".lock").read_text()
        with pytest.raises(ConfigError, match="trains into this folder"), alone_in(bucket):
            pass
        assert (bucket / ".lock").read_text() != before
