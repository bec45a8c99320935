"""``verify.json``: what `specexit verify` found, and whether it is of the draft that is there."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ValidationError

from specexit.config import write_bytes
from specexit.differences import fields_sha256
from specexit.drafts.config import DraftConfig, read_config
from specexit.drafts.files import TensorError, read_bytes, read_json
from specexit.drafts.fingerprints import target_fingerprint
from specexit.drafts.tensors import weights_hash
from specexit.errors import first_problem

FILE = "verify.json"
MAX_BYTES = 1_000_000


class Accepted(BaseModel):
    """How many drafted tokens the traces' own text accepts."""

    rows: int
    length: float
    by_position: list[float]


class GreedyDrafts(BaseModel):
    """How many of an engine's drafts were compared, and how many of these were the reference's."""

    compared: int
    same: int


class Sides(BaseModel):
    """What the text accepts of the drafts of an engine and of the reference."""

    vllm: Accepted
    torch: Accepted


class Served(BaseModel):
    """What an engine did on its own greedy text, and the reference on the same."""

    vllm: str
    """Its version."""
    runner: str | None = None
    """V1 or V2; missing in older files, where it was V1."""
    dtype: str
    n: int
    greedy_drafts: GreedyDrafts
    acceptance: Sides


class Verification(BaseModel):
    """What is read of a ``verify.json``, which holds more."""

    weights_blake3: str | None = None
    """Missing in older files."""
    geometry_sha256: str | None = None
    """Missing in older files."""
    target_fingerprint: str | None = None
    """See `specexit.drafts.fingerprints.target_fingerprint`; missing in older files."""
    passed: bool
    n: int
    dtype: str = "float32"
    """Missing in older files."""
    differences: dict[str, float] = {}
    acceptance: Accepted | None = None
    mistakes: tuple[str, ...] = ()
    vllm: Served | None = None
    """None where no engine was asked."""


def hand_on_verification(folder: Path, to: Path, weights: str) -> None:
    """Copy ``verify.json`` into another folder where it is there, and of weights of this hash."""
    try:
        found = read_json(folder / FILE, MAX_BYTES)
    except TensorError:  # there is none, or none that anybody could use
        return
    if isinstance(found, dict) and found.get("weights_blake3") == weights:
        write_bytes(to / FILE, read_bytes(folder / FILE, MAX_BYTES))


def geometry_sha256(draft: DraftConfig) -> str:
    """SHA-256 of what a draft's config says of its computation: without signals, policy and the name of a class."""
    return fields_sha256(draft.model_dump(mode="json", exclude={"specexit", "architectures"}))


def read_verification(folder: Path, target: Path | None = None) -> tuple[Verification | None, str | None]:
    """Read ``verify.json``, and judge whether it makes the draft that is there a verified one.

    Args:
      folder: the draft directory.
      target: folder of its target's model; None where that is not at hand, and then it is not compared.

    Returns:
      What was found of this very draft, None where nothing was; and why the draft does not count as verified, None
      where it does.

    Raises:
      DraftError: ``config.json`` cannot be used.
      TensorError: the weights cannot be read.
    """
    path = folder / FILE
    if not path.exists():
        return None, "no: run `specexit verify`"
    try:
        found = Verification.model_validate(read_json(path, MAX_BYTES))
    except TensorError as error:
        return None, f"unreadable: {error}; run `specexit verify`"
    except ValidationError as error:
        return None, f"unreadable: {path}: {first_problem(error)}; run `specexit verify`"
    if found.weights_blake3 is None:
        return None, "stale: an older version wrote it, run `specexit migrate` or `specexit verify`"
    if found.weights_blake3 != weights_hash(folder):
        return None, "stale: the weights are others by now, run `specexit verify`"
    if found.geometry_sha256 not in (None, geometry_sha256(read_config(folder, needs_policy=False))):
        return None, "stale: config.json says another geometry by now, run `specexit verify`"
    mark = None if target is None or found.target_fingerprint is None else target_fingerprint(target)
    if mark not in (None, found.target_fingerprint):
        return None, f"stale: it was beside another target than that in {target}, run `specexit verify`"
    wrong = [*([] if found.passed else ["the frameworks differ"]), *found.mistakes]
    return found, f"no: {'; '.join(wrong)}, on {found.n} traces" if wrong else None


def doubt_of(folder: Path, target: Path | None = None) -> str | None:
    """Why a draft directory does not count as verified; None where it does. Arguments as of `read_verification`.

    Raises:
      DraftError, TensorError: see `read_verification`.
    """
    return read_verification(folder, target)[1]


def acceptance_words(found: Accepted) -> str:
    """The ``acceptance`` of a ``verify.json``, as terminal and `inspect` say it."""
    shares = ", ".join(f"{share:.1%}" for share in found.by_position)
    return f"acceptance length {found.length:.2f} on {found.rows} rows of the traces; draft steps: {shares}"
