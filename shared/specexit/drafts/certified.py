"""Whether a draft's certificates hold for what is served, or lies there: what they were made with, compared.

Servers ask it of all that they serve; `inspect`, `migrate` and the model card of what a draft directory says by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from specexit.buckets import BucketPath
from specexit.drafts.fingerprints import target_fingerprint
from specexit.drafts.policy import FILE, Certificate, Fingerprints, PolicyFile
from specexit.drafts.tensors import weights_hash
from specexit.errors import cut, shown
from specexit.schemas.sampling import drawn, is_greedy

CHECKPOINT_NAMES = {
    **dict.fromkeys(("auto_gptq", "gptq_marlin"), "gptq"),
    **dict.fromkeys(("auto_awq", "awq_marlin"), "awq"),
    **dict.fromkeys(("modelopt_fp4", "modelopt_mxfp8", "modelopt_mixed"), "modelopt"),
    **{"gpt_oss_mxfp4": "mxfp4", "inc": "auto-round", "compressed_tensors": "compressed-tensors"},
}
"""What vLLM calls a method of quantisation that it has found in a checkpoint -> what the checkpoint calls it, and so a
calibration. Which of them it is the fingerprint of the target says, ``config.json`` being in that."""


def doubts(file: PolicyFile, served: Mapping[str, str | None], transition: str = "") -> list[str]:
    """Why the certificates of a policy file do not hold for what is served; empty where they do.

    Where the file does not say what they were made with, as one of an older version, nothing says that it was this.

    Args:
      file: whose certificates.
      served: what is served, named as `specexit.drafts.policy.Fingerprints` has it.
      transition: text that is written at each exit. No calibration has any: it asks for answers behind the end marker
        alone.

    Example:
      >>> file = PolicyFile.model_validate({"fingerprints": {"dtype": "bfloat16"}})
      >>> doubts(file, {"dtype": "float16"})
      ['dtype is float16, calibrated with bfloat16']
    """
    calibrated = file.fingerprints.model_dump()
    differing = [
        f"{name} is {_short(served.get(name))}, calibrated with {_short(value)}"
        for name, value in calibrated.items()
        if value is not None and _compared(name, served.get(name)) != _compared(name, value)
    ]
    unknown = [name for name, value in calibrated.items() if value is None and served.get(name) is not None]
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
    """As `doubts`, of the weights and the settings in a draft directory, and of its target; nothing is said of what a
    server alone knows.

    Args:
      folder: the draft directory.
      file: its policies.
      target: folder of its target's model; where it is None, in a bucket or without weights, nothing is said of it.

    Raises:
      TensorError: the draft's weights cannot be read.
    """
    if all(point.certificate is None for point in file.points):
        return []
    mark = None if target is None or isinstance(target, BucketPath) else target_fingerprint(target)
    known = {"draft": weights_hash(folder)}
    if mark is not None:
        known["target"] = mark
    unsaid = dict.fromkeys(Fingerprints.model_fields.keys() - known.keys())
    compared = file.fingerprints.model_copy(update=unsaid)
    return doubts(file.model_copy(update={"fingerprints": compared}), known, file.serving.transition)


def judged_otherwise(sampling: Mapping[str, Any] | None) -> str | None:
    """What belongs to every word about a certificate of sampled text: trials, and answers written in full, are greedy.

    Args:
      sampling: of the calibration traces, where it is known.

    Returns:
      It in a clause; None of greedy text, of which they are the answers that are served.

    Example:
      >>> judged_otherwise({"temperature": 0.6}), judged_otherwise({"temperature": 0.0})
      ('exits were judged by greedy answers, and one that is sampled there may be another', None)
    """
    if is_greedy(sampling or {}):
        return None
    return "exits were judged by greedy answers, and one that is sampled there may be another"


def left_out(found: Certificate) -> str | None:
    """Traces that no certificate speaks of, in a clause; None where there are none."""
    if not found.n_unjudged:
        return None
    fate = "were left out" if found.unjudged == "refuse" else "count as errors"
    return f"{found.n_unjudged} traces could not judge and {fate}"


def provisos(found: Certificate, sampling: Mapping[str, Any] | None) -> str:
    """What belongs to a certificate's promise wherever it stands alone, as clauses to be put behind it.

    Args:
      found: the certificate.
      sampling: of its traces, where it is known.
    """
    trial = "counted on trial answers" if found.answers == "trial" else None
    worst = f"of the worst of {len(found.groups)} groups" if found.groups else None
    clauses = (worst, trial, left_out(found), judged_otherwise(sampling))
    return "".join(f"; {clause}" for clause in clauses if clause is not None)


def in_percent(share: float) -> str:
    """A share with all of its digits: rounded, what is promised would be more than is known.

    Example:
      >>> in_percent(0.0125), in_percent(0.05), confidence(0.1), confidence(0.001)
      ('1.25', '5', '90', '99.9')
    """
    return f"{(100 * Decimal(repr(share))).normalize():f}"


def confidence(delta: float) -> str:
    """1 less that share, in percent."""
    return f"{(100 - 100 * Decimal(repr(delta))).normalize():f}"


def _compared(name: str, value: str | None) -> str | None:
    return CHECKPOINT_NAMES.get(value, value) if name == "quantization" and value is not None else value


def _short(value: str | None) -> str:
    return "unknown" if value is None else value[:12] if len(value) == 64 else cut(value)
