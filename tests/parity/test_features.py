"""States that vLLM has stored are those of transformers. Costs 20 s.

``SPECEXIT_FEATURES=1`` trains on them, too, against a draft whose target runs in the step: `make features`, minutes.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jax_specexit.training.train import train
from specexit import tiny
from specexit.data.annotate import label
from specexit.data.features import Features, StoredType, begin, decode, encode, read_manifest, write_shard
from specexit.data.packed import open_rows, read_example, read_meta
from specexit.data.packing import pack
from specexit.data.traces import Trace, write_traces
from specexit.schemas.pack import PackConfig
from specexit.schemas.target import load_target_config
from specexit.schemas.train import TrainConfig
from torch_specexit.features import TargetFeatures

TARGET = load_target_config("tiny-reasoner")
SLOW = "SPECEXIT_FEATURES" in os.environ
STEPS, TRACES = 48, 48 if SLOW else 6


@pytest.fixture(scope="module")
def packed(make_trace: Callable[..., Trace], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of several texts each that the tiny reasoner's own generator wrote, with labels drawn at random."""
    folder = tmp_path_factory.mktemp("packed")
    tokenizer, markers = TARGET.tokenizer(), TARGET.think_tokens()
    draw, traces = random.Random(0), []
    for problem in tiny.problems("draft", TRACES):
        response = tokenizer.encode(tiny.render_response(problem, tiny.write_trace(draw, problem)))
        end = response.index(markers.end)
        boundaries = [i + 1 for i, token in enumerate(response[:end]) if token in markers.split]
        agrees = [draw.random() < 0.5 for _ in boundaries[1:]] + [True]
        trace = make_trace(
            id=problem.question,
            prompt_ids=tokenizer.encode(tiny.prompt_text(problem.question)),
            think_ids=response[:end],
            answer_ids=response[end + 1 :],
            boundaries=boundaries,
            boundary_answers=["7" if right else "8" for right in agrees],
            boundary_agrees=agrees,
            boundary_confidence=[draw.uniform(0.5, 1) for _ in boundaries],
        )
        traces.append(label(trace, tokenizer, "answer"))
    write_traces(folder / "traces" / "traces.parquet", traces)
    pack(PackConfig(traces=folder / "traces", out=folder / "packed", target="tiny-reasoner", length=768, workers=1))
    assert max(row["segment_ids"].max() for row in rows(folder / "packed")) > 1
    return folder / "packed"


def rows(packed: Path) -> list[dict[str, np.ndarray]]:
    meta = read_meta(packed)
    records = open_rows(packed, meta)
    return [read_example(records[i]) for i in range(meta.n)]


@pytest.fixture(scope="module")
def stored(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features that vLLM has written, its prompts cut into chunks smaller than themselves."""
    folder = tmp_path_factory.mktemp("stored") / "features"
    settings = ("shard_rows=3", "dtype=float32", "engine.max_num_batched_tokens=256", "engine.max_num_seqs=8")
    command = [sys.executable, "-m", "specexit", "features", f"data={packed}", f"out={folder}", *settings]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return folder


def in_type(stored: Path, packed: Path, dtype: StoredType, folder: Path) -> Path:
    """The same features as `specexit features` would have stored them with another ``dtype``."""
    before = read_manifest(stored)
    features, examples = Features(stored, before), rows(packed)
    manifest = begin(folder, before.model_copy(update={"dtype": dtype, "shards": {}}))
    for shard in range(len(manifest.names)):
        of = [(i, examples[i]) for i in manifest.rows(shard)]
        states = [encode(decode(features.read(i, row)), dtype) for i, row in of]
        manifest = write_shard(folder, manifest, shard, [row for _, row in of], states)
    return folder


@pytest.fixture(scope="module")
def trained(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[dict[str, Any]]]:
    """``trained(**changes)``: the metrics of every step of a run."""

    def run(**changes: Any) -> list[dict[str, Any]]:
        out = tmp_path_factory.mktemp("run") / "run"
        fields = {
            "target": "tiny-reasoner",
            "data": packed,
            "out": out,
            "draft": {
                "hidden_size": 192,
                "intermediate_size": 384,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 64,
                "draft_vocab_size": 320,
            },
            "steps": STEPS,
            "batch_size": 2,
            "ttt_steps": 2,
            "dtype": "float32",
            "log_every": 1,
            "checkpoint": {"every": 1000},
        }
        train(TrainConfig.model_validate(fields | changes))
        return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]

    return run


@pytest.fixture(scope="module")
def online(trained: Callable[..., list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return trained()


def largest_difference(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> dict[str, float]:
    """Of all steps, in the losses of tokens and signals: of those above 1 as a share, since one of them begins at 5."""
    assert len(ours) == len(theirs) == STEPS
    found = {}
    for name in ("token_loss", "signal_loss"):
        pairs = [(a[name], b[name]) for a, b in zip(ours, theirs, strict=True)]
        values = [[list(x.values()) if isinstance(x, dict) else x for x in pair] for pair in pairs]
        found[name] = max(float((np.abs(np.subtract(a, b)) / np.maximum(1, b)).max()) for a, b in values)
    return found


def test_they_are_those_of_transformers(stored: Path, packed: Path) -> None:
    features, reference = Features(stored, read_manifest(stored)), TargetFeatures(TARGET, (1, 3, 4))
    for i, row in enumerate(rows(packed)):
        found, segments = decode(features.read(i, row)), row["segment_ids"]
        assert not found[segments == 0].any()
        for segment in range(1, segments.max() + 1):
            text = torch.from_numpy(row["tokens"][segments == segment]).long()
            theirs = reference(text[None])[0].reshape(len(text), 3, -1).numpy()
            # float32 with sums in another order; the states are of size 1 to 100.
            np.testing.assert_allclose(found[segments == segment], theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.slow
@pytest.mark.skipif(not SLOW, reason="minutes: make features")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8"])
def test_losses_are_those_of_the_run_whose_target_is_run(
    dtype: StoredType, stored: Path, packed: Path, trained: Callable, online: list[dict[str, Any]], tmp_path: Path
) -> None:
    features = stored if dtype == "float32" else in_type(stored, packed, dtype, tmp_path / "features")
    found = largest_difference(trained(features=features), online)
    print(f"\n{dtype}, {STEPS} steps: largest difference of a loss: {found}")
    assert online[-1]["token_loss"][0] < online[0]["token_loss"][0]
    if dtype != "float8":
        assert max(found.values()) <= 1e-3
