"""Rotary frequencies against transformers': at thousands of tokens the last place of a frequency is seen."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from specexit.drafts.rope import FIELDS, RopeScaling, rotary_frequencies, scaling_fields

LAST_PLACE = 2.0**-23
"""Of a float32, relative, at most. A power of two floats that lies between two of them is rounded either way by two
libraries, in one case of a hundred."""

SCALINGS = {
    "default": None,
    "linear": RopeScaling("linear", 4.0),
    "llama3": RopeScaling("llama3", 8.0),
    "yarn": RopeScaling("yarn", 4.0, original_max_position_embeddings=32_768),
}


@pytest.mark.parametrize("theta", [10_000.0, 500_000.0, 1_000_000.0, 5_000_000.0])
@pytest.mark.parametrize("dim", [64, 96, 128])
@pytest.mark.parametrize("kind", SCALINGS)
def test_frequencies_are_rounded_where_the_field_rounds_them(kind: str, dim: int, theta: float) -> None:
    assert SCALINGS.keys() == FIELDS.keys()
    rope = {"rope_type": "default"} | (scaling_fields(SCALINGS[kind]) or {}) | {"rope_theta": theta}
    config = LlamaConfig(
        hidden_size=2 * dim, num_attention_heads=2, head_dim=dim, max_position_embeddings=131_072, rope_parameters=rope
    )
    if kind == "default":
        theirs, _ = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    else:
        theirs, _ = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    ours = rotary_frequencies(dim, theta, SCALINGS[kind])
    # A stretched frequency is a sum of two products more, each rounded.
    places = 1 if kind in ("default", "linear") else 3
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=places * LAST_PLACE, atol=0)
    if kind == "default":
        assert (ours == theirs.numpy()).mean() >= 0.9
