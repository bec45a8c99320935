"""`specexit bench-serving` on two real engines, small."""

from __future__ import annotations

import itertools
import json
from functools import partial

import pytest
import yaml
from pydantic import ValidationError
from rich.console import Console

from specexit.bench.process import BenchError, BenchProcess
from specexit.config import REPOSITORY
from specexit.data.traces import TraceError, write_traces
from specexit.drafts.policy import PolicyFile, Serving, write_policy
from specexit.method.statistics import cluster_bootstrap
from specexit.outputs import Ended
from specexit.schemas.bench_serving import BenchServingConfig
from tests.marks import SLOW
from tests.serving.benching import TARGET, generated_traces, write_random_draft
from torch_specexit.bench import serving as module
from torch_specexit.bench.conditions import refuse_held_back
from torch_specexit.bench.serving import (
    ENGINES,
    METHODS,
    WARM_UP_TOKENS,
    Turns,
    _take_turns,
    bench_serving,
    gather,
    table,
)


def config(folder, draft) -> BenchServingConfig:
    return BenchServingConfig(
        target="tiny-reasoner",
        draft=draft,
        traces=folder / "traces.parquet",
        out=folder / "bench" / "serving.json",
        batches=(1, 3),
        rounds=2,
        pairs=1,
        max_new_tokens=40,
    )


@pytest.mark.vllm
@SLOW
def test_it_measures_the_same_texts_with_and_without_exits(drafts, tmp_path):
    write_traces(tmp_path / "traces.parquet", generated_traces(4))
    result = bench_serving(config(tmp_path, drafts / "draft"))
    assert result == json.loads((tmp_path / "bench" / "serving.json").read_text())
    for of, batch in itertools.product((result, result["shadow"]), ("1", "3")):
        mean, low, high = of["ratio_to_eagle3"][batch]
        assert 0 < low <= mean <= high
        # Acceptance stops at split tokens, as on a GPU: a few steps more, or fewer where drafts happen to fit better.
        assert -0.1 < of["steps_lost_to_stopping"][batch] < 0.3
        assert of["texts_that_differ"][batch] == 0
    assert result["triton_launches_per_step"] == 1
    assert result["eager_ops_per_step"] <= 428 / 3  # the study's prototype needed 428; numpy's part is not counted
    assert set(result["prompt_ms"]) == {"no marker", "marker at the beginning", "marker at the end"}
    assert min(result["prompt_ms"].values()) > 0
    assert result["target"] == "tiny-reasoner"
    assert list(result["by_batch"]) == ["1", "32", "1024"]
    for of in result["by_batch"].values():
        assert (of["launches"], of["allocations"], of["rows_sent"]) == (1, 0, 0)
        processes = ("worker", "engine_core", "engine_core_news", "engine_core_stop", "front_end", "front_end_stop")
        assert min(of[f"{process}_ms"] for process in processes) > 0
        assert of["fc_temporary_bytes"] <= 64 << 20


def turns(**changes) -> Turns:
    """Two turns of two tokens each."""
    two = {"pairs": [0, 0], "seconds": [1.0, 1.0], "tokens": [2, 2], "token_ids": [[5, 6], [7, 8]], "n_drafts": 4}
    return Turns(**two | changes)


def test_a_text_that_differs_is_an_error_in_float32_on_a_cpu_and_counted_elsewhere(tmp_path, monkeypatch):
    """On a GPU other shapes round otherwise; tokens per second then come from what each method has written."""
    monkeypatch.setattr(module, "count_operations", lambda *, interpreted: {})
    monkeypatch.setattr(module, "cluster_bootstrap", partial(cluster_bootstrap, resamples=200))
    ours = turns(seconds=[0.5, 0.5], tokens=[2, 1], token_ids=[[5, 6], [7]], n_drafts=5)
    measured = {8: {"eagle3": turns(), "specexit": ours, "shadow": turns(n_drafts=8)}}
    with pytest.raises(BenchError, match="specexit, batch 8: 1 texts differ, expected plain EAGLE-3's of both"):
        gather(config(tmp_path, tmp_path), TARGET, measured, None)
    result = gather(config(tmp_path, tmp_path), TARGET, measured, "some GPU")
    assert result["texts_that_differ"] == {"8": 1}
    assert result["ratio_to_eagle3"]["8"][0] == (3 / 1.0) / (4 / 2.0)
    shadow = {"ratio_to_eagle3": {"8": [1, 1, 1]}, "steps_lost_to_stopping": {"8": 0.5}, "texts_that_differ": {"8": 0}}
    assert result["shadow"] == shadow
    assert result["hardware"]["accelerator"] == "some GPU"
    rounded = gather(config(tmp_path, tmp_path), TARGET.model_copy(update={"dtype": "bfloat16"}), measured, None)
    assert (rounded["texts_that_differ"], rounded["dtype"]) == ({"8": 1}, "bfloat16")


def test_an_interval_is_of_pairs_of_processes_as_the_turns_of_one_share_how_fast_they_are(tmp_path, monkeypatch):
    """Two pairs of 16 turns each, one of them 5 % slower throughout: nothing is known to 2 %, as 32 turns had it."""
    monkeypatch.setattr(module, "count_operations", lambda *, interpreted: {})
    monkeypatch.setattr(module, "cluster_bootstrap", partial(cluster_bootstrap, resamples=200))
    same = {"seconds": [1.0] * 32, "tokens": [100] * 32, "token_ids": [[5]] * 32}

    def measured(pairs: list[int]) -> dict:
        ours = {**same, "tokens": [100] * 16 + [95] * 16, "pairs": pairs}
        taken = {"eagle3": turns(**same, pairs=pairs), "specexit": turns(**ours), "shadow": turns(**ours)}
        return gather(config(tmp_path, tmp_path), TARGET, {1: taken}, "some GPU")

    def shown(result: dict) -> str:
        console = Console(width=200)
        with console.capture() as said:
            console.print(table(result))
        return said.get()

    two, one = measured([0] * 16 + [1] * 16), measured([0] * 32)
    for of in (two, two["shadow"]):
        assert of["ratio_to_eagle3"]["1"] == pytest.approx([0.975, 0.95, 1.0])
    assert shown(two).count("0.975 (0.950..1.000)") == 2
    for of in (one, one["shadow"]):
        assert of["ratio_to_eagle3"]["1"] == [0.975] * 3
    assert shown(one).count("0.975 (no interval)") == 2


def test_it_runs_at_a_real_targets_size_and_at_both_batches_that_it_is_judged_at():
    file = REPOSITORY / "configs" / "bench" / "serving.yaml"
    found = BenchServingConfig.model_validate(yaml.safe_load(file.read_text()))
    assert found.batches == (1, 8)
    assert found.target == str(found.draft.parent / "target.yaml")
    assert found.out.name == "serving.json"


class Engine(BenchProcess):
    """Stands for an engine: notes what it is asked, and answers with nothing written."""

    def __init__(self, order):
        self.jobs, self.order = [], order

    def ask(self, job):
        self.jobs.append(job)
        self.order.append(self)
        judged = {"token_ids": [], "outcome": {"outcome": "length", "thinking_tokens": 1, "would_exit": 1}}
        return {"seconds": [1.0], "requests": [judged] * len(job["prompts"]), "n_drafts": 0, "n_accepted": 0}


def test_pairs_of_engines_share_the_groups_of_prompts_and_who_begins_alternates(tmp_path):
    traces, order = generated_traces(6), []
    asked = config(tmp_path, tmp_path).model_copy(update={"batches": (3,), "rounds": 4, "pairs": 2})
    groups = []
    for pair in range(asked.pairs):
        engines = {name: Engine(order) for name in ENGINES.values()}
        taken = {name: Turns() for name in METHODS}
        _take_turns(asked, engines, traces, 3, pair, taken)
        eagle3, ours = engines["eagle3"], engines["specexit"]
        assert order == [eagle3, ours, ours, ours, ours, eagle3, eagle3, ours, ours]  # the first three warm up
        order.clear()
        warm_up, *jobs = eagle3.jobs
        assert (warm_up["max_new_tokens"], warm_up["batch"]) == (WARM_UP_TOKENS, 3)
        for asked_for in (METHODS["specexit"], METHODS["shadow"]):
            theirs = [job["prompts"] for job in ours.jobs[2:] if job["extra_args"] == asked_for]
            assert [job["prompts"] for job in jobs] == theirs
        groups += [job["prompts"] for job in jobs]
        assert [len(of.seconds) for of in taken.values()] == [2, 2, 2]
        assert [of.pairs for of in taken.values()] == [[pair, pair]] * 3
    wanted = [[traces[(3 * i + j) % 6].prompt_ids for j in range(3)] for i in (0, 2, 1, 3)]
    assert groups == wanted


def test_a_draft_without_signals_has_no_cost_to_measure(drafts, tmp_path):
    write_traces(tmp_path / "traces.parquet", generated_traces(1))
    with pytest.raises(BenchError, match=r"plain: no specexit block"):
        bench_serving(config(tmp_path, drafts / "plain"))


def test_traces_of_another_tokenizer_cost_nothing_and_are_refused(drafts, tmp_path, monkeypatch):
    """Thinking never opens in them, so nothing is judged: exits were said to be free."""
    monkeypatch.setattr(module, "BenchProcess", None)
    write_traces(tmp_path / "traces.parquet", generated_traces(1), "0" * 64)
    with pytest.raises(TraceError, match=r"traces\.parquet: written with the tokenizer 000000000000\.\.\., expected"):
        bench_serving(config(tmp_path, drafts / "draft"))


def test_a_notice_leaves_no_engine_and_no_draft_behind(drafts, tmp_path, scratch, told_to_end, monkeypatch):
    """SIGTERM, as a preemption sends it, ended the process where it stood."""
    monkeypatch.setattr(module, "BenchProcess", told_to_end)
    write_traces(tmp_path / "traces.parquet", generated_traces(1))
    with pytest.raises(Ended):
        bench_serving(config(tmp_path, drafts / "draft"))
    assert not list(scratch.iterdir())


def test_responses_of_one_token_are_refused(tmp_path):
    """Nothing is drafted in them: all was measured, and then ended in a division by zero."""
    with pytest.raises(ValidationError, match=r"max_new_tokens\n.*greater than 1"):
        BenchServingConfig(draft=tmp_path, traces=tmp_path, out=tmp_path / "out.json", max_new_tokens=1)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (
            {"outcome": {"outcome": "off", "thinking_tokens": 5}},
            "exits were off in .* test-0, .* 'exit' or 'shadow' and",
        ),
        ({"outcome": None}, "vLLM reported no outcome for test-0, expected one from the specexit plug-in"),
        ({"outcome": None, "inactive": "no such kernel"}, "given up by the response to test-0: no such kernel"),
    ],
)
def test_a_plug_in_that_judges_nothing_is_not_measured(tmp_path, said, expected):
    """It would cost nothing, as exits that are free do."""

    class Silent(Engine):
        def ask(self, job):
            judged = {"outcome": {"outcome": "length", "thinking_tokens": 1}}
            raw = said if job["extra_args"] == METHODS["shadow"] else judged if job["extra_args"] else {"outcome": None}
            return super().ask(job) | {"requests": [{"token_ids": [5]} | raw] * len(job["prompts"])}

    engines = {name: Silent([]) for name in ENGINES.values()}
    asked = config(tmp_path, tmp_path).model_copy(update={"batches": (3,)})
    with pytest.raises(BenchError, match=f"method shadow: .*{expected}"):
        _take_turns(asked, engines, generated_traces(3), 3, 0, {name: Turns() for name in METHODS})
    assert all(job["max_new_tokens"] == WARM_UP_TOKENS for engine in engines.values() for job in engine.jobs)


def test_a_draft_that_is_switched_off_is_refused_before_an_engine_starts(tmp_path, monkeypatch):
    """One in shadow mode is not: what is measured makes no exits."""
    monkeypatch.setattr(module, "BenchProcess", None)
    write_random_draft(tmp_path / "draft")
    write_traces(tmp_path / "traces.parquet", generated_traces(1))
    ours = config(tmp_path, tmp_path / "draft")
    write_policy(ours.draft, PolicyFile(serving=Serving(mode="shadow")))
    refuse_held_back(ours, ours.draft, besides="shadow")
    write_policy(ours.draft, PolicyFile(serving=Serving(mode="off")))
    with pytest.raises(BenchError, match=r"policy\.json: serving\.mode is 'off', so that nothing exits: expected"):
        bench_serving(ours)
