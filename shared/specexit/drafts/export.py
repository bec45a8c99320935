"""``specexit export``: a draft directory in the form that another program reads, tensor by tensor, with a model card.

Every format is the same trunk under other names and another config; `Form` says which. Weights keep type and bits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from specexit.buckets import BucketPath
from specexit.config import write_bytes, write_text
from specexit.data.overlap import copy_prompts
from specexit.data.teacher import EMBEDDING
from specexit.drafts import policy
from specexit.drafts.begun import hand_on_record
from specexit.drafts.card import write_card
from specexit.drafts.config import (
    ARCHITECTURES,
    MAX_CONFIG,
    PLAIN_ARCHITECTURE,
    PLAIN_ARCHITECTURES,
    DraftConfig,
    DraftError,
    check_target,
)
from specexit.drafts.directory import check_values, open_draft, target_ids, weights_path
from specexit.drafts.files import TensorError, read_bytes, read_json
from specexit.drafts.hold import FILE as HOLD
from specexit.drafts.layouts import LAYOUTS
from specexit.drafts.published import FILE as IMPORT_FILE
from specexit.drafts.published import read_origin
from specexit.drafts.rope import scaling_fields
from specexit.drafts.target_weights import some_of
from specexit.drafts.tensors import (
    FLOATS,
    Stored,
    pieces_hash,
    tensor_hash,
    together,
    weights_hash,
    write_tensors,
)
from specexit.drafts.verified import FILE as VERIFIED
from specexit.drafts.verified import MAX_BYTES as MOST_VERIFIED
from specexit.drafts.window import window_fields
from specexit.errors import shown
from specexit.method.signals import NAMES
from specexit.outputs import new_folder
from specexit.schemas.export import ExportConfig
from specexit.schemas.target import TargetConfig, find_target, save_target

Pieces = Callable[[], Iterator[np.ndarray]]
Tensor = tuple[np.dtype, tuple[int, ...], Pieces | Stored]
"""Type, shape, and the values: in pieces, or where they lie."""


@dataclass(frozen=True)
class Form:
    """What a format's folder holds."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    files: tuple[str, ...] = ()
    """Further files of the draft directory that go along."""
    weights: str | None = None
    """Hash that the written tensors must have; None where any will do."""


def export(config: ExportConfig) -> None:
    """Write the draft in ``config.format`` to ``config.out``, with a model card.

    Raises:
      DraftError: the draft cannot be read, has something that the format cannot state, or is of another target; with
        ``original``, its weights have changed since the import.
      PolicyError: the format carries the policy, and that cannot be used.
      ConfigError: the target is not said, unknown or unreadable.
      FileExistsError: ``out`` is there and not empty.
    """
    draft, stored = open_draft(config.draft, needs_policy=config.format in ("plugin", "speculators"))
    # A target that is given may have another name: it is the same model in another place, as far as its sizes tell.
    named = draft.target_name if config.target is None else None
    target = find_target(config.target, config.draft, name=named)
    _check_sizes(draft, config.draft, target)
    form = FORMATS[config.format](config, draft, stored, target)
    path = weights_path(config.draft)
    with new_folder(config.out) as beside:
        shapes = {name: (dtype, shape) for name, (dtype, shape, _) in form.tensors.items()}
        written = write_tensors(
            beside,
            shapes,
            lambda name: source if isinstance(source := form.tensors[name][2], Stored) else source(),
            int(config.max_file_gib * 2**30),
            look=lambda name, values: check_values(name, values, path),
        )
        if form.weights not in (None, together(written)):
            raise DraftError(
                f"{path}: the weights have changed since they were imported: blake3 {together(written)[:16]}, "
                f"expected {str(form.weights)[:16]} ({IMPORT_FILE}); use format=eagle3"
            )
        write_text(beside / "config.json", json.dumps(form.config, indent=2) + "\n")
        for file in form.files:
            if (config.draft / file).exists():
                write_bytes(beside / file, read_bytes(config.draft / file, policy.MAX_BYTES))
        if config.format == "eagle3":
            _leave_out_signals(beside / VERIFIED)
        if config.format == "plugin":
            hand_on_record(config.draft, beside)
        _follow(config.draft, beside, together(written))
        if config.base_model is not None and policy.FILE in form.files:
            _leave_out_callers(beside)
        if config.format in ("plugin", "eagle3"):  # these are draft directories, judged like the one exported
            copy_prompts(config.draft, beside)
            if config.base_model is None:  # else no path of this machine goes along, and the target's is one
                own = draft.target_name or target.name  # the name that whatever reads the folder asks for
                save_target(beside, target.model_copy(update={"name": own}))
        write_card(beside, config, draft, target)
    said = f"{config.draft} -> {config.out} ({config.format})"
    Console(stderr=True).print(said, soft_wrap=True, markup=False, highlight=False)


def _check_sizes(draft: DraftConfig, folder: Path, target: TargetConfig) -> None:
    """Check that a draft belongs to its target, where that is at hand: an export needs no model.

    Raises:
      DraftError, ConfigError: see `check_target`, and the target's ``hf_config``.
    """
    model = target.folder
    if isinstance(model, BucketPath):
        return
    if (model / "config.json").exists() or (target.config is not None and not model.exists()):
        check_target(draft, folder, target.hf_config(), target.name)


def _follow(draft: Path, folder: Path, written: str) -> None:
    """Put the hash of the written weights in the place of the draft's own in the copied policy and verification.

    The weights are the same, but their names are not, and the hash is of both.
    """
    was = weights_hash(draft)
    if was == written:
        return
    for file in (policy.FILE, VERIFIED):
        if (folder / file).exists():
            write_bytes(folder / file, (folder / file).read_bytes().replace(was.encode(), written.encode()))


def _leave_out_signals(path: Path) -> None:
    """Take the differences of signals out of the verification of a draft that is written without them."""
    try:
        said = read_json(path, MOST_VERIFIED)
        differences = said["differences"]
        said["differences"] = {name: value for name, value in differences.items() if name not in NAMES}
    except (TensorError, KeyError, TypeError, AttributeError):  # there is none, or none that anybody could use
        return
    write_text(path, json.dumps(said, indent=2) + "\n")


CALLERS = ("tenants", "loras")
"""Serving settings that say whom an operator serves: an API key's hash tells it to whoever guesses the key."""


def _leave_out_callers(folder: Path) -> None:
    """Take `CALLERS` out of a folder that is to be published; an older version has them in ``config.json``."""
    for file in (policy.FILE, "config.json"):
        said = json.loads((folder / file).read_bytes()) if (folder / file).exists() else {}
        serving = (said if file == policy.FILE else said.get("specexit") or {}).get("serving") or {}
        left = [key for key in CALLERS if serving.pop(key, None)]
        if left:
            write_text(folder / file, json.dumps(said, indent=2) + "\n")
            _warn(f"serving.{' and serving.'.join(left)} are left out of {file}, which is to be published")


def _as_they_are(stored: dict[str, Stored]) -> dict[str, Tensor]:
    return {name: (place.dtype, place.shape, place) for name, place in stored.items()}


def _trunk(draft: DraftConfig, stored: dict[str, Stored], rows: int = 0) -> dict[str, Tensor]:
    """The draft's tensors without its signals; ``fc.weight`` keeps the first ``rows`` of them behind its own rows."""
    found = _as_they_are(stored)
    found.pop("signal_head.weight", None)
    place, height = stored["fc.weight"], draft.hidden_size + rows
    if place.shape[0] != height:
        found["fc.weight"] = (place.dtype, (height, place.shape[1]), lambda: iter([place.read()[:height]]))
    return found


def _plugin(config: ExportConfig, draft: DraftConfig, stored: dict[str, Stored], target: TargetConfig) -> Form:
    if draft.specexit is None:
        raise DraftError(f"{config.draft}: has no signals, expected a draft of `specexit convert`; use format=eagle3")
    raw = read_json(config.draft / "config.json", MAX_CONFIG) | {"architectures": [ARCHITECTURES[draft.model_type]]}
    return Form(raw, _as_they_are(stored), (policy.FILE, HOLD, VERIFIED, IMPORT_FILE))


def _eagle3(config: ExportConfig, draft: DraftConfig, stored: dict[str, Stored], target: TargetConfig) -> Form:
    """For vLLM and SGLang alike: the aux layers stand in both places, counted as each of them counts."""
    _warn_of_sglang(config.draft, draft)
    fields = draft.model_dump(mode="json", exclude={"specexit"}) | window_fields(draft.sliding_window)
    architecture = PLAIN_ARCHITECTURES[draft.model_type]
    layers = draft.eagle_aux_hidden_state_layer_ids
    nested = {"use_aux_hidden_state": True, "eagle_aux_hidden_state_layer_ids": [layer - 1 for layer in layers]}
    beside = {"eagle_config": nested} if _in_front_of_layers(draft) else {}
    return Form(fields | {"architectures": [architecture]} | beside, _trunk(draft, stored), (VERIFIED,))


def _warn_of_sglang(folder: Path, draft: DraftConfig) -> None:
    """Warn of what SGLang's draft class lacked where it was read; it drops tensors that it has no use for."""
    flags = ("attention_bias", "norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")
    beyond = [f"{flag} true" for flag in flags if getattr(draft, flag)]
    beyond += ["model_type 'qwen3'"] if draft.model_type == "qwen3" else []
    beyond += [] if draft.sliding_window is None else [f"sliding_window {draft.sliding_window}"]
    layers = list(draft.eagle_aux_hidden_state_layer_ids)
    beyond += [f"aux layers {layers}"] if len(layers) != 3 or not _in_front_of_layers(draft) else []
    if beyond:
        _warn(
            f"{folder}: {', '.join(beyond)}: vLLM serves that, but {PLAIN_ARCHITECTURE} of SGLang did not have it in "
            "the revision that was read: it does not load the draft, or computes another one and says nothing"
        )


def _in_front_of_layers(draft: DraftConfig) -> bool:
    """Whether SGLang sees all aux states: it takes them between layers, so not the embedding or the last output."""
    layers = draft.eagle_aux_hidden_state_layer_ids
    return layers[0] > 0 and layers[-1] < draft.target_num_hidden_layers


def _warn(text: str) -> None:
    Console(stderr=True).print(text, style="yellow", soft_wrap=True, markup=False, highlight=False)


def _embeddings(config: ExportConfig, draft: DraftConfig, target: TargetConfig) -> dict[str, Tensor]:
    """The target's embeddings, in its own type, where the draft has none; empty where it has, or they are not at hand.

    vLLM would take them from the target. speculators 0.9.0 means to, but computes with memory that was never written,
    unless that holds a NaN.
    """
    if draft.own_embeddings:
        return {}
    place, why = None, f"no {EMBEDDING} [{draft.vocab_size}, {draft.hidden_size}] in {target.folder}"
    try:
        place = some_of(target.folder, [EMBEDDING]).get(EMBEDDING)
    except TensorError as error:
        why = str(error)
    if place is not None and place.shape == (draft.vocab_size, draft.hidden_size) and place.dtype.name in FLOATS:
        return {"embed_tokens.weight": (place.dtype, place.shape, place)}
    _warn(
        f"{config.draft}: has no embed_tokens.weight, and the target's was not found ({why}): vLLM takes it as it "
        "serves, but speculators itself computes with embeddings that were never set; export where the target's "
        "weights are"
    )
    return {}


def _speculators(config: ExportConfig, draft: DraftConfig, stored: dict[str, Stored], target: TargetConfig) -> Form:
    if draft.target_hidden_size != draft.hidden_size:
        _warn(
            f"{config.draft}: hidden_size is {draft.hidden_size}, but target_hidden_size {draft.target_hidden_size}: "
            "vLLM reads that, speculators itself expects them to be equal and does not load it"
        )
    if draft.model_type == "qwen3":
        inner = {"model_type": "qwen3", "layer_types": ["full_attention"]}
    else:
        inner = {"model_type": "llama", "mlp_bias": False, "pretraining_tp": 1}
    same = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size")
    same += ("rms_norm_eps", "rope_theta", "max_position_embeddings", "hidden_act", "attention_bias", "torch_dtype")
    fields = draft.model_dump(mode="json")
    inner |= {name: fields[name] for name in same} | {"num_hidden_layers": 1, "tie_word_embeddings": False}
    inner["rope_scaling"] = scaling_fields(draft.rope_scaling)
    inner |= window_fields(draft.sliding_window)
    inner["num_aux_hidden_states"] = draft.num_aux_hidden_states  # vLLM reads no other place, and assumes 3 there
    flags = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output", "draft_vocab_size", "torch_dtype")
    name = config.base_model or str(target.folder.absolute())  # a relative one is a name on the Hub elsewhere
    verifier = {"name_or_path": name, "architectures": target.hf_config().get("architectures", [])}
    proposal = {"proposal_type": "greedy", "speculative_tokens": config.num_speculative_tokens}
    whole = {
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": "eagle3",
        "speculators_version": "0.9.0",
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [proposal],
            "verifier": verifier,
        },
        "transformer_layer_config": inner,
        "eagle_aux_hidden_state_layer_ids": list(draft.eagle_aux_hidden_state_layer_ids),
        "target_hidden_size": None if draft.target_hidden_size == draft.hidden_size else draft.target_hidden_size,
        **{name: fields[name] for name in flags},
    }
    layout = LAYOUTS["speculators"]
    tensors = {layout.theirs(name): tensor for name, tensor in _trunk(draft, stored).items()}
    tensors |= _embeddings(config, draft, target)
    if draft.specexit is None:
        return Form(whole, tensors)
    # What our plug-in reads beside it: vLLM takes the target from speculators_config whatever class the draft is of.
    raw = read_json(config.draft / "config.json", MAX_CONFIG) | whole
    raw |= {"architectures": [ARCHITECTURES[draft.model_type]], "target_hidden_size": draft.target_hidden_size}
    return Form(raw, tensors | {SIGNALS: _signal_rows(draft, stored)}, (policy.FILE, HOLD, VERIFIED))


SIGNALS = "signal_head.weight"


def _signal_rows(draft: DraftConfig, stored: dict[str, Stored]) -> Tensor:
    """The signal rows as a tensor of their own, of either source: speculators' ``fc`` has no room for them."""
    if SIGNALS in stored:
        return _as_they_are(stored)[SIGNALS]
    place, hidden = stored["fc.weight"], draft.hidden_size
    shape = (place.shape[0] - hidden, place.shape[1])
    return place.dtype, shape, lambda: iter([place.read()[hidden:]])


ANGELSLIM = {
    **{"model_type": "llama", "attention_bias": False, "norm_before_residual": False, "norm_output": False},
    **{"rope_scaling": None, "sliding_window": None, "num_aux_hidden_states": 3},
}
"""What the released code computes, whatever a config says: it reads no such key, or ends with an error over it."""


def _beyond_angelslim(draft: DraftConfig) -> str | None:
    """What the released code would compute otherwise, or cannot load, in words; None where it computes the draft."""
    if draft.specexit is None or draft.specexit.source != "fc":
        source = draft.specexit.source if draft.specexit else None
        return f"its signals are of source {source!r}, expected 'fc' for format=angelslim"
    fields = draft.model_dump(mode="json")
    for name, only in ANGELSLIM.items():
        if fields.get(name) != only:
            value, expected = shown(fields[name]), shown(only)
            return f"{name} is {value}, expected {expected} for format=angelslim: the released code has nothing else"
    return None


def _angelslim(config: ExportConfig, draft: DraftConfig, stored: dict[str, Stored], target: TargetConfig) -> Form:
    """The released code reads three rows behind ``fc``'s own, confidence, progress and remain, in this order."""
    beyond = _beyond_angelslim(draft)
    if beyond is not None:
        raise DraftError(f"{config.draft}: {beyond}")
    layers, n = list(draft.eagle_aux_hidden_state_layer_ids), draft.target_num_hidden_layers
    if layers != [2, n // 2, n - 3]:
        _warn(
            f"{config.draft}: reads layers {layers}, but the released code reads {[2, n // 2, n - 3]} whatever a "
            "config says: it needs a change there"
        )
    # It takes the target's embeddings only where the config does not name the target's size.
    same = {"target_hidden_size"} if draft.target_hidden_size == draft.hidden_size else set()
    fields = draft.model_dump(mode="json", exclude={"specexit", *same})
    method = {"architectures": ["Eagle3LlamaForCausalLM"], "early_stop_method": "confidence_progress_remain"}
    return Form(fields | method, _trunk(draft, stored, rows=3))


def _original(config: ExportConfig, draft: DraftConfig, stored: dict[str, Stored], target: TargetConfig) -> Form:
    return _as_published(config.draft, draft, stored)


def _as_published(folder: Path, draft: DraftConfig, stored: dict[str, Stored]) -> Form:
    """The draft as it was published: under its own names, with its own config, and ``d2t`` and ``t2d`` as they were."""
    path, origin = folder / IMPORT_FILE, read_origin(folder)
    if origin is None:
        raise DraftError(f"{path}: does not exist, expected a directory of `specexit import` for format=original")
    ids = target_ids(draft, {"d2t": stored["d2t"].read()} if "d2t" in stored else {})
    vocabulary = {"d2t": ids - (0 if origin.vocabulary == "ids" else np.arange(len(ids)))}
    vocabulary["t2d"] = np.isin(np.arange(draft.vocab_size), ids)
    tensors: dict[str, Tensor] = {}
    for name, ours in origin.names.items():
        if ours in ("d2t", "t2d") and ours in origin.types:
            values = vocabulary[ours].astype(origin.types[ours])
            tensors[name] = (values.dtype, values.shape, lambda values=values: iter([values]))
        elif ours not in stored:
            raise DraftError(f"{path}: names tensor {shown(ours)}, which the draft does not have")
        else:
            place = stored[ours]
            tensors[name] = (place.dtype, place.shape, place)
    return Form(origin.config, tensors, weights=origin.weights_blake3)


FORMATS = {
    "plugin": _plugin,
    "eagle3": _eagle3,
    "speculators": _speculators,
    "angelslim": _angelslim,
    "original": _original,
}
"""Name of a format -> what its folder holds."""


def _is_as_imported(folder: Path, draft: DraftConfig, stored: dict[str, Stored]) -> bool:
    """Whether the weights are still those that were published: training changes them, and so does another type."""
    try:
        form = _as_published(folder, draft, stored)
    except DraftError:
        return False
    hashes = {
        name: tensor_hash(source) if isinstance(source, Stored) else pieces_hash(dtype, shape, source())
        for name, (dtype, shape, source) in form.tensors.items()
    }
    return form.weights in (None, together(hashes))


def formats_of(draft: DraftConfig, folder: Path, stored: dict[str, Stored]) -> list[str]:
    """The formats that a draft can be exported to. All weights of an imported draft are read for it."""
    possible = {
        "plugin": draft.specexit is not None,
        "eagle3": True,
        "speculators": True,
        "angelslim": _beyond_angelslim(draft) is None,
        "original": (folder / IMPORT_FILE).exists() and _is_as_imported(folder, draft, stored),
    }
    return [name for name in FORMATS if possible[name]]


def weights_type(stored: dict[str, Stored]) -> str:
    """The type that most weights are stored in."""
    names = [place.dtype.name for place in stored.values() if place.dtype.name in FLOATS]
    return max(sorted(set(names)), key=names.count)
