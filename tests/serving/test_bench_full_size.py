"""`specexit bench-full-size` on a stand-in that is small: the engine writes the tiny reasoner's texts with it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from specexit.bench.journal import alone_at
from specexit.bench.methods import find_method
from specexit.bench.process import BenchError
from specexit.bench.requests import Request, Run
from specexit.bench.results import read_results
from specexit.config import ConfigError
from specexit.data.traces import WEIGHTS, Trace, TraceError, write_traces
from specexit.drafts.directory import read_config
from specexit.drafts.fingerprints import target_fingerprint
from specexit.drafts.policy import OperatingPoint, PolicyFile, write_policy
from specexit.drafts.tensors import weights_hash
from specexit.method.decision import Policy
from specexit.outputs import Ended
from specexit.schemas.bench import BenchConfig
from specexit.schemas.bench_full_size import BenchFullSizeConfig
from specexit.schemas.stand_in import StandInConfig
from specexit.schemas.target import TargetConfig, load_target_config, save_target
from tests.serving.benching import generated_traces
from tests.shapes import STAND_IN, TINY_DRAFT
from torch_specexit.bench import full_size as module
from torch_specexit.bench.full_size import bench_full_size, write_stand_in
from torch_specexit.bench.run import gather
from torch_specexit.bench.turns import Entry

N = 3


def small_config(folder: Path, draft: Path) -> BenchFullSizeConfig:
    """Three problems at a shape that is written in a second."""
    (folder / "shape.json").write_text(json.dumps(STAND_IN | {"vocab_size": 40_000}))
    write_traces(folder / "traces.parquet", generated_traces(N))
    return BenchFullSizeConfig(
        shape=str(folder / "shape.json"),
        draft=draft,
        traces=folder / "traces.parquet",
        models=folder / "models",
        out=folder / "bench" / "full-size.json",
        n=N,
        n_exact=N - 1,
        n_latency=1,
        batch=2,
        rounds=1,
    )


def stand_in_for_engines(
    monkeypatch: pytest.MonkeyPatch, wrong: set[str], accelerator: str | None = None
) -> list[tuple[Any, ...]]:
    """Stand-ins of these types exit elsewhere once, and write other texts throughout. Returns what will be asked."""
    asked: list[tuple[Any, ...]] = []

    def run_methods(config: BenchConfig, target: TargetConfig, traces: Sequence[Trace], _journal, _scratch):
        asked.append((target.name, target.dtype, config.batches, len(traces), config.n_latency))
        runs = {"eagle3": Run(), "specexit": Run()}
        for name, run in runs.items():
            for batch, n in ((1, 1), (2, len(traces))):
                requests = [
                    Request(
                        t.id, t.think_ids, 9 if name == "specexit" else 20, "natural_end", "7", True, {}, seconds=1.0
                    )
                    for t in traces[:n]
                ]
                if target.name != "tiny-reasoner" and target.dtype in wrong:
                    requests = [replace(request, token_ids=[0]) for request in requests]
                    requests[-1] = replace(requests[-1], thinking_tokens=8)
                run.add(batch, requests, [1.0] * n, 1, 2)
        entries = [Entry(name, name, find_method(name)(), None, (), ()) for name in runs]
        return runs, gather(config, target, entries, traces, runs, accelerator)

    monkeypatch.setattr("torch_specexit.bench.full_size.run_methods", run_methods)
    return asked


def test_what_differs_from_the_small_target_is_counted(
    tmp_path: Path, write_random_draft, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = stand_in_for_engines(monkeypatch, {"bfloat16"})
    config = small_config(tmp_path, write_random_draft(tmp_path / "draft", "draft", **TINY_DRAFT))
    with alone_at(config.out), pytest.raises(BenchError, match=r"full-size\.json: process \d+ on .* measures into it"):
        bench_full_size(config)
    assert asked == []
    bench_full_size(config)
    printed = " ".join(capsys.readouterr().out.split())
    assert "specexit: exits in bfloat16: 2 of 3, expected 98 %: the times are not those of the small" in printed
    assert printed.count("expected") == 1
    assert asked == [
        ("tiny-reasoner", "float32", (2,), N, 1),
        ("stand-in-shape", "float32", (2,), N - 1, 1),
        ("stand-in-shape", "bfloat16", (2,), N, 1),
    ]
    shape = read_results(config.out).shape
    assert shape is not None
    assert shape["same"] == {
        "eagle3: texts in float32": [N - 1, N - 1],
        "specexit: texts in float32": [N - 1, N - 1],
        "specexit: exits in bfloat16": [N - 1, N],
    }
    assert {name: shape[name] for name in ("hidden_size", "dtype")} == {"hidden_size": 320, "dtype": "bfloat16"}
    assert shape["parameters"] > 12e6
    made = (config.models / "shape-bfloat16" / "target.yaml").stat().st_mtime_ns
    bench_full_size(config)  # the stand-ins are there already
    assert (config.models / "shape-bfloat16" / "target.yaml").stat().st_mtime_ns == made
    policy = Policy(thresholds={"validity": 0.5})  # calibrated again: the stand-in's exits have to be those of today
    write_policy(config.draft, PolicyFile(points=(OperatingPoint(name="default", policy=policy),)))
    _, draft = write_stand_in(config, "tiny-reasoner", "bfloat16")
    block = read_config(draft).specexit
    assert block is not None
    assert block.policy == policy
    assert shape["of"]["draft.weights"] == weights_hash(config.draft)


def test_traces_of_another_tokenizer_than_the_small_targets_are_refused(
    tmp_path: Path, write_random_draft, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a stand-in of gigabytes is written: thinking never opens in them, and no exit is made."""
    asked = stand_in_for_engines(monkeypatch, set())
    config = small_config(tmp_path, write_random_draft(tmp_path / "draft", "draft", **TINY_DRAFT))
    write_traces(config.traces, generated_traces(N), "0" * 64)
    with pytest.raises(TraceError, match=r"traces\.parquet: written with the tokenizer 000000000000\.\.\., expected"):
        bench_full_size(config)
    assert asked == []
    assert not config.models.exists()


def test_traces_of_another_target_than_the_small_one_are_refused(
    tmp_path: Path, write_random_draft, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tiny-mixed and tiny-reasoner have one tokenizer: hours later the cut was held against another model's oracle."""
    asked = stand_in_for_engines(monkeypatch, set())
    config = small_config(tmp_path, write_random_draft(tmp_path / "draft", "draft", **TINY_DRAFT))
    write_traces(config.traces, [replace(trace, target="tiny-mixed") for trace in generated_traces(N)])
    with pytest.raises(BenchError, match="traces of target 'tiny-mixed', expected those of 'tiny-reasoner'"):
        bench_full_size(config)
    assert asked == []
    assert not config.models.exists()


def test_the_weights_that_wrote_the_traces_can_be_named(
    tmp_path: Path, write_random_draft, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that were saved anew were refused with the words "say target=FILE.yaml", which was no key here."""
    stand_in_for_engines(monkeypatch, set())
    config = small_config(tmp_path, write_random_draft(tmp_path / "draft", "draft", **TINY_DRAFT))
    target = load_target_config("tiny-reasoner")
    shutil.copytree(target.folder, tmp_path / "again")
    with (tmp_path / "again" / "config.json").open("a") as file:
        file.write("\n")
    wrote = target_fingerprint(tmp_path / "again")
    assert wrote is not None
    write_traces(config.traces, generated_traces(N), said={WEIGHTS: wrote})
    with pytest.raises(TraceError, match=r"written by weights .* or say target=FILE\.yaml"):
        bench_full_size(config)
    save_target(tmp_path, target.model_copy(update={"path": str(tmp_path / "again")}))
    named = config.model_copy(update={"target": str(tmp_path / "target.yaml"), "n_exact": 0})
    shape = bench_full_size(named).shape
    assert shape is not None
    assert shape["of"]["target"] == wrote
    with pytest.raises(ConfigError, match=r"target=tiny-mixed is 'tiny-mixed', but .* belongs to 'tiny-reasoner'"):
        bench_full_size(config.model_copy(update={"target": "tiny-mixed"}))


def test_a_copy_of_another_target_than_the_drafts_is_no_target_that_was_given(
    tmp_path: Path, write_random_draft, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error named a `target=` that nobody had said."""
    asked = stand_in_for_engines(monkeypatch, set())
    config = small_config(tmp_path, write_random_draft(tmp_path / "draft", "draft", **TINY_DRAFT))
    save_target(config.draft, load_target_config("tiny-mixed"))
    with pytest.raises(ConfigError, match=r"draft: target\.yaml is of 'tiny-mixed', but the rest belongs to"):
        bench_full_size(config)
    assert asked == []


def test_a_notice_leaves_nothing_of_the_engines_behind(
    tmp_path: Path, write_random_draft, scratch: Path, told_to_end, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "run_methods", told_to_end)
    config = small_config(tmp_path, write_random_draft(tmp_path / "draft", "draft", **TINY_DRAFT))
    with pytest.raises(Ended):
        bench_full_size(config)
    assert not list(scratch.iterdir())


def test_a_stand_in_is_measured_on_problems_of_some_tasks_alone(
    tmp_path: Path, write_random_draft, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = stand_in_for_engines(monkeypatch, set())
    config = small_config(tmp_path, write_random_draft(tmp_path / "draft", "draft", **TINY_DRAFT))
    config = config.model_copy(update={"tasks": ("sums",), "n_exact": 0})
    tasks = ("sums", "late", "sums")
    write_traces(config.traces, [replace(t, task=task) for t, task in zip(generated_traces(N), tasks, strict=True)])
    with pytest.raises(BenchError, match=r"2 different prompts of tasks=\['sums'\], expected at least n=3"):
        bench_full_size(config)
    bench_full_size(config.model_copy(update={"n": 2}))
    assert [n for _, _, _, n, _ in asked] == [2, 2]


def test_a_stand_in_that_writes_other_texts_in_float32_is_not_measured(
    tmp_path: Path, write_random_draft, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = stand_in_for_engines(monkeypatch, {"float32"})
    config = small_config(tmp_path, write_random_draft(tmp_path / "draft", "draft", **TINY_DRAFT))
    with pytest.raises(BenchError, match="stand-in-shape, eagle3: texts in float32: 0 of 2 are the small target's"):
        bench_full_size(config)
    assert [dtype for _, dtype, *_ in asked] == ["float32", "float32"]
    assert not any(config.out.parent.iterdir())  # no numbers, and no journal that would end the next start here as well
    asked = stand_in_for_engines(monkeypatch, {"float32"}, "a card")  # which rounds otherwise
    bench_full_size(config)
    assert len(asked) == 3
    assert "eagle3: texts in float32: 0 of 2, expected 100 %" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("changed", ["seed", "shape", "target", "settings"])
def test_a_stand_in_of_before_is_not_measured_for_what_is_asked_now(
    tmp_path: Path, write_random_draft, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    written = []

    def stand_in(wanted: StandInConfig) -> None:
        written.append(wanted.seed)
        wanted.out.mkdir(parents=True)

    monkeypatch.setattr(module, "stand_in", stand_in)
    config = small_config(tmp_path, write_random_draft(tmp_path / "draft", "draft", **TINY_DRAFT))
    small = "tiny-reasoner"
    for _ in range(2):
        write_stand_in(config, small, "bfloat16")
    assert written == [0]
    if changed == "seed":
        config = config.model_copy(update={"seed": 1})
    elif changed == "shape":  # in the same file, whose name is the folder's
        (tmp_path / "shape.json").write_text(json.dumps(STAND_IN | {"vocab_size": 40_064}))
    elif changed == "target":
        monkeypatch.setattr(module, "target_fingerprint", lambda _: "other weights")
    else:  # which the stand-in's own YAML was copied from
        save_target(tmp_path, load_target_config(small).model_copy(update={"split_endings": ("\n",)}))
        small = str(tmp_path / "target.yaml")
    write_stand_in(config, small, "bfloat16")
    assert written == [0, config.seed]


def test_what_the_benchmark_has_not_written_is_not_removed(tmp_path: Path, write_random_draft) -> None:
    """A model of the user's own, or a stand-in that they wrote themselves, under the name of this one."""
    config = small_config(tmp_path, write_random_draft(tmp_path / "draft", "draft", **TINY_DRAFT))
    theirs = config.models / "shape-bfloat16"
    theirs.mkdir(parents=True)
    (theirs / "mine").write_text("data")
    with pytest.raises(
        FileExistsError, match="shape-bfloat16: output folder is not empty, expected a new or empty one"
    ):
        write_stand_in(config, "tiny-reasoner", "bfloat16")
    assert (theirs / "mine").read_text() == "data"


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.skipif("SPECEXIT_FULL_SIZE" not in os.environ, reason="six engines; SPECEXIT_FULL_SIZE=1 runs it")
def test_engine_and_plug_in_do_on_a_stand_in_what_they_do_on_the_small_target(drafts: Path, tmp_path: Path) -> None:
    config = small_config(tmp_path, drafts / "draft")
    bench_full_size(config)
    results = read_results(config.out)
    assert results.shape is not None
    # A draft with random signals exits at arbitrary places, and at the same ones.
    assert results.shape["same"] == {
        "eagle3: texts in float32": [N - 1, N - 1],
        "specexit: texts in float32": [N - 1, N - 1],
        "specexit: exits in bfloat16": [N, N],
    }
    assert results.methods["specexit"].exits.exit > 0
    assert (results.shape["hidden_size"], results.shape["dtype"]) == (320, "bfloat16")
    assert set(results.against_eagle3["specexit"].speedup) == {"1", "2"}
    assert sorted(path.name for path in config.out.parent.iterdir()) == ["full-size.json"]
