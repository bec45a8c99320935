"""lightseekorg/TorchSpec: SpecForge's names, and a config that counts its aux hidden states or names its exporter."""

from collections.abc import Collection
from typing import Any

from specexit.drafts.layouts.keys import Keys
from specexit.drafts.layouts.layout import Fields, Layout, llama_fields

_TELLING = ("_torchspec_version", "num_aux_hidden_states")


def _recognises(raw: dict[str, Any], _: Collection[str]) -> bool:
    return raw.get("architectures") == ["LlamaForCausalLMEagle3"] and any(key in raw for key in _TELLING)


def _fields(keys: Keys) -> Fields:
    keys.ignore("_torchspec_version")
    return llama_fields(keys)


TORCHSPEC = Layout(
    "torchspec",
    "lightseekorg/TorchSpec: LlamaForCausalLMEagle3 with _torchspec_version or num_aux_hidden_states",
    _recognises,
    _fields,
)
