"""Tencent/AngelSlim: as SafeAILab's, under vLLM's class name, which older ones spell with another L and f.

Its trainer builds the same Llama layer for every target, and saves whatever its config file says beside it; that of
a Hunyuan target has the target's own words. Its SpecExit drafts say ``early_stop_method`` and have three further rows
of ``fc``. None has been published, and such rows without the fourth signal make no draft of ours, so they are refused;
`specexit.drafts.export` writes that layout.
"""

from specexit.drafts.layouts.keys import Keys
from specexit.drafts.layouts.layout import Fields, Layout, architecture, llama_fields

_OF_HUNYUAN = (
    *("add_classification_head", "attention_head_dim", "cla_share_factor", "class_num", "dense_list", "norm_type"),
    *("eod_token_id", "im_end_id", "im_newline_id", "im_start_id", "mask_init_id", "pad_id", "sep_token_id"),
    *("org_vocab_size", "pool_type", "text_end_id", "text_start_id", "use_cla", "use_qk_norm", "use_rotary_pos_emb"),
)
"""Keys of a Hunyuan target, none of which the draft's class reads."""


def _fields(keys: Keys) -> Fields:
    keys.only("early_stop_method")
    keys.ignore(*_OF_HUNYUAN)
    return llama_fields(keys)


ANGELSLIM = Layout(
    "angelslim",
    "Tencent/AngelSlim: Eagle3LlamaForCausalLM",
    architecture("Eagle3LlamaForCausalLM", "Eagle3LLamaforCausalLM"),
    _fields,
)
