"""The draft of model type ``qwen3``: a Qwen3 layer, whose queries and keys are normed."""

from __future__ import annotations

from vllm.model_executor.models.qwen3_eagle3 import Eagle3Qwen3ForCausalLM

from torch_specexit.plugin.worker.model import WithSignals


class SpecExitQwen3ForCausalLMEagle3(WithSignals, Eagle3Qwen3ForCausalLM):
    """See `WithSignals`."""
