"""sgl-project/SpecForge, and what SGLang serves: aux layers nested in ``eagle_config``, if they are named at all.

Its draft is a Llama layer with LlamaConfig's defaults whatever the target is. What it copies from one into the config
(``model_type``, ``attention_bias``, the width of a sliding window) is not believed: the tensors tell.
"""

from specexit.drafts.layouts.keys import Keys
from specexit.drafts.layouts.layout import Fields, Layout, architecture, llama_fields, plain_fields

LLAMA = "LlamaForCausalLMEagle3"


_NORM_OUTPUT = {
    True: "each draft step reads the normed output of the one before, as vLLM does; in SpecForge up to August 2026 it "
    "read the output before the norm with true, which is norm_output false",
    False: "each draft step reads the output before the norm, as vLLM does; SpecForge up to August 2026 had no norm in "
    "front of the LM head with false, which nothing here computes",
}
"""The meaning of the flag that is assumed, and the one that SpecForge gave it at first; it said true by default."""


def _fields(keys: Keys) -> Fields:
    if keys.rest.get("architectures") != [LLAMA]:
        return plain_fields(keys)
    said = keys.rest.get("norm_output")
    if isinstance(said, bool) and "own_embeddings" not in keys.rest:  # which our own exports say, in vLLM's meaning
        keys.note(
            f"norm_output is {str(said).lower()}, taken as: {_NORM_OUTPUT[said]}; `specexit verify` tells the two apart"
        )
    return llama_fields(keys)


SPECFORGE = Layout(
    "specforge",
    f"sgl-project/SpecForge, SGLang and NVIDIA's Model-Optimizer: {LLAMA}",
    architecture(LLAMA, "Eagle3Qwen3ForCausalLM"),  # the second is vLLM's, of our own exports
    _fields,
)
