"""What a draft's ``config.json`` decides beside its weights, as hashes: other numbers there make another draft of them.

Scores are of the computation, certificates and benchmarks of the boundaries as well. What those were made with is
compared with what the file says by now, see `specexit.data.scores.check_scores_of` and `specexit.drafts.certified`.
"""

from __future__ import annotations

from specexit.differences import fields_sha256
from specexit.drafts.config import DraftConfig
from specexit.schemas.target import BOUNDARIES

BESIDE = {"specexit", "architectures", "max_position_embeddings", "torch_dtype"}
"""Fields of ``config.json`` that no number hangs on: the weights have a type of their own, and RoPE turns alike at any
position, as a scaling states the length that it stretches."""


def config_hashes(draft: DraftConfig) -> dict[str, str]:
    """SHA-256 of what decides the signals and the drafted tokens (``computation``) and of what decides where thinking
    may end (``boundaries``, of a draft with signals alone).

    A field that is added to drafts later, and that one does not state, leaves them as they are.
    """
    computed = draft.model_dump(mode="json", exclude=BESIDE, exclude_defaults=True)
    if "rope_scaling" in computed:  # as some programs write 4 where others write 4.0
        scaling = computed["rope_scaling"].items()
        computed["rope_scaling"] = {name: float(value) if type(value) is int else value for name, value in scaling}
    found = {"computation": fields_sha256(computed)}
    if (block := draft.specexit) is not None:
        said = {name: getattr(block, name) for name in BOUNDARIES}  # of strings that are looked for, no order
        sets = {name: value if isinstance(value, str) else sorted({*value}) for name, value in said.items()}
        found["boundaries"] = fields_sha256(sets)
    return found
