"""lightseekorg/TorchSpec: SpecForge's names, and a config that counts its aux hidden states."""

from specexit.drafts.layouts.layout import Layout, plain_fields

TORCHSPEC = Layout(
    "torchspec",
    "lightseekorg/TorchSpec: LlamaForCausalLMEagle3 with num_aux_hidden_states and no specexit block",
    lambda raw, _: raw.get("architectures") == ["LlamaForCausalLMEagle3"] and "num_aux_hidden_states" in raw,
    plain_fields,
)
