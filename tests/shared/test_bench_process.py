"""Processes that a benchmark measures in: they end with the one that asks them."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from specexit.bench.process import BenchError, BenchProcess
from tests.waiting import wait_for

WORKER = """
import fcntl, time
from pathlib import Path
from specexit.bench.process import claim_stdout, jobs, reply
replies, asked = claim_stdout(), jobs()
setup = next(asked)
lock = open("lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
if setup["busy"] == "starting":
    time.sleep(20)
    Path("went on").touch()
reply(replies, {})
for job in asked:
    time.sleep(20)
    Path("went on").touch()
"""

PARENT = """
import sys, time
from pathlib import Path
from specexit.bench.process import BenchProcess
with BenchProcess("a worker", "worker", {"busy": sys.argv[1]}, Path("log")) as process:
    if sys.argv[1] == "asked":
        process.wait_ready()
    process._send({})
    time.sleep(600)
"""


@pytest.fixture
def worker(tmp_path, monkeypatch) -> Path:
    """A module that takes its time, in the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    (tmp_path / "worker.py").write_text(WORKER)
    return tmp_path


def free(lock: Path) -> bool:
    with lock.open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


@pytest.mark.parametrize("busy", ["starting", "asked"])
def test_a_process_ends_when_its_parent_is_killed_whatever_it_does(worker, busy):
    """A benchmark that was killed left engines behind that held their GPUs until their job was done."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT, busy])
    wait_for(lambda: (worker / "lock").exists() and not free(worker / "lock"))
    parent.kill()
    parent.wait()
    wait_for(lambda: free(worker / "lock"))
    assert not (worker / "went on").exists()


def test_a_process_that_has_nothing_to_do_ends_in_order(worker):
    with BenchProcess("a worker", "worker", {"busy": "no"}, worker / "log") as process:
        process.wait_ready()
    assert process.process.returncode == 0


KILLED = r"""
import os, signal
os.write(2, b"caf\xe9\n")
os.write(1, b'{"seconds": [1.0, 2')
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_that_is_killed_in_the_midst_of_a_reply_is_said_to_have_ended(worker):
    """Half a reply was a traceback of JSON's, and what a library prints need not be UTF-8."""
    (worker / "killed.py").write_text(KILLED)
    told = (
        r"^the process of a worker was killed by SIGKILL, as Linux does where memory runs out; its last.*:\ncaf\ufffd$"
    )
    with BenchProcess("a worker", "killed", {}, worker / "log") as process, pytest.raises(BenchError, match=told):
        process.wait_ready()
