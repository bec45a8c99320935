"""A stand-in writes what the small model writes: target, draft and signals against transformers and the reference."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from specexit.data.overlap import read_prompts, write_prompts
from specexit.drafts.directory import read_config
from specexit.drafts.policy import Selection, read_policy, write_policy
from specexit.schemas.stand_in import StandInConfig
from specexit.schemas.target import load_target_config
from specexit.stand_in import stand_in
from specexit.tiny import problems, prompt_text, render_response, write_trace
from tests.shapes import STAND_IN, TINY_DRAFT
from torch_specexit.draft import Draft
from torch_specexit.features import TargetFeatures

SHAPES = {
    "tied": STAND_IN,
    # One query head in a group, where the tiny reasoner has two: its keys and values are there twice.
    "untied, groups of one": STAND_IN
    | {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 64, "tie_word_embeddings": False},
    # Four, as in Qwen3-4B and 8B: two more that read the values of those two.
    "groups of four": STAND_IN | {"num_attention_heads": 12, "num_key_value_heads": 3},
    # As few layers as hold it, and a null where positions could be said.
    "heads of three times the size": STAND_IN
    | {"hidden_size": 250, "num_hidden_layers": 7, "head_dim": 192, "max_position_embeddings": None},
}
DRAFT_VOCAB = 1200


def texts(n: int) -> list[list[int]]:
    """Problems and responses as the tiny reasoner reads and writes them."""
    tokenizer, rng = load_target_config("tiny-reasoner").tokenizer(), random.Random(0)
    return [
        tokenizer.encode(prompt_text(problem.question) + render_response(problem, write_trace(rng, problem)))
        for problem in problems("test", n)
    ]


def make(folder: Path, sizes: dict, draft: Path | None = None, dtype: str = "float32") -> Path:
    """A stand-in of these sizes; returns its folder."""
    (folder / "shape.json").write_text(json.dumps(sizes))
    stand_in(
        StandInConfig(
            target="tiny-reasoner",
            shape=str(folder / "shape.json"),
            draft=draft,
            out=folder / "out",
            dtype=dtype,  # pyright: ignore[reportArgumentType]
            draft_vocab_size=DRAFT_VOCAB,
        )
    )
    return folder / "out"


@torch.no_grad()
def logits(folder: Path, texts: list[list[int]], dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Of each text, by transformers."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True).eval()
    return [model(torch.tensor([ids])).logits[0].float() for ids in texts]


def assert_same_choices(large: Path) -> None:
    """The probabilities of a stand-in in float32 are the tiny reasoner's to rounding."""
    small = load_target_config("tiny-reasoner").folder
    for ours, theirs in zip(logits(large, texts(3)), logits(small, texts(3)), strict=True):
        # The same sums in another order, in float32: a thousand roundings of a logit of some ten.
        torch.testing.assert_close(ours[:, :640].log_softmax(-1), theirs.log_softmax(-1), atol=1e-3, rtol=1e-4)
        assert torch.equal(ours.argmax(-1), theirs.argmax(-1))
        # Tokens that the small model does not know: too improbable for any temperature.
        assert (ours[:, :640].amax(-1) - ours[:, 640:].amax(-1)).min() > 100


@pytest.mark.parametrize("sizes", SHAPES.values(), ids=SHAPES.keys())
def test_it_gives_the_small_models_probabilities_to_rounding(sizes: dict, tmp_path: Path) -> None:
    assert_same_choices(make(tmp_path, sizes) / "target")


def test_in_bfloat16_it_chooses_the_same_tokens_nearly_everywhere(tmp_path: Path) -> None:
    large, small = make(tmp_path, STAND_IN, dtype="bfloat16") / "target", load_target_config("tiny-reasoner").folder
    ours, theirs = logits(large, texts(3), torch.bfloat16), logits(small, texts(3))
    same = torch.cat(ours).argmax(-1) == torch.cat(theirs).argmax(-1)
    # The tiny reasoner was trained to choose some of its checks at random: only there is a choice within rounding.
    assert same.float().mean() > 0.98


@pytest.mark.parametrize(("source", "sizes"), [("draft", "tied"), ("fc", "tied"), ("draft", "groups of four")])
def test_its_draft_guesses_and_signals_as_the_small_one_does(
    source: str, sizes: str, tmp_path: Path, write_random_draft
) -> None:
    small_folder = write_random_draft(tmp_path / "small", source, **TINY_DRAFT)
    large_folder = make(tmp_path, SHAPES[sizes], small_folder)
    drafted = {}
    for name, folder in (("tiny-reasoner", small_folder), (str(large_folder / "target.yaml"), large_folder / "draft")):
        target, config = load_target_config(name), read_config(folder)
        features = TargetFeatures(target, config.eagle_aux_hidden_state_layer_ids)
        tokens = torch.tensor([texts(1)[0]])
        with torch.no_grad():
            drafted[name] = Draft.load(folder, features.embedding)(tokens, features(tokens), steps=3)
    small, large = drafted.values()
    for ours, theirs in zip(large.logits, small.logits, strict=True):
        torch.testing.assert_close(ours[..., :512], theirs, atol=1e-3, rtol=1e-3)
        assert (ours[..., :512].amax(-1) - ours[..., 512:].amax(-1)).min() > 100
    torch.testing.assert_close(large.raw_signals, small.raw_signals, atol=1e-3, rtol=1e-3, equal_nan=True)


def test_its_draft_directory_is_one_of_its_target(tmp_path: Path, write_random_draft) -> None:
    folder = make(tmp_path, STAND_IN, write_random_draft(tmp_path / "small", "draft", **TINY_DRAFT), "bfloat16")
    config, target = read_config(folder / "draft"), load_target_config(str(folder / "target.yaml"))
    assert config.eagle_aux_hidden_state_layer_ids == target.aux_layers == (2, 4, 6, 9)
    assert (config.hidden_size, config.draft_vocab_size, config.torch_dtype) == (320, DRAFT_VOCAB, "bfloat16")
    assert config.specexit is not None
    assert config.specexit.target == target.name == "stand-in-shape"
    policy = read_policy(folder / "draft").point()
    assert policy.policy == read_policy(tmp_path / "small").point().policy
    assert policy.certificate is None


def test_its_draft_remembers_what_chose_and_what_trained_the_small_one(tmp_path: Path, write_random_draft) -> None:
    """It used to forget both, and `calibrate` certified it on the very prompts that it refuses for the small one."""
    small = write_random_draft(tmp_path / "small", "draft", **TINY_DRAFT)
    selection = Selection(by="brier", prompts=("0123456789abcdef",))
    write_policy(small, read_policy(small).model_copy(update={"selection": selection}))
    write_prompts(small, [5, 6])
    folder = make(tmp_path, STAND_IN, small)
    assert read_policy(folder / "draft").selection == selection
    np.testing.assert_array_equal(read_prompts(folder / "draft"), read_prompts(small))


@pytest.mark.slow
@pytest.mark.skipif("SPECEXIT_FULL_SIZE" not in os.environ, reason="writes 2.4 GB; SPECEXIT_FULL_SIZE=1 runs it")
def test_at_the_shape_of_qwen3_0_6b(tmp_path: Path) -> None:
    stand_in(StandInConfig(target="tiny-reasoner", shape="qwen3-0.6b", out=tmp_path / "out", dtype="float32"))
    assert_same_choices(tmp_path / "out" / "target")


def test_noise_stands_wherever_it_changes_nothing(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    weights = load_file(make(tmp_path, STAND_IN) / "target" / "model-00001-of-00001.safetensors")
    zeros = sum(np.count_nonzero(value == 0) for value in weights.values())
    # What has to be zero is gates, values and the idle rows of output projections: under a third of all.
    assert zeros < sum(value.size for value in weights.values()) / 3
