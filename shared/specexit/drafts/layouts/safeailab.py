"""SafeAILab/EAGLE, the authors' own: Hugging Face's class name of the target, no word of the aux layers.

The layers are those that every engine takes by default: in front of layers 2, n // 2 and n - 3 of the target. Its
config is the target's with a few keys changed, or none: its draft of Vicuna 13B says 40 layers, and has one.
"""

from specexit.drafts.layouts.layout import Layout, llama_fields

_TARGETS = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "MixtralForCausalLM")

SAFEAILAB = Layout(
    "safeailab",
    "SafeAILab/EAGLE: the authors' drafts, pytorch_model.bin in float16",
    lambda raw, names: (
        raw.get("architectures") in [[name] for name in _TARGETS]
        and any(Layout.ours(name) == "fc.weight" for name in names)  # which a target has not
    ),
    llama_fields,
)
