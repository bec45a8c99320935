"""``specexit bench-recipe``: the arithmetic of its variants, and a variant that is none."""

import json
import random
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from specexit import processes, tiny
from specexit.bench import recipe
from specexit.bench.recipe import bench_recipe, gather, quantities, table
from specexit.bench.shuffled import shuffle_labels
from specexit.config import ConfigError, find, load
from specexit.data.packed import open_rows, read_example, read_meta
from specexit.data.packing import pack
from specexit.data.traces import LabelledTrace, write_traces
from specexit.method.labels import exit_point
from specexit.method.signals import column
from specexit.schemas.bench_recipe import BenchRecipeConfig
from specexit.schemas.pack import PackConfig
from specexit.schemas.target import load_target_config
from specexit.schemas.train import TrainConfig
from specexit.tiny.traces import render_response, write_trace

CONFIGS = Path(__file__).parents[2] / "configs" / "bench"


def test_variants_are_held_against_the_first_seed_by_seed():
    first = {"a": np.array([1.0, 2.0, 6.0]), "b": np.array([0.0, 0.0, 0.0])}
    other = {"a": np.array([2.0, 4.0, 9.0]), "b": np.array([0.0, -0.5, 0.5])}
    result = gather((0, 1, 2), {"as it is": first, "changed": other})
    assert result["differences"]["changed"]["a"] == {"mean": 2.0, "sd": 1.0, "by_seed": [1.0, 2.0, 3.0]}
    shown = table(result)
    assert list(shown.columns[3].cells) == ["", "+2.00 ± 1.00", "", "+0.00 ± 0.50"]
    assert list(shown.columns[4].cells) == ["", "+1.00, +2.00, +3.00", "", "+0.00, -0.50, +0.50"]


@pytest.mark.parametrize("more", ["as it is", "changed"])
def test_variants_of_more_and_fewer_ttt_steps_are_compared_in_what_both_have(more: str):
    """It was a KeyError behind all trainings, or left out what the first one does not have."""
    values = {"as it is": {"a": np.array([1.0, 2.0])}, "changed": {"a": np.array([3.0, 5.0])}}
    values[more]["b"] = np.array([0.5, 0.5])
    result = gather((0, 1), values)
    assert list(result["differences"]["changed"]) == ["a"]
    shown = table(result)
    assert list(shown.columns[0].cells) == ["a", "", "b"]
    assert list(shown.columns[1].cells) == ["as it is", "changed", more]
    assert list(shown.columns[3].cells) == ["", "+2.50 ± 0.71", ""]


def test_a_plain_draft_has_neither_cut_nor_validity():
    assert quantities({"top1": [0.5, 0.25, None], "acceptance_length": 1.6}) == {
        "top-1, TTT step 0, %": 50.0,
        "top-1, TTT step 1, %": 25.0,  # and of the third no text was long enough
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


def test_a_run_that_was_preempted_has_no_numbers_yet(config: BenchRecipeConfig, monkeypatch):
    """It exits with 0, as one that has finished."""

    def preempted(command: list[str], **_: object) -> subprocess.CompletedProcess:
        run = Path(command[-1].removeprefix("out="))
        run.mkdir(parents=True)
        (run / "status.json").write_text(json.dumps({"status": "preempted", "step": 4, "steps": 8}))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(processes.subprocess, "run", preempted)
    with pytest.raises(ConfigError, match=r"/as-it-is-3 is preempted, at step 4 of 8; start again to go on$"):
        bench_recipe(config)


def test_the_command_of_a_run_that_fails_is_one_that_can_be_given(config: BenchRecipeConfig, monkeypatch, capsys):
    """It was shown as `specexit specexit train`."""
    monkeypatch.setattr(processes.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1))
    with pytest.raises(ConfigError, match=r"/as-it-is-3 ended with exit code 1; start again to go on$"):
        bench_recipe(config)
    assert capsys.readouterr().err.startswith("$ specexit train ")


def test_a_variant_with_an_unknown_key_is_refused_before_anything_is_trained(config: BenchRecipeConfig):
    wrong = config.model_copy(update={"variants": config.variants | {"odd": ("dtpye=bfloat16",)}})
    with pytest.raises(ConfigError, match="dtpye"):
        bench_recipe(wrong)
    assert not wrong.out.exists()


@pytest.fixture
def packed(make_trace, tmp_path: Path) -> Path:
    """Twelve traces in rows of 40 tokens, in two shards."""
    traces = []
    for i in range(12):
        trace = make_trace(id=str(i), prompt_ids=[1, i], think_ids=[30 + i] * 10)
        at = exit_point(trace.boundaries, trace.boundary_agrees, 10, "earliest")
        traces.append(LabelledTrace(**vars(trace), exit_earliest=at, exit_stable=at, hard_boundary=None))
    write_traces(tmp_path / "labelled" / "traces.parquet", traces)
    pack(PackConfig(traces=tmp_path / "labelled", out=tmp_path / "packed", length=40, shards=2))
    return tmp_path / "packed"


def rows_of(folder: Path) -> dict[str, np.ndarray]:
    meta = read_meta(folder)
    records = open_rows(folder, meta)
    rows = [read_example(records[i]) for i in range(meta.n)]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def test_shuffled_labels_are_the_same_numbers_at_other_tokens(packed: Path, tmp_path: Path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        shuffle_labels(packed, tmp_path / name, seed)
    before, after, again, other = (rows_of(folder) for folder in (packed, *(tmp_path / name for name in "abc")))
    for name in before:
        if name != "signal_labels":
            np.testing.assert_array_equal(after[name], before[name])
    for signal in range(before["signal_labels"].shape[-1]):
        given = before["signal_mask"][..., signal]
        ours, theirs = (rows["signal_labels"][..., signal] for rows in (after, before))
        np.testing.assert_array_equal(np.sort(ours[given]), np.sort(theirs[given]))
        np.testing.assert_array_equal(ours[~given], theirs[~given])
    remaining = after["signal_labels"][..., column("remaining")], before["signal_labels"][..., column("remaining")]
    assert np.mean(remaining[0] == remaining[1]) < 0.9
    np.testing.assert_array_equal(again["signal_labels"], after["signal_labels"])
    assert not np.array_equal(other["signal_labels"], after["signal_labels"])
    # A run on them does not go on with the others, and remembers the same prompts.
    identities = {read_meta(folder).identity for folder in (packed, tmp_path / "a", tmp_path / "c")}
    assert len(identities) == 3
    assert (tmp_path / "a" / "prompts.npy").read_bytes() == (packed / "prompts.npy").read_bytes()


def test_variants_may_be_trained_on_shuffled_labels(config: BenchRecipeConfig, packed: Path, monkeypatch):
    asked = []

    def trained(_recipe, overrides, _run):
        asked.append([key for key in overrides if key.startswith("data=")])
        return {"acceptance length": 1.0}

    monkeypatch.setattr(recipe, "_trained", trained)
    found = config.model_copy(update={"data": packed, "shuffle_labels": True})
    bench_recipe(found)
    (copy,) = config.out.glob("shuffled-*")
    labels = rows_of(copy)["signal_labels"]
    bench_recipe(found)  # goes on: what is trained on stays what it was
    np.testing.assert_array_equal(rows_of(copy)["signal_labels"], labels)
    assert asked == [[f"data={copy}"]] * 8
    # Other data in the same place are not taken for those that were shuffled before.
    meta = packed / "meta.json"
    meta.write_text(read_meta(packed).model_copy(update={"data_sha256": "0" * 64}).model_dump_json())
    bench_recipe(found)
    assert len(list(config.out.glob("shuffled-*"))) == 2
    assert asked[-1] != asked[0]


@pytest.mark.parametrize("name", ["signals", "random-labels", "variants", "unknown"])
def test_a_shipped_comparison_is_of_three_seeds_and_of_recipes(name: str):
    shipped = load(BenchRecipeConfig, CONFIGS / f"{name}.yaml")
    assert shipped.seeds == (0, 1, 2)
    recipes = [
        load(TrainConfig, find("recipes", shipped.recipe), [*keys, "out=x"]) for keys in shipped.variants.values()
    ]
    assert len({one.model_dump_json() for one in recipes}) == len(recipes)
    assert shipped.shuffle_labels == (name == "random-labels")


def test_unknown_tokens_are_left_out_where_there_are_some():
    """Of what the tiny reasoner learned to write; with the recipe's vocabulary nothing is unknown, as it used to be."""
    tokenizer, rng = load_target_config("tiny-reasoner").tokenizer(), random.Random(0)
    texts = [render_response(problem, write_trace(rng, problem)) for problem in tiny.problems("draft", 300)]
    counts = Counter(token for text in texts for token in tokenizer.encode(text))

    def unknown(size: int) -> float:
        return 1 - sum(n for _, n in counts.most_common(size)) / counts.total()

    shipped = load(BenchRecipeConfig, CONFIGS / "unknown.yaml")
    kept, left_out = (load(TrainConfig, find("recipes", "tiny-reasoner"), list(v)) for v in shipped.variants.values())
    assert kept.draft == left_out.draft
    assert (kept.skip_unknown, left_out.skip_unknown) == (False, True)
    assert 0.03 < unknown(kept.draft.draft_vocab_size) < 0.1
    assert unknown(load(TrainConfig, find("recipes", "tiny-reasoner")).draft.draft_vocab_size) == 0
