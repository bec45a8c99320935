"""Tencent/AngelSlim: as SafeAILab's, under vLLM's class name, which older ones spell with another L and f.

Its SpecExit drafts say ``early_stop_method`` and have three further rows of ``fc``. None has been published, and such
rows without the fourth signal make no draft of ours, so they are refused; `specexit.drafts.export` writes that layout.
"""

from specexit.drafts.layouts.keys import Keys
from specexit.drafts.layouts.layout import Fields, Layout, architecture, plain_fields


def _fields(keys: Keys) -> Fields:
    keys.only("early_stop_method")
    return plain_fields(keys)


ANGELSLIM = Layout(
    "angelslim",
    "Tencent/AngelSlim: Eagle3LlamaForCausalLM",
    architecture("Eagle3LlamaForCausalLM", "Eagle3LLamaforCausalLM"),
    _fields,
)
