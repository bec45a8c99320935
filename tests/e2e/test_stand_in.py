"""A stand-in goes through every command that a real target goes through: `make test-full-size`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from specexit.data.scores import read_scores
from specexit.data.traces import read_traces
from specexit.drafts.agreement import TOLERANCE
from specexit.method.signals import NAMES
from specexit.schemas.target import load_target_config
from tests.shapes import STAND_IN

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif("SPECEXIT_FULL_SIZE" not in os.environ, reason="minutes, and 5 GB: make test-full-size"),
]

N = 12


def specexit(name: str, *arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "specexit", name, *map(str, arguments)], check=True)


@pytest.mark.parametrize("shape", ["small", "qwen3-0.6b"])
def test_a_stand_in_is_collected_trained_converted_verified_and_scored(
    shape: str, tmp_path: Path, write_random_draft
) -> None:
    draft_vocab = 32_000
    if shape == "small":
        draft_vocab = 1_200
        (tmp_path / "small.json").write_text(json.dumps(STAND_IN | {"tie_word_embeddings": False}))
        shape = str(tmp_path / "small.json")
    tiny = {"hidden_size": 192, "target_hidden_size": 192, "vocab_size": 640}
    small_draft = write_random_draft(
        tmp_path / "tiny-draft", "draft", eagle_aux_hidden_state_layer_ids=(1, 3, 4), **tiny
    )
    model = tmp_path / "model"
    sizes = (f"shape={shape}", f"draft_vocab_size={draft_vocab}")
    specexit("stand-in", "target=tiny-reasoner", *sizes, f"draft={small_draft}", "dtype=float32", f"out={model}")
    target = load_target_config(str(model / "target.yaml"))

    for name, of in (("tiny", "tiny-reasoner"), ("large", model / "target.yaml")):
        specexit("collect", f"target={of}", "split=draft", f"n={N}", f"out={tmp_path / name}")
    theirs, ours = read_traces(tmp_path / "tiny"), read_traces(tmp_path / "large")
    assert [trace.think_ids for trace in ours] == [trace.think_ids for trace in theirs]
    assert [trace.boundary_answers for trace in ours] == [trace.boundary_answers for trace in theirs]

    for name, draft in (("tiny", small_draft), ("large", model / "draft")):
        specexit("score", f"draft={draft}", f"traces={tmp_path / name}", f"out={tmp_path / f'scores-{name}'}")
    small_scores = read_scores(tmp_path / "scores-tiny").of(theirs)
    large_scores = read_scores(tmp_path / "scores-large").of(ours)
    for ours_of, theirs_of in zip(large_scores, small_scores, strict=True):
        # The same sums in another order, in float32.
        np.testing.assert_allclose(ours_of, theirs_of, rtol=1e-3, atol=1e-3)

    specexit("annotate", f"traces={tmp_path / 'large'}", f"out={tmp_path / 'labelled'}")
    specexit("pack", f"traces={tmp_path / 'labelled'}", "length=768", f"out={tmp_path / 'packed'}")
    width = f"draft.hidden_size={target.hf_config()['hidden_size']}"
    run = (
        "train",
        "tiny-reasoner",
        f"target={model / 'target.yaml'}",
        f"data={tmp_path / 'packed'}",
        "eval_traces=null",
    )
    specexit(
        *run,
        width,
        f"aux_layers={list(target.aux_layers)}",
        "steps=2",
        "signals.source=draft",
        f"out={tmp_path / 'run'}",
    )
    specexit("convert", f"run={tmp_path / 'run'}", f"out={tmp_path / 'draft'}", "dtype=float32")
    # After two steps it guesses nothing, which `verify` takes for random rows, and calls an error.
    verify = ["verify", f"draft={tmp_path / 'draft'}", f"traces={tmp_path / 'labelled'}", "n=2"]
    subprocess.run([sys.executable, "-m", "specexit", *verify], check=False)
    verified = json.loads((tmp_path / "draft" / "verify.json").read_text())
    for found in (verified, verified["vllm"]):
        assert found["greedy_drafts"]["same"] == found["greedy_drafts"]["compared"] > 0
        # Not of the logits: those of tokens that the small model does not know are thousands, and so is their rounding.
        assert max(found["differences"][name] for name in NAMES) <= TOLERANCE["float32"]
