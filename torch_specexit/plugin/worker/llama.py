"""The draft of model type ``llama``: a Llama layer."""

from __future__ import annotations

from vllm.model_executor.models.llama_eagle3 import Eagle3LlamaForCausalLM

from torch_specexit.plugin.worker.model import WithSignals


class SpecExitLlamaForCausalLMEagle3(WithSignals, Eagle3LlamaForCausalLM):
    """See `WithSignals`."""
