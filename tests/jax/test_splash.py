"""The splash kernel with merged diagonals against the masked oracle, in Pallas' interpreter. Costs 25 s."""

import tomllib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh
from packaging.requirements import Requirement

from jax_specexit.model import attention, splash
from jax_specexit.model.attention import attend, ttt_attention_reference
from jax_specexit.model.layers import segment_starts
from jax_specexit.model.splash import Splash
from jax_specexit.planning.aot import topology_devices
from jax_specexit.sharding import AXES
from specexit.config import REPOSITORY
from specexit.drafts.window import first_pass_rows
from specexit.errors import InputError

TIME, HEADS, DIM = 256, 4, 128


@pytest.mark.parametrize(
    ("steps", "kv_heads", "wide", "forward", "window"), [(1, 4, 2, TIME // 2, 40), (3, 2, 1, TIME, None)]
)
def test_equals_the_masked_oracle(
    steps: int, kv_heads: int, wide: int, forward: int, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In two tiles, which the backward pass takes as one block or as two, and the forward pass of some chips as one."""
    monkeypatch.setattr(splash, "TILE", TIME // 2)
    monkeypatch.setattr(splash, "FORWARD", {"v6e": forward})
    monkeypatch.setattr(splash, "WIDE", wide)
    segments = jnp.asarray([[1] * 100 + [2] * 60 + [3] * 96, [1] * 250 + [0] * 6])
    keys = jax.random.split(jax.random.key(steps), 2 * steps + 2)
    q, wanted = (jax.random.normal(key, (2, TIME, HEADS, DIM)) for key in keys[:2])
    rest = [jax.random.normal(key, (2, TIME, kv_heads, DIM)) for key in keys[2:]]
    k, v = rest[:steps], rest[steps:]
    seen = None if window is None else first_pass_rows(window, steps - 1)
    causal = Splash(kind="TPU v6 lite", interpret=True, window=seen)

    def ours(q, k, v):
        return jnp.sum(wanted * attend(causal, q, k, v, segment_starts(segments)))

    def oracle(q, k, v):
        return jnp.sum(wanted * ttt_attention_reference(q, k, v, segments, window))

    got, expected = (jax.value_and_grad(f, argnums=(0, 1, 2))(q, k, v) for f in (ours, oracle))
    # The kernel computes in float32, whose rounding over 256 keys is a few 1e-6 of the largest gradient.
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=3e-5 * float(jnp.abs(b).max()))


def test_tiles_are_those_that_are_published_for_the_chip() -> None:
    kinds = {"TPU v5 lite": 512, "TPU v5p": 512, "TPU v6 lite": 1024, "TPU7x": 2048, "TPU of tomorrow": 512}
    assert {kind: splash.forward_tile(8192, kind=kind) for kind in kinds} == kinds
    # A tile divides the row, and of a row on several chips each of a chip's two pieces of it.
    assert splash.forward_tile(3 * 256, kind="TPU v6 lite") == 256
    assert splash.forward_tile(8192, 8, "TPU v6 lite") == 512
    blocks = splash.Splash(kind="TPU v6 lite")._kernel(2, 4096).kwargs["block_sizes"]
    assert (blocks.block_q, blocks.block_kv, blocks.block_kv_compute) == (1024, 1024, 1024)
    assert (blocks.block_q_dkv, blocks.block_kv_dkv, blocks.block_kv_dkv_compute) == (512, 2048, 512)


def test_the_kernel_is_that_of_the_chip_that_a_program_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when it is planned, on a machine without any."""
    made: list[Splash] = []

    def looked_at(causal: Splash, q: jax.Array, *_: object) -> jax.Array:
        made.append(causal)
        return q

    monkeypatch.setattr(attention, "attend", looked_at)
    device = AbstractDevice(device_kind="TPU v6 lite", num_cores=1, platform="tpu")
    q = jax.ShapeDtypeStruct((1, TIME, HEADS, DIM), jnp.float32)
    with jax.sharding.use_abstract_mesh(AbstractMesh((1,) * 5, AXES, abstract_device=device)):
        jax.eval_shape(attention.ttt_attention, q, [q], [q], jax.ShapeDtypeStruct((1, TIME), jnp.int32))
    assert {causal.kind for causal in made} == {"TPU v6 lite"}


def test_an_unchecked_version_of_jax_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a plan before it looks for a compiler; by a run, see `test_run_refusals`."""
    monkeypatch.setattr(splash, "CHECKED_WITH", (0, 9))
    said = r"checked with 0\.9\.x, found .*: pip install '\.\[tpu\]' in a checkout of .* brings jax 0\.9;"
    for refused in (splash.check_version, partial(topology_devices, "v5e:4x4")):
        with pytest.raises(InputError, match=said):
            refused()


def test_the_extra_for_tpus_brings_the_jax_that_was_checked() -> None:
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    major, minor = splash.CHECKED_WITH
    assert [one for one in extras["tpu"] if "jax" in one] == [f"jax[tpu]>={major}.{minor},<{major}.{minor + 1}"]
    # Which the extra that it is built on takes, too.
    (also,) = [Requirement(one) for one in extras["train"] if Requirement(one).name == "jax"]
    assert f"{major}.{minor}.0" in also.specifier
