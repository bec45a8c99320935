"""vllm-project/speculators, and Red Hat's drafts: the decoder's config in an object of its own, the target named.

A config without ``norm_before_residual`` is refused: speculators takes that for false and vLLM for true.
"""

from specexit.drafts.layouts.keys import Keys
from specexit.drafts.layouts.layout import Fields, Layout, decoder_fields, eagle_fields, of_target


def _fields(keys: Keys) -> Fields:
    keys.ignore("architectures", "speculators_version", "has_no_defaults_at_init")
    keys.ignore("transformers_version", "torch_dtype", "dtype", "auto_map", "embed_requires_grad", "_name_or_path")
    keys.ignore("attn_implementation", "base_model_ep_plan")
    keys.only("speculators_model_type", "eagle3")
    if isinstance(keys.rest.get("specexit"), dict):
        raise keys.error("specexit", "...", "an export with signals, for `vllm serve`: take the draft it was made from")
    if not isinstance(keys.rest.get("norm_before_residual"), bool):
        raise keys.error("norm_before_residual", keys.rest.get("norm_before_residual"), "expected true or false")
    outer = keys.inner("speculators_config")  # whose other keys say how to speculate, not what the draft computes
    outer.only("algorithm", "eagle3")
    target = of_target(outer.inner("verifier"), architectures="architectures")
    inner = keys.inner("transformer_layer_config")
    inner.ignore("architectures", "tie_word_embeddings", "attn_implementation")
    decoder = decoder_fields(inner)
    inner.finish()
    return eagle_fields(keys, decoder) | target


SPECULATORS = Layout(
    "speculators",
    "vllm-project/speculators and Red Hat's drafts: speculators_model_type eagle3",
    lambda raw, _: "speculators_model_type" in raw,
    _fields,
    layer="layers.0",
)
