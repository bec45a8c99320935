"""FLOPs counted from shapes against XLA's own count, on a step whose loops all run once. Costs 30 s."""

import jax
import numpy as np
import pytest

from jax_specexit.model import blockwise
from jax_specexit.planning import work
from jax_specexit.planning.aot import lower_step, shapes_of
from jax_specexit.planning.work import step_work
from jax_specexit.training import optimizer
from specexit.schemas.target import TargetConfig
from specexit.schemas.train import TrainConfig

LENGTH = 128
"""One tile of attention, so that its loop runs once."""

TARGET = TargetConfig(
    name="shallow",
    path="nowhere",
    aux_layers=(0, 1),
    max_model_len=LENGTH,
    config={
        "architectures": ["Qwen3ForCausalLM"],
        "vocab_size": 4096,  # so that a product with all of its columns would be missed
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "rope_theta": 10_000.0,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
    },
)


def recipe(**changes) -> TrainConfig:
    draft = {"hidden_size": 256, "intermediate_size": 768, "num_attention_heads": 4, "num_key_value_heads": 2}
    fields = {
        "target": "shallow",
        "data": "nowhere",
        "out": "nowhere",
        "draft": draft | {"head_dim": 64, "draft_vocab_size": 384},
        "steps": 10,
        "batch_size": 8,
        "length": LENGTH,
        "ttt_steps": 2,
        "loss_chunk": LENGTH,
        "dtype": "float32",
    }
    return TrainConfig.model_validate(fields | changes)


@pytest.mark.parametrize("changes", [{}, {"ttt_steps": 3, "remat": True, "skip_unknown": True}], ids=str)
def test_flops_are_those_that_xla_counts(changes: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    assert blockwise.BLOCK == LENGTH
    for module in (optimizer, work):  # XLA counts what is in a loop once
        monkeypatch.setattr(module, "NEWTON_SCHULZ", optimizer.NEWTON_SCHULZ[:1])
    config = recipe(**changes)
    shapes = shapes_of(config, TARGET)
    lowered = lower_step(config, shapes, jax.devices()[:1])
    counted = sum(w.flops for w in step_work(config, shapes, lowered.mesh, tile=LENGTH, backward=5))
    cost = lowered.step.compile().cost_analysis()
    assert cost is not None
    # XLA counts elementwise work, too, which at these widths is a few percent; at full size it is nothing.
    assert counted <= cost["flops"] <= 1.08 * counted


def test_a_window_s_tiles_are_counted_as_the_mask_has_them() -> None:
    length, tile, window, step = 1024, 128, 200, 1
    query, key = np.arange(length)[:, None] + step, np.arange(length)
    mask = (key <= query - step) & (key > query - window)
    tiles = mask.reshape(length // tile, tile, -1, tile).any(axis=(1, 3)).sum() * tile**2
    found = work.attention("", length, length, 1, 1, step, tiles=(tile, tile), backward=0, window=window)
    # Two products of two FLOPs for every pair, with the first pass and with the one key since.
    assert found.useful == pytest.approx(4 * (mask.sum() + length))
    assert found.flops == pytest.approx(4 * (tiles + length))
