"""The whole loss against a naive one: PyTorch, float64, a loop over TTT step and position, from the definition alone.

The target's hidden states are given to both. Everything behind them is computed twice: which token, label and teacher
row belongs to a draft row; packed segments, masks, the draft vocabulary; the draft itself; both losses; the weights of
the signals; all gradients. And every mutation of the fast one that a reviewer could think of must be seen.
"""

import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from jax_specexit.model import draft as draft_module
from jax_specexit.model.attention import ttt_attention_reference
from jax_specexit.model.draft import Draft
from jax_specexit.model.target import Target, TargetShape
from jax_specexit.training import step as module
from jax_specexit.training.step import Followed, Frozen, make_loss
from specexit.drafts.directory import DraftConfig, SpecExitBlock
from specexit.schemas.train import TrainConfig

STEPS, DECAY, SHARE, TIME, HIDDEN, EPS, THETA = 3, 0.7, 0.3, 12, 16, 1e-6, 100.0
AUX_RMS = (0.5, 2.0)
SMOOTHING = 0.95
BEFORE = Followed(np.zeros(5), np.array([0.1, 0.1, 0.004, 0.5]), np.array([0.118, 0.4, 100.0, 0.9]))
"""What steps before have left: pulls that have faded in part, for either reason, and pulls that have not."""
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


class Naive:
    """The loss by its definition, in float64; leaves of the parameters want gradients."""

    def __init__(
        self, source: str, given: dict[str, np.ndarray], batch: dict[str, Any], frozen: Frozen, skip_unknown: bool
    ):
        self.source, self.skip_unknown = source, skip_unknown
        self.aux, self.teacher = (double(given[name]) for name in ("aux", "hidden"))
        self.embedding = double(frozen.target["embedding"])
        self.batch = {name: np.asarray(value) for name, value in batch.items()}
        self.vocab, self.weight = np.asarray(frozen.draft_vocab), np.asarray(frozen.signal_weight)

    def together(self, row: int, t: int, later: int) -> bool:
        """Whether two places lie in one segment of a row."""
        ids = self.batch["segment_ids"][row]
        return later < TIME and ids[t] > 0 and ids[t] == ids[later]

    def places(self, ahead: int) -> Iterator[tuple[int, int]]:
        """Places whose segment still has a token so far ahead."""
        return ((row, t) for row in range(2) for t in range(TIME) if self.together(row, t, t + ahead))

    def trunk(self, params: Any) -> dict[tuple[int, int, int], torch.Tensor]:
        """Normed outputs of the draft by (step, row, place), wherever the token that it reads exists."""
        normed, hidden, keys, values = {}, {}, {}, {}
        for k in range(STEPS):
            for row, t in self.places(1 + k):
                token = self.batch["tokens"][row, t + 1 + k]
                before = hidden[k - 1, row, t] if k else self.normalised(row, t) @ params["fc"]["kernel"]
                x = torch.cat([norm(self.embedding[token], params["embed_norm"]), norm(before, params["hidden_norm"])])
                place = self.batch["positions"][row, t] + k
                q = rope((x @ params["q"]["kernel"]).reshape(4, 4), place)
                keys[k, row, t] = rope((x @ params["k"]["kernel"]).reshape(2, 4), place)
                values[k, row, t] = (x @ params["v"]["kernel"]).reshape(2, 4)
                seen = [(0, row, s) for s in range(t + 1) if self.together(row, s, t)]
                seen += [(j, row, t) for j in range(1, k + 1)]
                mixed = [
                    softmax(torch.stack([q[head] @ keys[at][head // 2] for at in seen]) / 2)
                    @ torch.stack([values[at][head // 2] for at in seen])
                    for head in range(4)
                ]
                state = before + torch.cat(mixed) @ params["o"]["kernel"]
                y, mlp = norm(state, params["post_norm"]), params["mlp"]
                gate = y @ mlp["gate"]["kernel"]
                inner = gate / (1 + torch.exp(-gate)) * (y @ mlp["up"]["kernel"])
                hidden[k, row, t] = state + inner @ mlp["down"]["kernel"]
                normed[k, row, t] = norm(hidden[k, row, t], params["norm"])
        return normed

    def normalised(self, row: int, t: int) -> torch.Tensor:
        return self.aux[row, t] / double(np.repeat(AUX_RMS, HIDDEN))

    def token_losses(self, params: Any, normed: dict) -> tuple[list[torch.Tensor], list[float]]:
        """Mean cross-entropy and top-1 of each step."""
        losses, top1 = [], []
        for k in range(STEPS):
            # Draft row t reads token t + 1 + k and says what comes behind it; so does the target at that token.
            counted = [
                (row, t)
                for row, t in self.places(2 + k)
                if self.batch["loss_mask"][row, t + 2 + k] and self.is_known(row, t + 1 + k)
            ]
            each, hits = [], 0
            for row, t in counted:
                p = softmax(self.teacher[row, t + 1 + k] @ self.embedding[self.vocab.tolist()].T)
                q = softmax(normed[k, row, t] @ params["lm_head"]["kernel"])
                each.append(-torch.sum(p * torch.log(q)))
                hits += self.vocab[int(torch.argmax(q))] == self.batch["tokens"][row, t + 2 + k]
            losses.append(sum(each) / len(each))
            top1.append(hits / len(each))
        return losses, top1

    def is_known(self, row: int, s: int) -> bool:
        """Whether the draft has a word for what the target would say behind this place."""
        choice = int(torch.argmax(self.teacher[row, s] @ self.embedding.T))
        return not self.skip_unknown or choice in self.vocab

    def read(self, normed: dict) -> dict[tuple[int, int], torch.Tensor]:
        """(row, place of the token that is spoken of) -> the state that its signals are read from."""
        if self.source == "fc":
            return {(row, t): self.normalised(row, t).requires_grad_() for row, t in self.places(0)}
        return {(row, t + 1): normed[0, row, t] for row, t in self.places(1)}

    def signal_loss(self, kernel: torch.Tensor, read: dict, signal: int) -> torch.Tensor:
        total, counts = torch.zeros(()), 0.0
        for (row, t), state in read.items():
            z, y = torch.clip(state @ kernel[:, signal], -15, 15), float(self.batch["signal_labels"][row, t, signal])
            count = self.batch["signal_mask"][row, t, signal] * self.weight[self.batch["tokens"][row, t]]
            sigmoid = 1 / (1 + torch.exp(-z))
            loss = [
                (sigmoid - y) ** 2,
                (sigmoid - y) ** 2,
                (torch.log1p(torch.exp(z)) - np.log1p(y)) ** 2,
                -(y * torch.log(sigmoid) + (1 - y) * torch.log(1 - sigmoid)),
            ][signal]
            total, counts = total + count * loss, counts + count
        return total / counts

    def fades(self, losses: list[torch.Tensor]) -> np.ndarray:
        """What is left of the signals' pulls, given `BEFORE` as what was seen before."""
        rows = [(r, t) for r, t in itertools.product(range(2), range(TIME)) if t and self.together(r, t - 1, t)]
        found = []
        for s in range(4):
            y = np.array([self.batch["signal_labels"][at][s] for at in rows], np.float64)
            count = [self.batch["signal_mask"][at][s] * self.weight[self.batch["tokens"][at]] for at in rows]
            y = np.log1p(y) if s == 2 else y
            p = np.average(y, weights=count)
            constant = -(p * np.log(p) + (1 - p) * np.log(1 - p)) if s == 3 else np.average((y - p) ** 2, weights=count)
            constant = SMOOTHING * BEFORE.constants[s] + (1 - SMOOTHING) * constant
            share = (SMOOTHING * BEFORE.losses[s] + (1 - SMOOTHING) * losses[s].item()) / constant
            found.append(np.clip((1 - share) / 0.1, 0, 1) * np.clip(share / 0.01, 0, 1))
        return np.array(found)

    def report(self, params: Any) -> dict[str, Any]:
        """Loss, its parts, weights and all gradients."""
        normed, kernel = self.trunk(params), params["signal_head"]["kernel"]
        token_loss, top1 = self.token_losses(params, normed)
        tokens = sum((DECAY**k * one for k, one in enumerate(token_loss)), torch.zeros(()))
        read = self.read(normed)
        signal_loss = [self.signal_loss(kernel, read, s) for s in range(4)]

        states = [y for (step, _, _), y in normed.items() if step == 0]
        force = size(torch.autograd.grad(tokens, states, retain_graph=True, allow_unused=True))
        pulls = [size(torch.autograd.grad(one, list(read.values()), retain_graph=True)) for one in signal_loss]
        reference = (
            SHARE * force * self.fades(signal_loss) if self.source == "draft" else np.exp(np.mean(np.log(pulls)))
        )
        weights = np.clip(reference / np.array(pulls), 1e-3, 1e3)

        loss = tokens + sum(w * one for w, one in zip(weights, signal_loss, strict=True))
        leaves, tree = jax.tree.flatten(params)
        return {
            "loss": loss.item(),
            "token_loss": [one.item() for one in token_loss],
            "top1": top1,
            "signal_loss": [one.item() for one in signal_loss],
            "weights": weights,
            "gradients": jax.tree.unflatten(tree, torch.autograd.grad(loss, leaves)),
        }


def double(x: Any) -> torch.Tensor:
    return torch.tensor(np.array(x, np.float64))


def norm(x: torch.Tensor, params: dict) -> torch.Tensor:
    return x * params["scale"] / torch.sqrt(torch.mean(x**2) + EPS)


def softmax(x: torch.Tensor) -> torch.Tensor:
    e = torch.exp(x - torch.max(x))
    return e / torch.sum(e)


def rope(x: torch.Tensor, place: int) -> torch.Tensor:
    angle = double(place * THETA ** -(np.arange(2) / 2))
    a, b = x[:, :2], x[:, 2:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=1)


def size(gradients: Any) -> float:
    return float(torch.sqrt(sum((torch.sum(g**2) for g in gradients if g is not None), torch.zeros(()))))


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


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch, oracle) -> None:
    """The parts that have tests of their own in plain forms, which need no compilation: what is left is wiring."""
    _, target, _, batch = problem("draft")
    given = target(batch["tokens"], batch["positions"], batch["segment_ids"], aux_layers=(1, 2))
    monkeypatch.setattr(Target, "__call__", lambda self, *inputs, **options: given)
    monkeypatch.setattr(draft_module, "ttt_attention", ttt_attention_reference)
    monkeypatch.setattr(module, "linear_cross_entropy", plain)
    assert not is_seen(fast("draft", "float32", gradients=False), oracle("draft", "float32"))


def is_seen(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Whether a mutation moves any number that the loss reports."""
    return max(errors(ours, {k: v for k, v in theirs.items() if k != "gradients"}).values()) > 10 * FLOAT32


@pytest.mark.usefixtures("light")
def test_every_shift_that_is_off_by_one_is_seen(oracle) -> None:
    theirs = oracle("draft", "float32")
    with pytest.MonkeyPatch.context() as patch:
        lines = shifts(patch, lambda line, by: by)
        assert not is_seen(fast("draft", "float32", gradients=False), theirs)
    assert len(lines) >= 6
    for line, by in lines.items():
        later = len(set(by)) > 1  # a shift by the TTT step: also one that is right at step 0 and wrong behind it
        for wrong in [lambda n: n + 1] + [lambda n, first=by[0]: n if n == first else 2 * n - first] * later:
            with pytest.MonkeyPatch.context() as patch:
                shifts(patch, lambda at, n, line=line, wrong=wrong: wrong(n) if at == line else n)
                assert is_seen(fast("draft", "float32", gradients=False), theirs), (line, by)


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


@pytest.mark.usefixtures("light")
@pytest.mark.parametrize("name", mutations())
def test_what_is_dropped_or_mistaken_is_seen(oracle, name: str) -> None:
    assert is_seen(fast("draft", "float32", gradients=False, **mutations()[name]), oracle("draft", "float32"))


@pytest.mark.usefixtures("light")
def test_a_teacher_that_runs_backwards_is_seen(oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher_of = module.teacher_of

    def backwards(target, hidden, vocab, tokens):
        return teacher_of(target, hidden[:, ::-1], vocab, tokens)

    monkeypatch.setattr(module, "teacher_of", backwards)
    assert is_seen(fast("draft", "float32", gradients=False), oracle("draft", "float32"))
