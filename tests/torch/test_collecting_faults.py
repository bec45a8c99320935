"""Collecting from servers: what a kill loses, and what if a server dies, fails or is not what it should be."""

import json
import multiprocessing
import os
import random
import threading
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from specexit.data.annotate import drop_reason
from specexit.data.traces import read_traces
from specexit.schemas.collect import CollectConfig
from tests.torch.pretend import SLOW, THINK, TOKENIZER, N, Pretender, Server, config
from tests.waiting import wait_for
from torch_specexit.collecting import CollectError, collect

FORKS = multiprocessing.get_context("forkserver")
"""Collectors are forks of a process that has imported everything: to start one takes no time."""
CHAT = "transformers.models.auto.tokenization_auto"  # transformers itself imports next to nothing
FORKS.set_forkserver_preload([__name__, "torch_specexit.collecting.endpoints", "torch_specexit.chat", CHAT])


def start(server: Server, out: Path, **changes) -> BaseProcess:
    """A collector of its own, what it says in ``OUT.err``."""
    process = FORKS.Process(target=collect_apart, args=(config(server, out, **changes), out.with_suffix(".err")))
    process.start()
    return process


def collect_apart(config: CollectConfig, said: Path) -> None:
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
    collect(config)


def finished(out: Path) -> int:
    """Traces that are on the disk; a file's may for a moment be in the log as well."""
    there = {5 * int(path.stem.removeprefix("traces-")) + i for path in out.glob("*.parquet") for i in range(5)}
    for log in (out / ".collect").glob("*.jsonl"):
        lines = log.read_bytes().split(b"\n")[:-1]
        there |= {int(line.split(b"[", 1)[1].split(b",", 1)[0]) for line in lines}
    return len(there)


def test_killed_again_and_again_it_loses_and_doubles_nothing(server, tmp_path, monkeypatch):
    """Whatever was finished stays finished, and in the end the rows are those of a run that nothing disturbed.

    The server goes no further than a few traces beyond where the kill is to come, so no run is faster than its kill.
    """
    rng = random.Random(0)
    out, seen, most = tmp_path / "out", 0, 0
    slow = {"n": N, "requests": 2}
    complete, gone = server.complete, threading.Event()

    def answer(body):
        wait_for(lambda: gone.is_set() or finished(out) <= most)
        return complete(body)

    monkeypatch.setattr(server, "complete", answer)
    for _ in range(20 if SLOW else 3):
        goal = seen + rng.randint(0, N // 25)
        most = goal + 2
        gone.clear()
        process = start(server, out, **slow)
        wait_for(lambda process=process, goal=goal: process.exitcode is not None or finished(out) >= goal)
        time.sleep(rng.uniform(0, 0.05))  # any moment will do
        assert process.exitcode is None
        process.kill()  # SIGKILL
        process.join()
        gone.set()  # what it has asked is answered to nobody
        assert finished(out) >= seen
        seen = finished(out)
    assert seen < N
    collect(config(server, out, **slow))
    collect(config(server, tmp_path / "undisturbed", **slow))
    assert read_traces(out) == read_traces(tmp_path / "undisturbed")
    assert not list((out / ".collect").glob("*.jsonl"))


def test_two_collectors_on_one_folder(server, tmp_path, monkeypatch):
    """The second one is refused at once, with what to do; neither disturbs the other."""
    slow = {"n": N, "requests": 1}
    complete, refused = server.complete, threading.Event()

    def answer(body):
        assert refused.wait(300)  # so long the first one is at work
        return complete(body)

    monkeypatch.setattr(server, "complete", answer)
    first = start(server, tmp_path / "out", **slow)
    wait_for(lambda: first.exitcode is not None or list((tmp_path / "out").glob(".collect/*.jsonl")))
    for changes in ({}, {"shard": "0/2"}):
        with pytest.raises(CollectError, match=r"out: process \d+ on \S+ is collecting into it; wait.*shard=i/n"):
            collect(config(server, tmp_path / "out", **slow, **changes))
    assert first.exitcode is None
    refused.set()
    first.join()
    assert first.exitcode == 0
    assert len(read_traces(tmp_path / "out")) == N


def test_one_of_two_servers_dies_half_way(server, tmp_path, monkeypatch):
    """It dies of a request; the other one answers none from then on until the collector has given it up."""
    dying, out = Server(Pretender(N)), tmp_path / "out"
    write, complete = dying.complete, server.complete

    def die(body):
        dying.closed |= dying.completions >= 20
        return write(body)

    def answer(body):
        wait_for(lambda: not dying.closed or "given up" in out.with_suffix(".err").read_text())
        return complete(body)

    monkeypatch.setattr(dying, "complete", die)
    monkeypatch.setattr(server, "complete", answer)
    process = start(server, out, n=N, requests=2, retries=2, endpoints=(server.url, f"{dying.url}/v1"))
    wait_for(lambda: dying.closed or process.exitcode is not None)
    dying.close()
    process.join()
    assert process.exitcode == 0
    said = out.with_suffix(".err").read_text()
    assert said.count(f"{dying.url}: given up (") == 1
    assert "its requests go to the other 1" in said
    assert [trace.id for trace in read_traces(out)] == [f"test-0-{i:05d}" for i in range(N)]


def test_the_last_server_dies(tmp_path):
    dying = Server(Pretender(12), fail_first=1000)
    with pytest.raises(CollectError, match=r"503.*no endpoint is left, what was finished is kept"):
        collect(config(dying, tmp_path / "out", retries=1))
    dying.to_fail = 0
    collect(config(dying, tmp_path / "out", retries=1))
    assert len(read_traces(tmp_path / "out")) == 12
    dying.close()


def test_all_requests_failing_at_once_are_one_failure(tmp_path):
    server = Server(Pretender(12), fail_first=12, together=12)
    collect(config(server, tmp_path / "out", requests=12, retries=2))
    assert len(read_traces(tmp_path / "out")) == 12
    server.close()


@pytest.fixture
def failing(monkeypatch):
    """A server of its own, for tests that say what it fails, with short pauses."""
    monkeypatch.setattr("torch_specexit.collecting.endpoints.FIRST_PAUSE", 0.001)
    server = Server(Pretender(12))
    yield server
    server.close()


@pytest.mark.parametrize("trials", [False, True])
def test_a_prompt_that_no_server_answers_is_a_row_without_an_answer(trials, failing, collected, tmp_path, capsys):
    """It is said and counted, and asked again by the next run."""
    failing.fails = lambda ids: collected[7].prompt in TOKENIZER.decode(ids) and (THINK.end in ids) == trials
    collect(config(failing, tmp_path / "out", retries=2))
    said = capsys.readouterr().err
    assert "left without an answer, as no server gives one: prompt 'test-0-00007' (http://" in said
    assert "503" in said
    assert "91.7% finished, 1 failed, 91.7% answered" in said
    found = read_traces(tmp_path / "out")
    assert found[:7] + found[8:] == collected[:7] + collected[8:]
    assert (found[7].id, found[7].finish_reason, found[7].answer) == ("test-0-00007", "failed", None)
    assert found[7].correct is None
    assert drop_reason(found[7]) == "failed"
    counts = json.loads((tmp_path / "out" / "summary.json").read_text())["counts"]
    assert (counts["traces"], counts["finished"], counts["failed"]) == (12, 11, 1)
    failing.fails, before = lambda _: False, failing.completions
    collect(config(failing, tmp_path / "out", retries=2))
    assert read_traces(tmp_path / "out") == collected
    assert failing.completions - before == 1 + sum(tokens > 0 for tokens in collected[7].boundary_trial_tokens)


def test_servers_that_fail_every_prompt_end_the_run(failing, tmp_path):
    """Though they answer probes, and no row says that it is the prompts."""
    failing.fails = lambda _: True
    with pytest.raises(CollectError, match=r"503.*for prompt .*; 5 prompts have failed so, and no trace was finished"):
        collect(config(failing, tmp_path / "out", requests=4, retries=2))
    assert finished(tmp_path / "out") == 0
    with pytest.raises(CollectError, match=r"out: no server answered 12 of 12 requests for a trace"):
        collect(config(failing, tmp_path / "out", requests=12, retries=2, min_finished=0))


def test_more_failed_prompts_than_may_be_unfinished_are_an_error(failing, tmp_path):
    failed = list(failing.pretender.problems)[:3]
    failing.fails = lambda ids: any(question in TOKENIZER.decode(ids) for question in failed)
    with pytest.raises(
        CollectError, match=r"no server answered 3 of 12 .* and 75\.0% finished, expected 80%; the same"
    ):
        collect(config(failing, tmp_path / "out", retries=2))
    collect(config(failing, tmp_path / "out", retries=2, min_finished=0.7, min_answered=0.7))


def test_a_busy_server_is_asked_again(tmp_path, monkeypatch):
    monkeypatch.setattr("torch_specexit.collecting.endpoints.FIRST_PAUSE", 0.001)
    busy = Server(Pretender(12), fail_first=5)
    collect(config(busy, tmp_path / "out", retries=50))
    assert len(read_traces(tmp_path / "out")) == 12
    busy.close()


def test_no_more_requests_at_once_than_allowed(tmp_path):
    server = Server(Pretender(12), together=3)
    collect(config(server, tmp_path / "out", requests=3))
    assert server.largest == 3
    server.close()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"model": "qwen3-4b"}, "serves qwen3-4b, expected .*tiny-reasoner.*say model=NAME"),
        ({"wrong_tokens": True}, r"its tokenizer reads 'What is 3 \+ 4.*token 1 is .*, expected 'What' \["),
    ],
)
def test_a_server_that_is_not_the_targets(tmp_path, wrong, message):
    server = Server(Pretender(12), **wrong)
    with pytest.raises(CollectError, match=message):
        collect(config(server, tmp_path / "out"))
    assert not list((tmp_path / "out").glob("*.parquet"))
    server.close()


def test_a_server_that_becomes_another_model(tmp_path):
    server = Server(Pretender(12))
    server.complete = lambda body: Server.complete(server, body) | {"model": "other"}  # type: ignore[method-assign]
    with pytest.raises(CollectError, match="answered as model 'other', expected 'tiny-reasoner'"):
        collect(config(server, tmp_path / "out"))
    server.close()
