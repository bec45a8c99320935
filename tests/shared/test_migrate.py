"""`migrate`: what an older version knew the weights by is replaced, where it is of the weights that are there."""

import hashlib
import json

import pytest

from specexit.cli import run
from specexit.drafts import locking, migrate
from specexit.drafts.migrate import sha256_of
from specexit.drafts.policy import Fingerprints, OperatingPoint, PolicyFile, Serving, read_policy, write_policy
from specexit.drafts.tensors import WEIGHTS, weights_hash
from specexit.drafts.verified import doubt_of
from specexit.method.decision import Policy


@pytest.fixture
def older(tmp_path, write_random_draft):
    """A draft that an older version has calibrated and verified."""
    folder = write_random_draft(tmp_path / "draft", "draft")
    sha256 = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    point = OperatingPoint(name="default", policy=Policy(thresholds={"validity": 0.9}))
    write_policy(folder, PolicyFile(points=(point,), fingerprints=Fingerprints(draft=sha256, dtype="float32")))
    verified = {"sha256": sha256, "passed": True, "n": 4, "differences": {"logits": 1e-6}, "mistakes": []}
    (folder / "verify.json").write_text(json.dumps(verified))
    return folder


def test_certificates_and_verification_go_along(older, capsys):
    assert "an older version wrote it, run `specexit migrate`" in doubt_of(older)
    run("migrate", [str(older)])
    assert "names the weights by today's hash" in capsys.readouterr().err
    assert read_policy(older).fingerprints == Fingerprints(draft=weights_hash(older), dtype="float32")
    assert doubt_of(older) is None
    files = {path.name: path.read_bytes() for path in older.iterdir()}
    run("migrate", [str(older)])
    assert {path.name: path.read_bytes() for path in older.iterdir()} == files


def test_what_was_said_of_other_weights_stays_as_it_is(older):
    weights = bytearray((older / WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (older / WEIGHTS).write_bytes(weights)
    policy, verified = read_policy(older), (older / "verify.json").read_text()
    run("migrate", [str(older)])
    assert read_policy(older) == policy
    assert (older / "verify.json").read_text() == verified
    assert doubt_of(older) is not None


def test_what_an_operator_says_while_weights_are_hashed_stays_said(older, monkeypatch):
    """A kill switch of a server that has the draft was undone by the migration that had read the file before."""

    def hashed(folder):
        write_policy(folder, read_policy(folder).model_copy(update={"serving": Serving(mode="off")}))
        return sha256_of(folder)

    monkeypatch.setattr(migrate, "sha256_of", hashed)
    run("migrate", [str(older)])
    assert read_policy(older).serving.mode == "off"
    assert read_policy(older).fingerprints.draft == weights_hash(older)


def test_a_draft_that_a_server_writes_into_is_left_as_it_was(older, monkeypatch, capsys):
    monkeypatch.setattr(locking, "SECONDS", 0.0)
    files = {path.name: path.read_bytes() for path in older.iterdir()}
    with locking.locked(older), pytest.raises(SystemExit):
        run("migrate", [str(older)])
    assert "nothing is written: " in (said := capsys.readouterr().err)
    assert f"{older}: another process has locked it" in said
    assert {path.name: path.read_bytes() for path in older.iterdir()} == files


@pytest.mark.parametrize("command", ["migrate", "inspect"])
def test_a_draft_of_another_target_than_the_one_given_is_refused(older, command, capsys):
    files = {path.name: path.read_bytes() for path in older.iterdir()}
    with pytest.raises(SystemExit):
        run(command, [str(older), "target=qwen3-4b-thinking-2507"])
    assert "target=qwen3-4b-thinking-2507 is 'qwen3-4b-thinking-2507', but" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in older.iterdir()} == files


def test_the_older_hash_of_shards(tmp_path):
    index = {"weight_map": {"b": "2.safetensors", "a": "1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in ("1.safetensors", "2.safetensors"):
        (tmp_path / name).write_text(name)
    each = [hashlib.sha256(name.encode()).hexdigest() for name in ("1.safetensors", "2.safetensors")]
    assert sha256_of(tmp_path) == hashlib.sha256("\n".join(each).encode()).hexdigest()


def test_no_folder_is_not_the_working_directory(older, monkeypatch, capsys):
    """`specexit migrate "$UNSET"` rewrote the draft that it was called in."""
    monkeypatch.chdir(older)
    files = {path.name: path.read_bytes() for path in older.iterdir()}
    with pytest.raises(SystemExit):
        run("migrate", [""])
    assert capsys.readouterr().err == "error: argument '' is empty, expected a path or key=value\n"
    assert {path.name: path.read_bytes() for path in older.iterdir()} == files


@pytest.mark.parametrize("again", [["draft={other}"], ["--draft", "{other}"]])
def test_a_draft_that_is_named_twice_is_refused(older, again, capsys):
    """One of the two was passed over without a word."""
    other = older.parent / "other"
    with pytest.raises(SystemExit):
        run("migrate", [*(argument.format(other=other) for argument in again), str(older)])
    said = f"error: draft is given twice, as {older} and as draft={other}, expected it once\n"
    assert capsys.readouterr().err == said
