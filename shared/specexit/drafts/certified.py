"""Whether a draft's certificates hold: what they were made with, compared with what is served or lies in a directory;
and policies and certificates in words.

Servers compare all that they serve; `inspect`, `migrate`, the model card and the report what a draft directory tells by
itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from specexit.buckets import BucketPath
from specexit.drafts.computation import config_hashes
from specexit.drafts.config import read_config
from specexit.drafts.fingerprints import target_fingerprint
from specexit.drafts.policy import FILE, Certificate, Fingerprints, PolicyFile
from specexit.drafts.tensors import weights_hash
from specexit.errors import cut, shown
from specexit.method.decision import EARLY_TOKENS, Policy
from specexit.schemas.sampling import drawn, is_greedy

CHECKPOINT_NAMES = {
    **dict.fromkeys(("auto_gptq", "gptq_marlin"), "gptq"),
    **dict.fromkeys(("auto_awq", "awq_marlin"), "awq"),
    **dict.fromkeys(("modelopt_fp4", "modelopt_mxfp8", "modelopt_mixed"), "modelopt"),
    **{"gpt_oss_mxfp4": "mxfp4", "deepseek_v4_fp8": "fp8"},
    **{"inc": "auto-round", "compressed_tensors": "compressed-tensors"},
}
"""vLLM's name of a quantisation that it found in a checkpoint -> the checkpoint's own name, which calibrations record.
What shares such a name differs in ``config.json`` or its weights, and so in the target's fingerprint."""

EDITED = {"computation": "another computation", "boundaries": "other boundaries"}
"""Fingerprint of a draft's ``config.json`` -> what that says where it differs. Older policy files have neither,
and hold as they did."""


def doubts(file: PolicyFile, served: Mapping[str, str | None], transition: str = "") -> list[str]:
    """Why the certificates of a policy file do not hold for what is served; empty where they do.

    A file that does not say what they were made with, as one of an older version may not, is a reason as well.

    Args:
      file: the policies, with their certificates.
      served: what is served, by the names that `specexit.drafts.policy.Fingerprints` has; None where it is unknown.
      transition: text that is written at each exit. A calibration has none: its answers follow the end marker at once.

    Example:
      >>> file = PolicyFile.model_validate({"fingerprints": {"dtype": "bfloat16"}})
      >>> doubts(file, {"dtype": "float16"})
      ['dtype is float16, calibrated with bfloat16']
    """
    calibrated = file.fingerprints.model_dump()
    differing = [
        _differs(name, served.get(name), value)
        for name, value in calibrated.items()
        if value is not None and _compared(name, served.get(name)) != _compared(name, value)
    ]
    unsaid = [name for name, value in calibrated.items() if value is None and name not in EDITED]
    unknown = [name for name in unsaid if served.get(name) is not None]
    if all(point.certificate is None for point in file.points):
        return differing
    if transition:
        differing.append(f"serving.transition is {shown(transition, 40)}, calibrated without")
    if unknown:
        differing.append(f"{FILE} does not say with which {', '.join(unknown)} it was calibrated: calibrate again")
    if drawn(file.sampling or {}) is None:
        differing.append(f"{FILE} does not say at which temperature its traces were sampled: calibrate again")
    return differing


def doubts_of(folder: Path, file: PolicyFile, target: Path | None = None) -> list[str]:
    """`doubts` as far as a draft directory can tell: by its weights, config and settings, and by its target.

    What a server alone knows, such as its dtype, is not compared.

    Args:
      folder: the draft directory.
      file: its policies.
      target: folder of its target's model; not compared where it is None, in a bucket or without weights.

    Raises:
      DraftError, TensorError: the draft's config or its weights cannot be read.
    """
    if all(point.certificate is None for point in file.points):
        return []
    mark = None if target is None or isinstance(target, BucketPath) else target_fingerprint(target)
    known = {"draft": weights_hash(folder)} | config_hashes(read_config(folder, needs_policy=False))
    if mark is not None:
        known["target"] = mark
    unsaid = dict.fromkeys(Fingerprints.model_fields.keys() - known.keys())
    compared = file.fingerprints.model_copy(update=unsaid)
    return doubts(file.model_copy(update={"fingerprints": compared}), known, file.serving.transition)


def judged_otherwise(sampling: Mapping[str, Any] | None) -> str | None:
    """What has to be said with a certificate of sampled text: trials, and answers written in full, are greedy.

    Args:
      sampling: of the calibration traces; None where it is not known.

    Returns:
      A clause; None for greedy text, whose served answers are the ones that were judged, and where nothing is known.

    Example:
      >>> judged_otherwise({"temperature": 0.6}), judged_otherwise({"temperature": 0.0})
      ('exits were judged by greedy answers, and one that is sampled there may be another', None)
    """
    if is_greedy(sampling or {}):
        return None
    return "exits were judged by greedy answers, and one that is sampled there may be another"


def left_out(found: Certificate) -> str | None:
    """How many traces could not judge and what became of them, in a clause; None where all could."""
    if not found.n_unjudged:
        return None
    fate = "were left out" if found.unjudged == "refuse" else "count as errors"
    return f"{found.n_unjudged} traces could not judge and {fate}"


def provisos(found: Certificate, sampling: Mapping[str, Any] | None) -> str:
    """What has to be said with a certificate's promise, as clauses to append to it; empty where there is nothing.

    Args:
      found: the certificate.
      sampling: of its traces; None where it is not known.
    """
    trial = "counted on trial answers" if found.answers == "trial" else None
    worst = f"of the worst of {len(found.groups)} groups" if found.groups else None
    clauses = (worst, trial, left_out(found), judged_otherwise(sampling))
    return "".join(f"; {clause}" for clause in clauses if clause is not None)


def exits_of(policy: Policy) -> str:
    """Where a policy exits, for people: all that it says, as its thresholds alone would be another policy's.

    Example:
      >>> exits_of(Policy(thresholds={"validity": 0.9}, early={"validity": 0.45}, patience=2, max_thinking_tokens=4000))
      'validity 0.9 (8 tokens before, validity 0.45), 2 boundaries in a row, and at any boundary from 4,000 tokens on'
      >>> exits_of(Policy(thresholds={}, min_thinking_tokens=500))
      'any boundary, from 500 tokens on'
    """
    held, early = (
        " and ".join(f"{name} {value:g}" for name, value in thresholds.items())
        for thresholds in (policy.thresholds, policy.early)
    )
    said = (held or "any boundary") + (f" ({EARLY_TOKENS} tokens before, {early})" if early else "")
    if policy.patience > 1:
        said += f", {policy.patience} boundaries in a row"
    if policy.smoothing != "none":
        by = {"ewma": "token", "round": "round"}[policy.smoothing]
        said += f", signals averaged by {by} with weight {policy.alpha:g} of the newest"
    if policy.min_thinking_tokens:
        said += f", from {policy.min_thinking_tokens:,} tokens on"
    if policy.max_thinking_tokens is not None:
        said += f", and at any boundary from {policy.max_thinking_tokens:,} tokens on"
    return said


def in_percent(share: float) -> str:
    """A share in percent, with all of its digits: a rounded one could promise more than is known.

    Example:
      >>> in_percent(0.0125), in_percent(0.05), confidence(0.1), confidence(0.001)
      ('1.25', '5', '90', '99.9')
    """
    return f"{(100 * Decimal(repr(share))).normalize():f}"


def confidence(delta: float) -> str:
    """The confidence ``1 - delta`` in percent, with all of its digits."""
    return f"{(100 - 100 * Decimal(repr(delta))).normalize():f}"


def _differs(name: str, served: str | None, made: str) -> str:
    if name in EDITED:
        return f"config.json of the draft was changed since it was calibrated, and says {EDITED[name]}"
    return f"{name} is {_short(served)}, calibrated with {_short(made)}"


def _compared(name: str, value: str | None) -> str | None:
    return CHECKPOINT_NAMES.get(value, value) if name == "quantization" and value is not None else value


def _short(value: str | None) -> str:
    return "unknown" if value is None else value[:12] if len(value) == 64 else cut(value)
