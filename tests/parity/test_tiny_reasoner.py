"""The embedded target is what the docs say it is, and vLLM, transformers and Flax write the same text with it."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from transformers import AutoModelForCausalLM

from jax_specexit.evaluation.scoring import sequence
from jax_specexit.model.target import Target
from jax_specexit.weights import load_target
from specexit import tiny
from specexit.data.traces import Trace, read_traces
from specexit.method.statistics import binomial_upper_bound
from specexit.schemas.target import load_target_config

N = 160
"""Enough to tell 99 %, which it solves, from 95 %."""

N_COMPARED = 24


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Greedy traces and trial answers of held-out problems, from a real engine, annotated."""
    folder = tmp_path_factory.mktemp("tiny")
    for arguments in (
        ["collect", "target=tiny-reasoner", "split=test", f"n={N}", "workers=1", f"out={folder / 'traces'}"],
        ["annotate", f"traces={folder / 'traces'}", f"out={folder / 'labelled'}"],
    ):
        subprocess.run([sys.executable, "-m", "specexit", *arguments], check=True)
    return folder


@pytest.mark.vllm
@pytest.mark.slow
def test_it_solves_its_problems_and_overthinks(collected: Path) -> None:
    found = json.loads((collected / "labelled" / "statistics.json").read_text())
    assert found["n"] == N
    # With confidence 0.9 at most 5 % of all problems, not of these: so few of them show it.
    wrong = round((1 - found["full"]["accuracy"]) * N)
    assert binomial_upper_bound(wrong, N, 0.1) <= 0.05, wrong
    assert found["oracle_earliest"]["thinking_cut"] >= 0.55
    assert found["first_boundary"]["accuracy"] < 0.05


@pytest.mark.vllm
def test_held_out_questions_are_not_pretraining_questions(collected: Path) -> None:
    traces = read_traces(collected / "traces")
    assert len({trace.prompt for trace in traces}) == N
    assert {tiny.split_of(trace.prompt) for trace in traces} == {"test"}


def first_choices_agree(trace: Trace, choices: np.ndarray, ids: list[int]) -> bool:
    """Whether greedy decoding writes the response: by induction, if every first choice is the token that follows."""
    start = len(trace.prompt_ids)
    return choices[start - 1 : len(ids) - 1].tolist() == ids[start:]


@pytest.mark.vllm
def test_vllm_transformers_and_flax_write_the_same(collected: Path) -> None:
    end = load_target_config("tiny-reasoner").think_tokens().end
    ours = load_target(tiny.MODEL_DIR)

    @nnx.jit
    def choices(target: Target, tokens: jax.Array) -> jax.Array:
        hidden, _ = target(tokens, jnp.arange(640)[None], jnp.ones_like(tokens))
        return jnp.argmax(hidden @ target.head(), axis=-1)

    theirs = AutoModelForCausalLM.from_pretrained(tiny.MODEL_DIR, dtype=torch.float32).eval()
    for trace in read_traces(collected / "traces")[:N_COMPARED]:
        ids = sequence(trace, end)
        tokens = jnp.asarray([ids + [0] * (640 - len(ids))], jnp.int32)  # one length, one compilation
        flax_choices = np.asarray(choices(ours, tokens))[0, : len(ids)]
        with torch.no_grad():
            torch_choices = theirs(torch.tensor([ids])).logits[0].argmax(-1).numpy()
        assert first_choices_agree(trace, flax_choices, ids), f"Flax, {trace.id}"
        assert first_choices_agree(trace, torch_choices, ids), f"transformers, {trace.id}"
