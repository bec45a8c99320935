"""What a script is told of a run."""

import errno
import json
import os
import sys
from pathlib import Path

import pytest

from specexit import cli
from specexit.buckets import BucketError
from specexit.config import ConfigError, PassingError
from specexit.errors import InputError
from specexit.interrupted import GOES_ON, WRITE_NOTHING


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        ("finished", 0, ""),
        ("preempted", 75, ""),
        ("running", 75, ""),  # or killed
        ("stopped", 78, "was stopped behind step 4 by a loss or gradient that is not finite"),
        ("done", 1, "status.json: status is 'done', expected one of running, preempted, stopped, finished"),
    ],
)
def test_the_exit_code_says_whether_to_start_again(
    tmp_path: Path, capsys: pytest.CaptureFixture, status: str, code: int, error: str
) -> None:
    (tmp_path / "status.json").write_text(json.dumps({"status": status, "step": 4, "steps": 8, "began": 1.0}))
    found = 0
    try:
        cli.run("status", [str(tmp_path)])
    except SystemExit as exit_:
        found = exit_.code
    assert found == code
    out, err = capsys.readouterr()
    assert out == ("" if status == "done" else f"{tmp_path}: {status}, step 4 of 8\n")
    assert error in err
    assert bool(err) == bool(error)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (None, "file does not exist"),
        ("{", "cannot be read as the status of"),
        ('{"status": "running", "step": 1e999, "steps": 8}', "cannot be read as the status of"),
    ],
)
def test_a_folder_that_says_nothing_is_no_run_to_go_on_with(
    tmp_path: Path, capsys: pytest.CaptureFixture, text: str | None, error: str
) -> None:
    if text is not None:
        (tmp_path / "status.json").write_text(text)
    with pytest.raises(SystemExit) as exit_:
        cli.run("status", [f"run={tmp_path}"])
    assert exit_.value.code == 1
    assert f"{tmp_path}/status.json: {error}" in capsys.readouterr().err


def test_a_file_is_no_run_folder(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """As a shell completes the name."""
    (tmp_path / "status.json").write_text(json.dumps({"status": "finished", "step": 8, "steps": 8}))
    with pytest.raises(SystemExit) as exit_:
        cli.run("status", [f"{tmp_path}/status.json"])
    assert exit_.value.code == 1
    assert "status.json/status.json: file does not exist, expected a run folder" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["run=runs/x", "foo=1"], [], ["run=s3://bucket/x"]], ids=str)
def test_a_command_that_is_mistyped_says_nothing_of_the_run(
    arguments: list[str], capsys: pytest.CaptureFixture
) -> None:
    """A script that goes by 78 would never start it again."""
    with pytest.raises(SystemExit) as exit_:
        cli.run("status", arguments)
    assert exit_.value.code == 1
    assert capsys.readouterr().err.startswith("error: ")


def because_of(error: InputError, cause: Exception) -> InputError:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("a recipe that cannot work"), 78),
        (because_of(InputError("a file that is no JSON"), ValueError("no JSON")), 78),
        (because_of(InputError("a row that cannot be read"), RuntimeError("stale handle")), 1),
        (because_of(InputError("a file that cannot be read"), OSError(5, "Input/output error")), 1),
        (because_of(InputError("a file that is not there"), FileNotFoundError(2, "No such file or directory")), 78),
        (because_of(InputError("a file for a folder"), NotADirectoryError(20, "Not a directory")), 78),
        (because_of(InputError("a folder for a file"), IsADirectoryError(21, "Is a directory")), 78),
        (BucketError("gs://bucket/run: cannot be written: 503"), 1),
        (PassingError("another process trains into this folder"), 1),
        (FileNotFoundError("not there yet"), 1),
    ],
    ids=str,
)
def test_what_would_only_come_again_has_a_code_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, error: Exception, code: int
) -> None:
    """And nothing else has it: to end a job for what passes would be worse than to restart one in vain."""
    load, runs = cli._load, cli.COMMANDS["train"].run

    def fails(_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "_load", lambda reference: fails if reference == runs else load(reference))
    with pytest.raises(SystemExit) as exit_:
        cli.run("train", ["tiny-reasoner"])
    assert exit_.value.code == code
    assert capsys.readouterr().err == f"error: {error}\n"


@pytest.mark.parametrize(
    "name", ["EEXIST", "ENOENT", "ENOTDIR", "EISDIR", "EBUSY", "ENAMETOOLONG", "ELOOP", "EIO", "ESTALE"]
)
def test_what_the_system_says_of_a_file_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, name: str
) -> None:
    number = getattr(errno, name)
    load, runs = cli._load, cli.COMMANDS["train"].run

    def fails(_: object) -> None:
        raise OSError(number, os.strerror(number), "runs/out")

    monkeypatch.setattr(cli, "_load", lambda reference: fails if reference == runs else load(reference))
    with pytest.raises(SystemExit) as exit_:
        cli.run("train", ["tiny-reasoner"])
    assert exit_.value.code == 1
    assert capsys.readouterr().err == f"error: runs/out: cannot be written or read: {os.strerror(number)}\n"


def test_an_image_without_a_package_has_it_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    load, runs = cli._load, cli.COMMANDS["train"].run

    def lacks(reference: str) -> object:
        if reference == runs:
            raise ModuleNotFoundError("No module named 'jax'", name="jax")
        return load(reference)

    monkeypatch.setattr(cli, "_load", lacks)
    with pytest.raises(SystemExit) as exit_:
        cli.run("train", ["tiny-reasoner"])
    assert exit_.value.code == 78
    assert "specexit train needs jax: " in capsys.readouterr().err


@pytest.mark.parametrize(("command", "code"), [("train", 78), ("plan", 1)])
def test_only_commands_that_scripts_restart_have_it(capsys: pytest.CaptureFixture, command: str, code: int) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.run(command, ["no-such-recipe"])
    assert exit_.value.code == code
    assert "recipes 'no-such-recipe' does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("collect", ": the traces that are finished are kept, and the same command goes on"),
        ("train", ": the last checkpoint is kept, and the same command goes on"),
        ("bench", ": what is measured is kept beside `out`, and the same command goes on"),
        ("ablate", ": what was trained for `trained` is kept, and the same command goes on"),
        ("annotate", ": nothing is written, and the same command begins anew"),
        ("pack", ": nothing is written, and the same command begins anew"),
        ("score", ": nothing is written, and the same command begins anew"),
        ("simulate", ": nothing is written, and the same command begins anew"),
        ("chat", ""),
    ],
)
def test_ctrl_c_is_one_line_that_says_what_is_kept(command, said, monkeypatch, capsys):
    def run(_):
        raise KeyboardInterrupt

    load = cli._load
    monkeypatch.setattr(cli, "_load", lambda name: run if name == cli.COMMANDS[command].run else load(name))
    monkeypatch.setattr("specexit.config.load", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["specexit", command])
    monkeypatch.setattr(sys, "path", [*sys.path])  # `main` adds to it
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert (exit_.value.code, capsys.readouterr().err) == (130, f"error: interrupted{said}\n")


def test_what_an_interrupted_command_keeps_is_said_of_commands_that_there_are():
    assert {*GOES_ON, *WRITE_NOTHING} <= cli.COMMANDS.keys()
