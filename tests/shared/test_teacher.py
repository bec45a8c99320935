"""What training makes of stored states is what the target does; another target is refused before they are stored."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from specexit.data import teacher
from specexit.data.features import FeatureError
from specexit.data.teacher import check_teacher, choices, is_tied

DRAW = np.random.default_rng(0)
STATES = DRAW.normal(size=(40, 16)).astype(np.float32) * 30
WEIGHT = DRAW.normal(size=16).astype(np.float32)
HEAD = DRAW.normal(size=(50, 16)).astype(np.float32)
FIELDS = {"rms_norm_eps": 1e-6, "model_type": "river"}


def likeliest(weight: np.ndarray, scale: float = 1.0) -> np.ndarray:
    normed = STATES / np.sqrt(np.mean(STATES**2, axis=1, keepdims=True) + 1e-6)
    return np.argmax(scale * (normed * weight) @ HEAD.T, axis=1)


def write(folder: Path, weight: np.ndarray, *, tied: bool = False) -> Path:
    save_file({"model.norm.weight": weight}, folder / "model-00001-of-00002.safetensors")
    name = "model.embed_tokens.weight" if tied else "lm_head.weight"
    save_file({name: HEAD}, folder / "model-00002-of-00002.safetensors")
    return folder


@pytest.mark.parametrize("tied", [False, True])
def test_choices_are_those_of_norm_and_head(tmp_path: Path, tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher, "BLOCK", 7)  # the head in eight pieces
    np.testing.assert_array_equal(choices(STATES, write(tmp_path, WEIGHT, tied=tied), 1e-6), likeliest(WEIGHT))


@pytest.mark.parametrize("tied", [False, True])
def test_where_the_config_does_not_say_the_weights_do(tmp_path: Path, tied: bool) -> None:
    assert not is_tied(FIELDS, tmp_path), "no weights"
    folder = write(tmp_path, WEIGHT, tied=tied)
    assert is_tied(FIELDS, folder) is tied
    assert is_tied(FIELDS | {"tie_word_embeddings": not tied}, folder) is not tied


def test_a_norm_that_multiplies_by_one_more_than_its_weight_is_refused(tmp_path: Path) -> None:
    """As that of Qwen3-Next; its stored weights are those of another model, read plainly."""
    folder = write(tmp_path, WEIGHT)
    check_teacher(STATES, likeliest(WEIGHT), folder, FIELDS)
    with pytest.raises(FeatureError, match=r"behind \d+ of 40 texts only, .* model_type river is of another kind"):
        check_teacher(STATES, likeliest(1 + WEIGHT), folder, FIELDS)


def test_rounding_is_no_other_teacher(tmp_path: Path) -> None:
    chosen = likeliest(WEIGHT)
    chosen[:4] += 1
    check_teacher(STATES, chosen, write(tmp_path, WEIGHT), FIELDS)


def test_other_names_of_tensors_are_told(tmp_path: Path) -> None:
    save_file({"language_model.norm.weight": WEIGHT}, tmp_path / "model.safetensors")
    with pytest.raises(FeatureError, match=r"expected tensors model\.norm\.weight, and lm_head\.weight or"):
        choices(STATES, tmp_path, 1e-6)
