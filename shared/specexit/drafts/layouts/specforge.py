"""sgl-project/SpecForge, and what SGLang serves: aux layers nested in ``eagle_config``, if they are named at all."""

from specexit.drafts.layouts.layout import Layout, architecture, plain_fields

SPECFORGE = Layout(
    "specforge",
    "sgl-project/SpecForge, SGLang and NVIDIA's Model-Optimizer: LlamaForCausalLMEagle3",
    architecture("LlamaForCausalLMEagle3", "Eagle3Qwen3ForCausalLM"),  # the second is vLLM's, of our own exports
    plain_fields,
)
