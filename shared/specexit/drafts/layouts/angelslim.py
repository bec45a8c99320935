"""Tencent/AngelSlim: SafeAILab's layout under vLLM's class name, which older drafts spell with ``LL`` and small ``f``.

Its trainer builds the same Llama layer for every target, and saves whatever its config file says beside it, for a
Hunyuan target that target's own keys. Its SpecExit drafts say ``early_stop_method`` and have three further rows of
``fc``. None has been published, and such rows without the fourth signal make no draft of ours, so they are refused;
`specexit.drafts.export` writes that layout.

The trainer rotates with theta 10,000 in every revision that was read, while the config has the target's theta.
AngelSlim's own inference and vLLM go by the config, so a published draft is not served as it was trained.
"""

from specexit.drafts.layouts.keys import Keys
from specexit.drafts.layouts.layout import Fields, Layout, architecture, llama_fields
from specexit.errors import shown

TRAINED_THETA = 10_000.0
_OF_HUNYUAN = (
    *("add_classification_head", "attention_head_dim", "cla_share_factor", "class_num", "dense_list", "norm_type"),
    *("eod_token_id", "im_end_id", "im_newline_id", "im_start_id", "mask_init_id", "pad_id", "sep_token_id"),
    *("org_vocab_size", "pool_type", "text_end_id", "text_start_id", "use_cla", "use_qk_norm", "use_rotary_pos_emb"),
)
"""Keys of a Hunyuan target, none of which the draft's class reads."""


def _fields(keys: Keys) -> Fields:
    keys.only("early_stop_method")
    keys.ignore(*_OF_HUNYUAN)
    _undo_dynamic(keys)
    fields = llama_fields(keys)
    said, scaling = fields["rope_theta"], fields["rope_scaling"]
    if said == TRAINED_THETA or (scaling is not None and scaling.kind != "linear"):  # its trainer has no other kind
        return fields
    keys.note(
        f"rope_theta is {shown(said)}, but taken as {TRAINED_THETA:g}: AngelSlim's trainer rotates with that whatever "
        "the config says; for a draft of another trainer say layout=specforge, which goes by the config, and let "
        "`specexit verify` judge"
    )
    return fields | {"rope_theta": TRAINED_THETA}


def _undo_dynamic(keys: Keys) -> None:
    """Drop a scaling of type dynamic, which AngelSlim's trainer applies only beyond ``max_position_embeddings``."""
    for key in ("rope_scaling", "rope_parameters"):
        rope = keys.rest.get(key)
        if isinstance(rope, dict) and rope.get("type", rope.get("rope_type")) == "dynamic":
            keys.rest[key] = {"rope_theta": rope.get("rope_theta")}
            keys.note(
                f"{key} is of type 'dynamic', and is passed over: in AngelSlim's trainer it changes no position before "
                "max_position_embeddings; vLLM would read its alpha and rotate otherwise"
            )


ANGELSLIM = Layout(
    "angelslim",
    "Tencent/AngelSlim: Eagle3LlamaForCausalLM",
    architecture("Eagle3LlamaForCausalLM", "Eagle3LLamaforCausalLM"),
    _fields,
)
