"""TTT attention against its oracle, the explicit (k+1)T mask, in float64 with all gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_specexit.attention import ttt_attention, ttt_attention_reference
from jax_specexit.layers import segment_mask


@pytest.mark.parametrize(("steps", "kv_heads"), [(1, 4), (3, 2), (5, 1)])
def test_equals_the_masked_oracle(steps: int, kv_heads: int) -> None:
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(steps), 2 * steps + 1)
        q = jax.random.normal(keys[0], (2, 24, 4, 8), jnp.float64)
        k, v = (
            [jax.random.normal(key, (2, 24, kv_heads, 8), jnp.float64) for key in part]
            for part in (keys[1 : steps + 1], keys[steps + 1 :])
        )
        segments = jnp.array([[1] * 10 + [2] * 14, [1] * 20 + [0] * 4])
        mask = segment_mask(segments)

        def loss(attention, q, k, v):
            return jnp.sum(jnp.sin(attention(q, k, v, mask)))

        ours = jax.value_and_grad(lambda *a: loss(ttt_attention, *a), argnums=(0, 1, 2))(q, k, v)
        oracle = jax.value_and_grad(lambda *a: loss(ttt_attention_reference, *a), argnums=(0, 1, 2))(q, k, v)
        # float64 leaves nothing but the order of sums
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), ours, oracle)


def test_segments_do_not_see_each_other() -> None:
    q, k, v = (jax.random.normal(key, (1, 12, 2, 4)) for key in jax.random.split(jax.random.key(0), 3))
    mask = segment_mask(jnp.array([[1] * 5 + [2] * 7]))
    whole = ttt_attention(q, [k], [v], mask)
    alone = ttt_attention(q[:, 5:], [k[:, 5:]], [v[:, 5:]], segment_mask(jnp.ones((1, 7), jnp.int32)))
    # float32: masked terms change the order of the sums
    np.testing.assert_allclose(whole[:, 5:], alone, rtol=1e-5, atol=1e-6)
