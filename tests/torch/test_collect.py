"""Collecting traces with real engines: their own, servers' and a cluster's, killed half-way or not."""

import asyncio
import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml

from specexit import tiny
from specexit.data.annotate import annotate
from specexit.data.answers import extract_answer, same_answer
from specexit.data.prompts import split_prompts
from specexit.data.rows import free_trials
from specexit.data.traces import Trace, read_traces
from specexit.schemas.annotate import AnnotateConfig
from specexit.schemas.collect import CollectConfig
from specexit.schemas.engine import EngineConfig
from specexit.schemas.target import load_target_config
from tests.marks import SLOW
from tests.torch.vllm_server import VllmServer
from torch_specexit.collecting import collect
from torch_specexit.collecting.endpoint import Endpoint
from torch_specexit.collecting.tracer import Response
from torch_specexit.collecting.work import Decoding

TARGET = load_target_config("tiny-reasoner")


def sampled(out: Path) -> CollectConfig:
    """Twelve sampled traces in four chunks. Sampled, because greedy rows would repeat even if seeds were ignored."""
    return CollectConfig(
        target="tiny-reasoner",
        out=out,
        split="test",
        n=12,
        chunk=3,
        workers=1,
        temperature=0.7,
        seed=3,
        min_finished=0.4,
        engine=EngineConfig(max_num_seqs=64, max_num_batched_tokens=64),  # fewer than the prompts have together
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> list[Trace]:
    out = tmp_path_factory.mktemp("uninterrupted")
    collect(sampled(out))
    return read_traces(out)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    rows = [{"id": p.id, "prompt": p.text} for p in split_prompts("test", 8, seed=5)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def short(prompts: Path, out: Path, **changes) -> CollectConfig:
    """Greedy traces of a prompt file, the token budget such that the longest do not finish."""
    asked = {"target": "tiny-reasoner", "prompts": str(prompts), "max_new_tokens": 320, "workers": 1, "out": out}
    return CollectConfig.model_validate(asked | {"min_finished": 0, "min_answered": 0} | changes)


@pytest.fixture(scope="module")
def greedy(prompts, tmp_path_factory) -> list[Trace]:
    folder = tmp_path_factory.mktemp("greedy")
    collect(short(prompts, folder / "traces"))
    return read_traces(folder / "traces")


@pytest.fixture(scope="module")
def servers(tmp_path_factory) -> Iterator[tuple[VllmServer, VllmServer]]:
    folder = tmp_path_factory.mktemp("servers")
    two = VllmServer(folder / "a.log"), VllmServer(folder / "b.log")
    try:
        for server in two:
            server.wait()
        yield two
    finally:
        for server in two:
            server.kill()


@pytest.fixture(scope="module")
def transformers_model():
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny.MODEL_DIR, dtype="float32").eval()


def continue_greedily(model, ids: list[int], max_new_tokens: int) -> tuple[list[int], list[float]]:
    """Greedy tokens of transformers and their log-probabilities."""
    import torch

    out = model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        do_sample=False,
        max_new_tokens=max_new_tokens,
        return_dict_in_generate=True,
        output_logits=True,
    )
    new = out.sequences[0, len(ids) :].tolist()
    return new, [torch.log_softmax(x[0], -1)[t].item() for x, t in zip(out.logits, new, strict=True)]


@pytest.mark.vllm
def test_rows_are_consistent(uninterrupted):
    ids, tokenizer = TARGET.think_tokens(), TARGET.tokenizer()
    assert [trace.id for trace in uninterrupted] == [prompt.id for prompt in split_prompts("test", 12, seed=3)]
    for trace in uninterrupted:
        assert tokenizer.decode(trace.prompt_ids) == tiny.prompt_text(trace.prompt)
        assert ids.end not in trace.think_ids
        assert trace.correct == same_answer(trace.answer, trace.reference)
        if trace.answer is not None:
            assert trace.answer == extract_answer(tokenizer.decode(trace.answer_ids))
            assert [b - 1 for b in trace.boundaries] == [i for i, t in enumerate(trace.think_ids) if t in ids.split]
            assert trace.boundary_agrees == [same_answer(a, trace.answer) for a in trace.boundary_answers]
            assert all(0 < c <= 1 for c in trace.boundary_confidence)
    finished = [trace for trace in uninterrupted if trace.answer is not None]
    assert len(finished) >= 6  # sampling at 0.7 loses some, not most
    at_the_end = [t.boundary_agrees[-1] for t in finished if t.boundaries[-1] == len(t.think_ids)]
    assert at_the_end
    assert all(at_the_end)


@pytest.mark.vllm
def test_trial_answers_are_those_of_transformers(uninterrupted, transformers_model):
    """An independent implementation gives the same answers when the thinking is ended at the same places."""
    end, tokenizer = TARGET.think_tokens().end, TARGET.tokenizer()
    for trace in [trace for trace in uninterrupted if trace.answer is not None][:3]:
        for i, boundary in enumerate(trace.boundaries):
            if boundary == len(trace.think_ids):
                continue
            prefix = [*trace.prompt_ids, *trace.think_ids[:boundary], end]
            tokens, logprobs = continue_greedily(transformers_model, prefix, 64)
            assert trace.boundary_answers[i] == extract_answer(tokenizer.decode(tokens))
            # Both compute in float32, in another order: about 1e-5 per log-probability.
            assert trace.boundary_confidence[i] == pytest.approx(np.exp(np.mean(logprobs)), rel=1e-3)


@pytest.mark.vllm
def test_greedy_traces_are_those_of_transformers(greedy, transformers_model):
    for trace in [trace for trace in greedy if trace.finish_reason == "stop"][:2]:
        tokens, _ = continue_greedily(transformers_model, trace.prompt_ids, 320)
        assert tokens == [*trace.think_ids, TARGET.think_tokens().end, *trace.answer_ids]


@pytest.mark.vllm
def test_unfinished_traces_are_kept_without_trials(greedy):
    unfinished = [trace for trace in greedy if trace.finish_reason == "length"]
    assert 0 < len(unfinished) < len(greedy)
    for trace in unfinished:
        assert len(trace.think_ids) + len(trace.answer_ids) in (319, 320)
        assert (trace.answer, trace.boundaries, trace.boundary_answers) == (None, [], [])
    assert all(trace.reference is None and trace.correct is None for trace in greedy)


def without_confidence(traces: list[Trace]) -> list[Trace]:
    return [dataclasses.replace(trace, boundary_confidence=[]) for trace in traces]


def finished(out: Path) -> int:
    """Traces in the log, which is where they are until their chunk is complete."""
    return sum(path.read_bytes().count(b"\n") for path in (out / ".collect").glob("*.jsonl"))


def assert_same(found: list[Trace], expected: list[Trace]) -> None:
    assert without_confidence(found) == without_confidence(expected)
    for a, b in zip(found, expected, strict=True):
        # In another batch, float32 products are summed in another order: about 1e-5 per log-probability.
        assert a.boundary_confidence == pytest.approx(b.boundary_confidence, rel=1e-3)


HALF_WAY = """
import signal, sys, threading
from specexit.cli import run
from torch_specexit.collecting.ledger import Ledger

record, left = Ledger.record, iter(range(int(sys.argv[1]) - 1, -1, -1))

def stop_half_way(self, number, trace):
    record(self, number, trace)
    if next(left, None) == 0:
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)  # nothing comes behind it

Ledger.record = stop_half_way
run("collect", sys.argv[2:])
"""
"""The command itself, which stops behind so many traces and waits for what becomes of it."""


@contextmanager
def stopped(traces: int, *asked: str, **settings: Any) -> Iterator[subprocess.Popen]:
    """A collector that has stopped with so many traces done; gone behind the block."""
    process = subprocess.Popen([sys.executable, "-c", HALF_WAY, str(traces), *asked], **settings)
    try:
        found = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        assert found is not None
        assert found.si_code == os.CLD_STOPPED, process.communicate()
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.mark.vllm
@SLOW
def test_killed_half_way_it_goes_on_and_yields_the_same_rows(uninterrupted, tmp_path):
    config = sampled(tmp_path / "out")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_none=True)))
    with stopped(5, str(tmp_path / "config.yaml")) as process:
        workers = psutil.Process(process.pid).children(recursive=True)
        assert workers
        process.kill()
        process.wait()
        _, alive = psutil.wait_procs(workers, timeout=60)
        assert not alive  # a worker does not outlive its parent
    assert finished(config.out) + 3 * len(list(config.out.glob("*.parquet"))) == 5
    collect(config.model_copy(update={"workers": 2}))
    assert_same(read_traces(config.out), uninterrupted)


@pytest.mark.vllm
@pytest.mark.slow
def test_a_vllm_server_gives_the_rows_of_an_engine_of_ones_own(greedy, prompts, servers, tmp_path):
    """Its model is named by its path, which is where the target's weights are: nothing is to be configured."""
    collect(short(prompts, tmp_path / "out", endpoints=(servers[0].url,)))
    assert_same(read_traces(tmp_path / "out"), greedy)


@pytest.mark.vllm
@pytest.mark.slow
def test_forced_trials_say_what_whole_answers_say(servers, tmp_path):
    """At every boundary of 35 traces where both come to an end; the share is in what a person reads before training.

    The tiny reasoner has never seen the forced text: at one boundary in fifteen it never closes the box.
    """
    forced = {"text": "\n\nSo the answer is \\boxed{", "max_tokens": 64, "stop": ["}"]}
    target = yaml.safe_dump(TARGET.model_dump(mode="json") | {"name": "forced", "trial": {"math": forced}})
    (tmp_path / "forced.yaml").write_text(target)
    asked = {"target": str(tmp_path / "forced.yaml"), "split": "test", "n": 35, "free_share": 1.0}
    collect(CollectConfig.model_validate(asked | {"out": tmp_path / "out", "endpoints": (servers[0].url,)}))
    free = [trial for trace in read_traces(tmp_path / "out") for trial in free_trials(trace)]
    decided = [trial.same for trial in free if trial.same is not None]
    assert len(decided) > 250  # the others were cut off, and count neither way
    share = sum(decided) / len(decided)
    print(f"{share:.2%} of {len(decided)} forced trials agree with the whole answer, {len(free)} were made")
    assert share >= 0.99
    annotate(AnnotateConfig(traces=tmp_path / "out", out=tmp_path / "labelled"))
    statistics = json.loads((tmp_path / "labelled" / "statistics.json").read_text())
    assert (statistics["free_trials"], statistics["free_same"]) == (len(decided), pytest.approx(share))
    page = (tmp_path / "labelled" / "statistics.html").read_text()
    assert f"At {len(decided)} of them the target also wrote its whole answer" in page


@pytest.mark.vllm
@pytest.mark.slow
def test_one_of_two_vllm_servers_is_killed_half_way(greedy, prompts, servers, tmp_path, capsys, monkeypatch):
    """Every row is there and the same, and one line says what happened.

    It dies of its third request, the other one answers none before, and it is asked again at once: it is missed however
    fast the other one is.
    """
    staying, dying = servers
    out, asked, killed = tmp_path / "out", 0, asyncio.Event()
    complete = Endpoint.complete

    async def complete_or_die(endpoint: Endpoint, ids: list[int], how: Decoding) -> Response:
        nonlocal asked
        if endpoint.url == dying.url:
            asked += 1
            if asked == 3:
                dying.kill()
                killed.set()
        else:
            await killed.wait()
        return await complete(endpoint, ids, how)

    monkeypatch.setattr(Endpoint, "complete", complete_or_die)
    monkeypatch.setattr("torch_specexit.collecting.endpoints.FIRST_PAUSE", 0.001)
    collect(short(prompts, out, endpoints=(dying.url, f"{staying.url}/v1"), requests=1, retries=2))
    assert asked == 3  # probes are no completions
    said = capsys.readouterr().err
    assert said.count(f"{dying.url}: given up (") == said.count("given up") == 1
    assert "its requests go to the other 1" in said
    assert_same(read_traces(out), greedy)


@pytest.mark.vllm
@SLOW
def test_a_ray_cluster_gives_the_same_rows_though_an_engine_is_killed(greedy, prompts, tmp_path):
    """As a user starts it. What was finished is not asked again, the rest goes to an engine that Ray starts instead."""
    pytest.importorskip("ray")
    out = tmp_path / "out"
    asked = ["target=tiny-reasoner", f"prompts={prompts}", f"out={out}", "max_new_tokens=320", "min_finished=0"]
    where = ["ray=local", "workers=1", "engine.max_num_seqs=2", "min_answered=0"]
    with stopped(2, *asked, *where, stderr=subprocess.PIPE, text=True) as process:
        below = psutil.Process(process.pid).children(recursive=True)
        [engine] = [child for child in below if "MapWorker" in " ".join(child.cmdline())]
        engine.kill()
        assert finished(out) == 2
        process.send_signal(signal.SIGCONT)
        _, said = process.communicate()
        assert process.returncode == 0, said
    assert_same(read_traces(out), greedy)
    _, alive = psutil.wait_procs(below, timeout=60)
    assert not alive  # the cluster was its own, and is gone
