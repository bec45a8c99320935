"""``specexit bench-recipe``: the arithmetic of its variants, and a variant that is none."""

import json
from pathlib import Path

import numpy as np
import pytest

from specexit.bench import recipe
from specexit.bench.recipe import bench_recipe, gather, quantities, table
from specexit.config import ConfigError
from specexit.schemas.bench_recipe import BenchRecipeConfig


def test_variants_are_held_against_the_first_seed_by_seed():
    first = {"a": np.array([1.0, 2.0, 6.0]), "b": np.array([0.0, 0.0, 0.0])}
    other = {"a": np.array([2.0, 4.0, 9.0]), "b": np.array([0.0, -0.5, 0.5])}
    result = gather((0, 1, 2), {"as it is": first, "changed": other})
    assert result["differences"]["changed"]["a"] == {"mean": 2.0, "sd": 1.0, "by_seed": [1.0, 2.0, 3.0]}
    shown = table(result)
    assert list(shown.columns[3].cells) == ["", "+2.00 ± 1.00", "", "+0.00 ± 0.50"]
    assert list(shown.columns[4].cells) == ["", "+1.00, +2.00, +3.00", "", "+0.00, -0.50, +0.50"]


def test_a_plain_draft_has_neither_cut_nor_validity():
    assert quantities({"top1": [0.5, 0.25], "acceptance_length": 1.6}) == {
        "top-1, TTT step 0, %": 50.0,
        "top-1, TTT step 1, %": 25.0,
        "acceptance length": 1.6,
    }


def test_an_auroc_that_is_undefined_is_left_out():
    evaluation = {"top1": [], "acceptance_length": 1.0, "cut": {"0": 0.5, "1": 0.6}, "hard_boundaries": {"auroc": None}}
    assert quantities(evaluation) == {"acceptance length": 1.0, "thinking cut at 1 point, %": 60.0}
    evaluation["hard_boundaries"] = {"auroc": 0.9}
    assert quantities(evaluation)["validity's AUROC, hard boundaries, %"] == 90.0


@pytest.fixture
def config(tmp_path: Path) -> BenchRecipeConfig:
    variants = {"as it is": (), "rounded": ("dtype=bfloat16",)}
    places = {"data": tmp_path, "eval_traces": tmp_path, "out": tmp_path / "out"}
    return BenchRecipeConfig.model_validate({"recipe": "tiny-reasoner", "variants": variants, "seeds": (3, 4)} | places)


def test_every_variant_is_trained_with_every_seed(config: BenchRecipeConfig, monkeypatch):
    asked = []

    def trained(_recipe, overrides, run):
        asked.append((run.name, [key for key in overrides if key.startswith(("dtype", "seed"))]))
        return {"acceptance length": float(len(asked))}

    monkeypatch.setattr(recipe, "_trained", trained)
    bench_recipe(config)
    assert asked == [
        ("as-it-is-3", ["seed=3"]),
        ("rounded-3", ["dtype=bfloat16", "seed=3"]),
        ("as-it-is-4", ["seed=4"]),
        ("rounded-4", ["dtype=bfloat16", "seed=4"]),
    ]
    written = json.loads((config.out / "recipe.json").read_text())
    assert written["values"] == {
        "as it is": {"acceptance length": [1.0, 3.0]},
        "rounded": {"acceptance length": [2.0, 4.0]},
    }
    assert written["variants"]["rounded"] == ["dtype=bfloat16"]


def test_a_variant_with_an_unknown_key_is_refused_before_anything_is_trained(config: BenchRecipeConfig):
    wrong = config.model_copy(update={"variants": config.variants | {"odd": ("dtpye=bfloat16",)}})
    with pytest.raises(ConfigError, match="dtpye"):
        bench_recipe(wrong)
    assert not wrong.out.exists()
