"""The fused losses against the plain formulas, and the dynamic weights against a full backward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_specexit.training.losses import (
    Teacher,
    constant_losses,
    fades,
    first_choices,
    linear_cross_entropy,
    signal_losses,
    signal_state_gradients,
    signal_weights,
)
from jax_specexit.training.step import Followed, follow, signal_targets, smooth
from specexit.method.signals import RAW_LIMIT, SIGNALS, column

STEPS, BATCH, TIME, HIDDEN, VOCAB = 3, 2, 16, 12, 20


def problem(seed: int = 0):
    keys = jax.random.split(jax.random.key(seed), 6)
    hidden = jax.random.normal(keys[0], (STEPS, BATCH, TIME, HIDDEN))
    head = jax.random.normal(keys[1], (HIDDEN, VOCAB)) / 3
    teacher = Teacher(
        jax.random.normal(keys[2], (BATCH, TIME, 10)),
        jax.random.normal(keys[3], (10, VOCAB)),
        jax.random.randint(keys[4], (BATCH, TIME), -1, VOCAB),
    )
    weights = jax.random.uniform(keys[5], (STEPS, BATCH, TIME)) * (jax.random.uniform(keys[5], (BATCH, TIME)) > 0.3)
    return hidden, head, teacher, weights


def plain(hidden, head, teacher, weights):
    p = jax.nn.softmax(teacher.hidden @ teacher.head, axis=-1)
    return jnp.sum(weights * -jnp.sum(p * jax.nn.log_softmax(hidden @ head, axis=-1), axis=-1))


@pytest.mark.parametrize("chunk", [4, 16])
def test_fused_cross_entropy_is_the_plain_one(chunk: int) -> None:
    hidden, head, teacher, weights = problem()
    fused = jax.value_and_grad(lambda h, w: linear_cross_entropy(h, w, teacher, weights, chunk).total, argnums=(0, 1))
    oracle = jax.value_and_grad(lambda h, w: plain(h, w, teacher, weights), argnums=(0, 1))
    # float32 sums in another order
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), fused(hidden, head), oracle(hidden, head)
    )


@pytest.mark.parametrize("distance", [0.3, 0.03])
def test_bfloat16_states_have_float32_logits(distance: float) -> None:
    """A draft that is nearly as good as its teacher, at logits of 16 and more, where bfloat16 moves by 0.125."""
    keys = jax.random.split(jax.random.key(7), 3)
    width, vocab = 64, 256
    head = (jax.random.normal(keys[0], (width, vocab)) * 6 * width**-0.5).astype(jnp.bfloat16).astype(jnp.float32)
    state = jax.random.normal(keys[1], (BATCH, TIME, width)).astype(jnp.bfloat16)
    hidden = (state + distance * jax.random.normal(keys[2], (STEPS, BATCH, TIME, width)) * 0.3).astype(jnp.bfloat16)
    teacher = Teacher(state, head, jnp.zeros((BATCH, TIME), jnp.int32))
    weights = jnp.full((STEPS, BATCH, TIME), 1 / (BATCH * TIME))
    wide = Teacher(state.astype(jnp.float32), head, teacher.labels)

    def fused(h, w):
        return linear_cross_entropy(h, w, teacher, weights, 4).total

    value, (ours, ours_head) = jax.value_and_grad(fused, argnums=(0, 1))(hidden, head)
    exact, (theirs, theirs_head) = jax.value_and_grad(lambda h, w: plain(h, w, wide, weights), argnums=(0, 1))(
        hidden.astype(jnp.float32), head
    )
    assert jnp.max(jnp.abs(hidden.astype(jnp.float32) @ head)) > 16
    np.testing.assert_allclose(value, exact, rtol=1e-5)  # nothing but float32 sums in another order
    for a, b in ((ours, theirs), (ours_head, theirs_head)):
        # Only the logits' gradient is rounded, once, to bfloat16: 2^-9 of itself. Rounded logits gave 4 to 40 %.
        assert jnp.linalg.norm(a.astype(jnp.float32) - b) < 5e-3 * jnp.linalg.norm(b)


def test_of_equal_logits_the_lowest_id_is_the_first_choice() -> None:
    """As a greedy sampler has it: vLLM's argmax takes the first."""
    logits = np.random.default_rng(0).integers(0, 3, (STEPS, BATCH, TIME, VOCAB))
    hidden = jnp.asarray(logits, jnp.float32)
    chosen = first_choices(hidden, jnp.eye(VOCAB), 4)
    np.testing.assert_array_equal(chosen, np.argmax(logits, axis=-1))


def test_fused_cross_entropy_reports_what_it_says() -> None:
    hidden, head, teacher, weights = problem(1)
    result = linear_cross_entropy(hidden, head, teacher, weights, 4)
    losses = -jnp.sum(
        jax.nn.softmax(teacher.hidden @ teacher.head) * jax.nn.log_softmax(hidden @ head, axis=-1), axis=-1
    )
    # Here and below: float32 sums of up to some thousand numbers, in another order.
    np.testing.assert_allclose(result.per_step, jnp.sum(losses * weights, (1, 2)) / jnp.sum(weights, (1, 2)), rtol=1e-5)
    hits = jnp.argmax(hidden @ head, -1) == teacher.labels
    valid = weights > 0
    np.testing.assert_allclose(result.top1, jnp.sum(hits * valid, (1, 2)) / jnp.sum(valid, (1, 2)), rtol=1e-6)
    gradient = jax.grad(lambda h: plain(h, head, teacher, weights))(hidden)[0]
    np.testing.assert_allclose(result.state_gradient, jnp.linalg.norm(gradient), rtol=1e-5)


def test_a_step_that_counts_nothing_has_no_mean() -> None:
    """As a late one where all texts are short. It adds nothing to what is minimised, and was said to lose 0."""
    hidden, head, teacher, weights = problem(1)

    def loss(hidden, head):
        result = linear_cross_entropy(hidden, head, teacher, weights.at[1].set(0), 4)
        return result.total, result

    gradients, result = jax.grad(loss, argnums=(0, 1), has_aux=True)(hidden, head)
    for means in (result.per_step, result.top1):
        assert np.isnan(means).tolist() == [False, True, False]
    for value in (*gradients, result.total, result.state_gradient):
        assert np.all(np.isfinite(value))


def test_signal_losses_are_the_textbook_formulas() -> None:
    raw = jnp.array([[[0.3, -1.2, 2.0, 0.7], [-2.0, 0.1, 4.0, -0.5]]])
    labels = jnp.array([[[0.9, 0.2, 11.0, 1.0], [0.1, 0.6, 40.0, 0.0]]])
    mask = jnp.ones_like(raw)
    got = signal_losses(raw, labels, mask)
    p = jax.nn.sigmoid(raw)
    expected = {
        "confidence": jnp.mean((p[..., 0] - labels[..., 0]) ** 2),
        "progress": jnp.mean((p[..., 1] - labels[..., 1]) ** 2),
        "remaining": jnp.mean((jnp.log1p(jnp.exp(raw[..., 2])) - jnp.log1p(labels[..., 2])) ** 2),
        "validity": -jnp.mean(labels[..., 3] * jnp.log(p[..., 3]) + (1 - labels[..., 3]) * jnp.log(1 - p[..., 3])),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(got[column(name)], value, rtol=1e-5, err_msg=name)


def test_masked_tokens_have_no_say() -> None:
    raw = jax.random.normal(jax.random.key(3), (2, 8, len(SIGNALS)))
    labels = jnp.ones_like(raw)
    mask = jnp.zeros_like(raw).at[0, :4].set(1)
    changed = raw.at[1].set(9.0)
    np.testing.assert_array_equal(signal_losses(raw, labels, mask), signal_losses(changed, labels, mask))


@pytest.mark.parametrize(("source", "rows"), [("fc", [1.0, 5.0, 0.0, 1.0]), ("draft", [5.0, 0.0, 0.0, 0.0])])
def test_a_split_token_counts_more_at_the_row_that_speaks_of_it(source: str, rows: list[float]) -> None:
    batch = {
        "tokens": jnp.array([[3, 7, 7, 3]]),
        "segment_ids": jnp.array([[1, 1, 1, 2]]),
        "signal_labels": jnp.arange(4.0)[None, :, None] * jnp.ones(len(SIGNALS)),
        "signal_mask": jnp.array([[True, True, False, True]])[..., None] & jnp.ones(len(SIGNALS), bool),
    }
    labels, weights = signal_targets(batch, source, jnp.ones(9).at[7].set(5.0))
    np.testing.assert_array_equal(weights[0, :, 0], rows)
    assert labels[0, rows.index(5.0), 0] == 1


def test_state_gradients_equal_a_backward_pass() -> None:
    keys = jax.random.split(jax.random.key(5), 4)
    state = jax.random.normal(keys[0], (2, 8, 6))
    kernel = jax.random.normal(keys[1], (6, len(SIGNALS)))
    labels = jax.random.uniform(keys[2], (2, 8, len(SIGNALS)))
    mask = (jax.random.uniform(keys[3], labels.shape) > 0.4).astype(jnp.float32)
    got = signal_state_gradients(state @ kernel, labels, mask, kernel)
    jacobian = jax.jacrev(lambda y: signal_losses(y @ kernel, labels, mask))(state)
    np.testing.assert_allclose(got, jnp.sqrt(jnp.sum(jacobian**2, axis=(1, 2, 3))), rtol=1e-5)


def test_the_constant_loss_is_that_of_the_best_constant_answer() -> None:
    keys = jax.random.split(jax.random.key(6), 2)
    labels = jax.random.uniform(keys[0], (2, 8, len(SIGNALS))) ** 2
    weights = 5.0 * (jax.random.uniform(keys[1], labels.shape) > 0.4)
    found = constant_losses(labels, weights)
    answers = [signal_losses(jnp.full(labels.shape, z), labels, weights) for z in jnp.arange(-4, 4, 0.01)]
    # The grid's best answer is 0.005 from the best at most, where a loss is flat.
    np.testing.assert_allclose(found, jnp.min(jnp.stack(answers), axis=0), rtol=1e-3)


@pytest.mark.parametrize(
    ("share_of_constant", "left"),
    [(1.3, 0), (1.0, 0), (0.95, 0.5), (0.9, 1), (0.5, 1), (0.01, 1), (0.002, 0.2), (0, 0)],
)
def test_a_signal_pulls_while_its_loss_is_between_its_floors(share_of_constant: float, left: float) -> None:
    constants = jnp.array([0.1, 0.3, 2.0, 0.7])
    np.testing.assert_allclose(fades(share_of_constant * constants, constants), left, atol=1e-5)


def pulls_left(seen: Followed, steps: int) -> tuple[Followed, list[float]]:
    """What is followed behind so many steps that see the same, and what is left of a signal's pull at each."""
    n, left = len(SIGNALS), []
    followed = Followed(jnp.zeros(1 + n), jnp.zeros(n), jnp.zeros(n))
    for _ in range(steps):
        followed = follow(followed, seen, jnp.ones(len(SIGNALS), bool), 0.95)
        left.append(float(fades(followed.losses, followed.constants)[0]))
    return followed, left


def test_a_signal_that_begins_at_a_constant_s_loss_pulls_for_some_forty_steps() -> None:
    n = len(SIGNALS)
    seen = Followed(jnp.ones(1 + n), jnp.full(n, 0.7), jnp.full(n, 0.7))  # no better than a constant answer
    followed, left = pulls_left(seen, 200)
    assert min(left[:40]) == 1
    assert 0 < left[60] < 1
    assert left[-1] < 0.01
    nan = Followed(seen.magnitudes, seen.losses * jnp.nan, seen.constants)
    worse = follow(followed, nan, jnp.ones(n, bool), 0.95)
    np.testing.assert_array_equal(worse.losses, followed.losses)


def test_a_signal_of_which_the_first_batches_have_no_label_begins_at_its_own_first_value() -> None:
    """Begun at 0 with the others, it had a twentieth of its force, and twenty times its weight, for its first steps."""
    n = len(SIGNALS)
    none_of_the_last = jnp.ones(n).at[-1].set(0)
    before = Followed(jnp.zeros(1 + n), jnp.zeros(n), jnp.zeros(n))
    seen = Followed(jnp.append(3.0, none_of_the_last), none_of_the_last, none_of_the_last)
    before = follow(before, seen, none_of_the_last > 0, 0.95)
    after = follow(before, Followed(jnp.full(1 + n, 2.0), jnp.ones(n), jnp.full(n, 2.0)), jnp.ones(n, bool), 0.95)
    assert (float(after.magnitudes[-1]), float(after.constants[-1])) == (2.0, 2.0)
    np.testing.assert_allclose(after.magnitudes[0], 0.95 * 3 + 0.05 * 2)


def test_a_signal_that_few_batches_have_labels_of_pulls_as_hard_as_any() -> None:
    """Averaged with the zeros of the other batches, a force was a twentieth where one batch in fifty had some."""
    n, rng = len(SIGNALS), np.random.default_rng(0)
    whole = rare = Followed(jnp.zeros(1 + n), jnp.zeros(n), jnp.zeros(n))
    for i in range(12):
        seen = Followed(*(jnp.asarray(rng.random(x.size), jnp.float32) for x in whole))
        labelled = jnp.ones(n, bool).at[-1].set(i % 4 == 3)
        of_batch = Followed(*(x.at[-1].multiply(labelled[-1]) for x in seen))
        rare = follow(rare, of_batch, labelled, 0.95)
        if labelled[-1]:
            whole = follow(whole, seen, labelled, 0.95)
    for ours, theirs in zip(rare, whole, strict=True):
        assert ours[-1] == theirs[-1]
        assert np.all(ours[:-1] != theirs[:-1])  # which have seen all twelve


def test_where_all_signals_have_labels_nothing_is_passed_over() -> None:
    n, rng = len(SIGNALS), np.random.default_rng(1)
    before, seen = (Followed(*(jnp.asarray(rng.random(k), jnp.float32) for k in (1 + n, n, n))) for _ in range(2))
    found = jax.jit(lambda b, s: follow(b, s, jnp.ones(n, bool), 0.95))(before, seen)
    expected = jax.jit(lambda b, s: Followed(*(smooth(x, y, 0.95) for x, y in zip(b, s, strict=True))))(before, seen)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize(("times", "whole", "nothing"), [(2.2, 10, 12), (100.0, 0, 1)])
def test_a_signal_that_begins_above_a_constant_s_loss_pulls_for_fewer_steps(
    times: float, whole: int, nothing: int
) -> None:
    """With all of its force for ``whole`` steps, and from step ``nothing`` on with none of it. 2.2 is about what the
    demo's progress begins at: its labels are mostly 1, and its head says 0.5."""
    n = len(SIGNALS)
    _, left = pulls_left(Followed(jnp.ones(1 + n), jnp.full(n, 0.1 * times), jnp.full(n, 0.1)), 15)
    assert left[:whole] == [1] * whole
    assert left[whole] < 1
    assert not any(left[nothing - 1 :])


def test_labels_that_are_all_the_same_pull_on_nothing() -> None:
    labels, weights = jnp.full((1, 4, len(SIGNALS)), 0.25), jnp.ones((1, 4, len(SIGNALS)))
    constants = constant_losses(labels, weights)
    losses = signal_losses(jnp.full(labels.shape, -1.0), labels, weights)
    assert not fades(losses, constants)[jnp.array([0, 1, 2])].any()


def test_weights_balance_the_pull() -> None:
    gradients = jnp.array([0.5, 2.0, 10.0, 0.1])
    joint = signal_weights(jnp.array(4.0), gradients, 0.3, fade=jnp.ones(4))
    np.testing.assert_allclose(joint * gradients, jnp.full(4, 1.2), rtol=1e-6)
    half = signal_weights(jnp.array(4.0), gradients, 0.3, fade=jnp.array([1.0, 0.5, 0.0, 1.0]))
    np.testing.assert_allclose(half * gradients, [1.2, 0.6, 0.01, 1.2], rtol=1e-6)
    alone = signal_weights(jnp.array(4.0), gradients, 0.3)
    np.testing.assert_allclose(alone * gradients, jnp.full(4, 1.0), rtol=1e-6)


@pytest.mark.parametrize("side", [1, -1])
def test_a_raw_value_beyond_the_limit_loses_what_one_at_the_limit_does(side: int) -> None:
    """As it is read: no signal is further out than `RAW_LIMIT` in any framework."""
    labels, weights = jnp.full((1, 1, len(SIGNALS)), 0.5), jnp.ones((1, 1, len(SIGNALS)))
    beyond, at = (signal_losses(jnp.full_like(labels, side * raw), labels, weights) for raw in (40.0, RAW_LIMIT))
    np.testing.assert_array_equal(beyond, at)
