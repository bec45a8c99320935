"""sgl-project/SpecForge, and what SGLang serves: aux layers nested in ``eagle_config``, if they are named at all.

Its draft is a Llama layer with LlamaConfig's defaults whatever the target is. What it copies from one into the config
(``model_type``, ``attention_bias``, the width of a sliding window) is not believed: the tensors tell.
"""

from specexit.drafts.layouts.keys import Keys
from specexit.drafts.layouts.layout import Fields, Layout, architecture, plain_fields

LLAMA = "LlamaForCausalLMEagle3"


def llama_fields(keys: Keys) -> Fields:
    """Fields of SpecForge's class, without those that only its tensors say."""
    if keys.rest.get("architectures") != [LLAMA]:
        return plain_fields(keys)
    keys.ignore("model_type", "attention_bias", "sliding_window")
    fields = plain_fields(keys)
    del fields["model_type"], fields["attention_bias"]
    return fields


SPECFORGE = Layout(
    "specforge",
    f"sgl-project/SpecForge, SGLang and NVIDIA's Model-Optimizer: {LLAMA}",
    architecture(LLAMA, "Eagle3Qwen3ForCausalLM"),  # the second is vLLM's, of our own exports
    llama_fields,
)
