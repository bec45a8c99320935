"""What a script is told of a run."""

import json
from pathlib import Path

import pytest

from specexit import cli


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        ("finished", 0, ""),
        ("preempted", 75, ""),
        ("running", 75, ""),  # or killed
        ("stopped", 1, "was stopped behind step 4 by a loss or gradient that is not finite"),
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


@pytest.mark.parametrize(("text", "error"), [(None, "file does not exist"), ("{", "cannot be read as the status of")])
def test_a_folder_that_says_nothing_is_no_run_to_go_on_with(
    tmp_path: Path, capsys: pytest.CaptureFixture, text: str | None, error: str
) -> None:
    if text is not None:
        (tmp_path / "status.json").write_text(text)
    with pytest.raises(SystemExit) as exit_:
        cli.run("status", [f"run={tmp_path}"])
    assert exit_.value.code == 1
    assert f"{tmp_path}/status.json: {error}" in capsys.readouterr().err
