"""``specexit bench-training``: one training step of an EAGLE-3 draft, in JAX and in speculators 0.9.0.

The same weights, the same row, the same loss (the target's whole distribution over the draft vocabulary, K TTT steps),
AdamW on both sides, as many threads as there are cores; both compiled, taking turns. What is compared is a process, so
its memory includes its libraries.
"""

from __future__ import annotations

import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from specexit.bench.process import BenchError, BenchProcess
from specexit.config import versions, write_text
from specexit.drafts.config import PLAIN_ARCHITECTURE, DraftConfig
from specexit.drafts.directory import write_draft
from specexit.hardware import describe_hardware, processors
from specexit.method.statistics import paired_bootstrap
from specexit.outputs import removed_at_the_end
from specexit.schemas.bench_training import BenchTrainingConfig

SIDES = {"jax": "jax_specexit.bench_step", "speculators": "torch_specexit.bench.step"}
"""Modules of the two processes."""

LOSS_TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-3}
"""Relative, by dtype. Sums in another order differ by 1e-6, bfloat16 in other places by up to 5e-4 (four seeds of a
small draft). A shift that is off by one moves it by more, as a test shows: at the shipped sizes one of the embeddings
alone by 2.7e-4, which the rounding of bfloat16 hides, those of the states by more than 1e-3."""

PERSISTENCE = 0.9
"""Correlation of a target state with the one before it. The draft is shown the next one, so its loss grows with what
lies between."""


def bench_training(config: BenchTrainingConfig) -> dict[str, Any]:
    """Measure, print and write ``training.json``.

    Raises:
      BenchError: a side fails, or the two do not compute the same loss.
    """
    with removed_at_the_end(), tempfile.TemporaryDirectory(prefix="specexit-bench-") as scratch, ExitStack() as stack:
        folder = Path(scratch)
        entropy = write_inputs(config, folder)
        setup = config.model_dump(mode="json") | {"folder": scratch, "threads": processors()}
        sides = {
            name: stack.enter_context(BenchProcess(name, module, setup, folder / f"{name}.log"))
            for name, module in SIDES.items()
        }
        first = {name: side.wait_ready() for name, side in sides.items()}
        check_losses(first["jax"]["loss"] - entropy, first["speculators"]["loss"], config.dtype)
        turns = take_turns(config, sides)
        memory = sides["jax"].ask({"attention_memory": list(config.lengths)})
        weights = sides["jax"].ask({"weights": ["draft", "fc"]})
    result = gather(config, turns, memory, weights)
    for table in tables(result):
        Console().print(table)
    write_text(config.out, json.dumps(result, indent=2) + "\n")
    return result


def write_inputs(config: BenchTrainingConfig, folder: Path) -> float:
    """Write a draft directory and one row of target features that tell every place from its neighbours.

    Target states change slowly, and the draft's features hold the next one, which its weights let through: it is
    nearly right about the next token, and less about each one behind it.

    Returns:
      The teacher's mean entropy, added up over the TTT steps: by so much a cross-entropy exceeds a divergence.
    """
    rng, hidden = np.random.default_rng(config.seed), config.draft.hidden_size
    embedding = _matrix(rng, config.vocab_size, hidden)
    head = embedding[: config.draft.draft_vocab_size]
    write_draft(folder / "draft", *_draft(config, rng, head))
    rows = config.length + 1
    state = rng.normal(size=(rows + 1, hidden))
    for t in range(1, rows + 1):
        state[t] = PERSISTENCE * state[t - 1] + (1 - PERSISTENCE**2) ** 0.5 * state[t]
    state = (state / np.sqrt(np.mean(state**2, axis=-1, keepdims=True))).astype(np.float32)
    noise = rng.normal(size=(rows, 2 * hidden)).astype(np.float32)
    np.savez(
        folder / "row.npz",
        embedding=embedding,
        tokens=rng.integers(0, config.vocab_size, (1, rows)),
        aux=np.concatenate([noise, state[1:]], axis=-1)[None],
        state=state[None, :rows],
    )
    logits = state[: config.length - 1] @ head.T
    logs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    entropy = -(np.exp(logs) * logs).sum(axis=-1)
    return float(sum(entropy[1 + k :].mean() for k in range(config.ttt_steps)))


def _draft(
    config: BenchTrainingConfig, rng: np.random.Generator, head: np.ndarray
) -> tuple[DraftConfig, dict[str, np.ndarray]]:
    """A draft that passes the last of its features on, a little disturbed by what else it reads."""
    hidden = config.draft.hidden_size
    shape = DraftConfig(
        **config.draft.model_dump(),
        architectures=(PLAIN_ARCHITECTURE,),
        target_hidden_size=hidden,
        vocab_size=config.vocab_size,
        eagle_aux_hidden_state_layer_ids=(0, 2, 3),
        num_aux_hidden_states=3,
        target_num_hidden_layers=4,
    )
    tensors: dict[str, np.ndarray] = {}
    for name, size in shape.tensor_shapes().items():
        if name == "d2t":
            tensors[name] = np.zeros(size, np.int64)
        elif name == "t2d":
            tensors[name] = np.arange(config.vocab_size) < shape.draft_vocab_size
        else:
            tensors[name] = np.ones(size, np.float32) if len(size) == 1 else _matrix(rng, *size)
    tensors["fc.weight"] *= 0.1
    tensors["fc.weight"][:, -hidden:] += np.eye(hidden, dtype=np.float32)
    tensors["lm_head.weight"] = head
    return shape, tensors


def _matrix(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    return (rng.normal(size=(rows, columns)) * columns**-0.5).astype(np.float32)


def check_losses(ours: float, theirs: float, dtype: str) -> None:
    """Check that both sides compute the same loss.

    Raises:
      BenchError: they do not.
    """
    if not abs(ours - theirs) <= LOSS_TOLERANCE[dtype] * abs(theirs):  # NaN fails
        raise BenchError(f"loss of the first step: {ours:.4f} in JAX, expected speculators' {theirs:.4f}")


def take_turns(config: BenchTrainingConfig, sides: dict[str, BenchProcess]) -> dict[str, list[dict[str, float]]]:
    """Measure the sides in turns, a step each; which one begins alternates."""
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        for i in progress.track(range(config.rounds), description="steps"):
            for name in list(sides)[:: 1 if i % 2 else -1]:
                turns[name].append(sides[name].ask({}))
    return turns


def gather(
    config: BenchTrainingConfig,
    turns: dict[str, list[dict[str, float]]],
    memory: dict[str, Any],
    weights: dict[str, list[list[float]]],
) -> dict[str, Any]:
    """``training.json``."""
    values = {
        field: {name: np.array([turn[field] for turn in steps]) for name, steps in turns.items()}
        for field in ("seconds", "cpu_seconds", "peak_bytes")
    }
    wall, cpu, peak = values["seconds"], values["cpu_seconds"], values["peak_bytes"]
    ratio = {
        "tokens_per_cpu_second": float(cpu["speculators"].sum() / cpu["jax"].sum()),
        "tokens_per_second": float(wall["speculators"].sum() / wall["jax"].sum()),
        "peak_memory": float(peak["jax"].max() / peak["speculators"].max()),
    }
    intervals = {
        name: list(paired_bootstrap(_ratio, of["speculators"], of["jax"], seed=config.seed)[1:])
        for name, of in (("tokens_per_cpu_second", cpu), ("tokens_per_second", wall))
    }
    return {
        "ratio_to_speculators": ratio,
        "intervals": intervals,
        "per_step": {name: {field: float(values[field][name].mean()) for field in values} for name in turns},
        "ttt_temp_mib": memory,
        "dynamic_weights_cost": {source: _cost(*seconds, seed=config.seed) for source, seconds in weights.items()},
        "definitions": {
            "ratio_to_speculators": "JAX over speculators, of sums over the turns; peak_memory of the largest peaks",
            "intervals": "paired bootstrap, 95 %, over the turns",
            "per_step": "means; peak_bytes: most resident memory of the process during a step, libraries included",
            "dynamic_weights_cost": "share of a step that the signals' dynamic weights take, against weights of 1; "
            "mean and paired bootstrap 95 % interval, by source of the signals",
            "ttt_temp_mib": "XLA's temporary memory of the attention of all TTT steps and its gradient, by length",
        },
        "sizes": config.model_dump(
            mode="json", include={"draft", "vocab_size", "length", "ttt_steps", "loss_chunk", "dtype"}
        ),
        "hardware": describe_hardware(),
        "versions": versions(),
    }


def _ratio(theirs: np.ndarray, ours: np.ndarray) -> float:
    return float(theirs.sum() / ours.sum())


def _cost(constant: list[float], dynamic: list[float], *, seed: int) -> list[float]:
    share = paired_bootstrap(lambda a, b: _ratio(b, a) - 1, np.array(constant), np.array(dynamic), seed=seed)
    return list(share)


def tables(result: dict[str, Any]) -> list[Table]:
    """The numbers for a person."""
    hardware, sizes = result["hardware"], result["sizes"]
    where = f"{hardware['cores']} cores of {hardware['processor']}"
    what = f"one training step, {sizes['dtype']}, {sizes['length']:,} tokens, {sizes['ttt_steps']} TTT steps"
    steps = Table(title=f"{what}; {where}", title_justify="left")
    for heading in ("", "seconds", "CPU seconds", "tokens/s", "peak memory"):
        steps.add_column(heading, justify="right")
    for name, of in result["per_step"].items():
        speed, peak = sizes["length"] / of["seconds"], of["peak_bytes"] / 2**30
        steps.add_row(name, f"{of['seconds']:.2f}", f"{of['cpu_seconds']:.2f}", f"{speed:,.0f}", f"{peak:.2f} GiB")
    ratio = result["ratio_to_speculators"]
    per_cpu, per_second = f"{ratio['tokens_per_cpu_second']:.2f}x per", f"{ratio['tokens_per_second']:.2f}x"
    steps.add_row("JAX over speculators", "", per_cpu, per_second, f"{ratio['peak_memory']:.2f}x")
    memory = Table(title="memory of the attention, MiB", title_justify="left")
    memory.add_column("length", justify="right")
    for kind in result["ttt_temp_mib"]:
        memory.add_column(kind, justify="right")
    for length in next(iter(result["ttt_temp_mib"].values())):
        row = [of.get(length) for of in result["ttt_temp_mib"].values()]
        memory.add_row(f"{int(length):,}", *("" if mib is None else f"{mib:,.0f}" for mib in row))
    costs = Table(title="what dynamic weights cost", title_justify="left")
    for heading in ("source", "share of a step (95 %)"):
        costs.add_column(heading, justify="right")
    for source, (mean, low, high) in result["dynamic_weights_cost"].items():
        costs.add_row(source, f"{mean:+.1%} ({low:+.1%}..{high:+.1%})")
    return [steps, memory, costs]
