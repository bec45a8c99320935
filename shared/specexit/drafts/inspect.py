"""``specexit inspect DIR``: what is in a draft directory, for people."""

from __future__ import annotations

import math
from pathlib import Path

from rich.console import Console
from rich.table import Table

from specexit.buckets import BucketPath
from specexit.config import ConfigError
from specexit.data.overlap import read_prompts
from specexit.drafts.begun import imported_as
from specexit.drafts.certified import confidence, doubts_of, exits_of, in_percent, provisos
from specexit.drafts.directory import check_given, open_draft
from specexit.drafts.export import formats_of, weights_type
from specexit.drafts.files import TensorError
from specexit.drafts.hold import FILE as HOLD
from specexit.drafts.hold import held_points
from specexit.drafts.policy import PolicyFile, read_policy
from specexit.drafts.published import Origin, read_origin
from specexit.drafts.tensors import weights_hash
from specexit.drafts.verified import acceptance_words, read_verification
from specexit.errors import cut, printable
from specexit.schemas.inspect import InspectConfig
from specexit.schemas.target import TargetConfig, find_target


def inspect(config: InspectConfig) -> dict[str, str]:
    """Print and return what is known of a draft directory.

    Raises:
      DraftError, ConfigError, OverlapError: it is none, or a damaged one, or belongs to another target than the one
        given.
    """
    rows = describe(config.draft, config.target)
    check_given(config.draft, config.target)
    table = Table(title=str(config.draft), title_justify="left", show_header=False, box=None)
    for _ in range(2):
        table.add_column(overflow="fold")  # a long name is given whole
    for name, value in rows.items():
        table.add_row(printable(name), printable(value))
    Console(markup=False).print(table)
    return rows


def describe(folder: Path, target: str | None = None) -> dict[str, str]:
    """What is in a draft directory, as (what, in words).

    Args:
      folder: the directory.
      target: its target, by default the one that it names; where that is not at hand, nothing is said of it.
    """
    (draft, stored), origin = open_draft(folder), read_origin(folder)
    layers = ", ".join(map(str, draft.eagle_aux_hidden_state_layer_ids))
    flags = ("attention_bias", "own_embeddings", "norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")
    variants = [flag for flag in flags if getattr(draft, flag)] + (["qwen3"] if draft.model_type == "qwen3" else [])
    weights = sum(math.prod(place.shape) for name, place in stored.items() if name not in ("d2t", "t2d"))
    scaling = f", scaled: {draft.rope_scaling.kind} x{draft.rope_scaling.factor:g}" if draft.rope_scaling else ""
    window = "" if draft.sliding_window is None else f", attends to the last {draft.sliding_window} tokens"
    found = _target_of(folder, target, draft.target_name)
    name = draft.target_name or (origin.target if origin else "not named" if found is None else found.name)
    rows = {
        "target": f"{cut(name)}, hidden size {draft.target_hidden_size}, {draft.vocab_size} tokens",
        "reads": f"the residual stream after layers {layers} of {draft.target_num_hidden_layers}",
        "geometry": f"hidden size {draft.hidden_size}, {draft.num_attention_heads} heads ({draft.num_key_value_heads} "
        f"key/value) of {draft.head_dim}, MLP {draft.intermediate_size}",
        "positions": f"up to {draft.max_position_embeddings}, rope theta {draft.rope_theta:g}{scaling}{window}",
        "variants": ", ".join(variants) or "none",
        "draft vocabulary": f"{draft.draft_vocab_size} tokens",
        "weights": f"{weights / 1e6:,.1f} M in {weights_type(stored)}, "
        f"{sum(place.nbytes for place in stored.values()) / 2**20:,.1f} MiB, blake3 {weights_hash(folder)[:16]}",
        "signals": f"source {draft.specexit.source}: {', '.join(draft.specexit.signals)}" if draft.specexit else "none",
    }
    model = None if found is None or isinstance(found.folder, BucketPath) else found.folder
    if draft.specexit:
        policy = read_policy(folder)
        rows |= _policy(policy, doubts_of(folder, policy, model))
        rows |= _serving(policy, held_points(folder, policy))
    rows["origin"] = _imported(folder, origin) if origin else _trained(folder)
    rows["verified"] = _verified(folder, model)
    rows["exports to"] = ", ".join(formats_of(draft, folder, stored))
    return rows


def _imported(folder: Path, origin: Origin) -> str:
    prompts = read_prompts(folder)
    on = "" if prompts is None else f", trained on {len(prompts):,} prompts that are listed"
    other = "" if origin.target_said is None else f"; its config names another target, {cut(origin.target_said)}"
    return f"imported, layout {cut(origin.layout)}{on}{other}"


def _trained(folder: Path) -> str:
    prompts, imported = read_prompts(folder), imported_as(folder)
    if prompts is None and imported is None:
        return "not recorded"
    on = "" if prompts is None else f", on {len(prompts):,} prompts"
    return f"trained here{on}" if imported is None else f"imported, layout {imported}, and trained further here{on}"


def _policy(found: PolicyFile, doubts: list[str]) -> dict[str, str]:
    rows = {}
    for point in found.points:
        certificate, c = "no certificate", point.certificate
        own = point.uncertified_because()
        wrong = [*([] if own is None else [own]), *doubts]
        if c is not None and wrong:
            certificate = f"not certified: {'; '.join(wrong)}"
        elif c is not None:
            what = {"answer_changed": "answers changed", "accuracy_lost": "right answers lost"}[c.risk]
            most = f"at most {in_percent(c.epsilon)}% with {confidence(c.delta)}% confidence"
            certificate = f"{what}: {most} ({c.n} prompts){provisos(c, found.sampling)}"
        default = ", default" if found.default == point.name != "default" else ""
        rows[f"policy {point.name}{default}"] = f"exits at {exits_of(point.policy)}; {certificate}"
    return rows


def _serving(found: PolicyFile, held: list[str]) -> dict[str, str]:
    """What keeps exits from being made, where something does."""
    mode = found.serving.mode
    said = [] if mode == "exit" else [f"mode {mode}: no exits are made"]
    said += [f"audits have shown a risk above epsilon at {', '.join(held)} ({HOLD})"] if held else []
    return {"serving": "; ".join(said)} if said else {}


def _target_of(folder: Path, given: str | None, name: str | None) -> TargetConfig | None:
    """The target; None where nothing says it, or its file is not on this machine."""
    try:
        return find_target(given, folder, name=name)
    except (ConfigError, TensorError):
        return None


def _verified(folder: Path, target: Path | None) -> str:
    found, doubt = read_verification(folder, target)
    if found is None:
        return str(doubt)
    said = doubt or f"yes, on {found.n} traces"
    return f"{said}; {acceptance_words(found.acceptance)}" if found.acceptance else said
