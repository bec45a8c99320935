"""Mixtures of experts: against a loop over tokens and experts, on eight devices, and what they cost. Costs 60 s."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh

from jax_specexit.model import experts
from jax_specexit.model.experts import Mixture
from jax_specexit.planning.aot import shapes_of
from jax_specexit.planning.estimate import estimate
from jax_specexit.planning.work import step_work
from jax_specexit.sharding import AXES, check_mesh
from specexit.chips import CHIPS
from specexit.config import REPOSITORY, ConfigError, load
from specexit.schemas.plan import PlanConfig
from specexit.schemas.target import load_target_config
from specexit.schemas.train import TrainConfig
from tests.jax.devices import simulated

HIDDEN, COUNT = 16, 8


def mixture(chosen: int = 3, *, normalised: bool = True) -> Mixture:
    """Eight experts whose router is sure enough of itself that not all are the same."""
    made = Mixture(HIDDEN, 24, COUNT, chosen, normalised=normalised, rngs=nnx.Rngs(0))
    made.router.kernel[...] *= 3
    return made


def tokens(rows: int = 2, time: int = 20) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, time, HIDDEN)).astype(np.float32)


def difference(ours: jax.Array, oracle: np.ndarray) -> float:
    return float(np.max(np.abs(np.asarray(ours).reshape(oracle.shape) - oracle)) / np.max(np.abs(oracle)))


def mixture_reference(mixture: Mixture, x: np.ndarray) -> np.ndarray:
    """A mixture in float64, token by token and expert by expert: tokens by hidden, as it goes in and comes out."""
    parts = (mixture.experts.gate, mixture.experts.up, mixture.experts.down)
    gate, up, down = (np.asarray(part.kernel[...], np.float64) for part in parts)
    router, out = np.asarray(mixture.router.kernel[...], np.float64), np.zeros(x.shape)
    for i, token in enumerate(x.astype(np.float64)):
        raw = np.exp(token @ router)
        probabilities = raw / raw.sum()
        best = np.argsort(-probabilities)[: mixture.chosen]
        total = probabilities[best].sum() if mixture.normalised else 1.0
        for e in best:
            inner = token @ gate[e]
            out[i] += probabilities[e] / total * ((inner / (1 + np.exp(-inner)) * (token @ up[e])) @ down[e])
    return out


@pytest.mark.parametrize(("chosen", "normalised"), [(3, True), (3, False), (1, True), (COUNT, False)])
def test_sorted_products_are_those_of_a_loop(chosen: int, normalised: bool) -> None:
    made, x = mixture(chosen, normalised=normalised), tokens()
    # float32 against float64: rounding of sums over 24 and 16
    assert difference(made(jnp.asarray(x)), mixture_reference(made, x.reshape(-1, HIDDEN))) < 2e-6


def test_pieces_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    made, x = mixture(), tokens(3, 16)
    whole = made(jnp.asarray(x))
    monkeypatch.setattr(experts, "AT_ONCE", 32)
    assert "while" in jax.jit(made).lower(jnp.asarray(x)).as_text()
    np.testing.assert_allclose(made(jnp.asarray(x)), whole, rtol=1e-5, atol=1e-6)  # the same sums in float32


def test_there_are_as_few_pieces_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 3 x 22 tokens with at most 32 at once these are three; it was 33 of two tokens each."""
    made, x = mixture(), tokens(3, 22)
    seen: list[int] = []
    whole = made(jnp.asarray(x))
    monkeypatch.setattr(experts, "AT_ONCE", 32)
    monkeypatch.setattr(
        Mixture, "_own", lambda self, x, *rest, own=Mixture._own: seen.append(len(x)) or own(self, x, *rest)
    )
    np.testing.assert_allclose(made(jnp.asarray(x)), whole, rtol=1e-5, atol=1e-6)
    assert seen == [22]


def test_no_token_is_dropped_where_all_want_one_expert() -> None:
    made, x = mixture(1), np.abs(tokens())
    made.router.kernel[...] = jnp.zeros((HIDDEN, COUNT)).at[:, 5].set(1.0)
    _, chosen = made.route(jnp.asarray(x.reshape(-1, HIDDEN)))
    assert set(np.asarray(chosen).flat) == {5}
    assert difference(made(jnp.asarray(x)), mixture_reference(made, x.reshape(-1, HIDDEN))) < 2e-6


def test_in_int8_an_expert_is_off_by_a_rounding_or_two() -> None:
    made, x = mixture(), tokens()
    exact = np.asarray(made(jnp.asarray(x)))
    for part in (made.experts.gate, made.experts.up, made.experts.down):
        part.quantize()
        assert part.kernel[...].dtype == jnp.int8
    error = np.linalg.norm(np.asarray(made(jnp.asarray(x))) - exact) / np.linalg.norm(exact)
    assert 0.003 < error < 0.03  # three products, each rounded by about 1 % on both sides, see test_int8


def test_bfloat16_chooses_as_float32_does_but_where_two_are_nearly_equal() -> None:
    made, x = mixture(), jnp.asarray(tokens(4, 64).reshape(-1, HIDDEN))
    (_, wide), (weights, narrow) = made.route(x), made.route(x.astype(jnp.bfloat16))
    assert weights.dtype == jnp.bfloat16
    same = np.mean(np.sort(np.asarray(wide)) == np.sort(np.asarray(narrow)))
    assert same > 0.95  # logits are rounded to 8 bits; 0.99 was seen


@pytest.fixture(scope="module")
def found(base_recipe: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What `eight_experts.py` reports, and under ``stderr`` what the compiler had to say."""
    folder = tmp_path_factory.mktemp("experts")
    arguments = (str(Path(__file__).with_name("eight_experts.py")), str(base_recipe.data), str(folder))
    done = subprocess.run([sys.executable, *arguments], env=simulated(8), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) | {"stderr": done.stderr}


def test_experts_on_eight_devices_say_what_they_say_on_one(found: dict) -> None:
    assert set(found["forward"]) == {"fsdp 2, expert 2, tensor 2", "expert 4, context 2"}
    assert max(found["forward"].values()) < 1e-5  # float32, in another order of sums


def test_training_on_them_equals_one_device(found: dict) -> None:
    np.testing.assert_allclose(found["losses"]["fsdp 2, expert 2, tensor 2"], found["losses"]["one device"], rtol=1e-5)


def test_each_device_reads_its_own_experts(found: dict) -> None:
    assert found["loading"]["difference"] == 0
    assert found["loading"]["int8"] == 0
    assert found["loading"]["largest"] <= 1 / 8


def test_the_compiler_replicates_nothing_by_accident(found: dict) -> None:
    assert "rematerialization" not in found["stderr"]


def test_only_tokens_travel_along_the_experts(found: dict) -> None:
    """No weights do, and what is sent is scattered back."""
    kinds = {kind for kind, _ in found["sent"]}
    assert kinds == {"all-gather", "reduce-scatter"}
    assert all(COUNT not in shape for _, shape in found["sent"])


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (6, r"mesh.expert=4 does not divide num_experts=6: choose mesh.expert from \[1, 2, 3, 6\]"),
        # As all targets look whose features are stored.
        (0, "^mesh.expert=4, but no experts are run: leave mesh.expert at 1 .*and with features, where"),
    ],
)
def test_experts_that_do_not_divide_are_refused(count: int, message: str) -> None:
    config = load(PlanConfig, REPOSITORY / "configs" / "recipes" / "qwen3-30b-a3b-v6e-64.yaml")
    shapes = shapes_of(config, load_target_config(config.target))
    target = type(shapes.target)(**vars(shapes.target) | {"num_experts": count})
    mesh = AbstractMesh((1, 1, 4, 1, 1), AXES)
    with pytest.raises(ConfigError, match=message):
        check_mesh(mesh, 8, (target, shapes.draft))


def test_only_the_chosen_experts_are_counted() -> None:
    config = load(PlanConfig, REPOSITORY / "configs" / "recipes" / "qwen3-30b-a3b-v6e-64.yaml")
    shapes = shapes_of(config, load_target_config(config.target))
    mesh = AbstractMesh((1, 8, 8, 1, 1), AXES)
    work = [w for w in step_work(config, shapes, mesh) if w.part in ("target", "router", "experts")]
    # The model card's 3.3B active parameters are these and two tables of 151,936 x 2,048.
    active = 48 * (2048 * 128 * (32 + 2 * 4 + 32) + 2048 * 128 + 8 * 3 * 2048 * 768)
    assert active + 2 * 151936 * 2048 == pytest.approx(3.3e9, rel=0.02)
    assert sum(w.flops for w in work) == pytest.approx(2 * active * shapes.length)
    assert sum(w.useful for w in work) == sum(w.flops for w in work)
    # Every chip reads its 16 experts of each layer, in bfloat16.
    assert sum(w.hbm_bytes for w in work if w.part == "experts") > 2 * 48 * 16 * 3 * 2048 * 768
    # Whose products are far slower than others, at 28 % of the peak.
    experts = sum(w.flops for w in work if w.part == "experts")
    found = estimate(config, shapes, CHIPS["v5p"], mesh, 0.1, {})
    assert found.seconds["experts"] == pytest.approx(experts / (0.28 * 459e12))
