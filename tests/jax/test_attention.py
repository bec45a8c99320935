"""TTT attention against its oracle, the explicit (k+1)T mask, in float64 with all gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_specexit.model import blockwise
from jax_specexit.model.attention import ttt_attention, ttt_attention_reference
from specexit.errors import InputError


def random_inputs(segments: np.ndarray, steps: int, kv_heads: int, dtype=jnp.float64):
    batch, time = segments.shape
    keys = jax.random.split(jax.random.key(steps), 2 * steps + 1)
    q = jax.random.normal(keys[0], (batch, time, 4, 8), dtype)
    k, v = (
        [jax.random.normal(key, (batch, time, kv_heads, 8), dtype) for key in part]
        for part in (keys[1 : steps + 1], keys[steps + 1 :])
    )
    return q, k, v


def value_and_gradients(attend):
    return jax.jit(
        jax.value_and_grad(lambda q, k, v, ids: jnp.sum(jnp.sin(attend(q, k, v, ids))), argnums=(0, 1, 2)),
    )


def assert_close(ours, oracle) -> None:
    # float64 leaves nothing but the order of sums
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), ours, oracle)


@pytest.mark.parametrize(("steps", "kv_heads", "window"), [(1, 4, None), (3, 2, 100), (5, 1, None)])
def test_equals_the_masked_oracle(steps: int, kv_heads: int, window: int | None) -> None:
    """Of three tiles; a window begins in the middle of one, and the last rows' leaves the first out."""
    segments = np.array([[1] * 140 + [2] * 100 + [3] * 60, [1] * 270 + [0] * 30])
    assert segments.shape[1] > 2 * blockwise.BLOCK
    with jax.enable_x64(True):
        inputs = (*random_inputs(segments, steps, kv_heads), jnp.asarray(segments))
        ours, oracle = (partial(attend, window=window) for attend in (ttt_attention, ttt_attention_reference))
        assert_close(value_and_gradients(ours)(*inputs), value_and_gradients(oracle)(*inputs))


@pytest.fixture(scope="module")
def small_tiles():
    """Both functions on 3 TTT steps, compiled once with tiles of 4 rows."""
    with pytest.MonkeyPatch.context() as patch, jax.enable_x64(True):
        patch.setattr(blockwise, "BLOCK", 4)
        q, k, v = random_inputs(np.zeros((2, 18)), 3, 2)
        compiled = [
            value_and_gradients(attend).lower(q, k, v, jnp.zeros((2, 18), int)).compile()
            for attend in (ttt_attention, ttt_attention_reference)
        ]
        yield (q, k, v), *compiled


@settings(max_examples=60, deadline=None)
@given(begins=st.lists(st.lists(st.booleans(), min_size=18, max_size=18), min_size=2, max_size=2))
def test_wherever_segments_and_tiles_begin(small_tiles, begins) -> None:
    inputs, ours, oracle = small_tiles
    segments = jnp.asarray(np.cumsum(begins, axis=1))
    assert_close(ours(*inputs, segments), oracle(*inputs, segments))


def test_segments_do_not_see_each_other() -> None:
    q, (k,), (v,) = random_inputs(np.zeros((1, 12)), 1, 2, jnp.float32)
    whole = ttt_attention(q, [k], [v], jnp.array([[1] * 5 + [2] * 7]))
    alone = ttt_attention(q[:, 5:], [k[:, 5:]], [v[:, 5:]], jnp.ones((1, 7), jnp.int32))
    # float32: masked terms change the order of the sums
    np.testing.assert_allclose(whole[:, 5:], alone, rtol=1e-5, atol=1e-6)


def test_a_window_that_ends_before_the_first_pass_is_refused() -> None:
    segments = np.ones((1, 6), int)
    q, keys, values = random_inputs(segments, 3, 2, jnp.float32)
    assert jnp.isfinite(ttt_attention(q, keys, values, jnp.asarray(segments), window=3)).all()
    with pytest.raises(InputError, match="sliding_window is 2, expected more than 2, the draft steps before"):
        ttt_attention(q, keys, values, jnp.asarray(segments), window=2)


def test_memory_grows_linearly_with_the_length() -> None:
    def temporary_bytes(attend, time: int) -> int:
        shapes = [jax.ShapeDtypeStruct((1, time, n, 16), jnp.float32) for n in (4, 2, 2)]

        def loss(q, k, v):
            return jnp.sum(attend(q, [k] * 3, [v] * 3, jnp.ones((1, time), jnp.int32)))

        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    short, long = temporary_bytes(ttt_attention, 1024), temporary_bytes(ttt_attention, 16 * 1024)
    assert long < 20 * short
    assert temporary_bytes(ttt_attention_reference, 1024) > 10 * short


def test_on_a_tpu_it_says_when_the_kernel_does_not_take_the_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    segments = jnp.ones((1, 6), int)
    with pytest.warns(UserWarning, match="without the splash kernel, slower: length 6, head size 8"):
        ttt_attention(*random_inputs(np.asarray(segments), 1, 2, jnp.float32), segments)
