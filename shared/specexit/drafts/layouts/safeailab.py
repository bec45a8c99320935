"""SafeAILab/EAGLE, the authors' own: Hugging Face's class name of the target, no word of the aux layers.

The layers are those that every engine takes by default: in front of layers 2, n // 2 and n - 3 of the target. Its
config is the target's with a few keys changed, or none: its draft of Vicuna 13B says 40 layers, and has one.
Its trainer rotates with theta 10,000, its inference with the config's ``rope_theta``, which its own configs lack.
"""

from specexit.drafts.layouts.keys import Keys
from specexit.drafts.layouts.layout import Fields, Layout, llama_fields
from specexit.errors import shown

_TARGETS = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "MixtralForCausalLM")


def _fields(keys: Keys) -> Fields:
    keys.ignore("max_sequence_length")  # of Vicuna 33B's config, beside max_position_embeddings, which is what is read
    fields = llama_fields(keys)
    if fields["rope_theta"] != 10_000:
        keys.note(
            f"rope_theta is {shown(fields['rope_theta'])}, and is kept; SafeAILab's trainer rotates with 10000 "
            "whatever the config says: `specexit verify` tells which of the two it was trained with"
        )
    return fields


SAFEAILAB = Layout(
    "safeailab",
    "SafeAILab/EAGLE: the authors' drafts, pytorch_model.bin in float16",
    lambda raw, names: (
        raw.get("architectures") in [[name] for name in _TARGETS]
        and any(Layout.ours(name) == "fc.weight" for name in names)  # which a target has not
    ),
    _fields,
)
