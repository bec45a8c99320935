"""Rotary frequencies against transformers': at thousands of tokens the last place of a frequency is seen."""

import math

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from specexit.drafts.rope import FIELDS, RopeScaling, rotary_factor, rotary_frequencies, scaling_fields, scaling_of

LAST_PLACE = 2.0**-23
"""Of a float32, relative, at most. A power of two floats that lies between two of them is rounded either way by two
libraries, in one case of a hundred."""

SCALINGS = {
    "default": None,
    "linear": RopeScaling("linear", 4.0),
    "llama3": RopeScaling("llama3", 8.0),
    "yarn": RopeScaling("yarn", 4.0, original_max_position_embeddings=32_768),
}

MODEL_OPTIMIZER = {"factor": 32.0, "original_max_position_embeddings": 2048}
"""As NVIDIA's Model-Optimizer writes it into the config of a draft."""


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


@pytest.mark.parametrize(
    "says",
    [
        {},
        {"attention_factor": 1.3},
        {"attention_factor": 1.0, "attn_factor": 1 / (0.1 * math.log(32) + 1)},  # one factor, as two readers have it
        {"mscale": 1.0, "mscale_all_dim": 1.0},
        {"mscale": 0.707, "mscale_all_dim": 0.9},
        {"mscale": 1.0, "mscale_all_dim": 0.0},
        {"beta_fast": 16.0, "beta_slow": 2.0, "truncate": False},
        {"original_max_position_embeddings": 131_072},  # where even the last pair turns more than once
    ],
)
def test_a_draft_is_stretched_by_yarn_as_transformers_stretches(says: dict[str, float]) -> None:
    """Frequencies and what queries and keys are multiplied by, also as our own config says it; vLLM 0.32 has the same
    formulas (`YaRNScalingRotaryEmbedding`), and an EAGLE-3 draft there is rotated by them."""
    rope = {"rope_type": "yarn", "rope_theta": 10_000.0} | MODEL_OPTIMIZER | says
    config = LlamaConfig(hidden_size=256, num_attention_heads=2, max_position_embeddings=65_536, rope_parameters=rope)
    theirs, factor = ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))
    ours = scaling_of(rope)
    assert scaling_of(scaling_fields(ours)) == ours
    assert rotary_factor(ours) == pytest.approx(factor, rel=1e-12)
    frequencies = rotary_frequencies(128, 10_000.0, ours)
    # As above, and where the two limits are no whole dimensions, transformers rounds the share between them as well.
    np.testing.assert_allclose(frequencies, theirs.numpy(), rtol=4 * LAST_PLACE, atol=0)
    assert len(set(np.round(frequencies / rotary_frequencies(128, 10_000.0), 6))) > 10, "some in between"
