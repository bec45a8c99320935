"""The whole loss against a naive one: PyTorch, float64, a loop over TTT step and position, from the definition alone.

The target's hidden states are given to both. Everything behind them is computed twice: which token, label and teacher
row belongs to a draft row; packed segments, masks, the draft vocabulary; the draft itself; both losses; the weights of
the signals; all gradients. And every mutation of the fast one that a reviewer could think of must be seen.
"""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jax_specexit.model import draft as draft_module
from jax_specexit.model.attention import ttt_attention_reference
from jax_specexit.model.draft import Draft
from jax_specexit.model.target import Target, TargetShape
from jax_specexit.training import step as module
from jax_specexit.training.step import Frozen, make_loss
from specexit.drafts.directory import DraftConfig, SpecExitBlock
from specexit.schemas.train import TrainConfig
from tests.parity.naive_loss import AUX_RMS, BEFORE, DECAY, EPS, HIDDEN, SHARE, STEPS, THETA, TIME, Naive, double

TARGET = TargetShape(
    vocab_size=24,
    hidden_size=HIDDEN,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
    rope_theta=1000.0,
    rms_norm_eps=EPS,
    tie_word_embeddings=True,
)


def draft_shape(source: str) -> DraftConfig:
    return DraftConfig(
        hidden_size=HIDDEN,
        target_hidden_size=HIDDEN,
        intermediate_size=20,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        vocab_size=24,
        draft_vocab_size=10,
        rms_norm_eps=EPS,
        rope_theta=THETA,
        eagle_aux_hidden_state_layer_ids=(1, 2),
        num_aux_hidden_states=2,
        target_num_hidden_layers=2,
        specexit=SpecExitBlock.model_validate({"source": source, "target": "t"}),
    )


def recipe(source: str, dtype: str, **changes: Any) -> TrainConfig:
    fields = {
        "target": "t",
        "data": "d",
        "out": "o",
        "draft": {
            "hidden_size": HIDDEN,
            "intermediate_size": 20,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 4,
            "draft_vocab_size": 10,
        },
        "signals": {"source": source, "share": SHARE},
        "steps": 10,
        "batch_size": 2,
        "ttt_steps": STEPS,
        "ttt_decay": DECAY,
        "loss_chunk": 4,
        "dtype": dtype,
    }
    return TrainConfig.model_validate(fields | changes)


def representable(x: jax.Array) -> jax.Array:
    """The nearest number that bfloat16 has, so that both sides start from the same weights."""
    return x.astype(jnp.bfloat16).astype(jnp.float32)


def problem(source: str) -> tuple[Draft, Target, Frozen, dict[str, jax.Array]]:
    """Random models, and two rows of two segments each, padded; prompts at their starts."""
    rng = np.random.default_rng(5)
    target = Target(TARGET, rngs=nnx.Rngs(3))
    target.embedding[...] = representable(50 * target.embedding[...])  # a teacher that is sure of something
    draft = Draft(draft_shape(source), rngs=nnx.Rngs(4), aux_rms=AUX_RMS)
    noisy = jax.tree.map(lambda x: representable(x + 0.2 * rng.normal(size=x.shape)), nnx.state(draft))
    nnx.update(draft, noisy)
    lengths = [(5, 4), (8, 4)]
    segments, positions = np.zeros((2, TIME), np.int32), np.zeros((2, TIME), np.int32)
    for row, both in enumerate(lengths):
        begin = 0
        for i, length in enumerate(both):
            segments[row, begin : begin + length] = i + 1
            positions[row, begin : begin + length] = np.arange(length)
            begin += length
    labels = rng.uniform(0, 1, (2, TIME, 4)).astype(np.float32)
    labels[..., 2] *= 20
    labels[..., 3] = labels[..., 3] > 0.5
    batch = {
        "tokens": rng.integers(0, 24, (2, TIME)).astype(np.int32) * (segments > 0),
        "segment_ids": segments,
        "positions": positions,
        "loss_mask": (positions >= 3) & (segments > 0),
        "signal_labels": labels,
        "signal_mask": (rng.random((2, TIME, 4)) < 0.8) & (segments > 0)[..., None],
    }
    vocab = np.sort(rng.choice(24, 10, replace=False)).astype(np.int32)
    weight = rng.choice([1.0, 5.0], 24).astype(np.float32)
    frozen = Frozen(nnx.to_pure_dict(nnx.state(target)), jnp.asarray(vocab), jnp.asarray(weight))
    return draft, target, frozen, {name: jnp.asarray(value) for name, value in batch.items()}


def fast(source: str, dtype: str, *, gradients: bool = True, **changes: Any) -> dict[str, Any]:
    """The same of `make_loss`; ``changes`` are of the recipe or of the batch."""
    draft, target, frozen, batch = problem(source)
    config = recipe(source, dtype, **{key: value for key, value in changes.items() if key in TrainConfig.model_fields})
    batch |= {key: value for key, value in changes.items() if key in batch}
    if "draft_vocab" in changes:
        frozen = frozen._replace(draft_vocab=changes["draft_vocab"])
    graph, params = nnx.split(draft)
    loss = make_loss(config, graph, nnx.graphdef(target), STEPS)
    arguments = (nnx.to_pure_dict(params), frozen, batch, jax.tree.map(jnp.asarray, BEFORE))
    if not gradients:
        return loss(*arguments)[1][0]
    found, (metrics, _) = jax.jit(jax.grad(loss, has_aux=True))(*arguments)
    return metrics | {"gradients": found}


def naive(source: str, dtype: str, *, skip_unknown: bool = False) -> dict[str, Any]:
    draft, target, frozen, batch = problem(source)
    hidden, aux = target(
        batch["tokens"], batch["positions"], batch["segment_ids"], aux_layers=(1, 2), dtype=jnp.dtype(dtype)
    )
    assert aux is not None
    given = {"hidden": np.asarray(hidden), "aux": np.asarray(aux)}
    params = jax.tree.map(lambda x: double(x).requires_grad_(), nnx.to_pure_dict(nnx.state(draft)))
    return Naive(source, given, batch, frozen, skip_unknown).report(params)


def errors(ours: dict[str, Any], oracle: dict[str, Any]) -> dict[str, float]:
    """Of every number: the error relative to it; of every gradient: relative to its norm."""

    def one(a: Any, b: Any) -> float:
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-12))

    found = {name: one(ours[name], oracle[name]) for name in oracle if name != "gradients"}
    if "gradients" in ours:
        leaves = jax.tree_util.tree_leaves_with_path(jax.tree.map(one, ours["gradients"], oracle["gradients"]))
        found |= {jax.tree_util.keystr(path): error for path, error in leaves}
    return found


@pytest.fixture(scope="module")
def oracle() -> Callable[[str, str], dict[str, Any]]:
    known: dict[tuple[str, str], dict[str, Any]] = {}

    def get(source: str, dtype: str) -> dict[str, Any]:
        if (source, dtype) not in known:
            known[source, dtype] = naive(source, dtype)
        return known[source, dtype]

    return get


FLOAT32 = 1e-5
"""Sums in another order: a few units in the last place (6e-8) through some ten products. Seen: 7e-7."""
BFLOAT16 = 3e-2
"""Activations are rounded to 8 bits (0.2 % each) some ten times on the way back. Seen: 1.3 %; of the loss, 0.05 %."""


@pytest.mark.parametrize("source", ["draft", "fc"])
def test_float32_equals_the_definition(oracle, source: str) -> None:
    found = errors(fast(source, "float32"), oracle(source, "float32"))
    assert max(found.values()) < FLOAT32, found


@pytest.mark.parametrize("source", ["draft", "fc"])
def test_bfloat16_equals_the_definition(oracle, source: str) -> None:
    found = errors(fast(source, "bfloat16"), oracle(source, "bfloat16"))
    assert max(found.values()) < BFLOAT16, found
    assert found["loss"] < BFLOAT16 / 10


def test_rows_without_a_word_for_the_target_s_choice_can_be_left_out(oracle) -> None:
    theirs = naive("draft", "float32", skip_unknown=True)
    found = errors(fast("draft", "float32", skip_unknown=True), theirs)
    assert max(found.values()) < FLOAT32, found
    assert not np.isclose(theirs["loss"], oracle("draft", "float32")["loss"], rtol=0.01)


@pytest.mark.usefixtures("light")
def test_signals_without_a_share_leave_the_state_to_the_tokens() -> None:
    """Their heads learn, and what the state learns is the tokens' alone."""
    draft, target, frozen, batch = problem("draft")
    graph, params = nnx.split(draft)
    config = recipe("draft", "float32", signals={"source": "draft", "share": 0})
    gradient = jax.jit(jax.grad(make_loss(config, graph, nnx.graphdef(target), STEPS), has_aux=True))
    followed = jax.tree.map(jnp.asarray, BEFORE)
    without = batch | {"signal_mask": jnp.zeros_like(batch["signal_mask"])}
    (ours, (metrics, _)), (tokens, (nothing, _)) = (
        gradient(nnx.to_pure_dict(params), frozen, one, followed) for one in (batch, without)
    )
    np.testing.assert_allclose(metrics["weights"], 1e-3, rtol=1e-6)
    assert np.all(np.isfinite(metrics["signal_loss"]))
    assert np.all(np.isnan(nothing["signal_loss"]))  # no label, no loss; in what is minimised it is 0
    assert np.isfinite(nothing["loss"])
    assert np.any(ours.pop("signal_head")["kernel"])
    assert not np.any(tokens.pop("signal_head")["kernel"])
    jax.tree.map(np.testing.assert_array_equal, ours, tokens)


def shifts(monkeypatch: pytest.MonkeyPatch, mutate: Callable[[int, int], int]) -> dict[int, list[int]]:
    """Let ``mutate(line, by)`` change every shift; returns what the lines that shift ask for."""
    seen: dict[int, list[int]] = {}
    shift = module.shift

    def mutated(x: jax.Array, by: int) -> jax.Array:
        frame = inspect.currentframe()
        while frame is not None and frame.f_code.co_filename != module.__file__:  # behind the type checks of the tests
            frame = frame.f_back
        assert frame is not None
        seen.setdefault(frame.f_lineno, []).append(by)
        return shift(x, mutate(frame.f_lineno, by))

    monkeypatch.setattr(module, "shift", mutated)
    return seen


def plain(hidden, head, teacher, weights, chunk):
    """`linear_cross_entropy` from its formula, in one piece."""
    p = jax.nn.softmax(teacher.hidden @ teacher.head)
    z = hidden @ head
    losses, hits = -jnp.sum(p * jax.nn.log_softmax(z), axis=-1), jnp.argmax(z, axis=-1) == teacher.labels
    counts = jnp.sum(jnp.sign(weights), axis=(1, 2))
    per_step = jnp.sum(weights * losses, axis=(1, 2)) / jnp.sum(weights, axis=(1, 2))
    g = (jax.nn.softmax(z[0]) - p) * weights[0][..., None] @ head.T
    top1 = jnp.sum(jnp.sign(weights) * hits, axis=(1, 2)) / counts
    return module.TokenLoss(jnp.sum(weights * losses), per_step, top1, jnp.linalg.norm(g))


@pytest.fixture(params=["draft", "fc"])
def light(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, oracle) -> str:
    """The parts that have tests of their own in plain forms, which need no compilation: what is left is wiring.

    Returns:
      The source of the signals.
    """
    source = request.param
    _, target, _, batch = problem(source)
    given = target(batch["tokens"], batch["positions"], batch["segment_ids"], aux_layers=(1, 2))
    monkeypatch.setattr(Target, "__call__", lambda self, *inputs, **options: given)
    monkeypatch.setattr(draft_module, "ttt_attention", ttt_attention_reference)
    monkeypatch.setattr(module, "linear_cross_entropy", plain)
    assert not is_seen(fast(source, "float32", gradients=False), oracle(source, "float32"))
    return source


def is_seen(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Whether a mutation moves any number that the loss reports."""
    return max(errors(ours, {k: v for k, v in theirs.items() if k != "gradients"}).values()) > 10 * FLOAT32


def test_every_shift_that_is_off_by_one_is_seen(oracle, light: str) -> None:
    theirs = oracle(light, "float32")
    with pytest.MonkeyPatch.context() as patch:
        lines = shifts(patch, lambda line, by: by)
        assert not is_seen(fast(light, "float32", gradients=False), theirs)
    assert len(lines) >= 6
    for line, by in lines.items():
        later = len(set(by)) > 1  # a shift by the TTT step: also one that is right at step 0 and wrong behind it
        for wrong in [lambda n: n + 1] + [lambda n, first=by[0]: n if n == first else 2 * n - first] * later:
            with pytest.MonkeyPatch.context() as patch:
                shifts(patch, lambda at, n, line=line, wrong=wrong: wrong(n) if at == line else n)
                assert is_seen(fast(light, "float32", gradients=False), theirs), (line, by)


def mutations() -> dict[str, dict[str, Any]]:
    """What may be dropped or mistaken, as changes of the batch or the recipe."""
    batch = {name: np.asarray(value) for name, value in problem("draft")[3].items()}
    vocab = np.asarray(problem("draft")[2].draft_vocab)
    return {
        "segments are one": {"segment_ids": jnp.asarray(np.minimum(batch["segment_ids"], 1))},
        "prompts count": {"loss_mask": jnp.ones_like(batch["loss_mask"])},
        "tokens without a label count": {"signal_mask": jnp.ones_like(batch["signal_mask"])},
        "positions stand still": {"positions": jnp.zeros((2, TIME), jnp.int32)},
        "decay is squared": {"ttt_decay": DECAY**2},
        "draft vocabulary is off by one": {"draft_vocab": jnp.asarray((vocab + 1) % 24)},
    }


@pytest.mark.parametrize("name", mutations())
def test_what_is_dropped_or_mistaken_is_seen(oracle, light: str, name: str) -> None:
    assert is_seen(fast(light, "float32", gradients=False, **mutations()[name]), oracle(light, "float32"))


def test_a_teacher_that_runs_backwards_is_seen(oracle, light: str, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher_of = module.teacher_of

    def backwards(target, hidden, vocab, tokens):
        return teacher_of(target, hidden[:, ::-1], vocab, tokens)

    monkeypatch.setattr(module, "teacher_of", backwards)
    assert is_seen(fast(light, "float32", gradients=False), oracle(light, "float32"))
