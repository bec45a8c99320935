"""One run at a time in a folder, whatever ended the last one."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from jax_specexit.training.alone import alone_in
from jax_specexit.training.run import check_folder
from jax_specexit.training.train import train
from specexit.config import ConfigError
from specexit.errors import lasts
from specexit.schemas.train import TrainConfig
from tests.jax.devices import simulated
from tests.ports import hold_port


def test_a_second_run_in_the_folder_of_one_that_lives_is_refused(recipe: TrainConfig) -> None:
    by_now = rf"out={recipe.out}: process {os.getpid()} on \S+, since \d{{4}}-.* trains into this folder"
    with alone_in(recipe.out):
        for _ in range(2):
            with pytest.raises(ConfigError, match=by_now) as refused:
                train(recipe)
            assert not lasts(refused.value)  # hosts may be restarted while an old one lives on for a while
    assert [path.name for path in recipe.out.iterdir()] == [".lock"]
    check_folder(recipe)  # what is left is a new folder


def test_a_run_that_was_killed_lets_its_folder_go(tmp_path: Path) -> None:
    script = "import sys, time; from pathlib import Path; from jax_specexit.training.alone import alone_in\n"
    script += "with alone_in(Path(sys.argv[1])):\n  print('held', flush=True)\n  time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=f"process {other.pid} on "), alone_in(tmp_path):
            pass
        other.kill()
    with alone_in(tmp_path):
        assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")


JOB = """
import sys
from pathlib import Path
from jax_specexit.cluster import join
from jax_specexit.training.alone import alone_in
from specexit.config import ConfigError
from specexit.schemas.train import ClusterConfig

join(ClusterConfig(coordinator=sys.argv[2], num_processes=2, process_id=int(sys.argv[3])))
try:
    with alone_in(Path(sys.argv[1])):
        print("trains")
except ConfigError as error:
    print(error)
"""


def outcome_of_a_job(run: Path) -> list[str]:
    """What each of the two processes of a job that starts in a folder says at last."""
    held, port = hold_port()
    command = [sys.executable, "-c", JOB, str(run), f"127.0.0.1:{port}"]
    running = [
        subprocess.Popen([*command, str(i)], env=simulated(1), stdout=subprocess.PIPE, text=True) for i in range(2)
    ]
    try:
        return [process.communicate(timeout=600)[0].splitlines()[-1] for process in running]
    finally:
        held.close()
        for process in running:
            process.kill()


def test_all_processes_of_a_job_are_refused_when_the_first_one_is(tmp_path: Path) -> None:
    with alone_in(tmp_path):
        said = outcome_of_a_job(tmp_path)
    assert said[0] == said[1]
    assert said[0].startswith(f"out={tmp_path}: process {os.getpid()} on ")
    (tmp_path / "file").touch()
    said = outcome_of_a_job(tmp_path / "file")
    assert said[0] == said[1]
    assert said[0].startswith(f"out={tmp_path}/file: cannot be written: ")
    assert outcome_of_a_job(tmp_path / "new") == ["trains"] * 2


def test_a_disk_without_locks_is_trained_on_which_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fcntl.flock", Mock(side_effect=OSError(errno.ENOLCK, "No locks available")))
    with alone_in(tmp_path), alone_in(tmp_path):
        pass
    said = f"{tmp_path}: cannot be locked (No locks available): see to it that no other process writes there meanwhile"
    assert capsys.readouterr().err.splitlines() == [said]
