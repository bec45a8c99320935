"""``specexit migrate``: a draft directory of an older version in today's form, with the certificates that it has."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from rich.console import Console

from specexit.config import write_text
from specexit.differences import file_sha256
from specexit.drafts.certified import doubts_of
from specexit.drafts.directory import check_given
from specexit.drafts.files import read_json
from specexit.drafts.locking import locked
from specexit.drafts.policy import FILE, PolicyError, PolicyFile, read_policy, write_policy
from specexit.drafts.tensors import weight_files, weights_hash
from specexit.drafts.verified import FILE as VERIFIED
from specexit.drafts.verified import MAX_BYTES
from specexit.schemas.migrate import MigrateConfig


def migrate(config: MigrateConfig) -> None:
    """Give the directory its ``policy.json``, and have that and ``verify.json`` name the weights by today's hash.

    Raises:
      PolicyError: see `specexit.drafts.policy.read_policy` and `write_policy`; or another process keeps the directory
        locked.
      TensorError: the weights cannot be read.
      DraftError, ConfigError: the draft belongs to another target than the one given.
    """
    check_given(config.draft, config.target)
    older, today = sha256_of(config.draft), weights_hash(config.draft)
    try:
        with locked(config.draft):
            policy, state = _write(config.draft, older, today)
    except TimeoutError as error:
        raise PolicyError(f"nothing is written: {error}") from error
    said = "; ".join([state, *_certified(policy, doubts_of(config.draft, policy))])
    Console(stderr=True).print(f"{config.draft / FILE}: {said}", soft_wrap=True, markup=False)


def _certified(policy: PolicyFile, doubts: list[str]) -> list[str]:
    """Of each point whether it is certified, and behind them the doubts about all certificates."""
    word = "not certified" if doubts else "certified"
    return [*(point.uncertified_because() or f"point {point.name} is {word}" for point in policy.points), *doubts]


def _write(folder: Path, older: str, today: str) -> tuple[PolicyFile, str]:
    """Write the policies; returns them, and what became of their file in words."""
    there = (folder / FILE).exists()
    policy, verified = read_policy(folder), _verified(folder)
    known = older in (policy.fingerprints.draft, verified.get("sha256"))
    if known:
        policy = _renamed(policy, older, today)
        _rename_verified(folder, verified, older, today)
    write_policy(folder, policy)
    return policy, "names the weights by today's hash" if known else "was there already" if there else "written"


def sha256_of(folder: Path) -> str:
    """What older versions knew a folder's weights by: SHA-256 of the file, or of the lines of its files' SHA-256."""
    hashes = [file_sha256(path) for path in weight_files(folder)]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _renamed(policy: PolicyFile, older: str, today: str) -> PolicyFile:
    if policy.fingerprints.draft != older:
        return policy
    return policy.model_copy(update={"fingerprints": policy.fingerprints.model_copy(update={"draft": today})})


def _verified(folder: Path) -> dict:
    path = folder / VERIFIED
    found = read_json(path, MAX_BYTES) if path.exists() else {}
    return found if isinstance(found, dict) else {}


def _rename_verified(folder: Path, found: dict, older: str, today: str) -> None:
    if found.get("sha256") == older:
        said = {"weights_blake3": today} | {name: found[name] for name in found if name != "sha256"}
        write_text(folder / VERIFIED, json.dumps(said, indent=2) + "\n")
