"""deepseek-ai/DeepSpec: a Qwen3 layer, the target's whole vocabulary, five aux layers counted from layer 0's output."""

from specexit.drafts.layouts.keys import Keys
from specexit.drafts.layouts.layout import Fields, Layout, architecture, decoder_fields, eagle_fields, of_target


def _fields(keys: Keys) -> Fields:
    keys.ignore("architectures", "ttt_length", "step_loss_decay")
    keys.only("draft_num_hidden_layers", 1)
    if keys.rest.get("target_layer_ids") is None:
        raise keys.error("target_layer_ids", None, "expected the target's layers, counted from the output of layer 0")
    target = of_target(keys, layers="num_target_layers", named="target_model_name_or_path")
    return eagle_fields(keys, decoder_fields(keys)) | target


DEEPSPEC = Layout(
    "deepspec",
    "deepseek-ai/DeepSpec: Qwen3Eagle3Model",
    architecture("Qwen3Eagle3Model"),
    _fields,
    layer="layers.0",
)
