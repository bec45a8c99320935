"""Train an embedded target on a CPU: ``make tiny-reasoner`` from nothing, ``make tiny-mixed`` on from that one.

Problems of the ``pretrain`` split are fresh all the way (no epochs), the loss is that of the response only, and batches
of about equal token count are bucketed by length. The budget is counted in tokens, not in minutes, so the result does
not depend on how busy the machine is.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int
from pydantic import Field
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer

from jax_specexit.model.target import Target, TargetShape
from jax_specexit.training.optimizer import Group, make_optimizer
from jax_specexit.weights import export_target, load_target
from specexit import tiny
from specexit.config import Config
from specexit.schemas.train import OptimizerConfig
from specexit.tiny import families
from specexit.tiny.families.arithmetic import Arithmetic
from specexit.tiny.tokenizer import END_OF_TEXT, TURN_CLOSE, build_tokenizer

SHORT = {name: 0.3 if name in ("lookup", "choice") else 0.1 for name in families.FAMILIES}
"""Share of each family in the curriculum of ``mixed``; the two that are larger have the rarest answer tokens."""

Batch = tuple[np.ndarray, np.ndarray]
"""(tokens, loss mask), both [batch, time]."""


class TinyReasonerConfig(Config):
    """How the embedded target is made."""

    out: Path = Field(default=tiny.MODEL_DIR, description="folder of the model, replaced when training is done")
    problems: Literal["tiny", "mixed"] = Field(default="tiny", description="the tiny reasoner's, or all families")
    init_from: Path | None = Field(
        default=None, description="folder of a model of the same shape to go on from, its tokenizer kept"
    )
    tokens: int = Field(default=4_600_000, gt=0, description="training tokens, padding included")
    batch_tokens: int = Field(default=3072, gt=0, description="tokens in a batch")
    bucket: int = Field(default=64, gt=0, description="lengths are padded up to a multiple of this")
    curriculum: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="share of the tokens on problems of at most 3 steps (mixed: most are short)",
    )
    remat: bool = Field(default=False, description="compute each layer again in the backward pass, to save memory")
    seed: int = Field(default=0, description="of the weights and of the data")
    optimizer: OptimizerConfig = OptimizerConfig()


SHAPE = TargetShape(
    vocab_size=640,
    hidden_size=192,
    intermediate_size=384,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    rope_theta=10_000.0,
    rms_norm_eps=1e-6,
    tie_word_embeddings=True,
)
"""1.6M parameters. Head size 64 and an even block size are what vLLM's CPU attention wants."""


def batches(config: TinyReasonerConfig, tokenizer: Tokenizer) -> Iterator[Batch]:
    """Endless batches of equal-length rows."""
    rng = random.Random(config.seed)
    if config.problems == "mixed":
        easy = families.stream("pretrain", config.seed, shares=SHORT)
        full = families.stream("pretrain", config.seed)
    else:
        easy = map(Arithmetic, tiny.stream("pretrain", config.seed, max_steps=3))
        full = map(Arithmetic, tiny.stream("pretrain", config.seed + 1))
    waiting: dict[int, list[tuple[list[int], int]]] = defaultdict(list)
    seen = 0
    while True:
        exercise = next(easy if seen < config.curriculum * config.tokens else full)
        prompt = tokenizer.encode(tiny.prompt_text(exercise.question)).ids
        response = tokenizer.encode(exercise.response(exercise.think(rng))).ids
        length = -(-(len(prompt) + len(response)) // config.bucket) * config.bucket
        rows = waiting[length]
        rows.append((prompt + response, len(prompt)))
        if len(rows) == max(1, config.batch_tokens // length):
            seen += len(rows) * length
            yield _batch(waiting.pop(length), length)


def _batch(rows: list[tuple[list[int], int]], length: int) -> Batch:
    tokens = np.zeros((len(rows), length), np.int32)
    mask = np.zeros((len(rows), length), np.float32)
    for i, (ids, n_prompt) in enumerate(rows):
        tokens[i, : len(ids)] = ids
        mask[i, n_prompt : len(ids)] = 1
    return tokens, mask


def loss_fn(
    target: Target, tokens: Int[Array, "batch time"], mask: Float[Array, "batch time"], *, remat: bool = False
) -> Float[Array, ""]:
    """Mean cross-entropy of the response tokens."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden, _ = target(tokens, positions, jnp.ones_like(tokens), dtype=jnp.bfloat16, remat=remat)
    logits = (hidden[:, :-1] @ target.head().astype(jnp.bfloat16)).astype(jnp.float32)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
    return jnp.sum(losses * mask[:, 1:]) / jnp.sum(mask[:, 1:])


def _group_of(path: tuple, leaf: jax.Array) -> Group:
    return "muon" if "kernel" in jax.tree_util.keystr(path) else "adam"


def _start(config: TinyReasonerConfig, folder: Path) -> Target:
    """The model that training begins with, its tokenizer in ``folder``."""
    if config.init_from is None:
        build_tokenizer(folder, seed=config.seed)
        return Target(SHAPE, rngs=nnx.Rngs(config.seed))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(config.init_from / name, folder / name)
    return load_target(config.init_from)


def train(config: TinyReasonerConfig) -> float:
    """Train and export an embedded target; returns the smoothed final loss (nats per response token)."""
    with tempfile.TemporaryDirectory() as beside:
        folder = Path(beside)
        target = _start(config, folder)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        graph, params = nnx.split(target)
        params = nnx.to_pure_dict(params)
        steps = config.tokens // config.batch_tokens
        optimizer = make_optimizer(config.optimizer, steps, _group_of)
        state = optimizer.init(params)

        @partial(jax.jit, donate_argnums=(0, 1))
        def step(params, state, tokens, mask):
            def loss(params):
                return loss_fn(nnx.merge(graph, params), tokens, mask, remat=config.remat)

            value, grads = jax.value_and_grad(loss)(params)
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state, value

        smooth, seen = None, 0
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns) as progress:
            task = progress.add_task(config.problems, total=config.tokens, loss="")
            for tokens, mask in batches(config, tokenizer):
                params, state, value = step(params, state, tokens, mask)
                smooth = float(value) if smooth is None else 0.95 * smooth + 0.05 * float(value)
                seen += tokens.size
                progress.update(task, completed=seen, loss=f"loss {smooth:.4f}")
                if seen >= config.tokens:
                    break
        ids = {name: tokenizer.token_to_id(text) for name, text in (("eos", TURN_CLOSE), ("pad", END_OF_TEXT))}
        export_target(
            nnx.merge(graph, params),
            folder,
            eos_token_id=ids["eos"],
            pad_token_id=ids["pad"],
            max_position_embeddings=2048,
        )
        config.out.mkdir(parents=True, exist_ok=True)
        for file in folder.iterdir():
            shutil.copyfile(file, config.out / file.name)
    assert smooth is not None
    return smooth


if __name__ == "__main__":
    import sys

    from specexit.config import load

    print(f"final loss {train(load(TinyReasonerConfig, overrides=sys.argv[1:])):.4f}")
