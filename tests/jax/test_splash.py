"""The splash kernel with merged diagonals against the masked oracle, in Pallas' interpreter. Costs 25 s."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_specexit.model import splash
from jax_specexit.model.attention import attend, ttt_attention_reference
from jax_specexit.model.layers import segment_starts
from jax_specexit.model.splash import Splash

TIME, HEADS, DIM = 256, 4, 128


@pytest.mark.parametrize(("steps", "kv_heads", "wide"), [(1, 4, 2), (3, 2, 1)])
def test_equals_the_masked_oracle(steps: int, kv_heads: int, wide: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In two tiles, which the backward pass takes as one block or as two."""
    monkeypatch.setattr(splash, "TILE", TIME // 2)
    monkeypatch.setattr(splash, "WIDE", wide)
    segments = jnp.asarray([[1] * 100 + [2] * 60 + [3] * 96, [1] * 250 + [0] * 6])
    keys = jax.random.split(jax.random.key(steps), 2 * steps + 2)
    q, wanted = (jax.random.normal(key, (2, TIME, HEADS, DIM)) for key in keys[:2])
    rest = [jax.random.normal(key, (2, TIME, kv_heads, DIM)) for key in keys[2:]]
    k, v = rest[:steps], rest[steps:]

    def ours(q, k, v):
        return jnp.sum(wanted * attend(Splash(interpret=True), q, k, v, segment_starts(segments)))

    def oracle(q, k, v):
        return jnp.sum(wanted * ttt_attention_reference(q, k, v, segments))

    got, expected = (jax.value_and_grad(f, argnums=(0, 1, 2))(q, k, v) for f in (ours, oracle))
    # The kernel computes in float32, whose rounding over 256 keys is a few 1e-6 of the largest gradient.
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=3e-5 * float(jnp.abs(b).max()))


def test_an_unchecked_version_of_jax_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splash, "CHECKED_WITH", (0, 9))
    with pytest.raises(RuntimeError, match=r"private function of JAX that was checked with 0\.9\.x, found"):
        splash.check_version()
