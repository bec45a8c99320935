"""sgl-project/SpecForge, and what SGLang serves: aux layers nested in ``eagle_config``, if they are named at all.

Its draft is a Llama layer with LlamaConfig's defaults whatever the target is. What it copies from one into the config
(``model_type``, ``attention_bias``, the width of a sliding window) is not believed: the tensors tell.
"""

from specexit.drafts.layouts.keys import Keys
from specexit.drafts.layouts.layout import Fields, Layout, architecture, llama_fields, plain_fields

LLAMA = "LlamaForCausalLMEagle3"


def _fields(keys: Keys) -> Fields:
    return llama_fields(keys) if keys.rest.get("architectures") == [LLAMA] else plain_fields(keys)


SPECFORGE = Layout(
    "specforge",
    f"sgl-project/SpecForge, SGLang and NVIDIA's Model-Optimizer: {LLAMA}",
    architecture(LLAMA, "Eagle3Qwen3ForCausalLM"),  # the second is vLLM's, of our own exports
    _fields,
)
