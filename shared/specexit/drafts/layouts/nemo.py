"""NVIDIA-NeMo/Automodel: the target's whole config with the draft's keys over it, and a ``model.`` before the trunk.

Its draft is a Llama layer whatever the target is, so ``model_type`` and ``num_hidden_layers`` are the target's and are
not believed: the weights tell (a second layer or head norms would be unknown tensors). Nor does it attend to a window,
as Phi-3 does, or drop anything out.
"""

from specexit.drafts.layouts.keys import Keys
from specexit.drafts.layouts.layout import Fields, Layout, architecture, decoder_fields, eagle_fields


def _fields(keys: Keys) -> Fields:
    keys.ignore("architectures", "model_type", "num_hidden_layers", "layer_types", "attn_implementation")
    keys.ignore("embd_pdrop", "resid_pdrop", "sliding_window")
    decoder = decoder_fields(keys)
    if decoder["rope_scaling"] is None:  # else transformers takes it for the scaling's own
        keys.ignore("original_max_position_embeddings")
    return eagle_fields(keys, decoder)


NEMO = Layout(
    "nemo",
    "NVIDIA-NeMo/Automodel: LlamaEagle3DraftModel, tensors under model.",
    architecture("LlamaEagle3DraftModel"),
    _fields,
    layer="layers.0",
    prefix="model.",
)
