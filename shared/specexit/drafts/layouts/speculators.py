"""vllm-project/speculators, and Red Hat's drafts: the decoder's config in an object of its own, the target named.

A config without ``norm_before_residual`` is refused: speculators takes that for false and vLLM for true.
"""

from specexit.drafts.layouts.keys import Keys
from specexit.drafts.layouts.layout import Fields, Layout, decoder_fields, eagle_fields, of_target, take_window


def _fields(keys: Keys) -> Fields:
    keys.ignore("architectures", "speculators_version", "has_no_defaults_at_init")
    keys.ignore("transformers_version", "torch_dtype", "dtype", "auto_map", "embed_requires_grad", "_name_or_path")
    keys.ignore("attn_implementation", "base_model_ep_plan")
    keys.only("speculators_model_type", "eagle3")
    if isinstance(keys.rest.get("specexit"), dict):
        raise keys.error("specexit", "...", "an export with signals, for `vllm serve`: take the draft it was made from")
    if not isinstance(keys.rest.get("norm_before_residual"), bool):
        raise keys.error("norm_before_residual", keys.rest.get("norm_before_residual"), "expected true or false")
    target = _speculation(keys.inner("speculators_config"))
    inner = keys.inner("transformer_layer_config")
    count = inner.take("num_aux_hidden_states", int, None)  # where vLLM reads it, and so where our exports have it
    inner.ignore("architectures", "tie_word_embeddings", "attn_implementation")
    window = take_window(inner)  # 0.9.0 trains with one, unless it is told otherwise
    decoder = decoder_fields(inner) | {"sliding_window": window}
    inner.finish()
    fields = eagle_fields(keys, decoder)
    if count is not None and fields["num_aux_hidden_states"] not in (None, count):
        raise keys.error(
            "num_aux_hidden_states", fields["num_aux_hidden_states"], f"but transformer_layer_config says {count}"
        )
    return fields | target | ({} if count is None else {"num_aux_hidden_states": count})


def _speculation(keys: Keys) -> Fields:
    """What ``speculators_config`` says of the target; the rest says how to speculate, not what the draft computes."""
    keys.only("algorithm", "eagle3")
    keys.ignore("default_proposal_method")
    for place, method in enumerate(keys.take("proposal_methods", list, [])):
        if not isinstance(method, dict):
            raise keys.error(f"proposal_methods[{place}]", method, "expected an object")
        one = Keys(method, keys.path, f"{keys.within}proposal_methods[{place}].")
        one.ignore("proposal_type", "speculative_tokens", "accept_tolerance", "verifier_accept_k")
        one.finish()
    verifier = keys.inner("verifier")
    target = of_target(verifier, architectures="architectures", named="name_or_path")
    verifier.finish()
    keys.finish()
    return target


SPECULATORS = Layout(
    "speculators",
    "vllm-project/speculators and Red Hat's drafts: speculators_model_type eagle3",
    lambda raw, _: "speculators_model_type" in raw,
    _fields,
    layer="layers.0",
)
