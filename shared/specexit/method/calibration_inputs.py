"""What `specexit.method.calibrate` refuses before hours of replaying: files that do not belong together, or to the
draft, and points that no server could serve. And what is noted of those that do."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from specexit.data.engine import EngineTypes
from specexit.data.outlines import Outlines
from specexit.data.scores import StoredScores
from specexit.data.traces import check_tokenizer, tokenizer_sha256
from specexit.data.written_by import check_weights
from specexit.drafts.computation import config_hashes
from specexit.drafts.directory import DraftConfig, SpecExitBlock
from specexit.drafts.fingerprints import quantization_served, target_fingerprint
from specexit.drafts.policy import Fingerprints, OperatingPoint, PolicyError, PolicyFile, check_policy
from specexit.method.certify import CertificateError
from specexit.method.decision import OFF
from specexit.schemas.calibrate import CalibrateConfig, point_name
from specexit.schemas.target import TargetConfig, other_boundaries


def check_served(config: CalibrateConfig, block: SpecExitBlock) -> None:
    """Check that a server of the draft runs the smoothing.

    Raises:
      CertificateError: none does.
    """
    if config.smoothing not in block.smoothings:
        raise CertificateError(
            f"smoothing is {config.smoothing!r}, expected {' or '.join(block.smoothings)}: {config.draft} has source "
            f"{block.source!r}, and no server starts with a policy that smooths its signals"
        )


def check_serving(config: CalibrateConfig, stored: PolicyFile) -> None:
    """Check that the points which the draft's serving settings name will be there: else nothing could read the file.

    Raises:
      CertificateError: one would be gone.
    """
    points = tuple(OperatingPoint(name=point_name(epsilon), policy=OFF) for epsilon in config.epsilon)
    try:
        check_policy(config.draft, stored.model_copy(update={"points": points, "default": points[0].name}))
    except PolicyError as error:
        raise CertificateError(
            f"{error}, which is all that epsilon makes: give the other's epsilon as well, or change that setting first"
        ) from error


def check_writable(draft: Path) -> None:
    """Check that the points can be written into the draft directory.

    Raises:
      PolicyError: they cannot.
    """
    if not os.access(draft, os.W_OK):
        raise PolicyError(
            f"{draft}: cannot be written, and the points go there: copy the folder, or mount it for writing"
        )


def check_target(config: CalibrateConfig, target: TargetConfig, block: SpecExitBlock) -> None:
    """Check that the traces are of the draft's target, and have their boundaries where a server of the draft looks for
    them.

    Raises:
      CertificateError: they are another target's, or have other boundaries.
      TraceError: they are of another tokenizer or of other weights.
    """
    if target.name != block.target:
        raise CertificateError(
            f"{config.traces}: traces of target {target.name!r}, but {config.draft} was made for {block.target!r}"
        )
    if (other := other_boundaries(target, block)) is not None:
        raise CertificateError(
            f"{config.traces}: their target has {other} as {config.draft / 'config.json'} says, by which a server "
            "finds boundaries: expected traces that were collected with the draft's"
        )
    if target.folder.exists():
        check_tokenizer(config.traces, target)
    check_weights(config.traces, target)


def one_trial(config: CalibrateConfig, traces: Outlines) -> dict[str, Any]:
    """How the trials of each answer kind were made.

    Raises:
      CertificateError: those of a kind were made in several ways.
    """
    found: dict[str, Any] = {}
    for kind in traces.different("answer_kind"):
        trials = traces.only(answer_kind=kind).different("trial")
        first, *others = (json.loads(trial or "{}") for trial in trials)
        for other in others:
            if other != first:
                raise CertificateError(
                    f"{config.traces}: answers of kind {kind} were tried as {first} and as {other}, expected one way"
                )
        found[str(kind)] = first
    return found


def fingerprints(
    draft: DraftConfig, target: TargetConfig, scores: StoredScores, told: EngineTypes, wrote: str | None
) -> Fingerprints:
    """What the certificates are made with.

    Args:
      draft: whose computation it is.
      target: as `check_target` found it to be that of the traces.
      scores: of the traces.
      told: types of the model that wrote the traces.
      wrote: fingerprint of its weights, where the traces say it.

    Raises:
      CertificateError: the scores are of other weights of the target.
    """
    quantization, tokenizer, weights, whose = None, None, wrote, "that wrote the traces"
    if target.folder.exists():
        quantization = quantization_served(target.hf_config(), target.folder)
        tokenizer = tokenizer_sha256(target)
        if (there := target_fingerprint(target.folder)) is not None:
            weights, whose = there, f"in {target.folder}"
    if weights is not None and scores.target_sha256 not in (None, weights):
        raise CertificateError(
            f"{scores.path}: target_sha256 is {scores.target_sha256[:12]}..., but the weights of target "
            f"{target.name!r} {whose} have {weights[:12]}...: expected scores made with that model"
        )
    return Fingerprints(
        draft=scores.draft_blake3,
        **config_hashes(draft),
        target=weights or scores.target_sha256,
        tokenizer=tokenizer,
        dtype=None if told.dtype == "auto" else told.dtype,  # "auto" is whatever vLLM makes of it
        quantization=told.quantization or quantization,
        kv_cache_dtype=told.kv_cache_dtype or "auto",
    )
