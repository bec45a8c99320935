"""Output folders: whole or not at all, also where the process is told to end in the middle."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from specexit.config import ConfigError, load, write_text
from specexit.data.scores import Scores, write_scores
from specexit.data.traces import write_traces
from specexit.errors import InputError
from specexit.outputs import MoveError, new_folder, require_empty
from specexit.schemas.simulate import SimulateConfig

WRITE = """
import signal, sys
from pathlib import Path
from specexit.outputs import new_folder
# Whoever runs the tests may have started them with signals ignored, as nohup does.
signal.signal(signal.SIGTERM, signal.SIG_DFL)
signal.signal(signal.SIGHUP, signal.SIG_IGN if sys.argv[2] == "ignored" else signal.SIG_DFL)
with new_folder(Path(sys.argv[1])) as beside:
    (beside / "file").touch()
    print("ready", flush=True)
    sys.stdin.readline()
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
"""

FORK = """
import os, signal, sys
from pathlib import Path
from specexit.outputs import new_folder
signal.signal(signal.SIGTERM, signal.SIG_DFL)
with new_folder(Path(sys.argv[1])) as beside:
    (beside / "file").touch()
    child = os.fork()
    if child == 0:
        signal.raise_signal(signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
    assert (beside / "file").exists()
"""


@pytest.fixture
def writing(tmp_path):
    """A process in the middle of its output folder."""

    def start(how=""):
        command = [sys.executable, "-c", WRITE, tmp_path / "parent" / "out", how]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert len(list((tmp_path / "parent").iterdir())) == 1
        return process

    return start


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_process_that_is_told_to_end_leaves_nothing_and_ends_by_that_signal(number, writing, tmp_path):
    process = writing()
    process.send_signal(number)
    process.communicate()
    assert process.returncode == -number
    assert not list((tmp_path / "parent").iterdir())


def test_a_forked_process_that_is_told_to_end_leaves_the_folder_to_its_parent(tmp_path):
    """As workers of a pool are."""
    subprocess.run([sys.executable, "-c", FORK, tmp_path / "out"], check=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["file"]


def test_a_signal_that_is_ignored_stays_so(writing, tmp_path):
    """As ``nohup`` has it."""
    process = writing("ignored")
    process.send_signal(signal.SIGHUP)
    process.communicate("go on\n")
    assert process.returncode == 0
    assert [path.name for path in (tmp_path / "parent").iterdir()] == ["out"]


@pytest.mark.parametrize("begin", [require_empty, lambda folder: new_folder(folder).__enter__()])
@pytest.mark.parametrize("name", [".", "", "../here"])
def test_the_working_directory_is_refused_before_any_work(begin, name, tmp_path, monkeypatch):
    """What is written would be put in its place, and a shell would stand in a folder that is gone."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(FileExistsError, match="is the working directory, expected a new folder"):
        begin(Path(name))
    assert [path.name for path in tmp_path.rglob("*")] == ["here"]


@pytest.mark.parametrize("begin", [require_empty, lambda folder: new_folder(folder).__enter__()])
def test_a_link_to_an_empty_folder_is_refused_before_any_work(begin, tmp_path):
    """No folder can be put in its place, which was found out when all was done."""
    (tmp_path / "there").mkdir()
    (tmp_path / "out").symlink_to("there")
    with pytest.raises(FileExistsError, match=r"out: is a link, expected .* name .*/there itself"):
        begin(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "there"]


@pytest.mark.parametrize("begin", [require_empty, lambda folder: new_folder(folder).__enter__()])
def test_a_mount_is_refused_before_any_work(begin, tmp_path, monkeypatch):
    """As a container's ``/out`` is."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileExistsError, match="/: is a mount, expected a new or empty folder: name a new one inside"):
        begin(Path("/"))


def write_while_somebody_takes_its_place(folder):
    with new_folder(folder) as beside:
        (beside / "scores").write_text("of hours")
        folder.mkdir()
        (folder / "file").touch()


def test_what_was_written_is_kept_and_named_where_its_place_is_taken_by_then(tmp_path):
    """Hours of scoring are not worth less because somebody else has written there meanwhile."""
    with pytest.raises(MoveError, match=r"out: cannot be put in its place: Directory not empty") as refused:
        write_while_somebody_takes_its_place(tmp_path / "out")
    kept = next(path for path in tmp_path.iterdir() if path.name != "out")
    assert f"what was written lies in {kept}: move it" in str(refused.value)
    assert (kept / "scores").read_text() == "of hours"
    assert kept.stat().st_mode & 0o777 == 0o755
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["file"]


def whole_folder(path: Path, _) -> None:
    with new_folder(path) as beside:
        (beside / "file").write_text("text")


@pytest.mark.parametrize(
    ("write", "inside"),
    [
        (whole_folder, "file"),
        (lambda path, _: write_text(path, "text"), ""),
        (lambda path, trace: write_traces(path, [trace]), ""),
        (lambda path, _: write_scores(path, Scores("a", "b", {"c": np.zeros((1, 4), np.float32)}, None)), ""),
    ],
    ids=["folder", "text", "traces", "scores"],
)
def test_what_is_written_is_on_the_disk_before_it_has_its_name(write, inside, tmp_path, make_trace, monkeypatch):
    """Else a power failure leaves an empty file of that name, of a folder that says it is whole."""
    out, synced, sync = tmp_path / "out", {}, os.fsync

    def noted(file: int) -> None:
        sync(file)
        synced[os.fstat(file).st_ino] = out.exists()

    monkeypatch.setattr(os, "fsync", noted)
    write(out, make_trace())
    assert synced[(out / inside).stat().st_ino] is False
    assert synced[out.stat().st_ino] is False
    assert synced[tmp_path.stat().st_ino] is True


def test_a_device_or_a_pipe_in_place_of_a_file_to_write_is_refused(tmp_path):
    """A file was put there: whoever wrote to /dev/null as root had none afterwards."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/null")
    (tmp_path / "file").touch()
    for out in (Path("/dev/null"), tmp_path / "link", tmp_path / "pipe"):
        with pytest.raises(
            ConfigError, match=rf"out is \S*{out}\S*: is a device, a pipe or a socket, expected a file to"
        ):
            load(SimulateConfig, None, ["traces=a", "scores=b", f"out={out}"])
    for out in (tmp_path / "file", tmp_path / "new"):
        assert load(SimulateConfig, None, ["traces=a", "scores=b", f"out={out}"]).out == out


def test_a_file_that_is_written_again_has_the_mode_that_it_had(tmp_path):
    """Whoever calibrated anew under umask 077 took `policy.json` away from a server of another user."""
    file, link = tmp_path / "policy.json", tmp_path / "link"
    link.symlink_to(file)
    umask = os.umask(0o077)
    try:
        write_text(file, "new")
        assert file.stat().st_mode & 0o777 == 0o600
        file.chmod(0o644)
        write_text(file, "again")
        write_text(link, "in its place")
    finally:
        os.umask(umask)
    assert not link.is_symlink()
    assert [(path.read_text(), path.stat().st_mode & 0o777) for path in (file, link)] == [
        ("again", 0o644),
        ("in its place", 0o644),
    ]


def test_a_full_disk_is_one_line_that_names_the_folder_and_leaves_nothing(tmp_path):
    """Arrow's error names no file, and has words of its own."""
    with (
        pytest.raises(
            InputError, match=r"out: cannot be written: No space left on device; .* removed again: make room"
        ),
        new_folder(tmp_path / "out"),
    ):
        raise OSError(errno.ENOSPC, "Error writing bytes to file. Detail: [errno 28] No space left on device")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_named_with_the_file_and_what_was_there_stays(tmp_path, monkeypatch):
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_text(tmp_path / "file", "before")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as raised:
        write_text(tmp_path / "file", "after")
    assert (raised.value.filename, raised.value.strerror) == (str(tmp_path / "file"), "No space left on device")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


def test_a_full_disk_elsewhere_is_not_said_of_the_folder(tmp_path):
    """Else somebody makes room on the wrong disk."""
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/scratch/states")
    with pytest.raises(OSError, match="/scratch/states"), new_folder(tmp_path / "out"):
        raise full
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_mount_that_has_no_fsync_is_written_to(number, tmp_path, monkeypatch):
    def refused(file: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refused)
    whole_folder(tmp_path / "folder", None)
    write_text(tmp_path / "file", "text")
    assert [(tmp_path / path).read_text() for path in ("folder/file", "file")] == ["text"] * 2
