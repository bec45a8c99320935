"""An output folder of `collect`: whose it is, what is in it, and what becomes of it in between."""

import errno
import json
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields

import pytest
import yaml

from specexit.config import ConfigError, save_run
from specexit.data.engine import EngineTypes, engine_types_of
from specexit.data.traces import TraceError, read_traces
from specexit.errors import InputError
from specexit.schemas.target import TrialConfig
from tests.torch.pretend import TARGET, Pretender, Server, config, forced
from torch_specexit.collecting import CollectError, collect
from torch_specexit.collecting.claim import ENGINE_FREE, claim
from torch_specexit.collecting.ledger import Ledger
from torch_specexit.collecting.work import all_asks


def test_another_config_in_the_same_folder(server, tmp_path):
    collect(config(server, tmp_path / "out"))
    before = (tmp_path / "out" / "traces-00000.parquet").read_bytes()
    with pytest.raises(ConfigError, match=r"run\.yaml: .* another config \(temperature is 0\.5, was None\)"):
        collect(config(server, tmp_path / "out", temperature=0.5))
    assert (tmp_path / "out" / "traces-00000.parquet").read_bytes() == before


def test_how_fast_a_model_runs_may_change_in_between_and_which_model_it_is_may_not(server, tmp_path):
    """Who runs out of memory takes more GPUs, or a new folder: this one would be of two models, and name the first."""
    collect(config(server, tmp_path / "out", n=6, engine={"extra": {"gpu_memory_utilization": 0.95}}))
    more = {"tensor_parallel_size": 2, "decode_context_parallel_size": 2, "download_dir": "/weights"}
    collect(config(server, tmp_path / "out", engine={"max_num_seqs": 8, "extra": more}))
    assert len(read_traces(tmp_path / "out")) == 12
    for extra, named in (
        ({"quantization": "fp8"}, r"engine\.extra\.quantization is 'fp8', was None"),
        ({"attention_config": {"backend": 1}}, r"engine\.extra\.attention_config\.backend is 1, was None"),
        ({"load_format": "dummy"}, r"engine\.extra\.load_format is 'dummy', was None"),
    ):
        with pytest.raises(ConfigError, match=rf"another config \({named}\); take a new folder"):
            collect(config(server, tmp_path / "out", engine={"extra": extra}))


def test_each_argument_of_parallelism_batches_offloading_and_loading_may_change_or_is_refused_on_purpose():
    """A new one of vLLM's is to be looked at: those of context parallelism had kept runs from going on."""
    from vllm.config import (
        LoadConfig,
        OffloadConfig,
        ParallelConfig,
        PrefetchOffloadConfig,
        SchedulerConfig,
        UVAOffloadConfig,
    )
    from vllm.engine.arg_utils import EngineArgs

    kinds = (ParallelConfig, SchedulerConfig, LoadConfig, OffloadConfig, UVAOffloadConfig, PrefetchOffloadConfig)
    there = {field.name for kind in kinds for field in fields(kind) if not field.name.startswith("_")}
    asked = there & {field.name for field in fields(EngineArgs)}
    refused = {"load_format", "model_loader_extra_config", "ignore_patterns"}
    assert asked - ENGINE_FREE == refused | {"worker_cls", "worker_extension_cls", "scheduler_cls"}


def test_the_types_that_an_engine_is_told_go_with_its_traces(server, tmp_path):
    """`calibrate` took those of the target's YAML, whatever `engine.extra` had put in their place."""
    extra = {"engine": {"extra": {"kv_cache_dtype": "fp8", "dtype": "half", "tensor_parallel_size": 2}}}

    def claimed(name, **changes):
        with claim(config(server, tmp_path / name, **changes), TARGET):
            return engine_types_of(tmp_path / name)

    assert claimed("own", endpoints=None, **extra) == EngineTypes(dtype="float16", kv_cache_dtype="fp8")
    assert claimed("asked", **extra) == EngineTypes()  # of servers, which nobody has told that
    assert claimed("own", endpoints=None) == EngineTypes()  # nothing had been collected: it is begun anew


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        ({"sampling": {"temperature": 0.9, "max_tokens": 768}}, r"sampling\.temperature is 0\.9, was 0\.0"),
        ({"trial": {"math": {"max_tokens": 48}}}, r"trial\.math\.max_tokens is 48, was 64"),
        ({"split_endings": ["."]}, r"split_endings is \['\.'\], was \['\\n\\n'\]"),
        ({"chat": {"enable_thinking": True}}, r"chat\.enable_thinking is True, was None"),
    ],
)
@pytest.mark.parametrize("changes", [{"n": 12}, {"shard": "1/2"}])
def test_a_target_that_was_edited_in_between(server, tmp_path, edit, named, changes):
    """Its name and path are the same: rows of two ways of asking would lie side by side, and only one is on record."""
    asked = {"target": forced(tmp_path, max_tokens=64), "model": "tiny-reasoner", "n": 6}
    collect(config(server, tmp_path / "out", **asked | ({"shard": "0/2"} if "shard" in changes else {})))
    fields = yaml.safe_load((tmp_path / "mine.yaml").read_text())
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(fields | edit))
    before = server.completions
    with pytest.raises(
        ConfigError, match=rf"out/target\.yaml: .* target mine as it was \({named}\); take a new folder"
    ):
        collect(config(server, tmp_path / "out", **asked | changes))
    assert server.completions == before


def test_a_model_that_has_moved_is_the_same_target(server, tmp_path):
    asked = {"target": forced(tmp_path, max_tokens=64), "model": "tiny-reasoner"}
    collect(config(server, tmp_path / "out", **asked, n=6))
    shutil.copytree(TARGET.folder, tmp_path / "model")
    fields = yaml.safe_load((tmp_path / "mine.yaml").read_text())
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(fields | {"path": str(tmp_path / "model")}))
    collect(config(server, tmp_path / "out", **asked))
    assert len(read_traces(tmp_path / "out")) == 12


@pytest.fixture
def numbered(server, tmp_path, monkeypatch) -> list[dict]:
    """Eight prompts in p.jsonl of the working folder, the target in mine.yaml."""
    monkeypatch.chdir(tmp_path)
    forced(tmp_path, max_tokens=64)
    rows = [{"id": str(i), "prompt": question} for i, question in enumerate(list(server.pretender.problems)[:8])]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return rows


OWN = {"split": None, "n": None, "prompts": "p.jsonl", "target": "mine.yaml", "model": "tiny-reasoner"}


@pytest.mark.parametrize(
    "changes",
    [
        {"prompts": "./p.jsonl"},
        {"prompts": "moved.jsonl"},
        {"prompts": "asked.jsonl", "columns": {"prompt": "question"}},
        {"target": "./mine.yaml"},
        {"target": "copy.yaml"},
        {"target": "out/target.yaml"},
    ],
)
def test_the_same_prompts_and_target_by_another_name(server, numbered, tmp_path, changes):
    collect(config(server, tmp_path / "out", **OWN | {"n": 6}))
    (tmp_path / "moved.jsonl").write_bytes((tmp_path / "p.jsonl").read_bytes())
    (tmp_path / "asked.jsonl").write_text((tmp_path / "p.jsonl").read_text().replace('"prompt"', '"question"'))
    shutil.copy(tmp_path / "mine.yaml", tmp_path / "copy.yaml")
    for n in (6, 8):
        collect(config(server, tmp_path / "out", **OWN | changes | {"n": n}))
    assert [trace.id for trace in read_traces(tmp_path / "out")] == [row["id"] for row in numbered]
    record = yaml.safe_load((tmp_path / "out" / "run.yaml").read_text())["config"]
    assert record["prompts"] == changes.get("prompts", "p.jsonl")


def test_other_prompts_by_another_name(server, numbered, tmp_path):
    """A shard sees its own rows alone, so it cannot know whether those of the others are of the same prompts."""
    collect(config(server, tmp_path / "out", **OWN, shard="0/2"))
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, reversed(numbered))))
    before = server.completions
    with pytest.raises(TraceError, match=r"traces-00000\.parquet: holds traces of other prompts"):
        collect(config(server, tmp_path / "out", **OWN | {"prompts": "q.jsonl"}))
    with pytest.raises(ConfigError, match=r"prompts is 'q\.jsonl', was 'p\.jsonl'\); .* go on without shard"):
        collect(config(server, tmp_path / "out", **OWN | {"prompts": "q.jsonl"}, shard="1/2"))
    assert server.completions == before
    assert yaml.safe_load((tmp_path / "out" / "run.yaml").read_text())["config"]["prompts"] == "p.jsonl"


def test_a_first_run_that_fails_before_its_first_trace_claims_nothing(tmp_path):
    """What was wrong is mended in place, in the YAML or on the command line, and the same folder is taken."""
    server = Server(Pretender(12), model="another")
    asked = {"target": forced(tmp_path, max_tokens=64), "temperature": 0.5}
    for changes in ({}, {"temperature": 0.1}, {"shard": "0/2"}):
        with pytest.raises(CollectError, match="serves another, expected"):
            collect(config(server, tmp_path / "out", **asked | changes))
    fields = yaml.safe_load((tmp_path / "mine.yaml").read_text()) | {"trial": {"math": {"max_tokens": 32}}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(fields))
    collect(config(server, tmp_path / "out", **asked | {"model": "another", "temperature": None}))
    assert len(read_traces(tmp_path / "out")) == 12
    assert yaml.safe_load((tmp_path / "out" / "target.yaml").read_text())["trial"] == fields["trial"]
    assert yaml.safe_load((tmp_path / "out" / "run.yaml").read_text())["config"]["temperature"] is None
    server.close()


def test_a_run_that_failed_on_every_prompt_claims_nothing(tmp_path, monkeypatch):
    """Its rows say nothing, and what is mended is most likely how long an answer may be."""
    monkeypatch.setattr("torch_specexit.collecting.endpoints.FIRST_PAUSE", 0.001)
    server, out = Server(Pretender(12)), tmp_path / "out"
    server.fails = lambda _: True
    with pytest.raises(CollectError, match="no server answered 12 of 12"):
        collect(config(server, out, requests=12, retries=2, min_finished=0))
    server.fails = lambda _: False
    copy = out / "copy.parquet"
    shutil.copy(out / "traces-00002.parquet", copy)
    with pytest.raises(ConfigError, match=r"another config \(max_new_tokens is 700, was None\)"):
        collect(config(server, out, n=6, max_new_tokens=700))
    copy.unlink()
    collect(config(server, out, n=6, max_new_tokens=700))
    assert [trace.finish_reason for trace in read_traces(out)] == ["stop"] * 6
    assert json.loads((out / "manifest.json").read_text())["files"].keys() == {
        "traces-00000.parquet",
        "traces-00001.parquet",
    }
    assert yaml.safe_load((out / "run.yaml").read_text())["config"]["max_new_tokens"] == 700
    server.close()


@pytest.mark.parametrize("failed", ["before the first trace", "on every prompt"])
def test_a_run_that_failed_claims_nothing_where_files_of_one_s_own_lie(tmp_path, monkeypatch, failed):
    """A job's log is written where the job writes; it stays, and so does what is finished."""
    monkeypatch.setattr("torch_specexit.collecting.endpoints.FIRST_PAUSE", 0.001)
    out, early = tmp_path / "out", failed == "before the first trace"
    server = Server(Pretender(12), model="another") if early else Server(Pretender(12))
    server.fails = lambda _: not early
    with pytest.raises(CollectError, match="serves another" if early else "no server answered 12 of 12"):
        collect(config(server, out, requests=12, retries=2, min_finished=0))
    (out / "collect.log").write_text("mine")
    (out / "notes").mkdir()
    server.fails = lambda _: False
    model = {"model": "another"} if early else {}
    collect(config(server, out, n=6, max_new_tokens=700, **model))
    assert [trace.finish_reason for trace in read_traces(out)] == ["stop"] * 6
    assert ((out / "collect.log").read_text(), (out / "notes").is_dir()) == ("mine", True)
    before = {path: path.read_bytes() for path in out.glob("[a-z]*.*")}
    with pytest.raises(ConfigError, match=r"another config \(max_new_tokens is 600, was 700\)"):
        collect(config(server, out, n=6, max_new_tokens=600, **model))
    assert {path: path.read_bytes() for path in out.glob("[a-z]*.*")} == before
    server.close()


def test_a_run_that_has_one_trace_or_is_at_work_keeps_its_folder(server, tmp_path):
    out = tmp_path / "out"
    first = config(server, out, shard="0/3")
    with Ledger(first, TARGET, all_asks(first, TARGET)):
        with pytest.raises(ConfigError, match=r"another config \(temperature is 0\.5, was None\)"):
            collect(config(server, out, shard="1/3", temperature=0.5))
        collect(config(server, out, shard="1/3"))
    (out / "traces-00001.parquet").unlink()
    (out / "manifest.json").unlink()
    (out / ".collect" / "shard-2-of-3.jsonl").write_text("a trace")
    with pytest.raises(ConfigError, match=r"another config \(temperature is 0\.5, was None\)"):
        collect(config(server, out, temperature=0.5))


def test_a_kill_before_the_folder_has_its_record_blocks_nothing(server, collected, tmp_path):
    out = tmp_path / "out"
    (out / ".collect").mkdir(parents=True)
    for name in (".collect/lock", "target.yaml", ".run.yaml.4711"):
        (out / name).write_text("")
    collect(config(server, out))
    assert read_traces(out) == collected


@pytest.mark.parametrize("mine", ["notes.txt", "target.yaml"])
def test_a_folder_of_somebody_s_own(server, tmp_path, mine):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / mine).write_text("mine")
    with pytest.raises(FileExistsError, match=r"out: output folder is not empty and holds no run\.yaml"):
        collect(config(server, tmp_path / "out"))
    assert (tmp_path / "out" / mine).read_text() == "mine"
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_shards_that_start_together_on_a_new_folder(server, collected, tmp_path, monkeypatch):
    """Each of them finds no record yet; one writes it, which takes time."""
    arrived = threading.Barrier(3)

    def slow(*args) -> None:
        time.sleep(0.3)
        save_run(*args)

    def shard(i: int) -> None:
        arrived.wait()
        collect(config(server, tmp_path / "out", shard=f"{i}/3"))

    monkeypatch.setattr("torch_specexit.collecting.claim.save_run", slow)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(shard, range(3)))
    assert read_traces(tmp_path / "out") == collected


@pytest.mark.parametrize("n", [7, 12])
def test_a_folder_says_how_many_traces_it_is_to_have(server, tmp_path, capsys, n):
    """One of several shards, and a run that was made larger and has not finished a file since."""
    asked = {"n": n, "shard": "0/2"}
    collect(config(server, tmp_path / "out", **asked))
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    there = len(read_traces(tmp_path / "out"))
    assert (there, manifest["traces"]) == ({7: 5, 12: 7}[n], n)
    assert f"out has {there} of the {n} traces that were asked for" in " ".join(capsys.readouterr().err.split())
    server.to_fail = 10**6
    with pytest.raises(CollectError, match="no endpoint is left"):
        collect(config(server, tmp_path / "out", n=20, retries=1))
    server.to_fail = 0
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["traces"] == 20
    collect(config(server, tmp_path / "out"))
    capsys.readouterr()
    assert len(read_traces(tmp_path / "out")) == 12
    assert "asked for" not in capsys.readouterr().err


def test_a_manifest_of_an_older_version_is_gone_on_with(server, collected, tmp_path):
    collect(config(server, tmp_path / "out", n=7))
    path = tmp_path / "out" / "manifest.json"
    older = json.loads(path.read_text())
    del older["traces"]
    path.write_text(json.dumps(older))
    collect(config(server, tmp_path / "out"))
    assert read_traces(tmp_path / "out") == collected


QUESTION = {"id": "a", "prompt": "{}", "answer_kind": "choice", "choices": ["1", "2"], "task": "sums", "reference": "A"}


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        ({"choices": ["2", "1"]}, r"choices of row 0 is \['1', '2'\], expected \['2', '1'\]"),
        ({"answer_kind": "text"}, "answer_kind of row 0 is 'choice', expected 'text'"),
        ({"task": "products"}, "task of row 0 is 'sums', expected 'products'"),
        ({"group": "easy"}, "group of row 0 is 'sums', expected 'easy'"),
        ({"reference": "B"}, "reference of row 0 is 'A', expected 'B'"),
        ({"system": "Be brief."}, "messages of row 0 is None, expected .*Be brief"),
    ],
)
def test_a_prompt_that_is_asked_or_judged_in_another_way(server, tmp_path, edit, named):
    question = next(iter(server.pretender.problems))
    trials = {kind: TrialConfig(max_tokens=64) for kind in ("choice", "text")}
    target = TARGET.model_copy(update={"name": "mine", "trial": trials}).model_dump(mode="json")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(target))
    asked = {"split": None, "n": None, "prompts": str(tmp_path / "prompts.jsonl"), "min_answered": 0}
    asked |= {"target": str(tmp_path / "mine.yaml"), "model": "tiny-reasoner", "min_finished": 0}
    for change in ({}, edit):
        row = QUESTION | {"prompt": question} | change
        if system := row.pop("system", None):
            row["messages"] = [{"role": "system", "content": system}, {"role": "user", "content": row.pop("prompt")}]
        (tmp_path / "prompts.jsonl").write_text(json.dumps(row))
        if change:
            with pytest.raises(TraceError, match=rf"other prompts than the config gives \({named}"):
                collect(config(server, tmp_path / "out", **asked))
        else:
            collect(config(server, tmp_path / "out", **asked))


def test_prompts_that_have_changed(server, tmp_path):
    prompts = tmp_path / "prompts.jsonl"

    def write(*numbers: int) -> None:
        questions = list(server.pretender.problems)
        prompts.write_text("\n".join(json.dumps({"id": str(i), "prompt": questions[i]}) for i in numbers))

    write(0, 1)
    asked = {"split": None, "n": None, "prompts": str(prompts)}
    collect(config(server, tmp_path / "out", **asked))
    write(1, 0)
    with pytest.raises(TraceError, match=r"traces-00000\.parquet: holds traces of other prompts"):
        collect(config(server, tmp_path / "out", **asked))


def test_the_groups_that_a_certificate_is_for_are_the_prompts_own(server, tmp_path):
    """A column of its own, else the task."""
    prompts, questions = tmp_path / "prompts.jsonl", list(server.pretender.problems)
    rows = [{"group": "easy", "task": "sums"}, {"group": "hard", "task": "sums"}, {"task": "sums"}, {}]
    written = [{"id": str(i), "prompt": questions[i]} | row for i, row in enumerate(rows)]
    prompts.write_text("\n".join(map(json.dumps, written)))
    collect(config(server, tmp_path / "out", split=None, n=None, prompts=str(prompts)))
    assert [trace.group for trace in read_traces(tmp_path / "out")] == ["easy", "hard", "sums", None]


def test_a_file_that_was_changed_is_not_taken_for_finished(server, tmp_path):
    collect(config(server, tmp_path / "out"))
    path = tmp_path / "out" / "traces-00001.parquet"
    path.write_bytes(path.read_bytes()[:-200])
    before = server.completions
    with pytest.raises(TraceError, match=r"traces-00001\.parquet: its content is not what manifest\.json says"):
        collect(config(server, tmp_path / "out"))
    path.unlink()
    collect(config(server, tmp_path / "out"))
    assert 5 < server.completions - before < 100
    assert len(read_traces(tmp_path / "out")) == 12


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("manifest.json", '{"files": ', r"manifest\.json: .*JSON.*remove the file, it is made again from the traces"),
        ("manifest.json", "[]", r"manifest\.json: .*remove the file"),
        ("manifest.json", '{"files": {"a": {"sha256": "", "asks": ""}}}', r"files\.a\.counts.*remove the file"),
        ("run.yaml", "a: [", r"run\.yaml: cannot be read as YAML"),
        ("run.yaml", "x: 1", r"run\.yaml: config is None, expected what `collect` writes there"),
    ],
)
def test_a_record_that_was_damaged_is_named_with_what_to_do(server, tmp_path, file, content, message):
    collect(config(server, tmp_path / "out"))
    path = tmp_path / "out" / file
    whole = path.read_text()
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        collect(config(server, tmp_path / "out"))
    if file == "manifest.json":
        path.unlink()
        collect(config(server, tmp_path / "out"))
        assert path.read_text() == whole


def test_a_full_disk_is_one_line_and_what_is_finished_is_kept(server, tmp_path, monkeypatch, capsys):
    written = []

    def full(descriptor: int) -> None:
        if not os.readlink(f"/proc/self/fd/{descriptor}").endswith(".jsonl"):
            return
        written.append(descriptor)
        if len(written) > 3:  # what is not known to be on the disk may be there
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("torch_specexit.collecting.ledger.os.fsync", full)
    with pytest.raises(
        CollectError,
        match=r"out: cannot be written to: No space left on device; what is finished is kept, and the same",
    ):
        collect(config(server, tmp_path / "out"))
    monkeypatch.undo()
    capsys.readouterr()
    logged = (tmp_path / "out" / ".collect" / "shard-0-of-1.jsonl").read_bytes().count(b"\n")
    assert logged >= 3  # three were known to be on the disk; how many more were answered by then is the server's haste
    collect(config(server, tmp_path / "out"))
    assert f"12 traces, {logged} of them earlier" in " ".join(capsys.readouterr().err.split())
    assert len(read_traces(tmp_path / "out")) == 12


def test_a_disk_without_locks_is_collected_on_by_one_process_but_not_by_shards(
    server, collected, tmp_path, monkeypatch, capsys
):
    def unlocked(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", unlocked)
    out = tmp_path / "out"
    collect(config(server, out))
    assert capsys.readouterr().err.count(f"{out}: cannot be locked (No locks available): see to it that no other") == 1
    assert read_traces(out) == collected
    with pytest.raises(
        CollectError, match=r"shards: cannot be locked, .* collect without shard=0/3, or on a disk that"
    ):
        collect(config(server, tmp_path / "shards", shard="0/3"))
