"""deepseek-ai/DeepSpec: a Qwen3 layer, the target's whole vocabulary, five aux layers counted from layer 0's output."""

from specexit.drafts.layouts.keys import Keys
from specexit.drafts.layouts.layout import (
    Fields,
    Layout,
    architecture,
    decoder_fields,
    eagle_fields,
    layer_ids,
    of_target,
)


def _fields(keys: Keys) -> Fields:
    keys.ignore("architectures", "target_model_name_or_path", "ttt_length", "step_loss_decay")
    keys.only("draft_num_hidden_layers", 1)
    layers = layer_ids(keys, "target_layer_ids")
    if layers is None:
        raise keys.error("target_layer_ids", None, "expected the target's layers, counted from the output of layer 0")
    fields, ours = eagle_fields(keys, decoder_fields(keys)), [layer + 1 for layer in layers]
    also = fields["eagle_aux_hidden_state_layer_ids"]
    if also not in (None, ours):
        raise keys.error("target_layer_ids", layers, f"but eagle_aux_hidden_state_layer_ids is {also}, expected {ours}")
    return fields | {"eagle_aux_hidden_state_layer_ids": ours} | of_target(keys, layers="num_target_layers")


DEEPSPEC = Layout(
    "deepspec",
    "deepseek-ai/DeepSpec: Qwen3Eagle3Model",
    architecture("Qwen3Eagle3Model"),
    _fields,
    layer="layers.0",
)
