"""A draft that is stretched by yarn is rotated in vLLM by the same angles and the same factor; no engine is started."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig

from specexit.drafts.rope import rotary_factor, rotary_frequencies, scaling_fields, scaling_of
from tests.shared.published import MODEL_OPTIMIZER

pytest.importorskip("vllm")

NAMES = ("hidden_size", "num_attention_heads", "head_dim", "rope_theta", "max_position_embeddings", "architectures")
POSITIONS = 4096


@pytest.mark.parametrize("scales", [{}, {"mscale": 0.707, "mscale_all_dim": 0.9}])
def test_vllm_rotates_a_draft_as_its_config_and_ours_say(scales):
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.model_executor.layers.rotary_embedding import get_rope
    from vllm.transformers_utils.configs.eagle import EAGLEConfig

    published = MODEL_OPTIMIZER["rope_scaling"] | scales
    ours = scaling_of(published)
    angles = np.outer(np.arange(POSITIONS), rotary_frequencies(MODEL_OPTIMIZER["head_dim"], 10_000.0, ours))
    expected = rotary_factor(ours) * np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)
    for said in (published, scaling_fields(ours)):
        config = LlamaConfig(**{name: MODEL_OPTIMIZER[name] for name in NAMES}, rope_scaling=said)
        rope = EAGLEConfig(config, method="eagle3", model_type="eagle").rope_parameters
        with set_current_vllm_config(VllmConfig()):
            found = get_rope(MODEL_OPTIMIZER["head_dim"], 131_072, rope_parameters=rope, dtype=torch.float32)
        # Its angles are rounded to float32, of which 4,096 has a last place of 2.4e-4 radians; half of one, times 1.35.
        np.testing.assert_allclose(found.cos_sin_cache[:POSITIONS].numpy(), expected, atol=2e-4)
        assert len(found.cos_sin_cache) == ours.positions == 65_536  # whatever max_position_embeddings says
