"""A folder that `collect` goes on with: nothing finished is lost, and nothing of another run is mixed in."""

import errno
import json
import shutil
import zlib
from contextlib import suppress
from dataclasses import replace

import pytest

from specexit.config import ConfigError
from specexit.data.engine import TYPES
from specexit.data.traces import WEIGHTS, TraceError, check_collected, read_traces, said_of
from specexit.drafts.fingerprints import target_fingerprint
from specexit.locks import take
from specexit.schemas.collect import CollectConfig
from tests.torch.pretend import TARGET, config
from torch_specexit.collecting import CollectError, collect, ledger, manifest
from torch_specexit.collecting.asked import asks_sha256
from torch_specexit.collecting.ledger import Ledger
from torch_specexit.collecting.work import all_asks


@pytest.mark.parametrize("n", [2, 5, 7])
def test_a_smaller_n_than_what_is_finished_is_refused_and_nothing_is_lost(server, collected, tmp_path, n):
    """Rows in the log behind the last one asked for were dropped from it."""
    asked, out = config(server, tmp_path / "out"), tmp_path / "out"
    with Ledger(asked, TARGET, all_asks(asked, TARGET)) as ledger:
        for number, trace in enumerate(collected):
            if number not in (3, 6):
                ledger.record(number, trace)
    with pytest.raises(ConfigError, match=rf"out: n is {n}, .* give {n} traces, .* the 12th: expected n=12 or more"):
        collect(config(server, out, n=n))
    with Ledger(asked, TARGET, all_asks(asked, TARGET)) as ledger:
        assert ledger.todo() == [3, 6]


def test_each_trace_is_written_to_the_log_a_few_times_at_most(collected, tmp_path, monkeypatch):
    """Whatever waits for the slow ones of its file: all of it was written anew at each file, which at 100,000 traces is
    gigabytes an hour."""
    asked = CollectConfig(target="tiny-reasoner", split="test", n=90, chunk=3, out=tmp_path / "out")
    written, fast = [], [number for number in range(90) if number % 3]
    line = ledger._line
    monkeypatch.setattr(ledger, "_line", lambda number, trace: written.append(number) or line(number, trace))
    asks = all_asks(asked, TARGET)
    traces = [replace(collected[0], **ask.columns(TARGET)) for ask in asks]
    with Ledger(asked, TARGET, asks) as first:
        for number in (*fast, *range(0, 72, 3)):
            first.record(number, traces[number])
    assert len(written) < 3 * 90
    with Ledger(asked, TARGET, asks) as second:
        assert second.todo() == list(range(72, 90, 3))
        for number in second.todo():
            second.record(number, traces[number])
    assert [trace.id for trace in read_traces(tmp_path / "out")] == [ask.prompt.id for ask in asks]
    assert not list((tmp_path / "out" / ".collect").glob("*.jsonl"))


def test_the_manifest_is_read_once_for_each_file_that_is_finished(collected, tmp_path, monkeypatch):
    """It was read twice and written by Python's own encoder, as C has none for an indent: seconds at 100,000 files."""
    asked = CollectConfig(target="tiny-reasoner", split="test", n=12, chunk=5, out=tmp_path / "out")
    reads, read = [], manifest.read_manifest
    for module in (manifest, ledger):
        monkeypatch.setattr(module, "read_manifest", lambda out: reads.append(out) or read(out))
    with Ledger(asked, TARGET, all_asks(asked, TARGET)) as first:
        reads.clear()
        for number, trace in enumerate(collected):
            first.record(number, trace)
    assert len(reads) == 3
    assert (tmp_path / "out" / "manifest.json").read_text().count("\n") == 1
    assert read_traces(tmp_path / "out") == collected


def test_a_log_that_is_done_with_is_gone_before_another_process_can_have_it(collected, server, tmp_path, monkeypatch):
    """A run of more prompts, begun at that moment, would have lost its log at once."""
    asked, logs, release = config(server, tmp_path / "out"), [], Ledger._release

    def released(ledger):
        logs.extend((tmp_path / "out").rglob("*.jsonl"))
        release(ledger)

    monkeypatch.setattr(Ledger, "_release", released)
    with Ledger(asked, TARGET, all_asks(asked, TARGET)) as first:
        for number, trace in enumerate(collected):
            first.record(number, trace)
    assert logs == []


@pytest.mark.parametrize("first", [True, False])
def test_a_shard_starts_while_another_finishes(first, server, collected, tmp_path):
    """Whose log is then listed, and gone when it is looked at: as a link that leads nowhere."""
    if not first:
        collect(config(server, tmp_path / "out", shard="0/3"))
    log = tmp_path / "out" / ".collect" / "shard-0-of-3.jsonl"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.symlink_to(tmp_path / "gone")
    collect(config(server, tmp_path / "out", shard="1/3"))
    kept = collected[5:10] if first else collected[:10]
    assert read_traces(tmp_path / "out") == kept


def test_a_shard_that_finishes_while_another_starts_counts_with_its_files(server, tmp_path, monkeypatch):
    """A run that asks for fewer rows than these is refused as ever."""
    out, recover = tmp_path / "out", Ledger._look_at
    started = config(server, out, n=10, shard="1/3", chunk=2)

    def look(self, chunk, entry):
        if not list(out.glob("*.parquet")):
            monkeypatch.undo()
            collect(config(server, out, n=12, shard="2/3", chunk=2))
        return recover(self, chunk, entry)

    monkeypatch.setattr(Ledger, "_look_at", look)
    with pytest.raises(ConfigError, match=r"n is 10, .* give 10 traces, .* the 12th"):
        collect(started)


def test_shards_of_one_path_with_other_prompts_are_not_mixed(server, tmp_path):
    """The file was edited in between, or is another one on another machine."""
    out, file = tmp_path / "out", tmp_path / "p.jsonl"
    rows = [json.dumps({"id": str(i), "prompt": text}) for i, text in enumerate([*server.pretender.problems][:8])]
    asked = {"split": None, "n": None, "chunk": 2, "prompts": str(file)}
    file.write_text("\n".join(rows))
    collect(config(server, out, **asked | {"n": 6}, shard="0/3"))
    file.write_text("\n".join([*rows[:3], rows[7], *rows[4:7], rows[3]]))
    before = server.completions
    named = rf"shard 1/3 has its prompts from {file} on .* for traces-00001\.parquet is not what {file} on .* gave"
    with pytest.raises(ConfigError, match=named):
        collect(config(server, out, **asked, shard="1/3"))
    assert server.completions == before
    file.write_text("\n".join(rows))
    for changes in ({"shard": "1/3"}, {"shard": "2/3", "n": 5}, {}):  # more prompts, and fewer
        collect(config(server, out, **asked | changes))
    assert [trace.id for trace in read_traces(out)] == [str(i) for i in range(8)]


def test_no_shard_waits_while_another_looks_through_its_prompts(server, tmp_path, monkeypatch):
    """All of them hashed what all of them ask, one behind the other: of a million prompts, ten minutes for 32."""
    out, free = tmp_path / "out", []

    def look(asks):
        if (lock := out / ".collect" / "lock").exists():
            with lock.open("w") as file:
                free.append(take(file, out))  # an error where it is held
        return asks_sha256(asks)

    monkeypatch.setattr("torch_specexit.collecting.asked.asks_sha256", look)
    for i in range(3):
        collect(config(server, out, shard=f"{i}/3"))
    assert len(free) == 6, "three files of each shard that found a folder"


def test_weights_that_were_replaced_in_place_are_refused(collected, tmp_path, capsys):
    """The same path and the same YAML; of a folder of an older version nobody knows, and a line says so."""
    shutil.copytree(TARGET.folder, tmp_path / "model")
    target = TARGET.model_copy(update={"name": "mine", "path": str(tmp_path / "model")})
    asked = CollectConfig(target="mine", split="test", n=12, chunk=5, out=tmp_path / "out")
    asks = all_asks(asked, target)
    with Ledger(asked, target, asks) as ledger:
        ledger.record(0, replace(collected[0], target="mine"))
    file = tmp_path / "model" / "model.safetensors"
    weights = file.read_bytes()
    file.write_bytes(weights[:-4] + bytes(4))
    with (
        pytest.raises(
            ConfigError, match=rf"manifest\.json: weights is \w+\.\.\., but .* of {tmp_path}/model is .* replaced"
        ),
        Ledger(asked, target, asks),
    ):
        pass
    manifest = tmp_path / "out" / "manifest.json"
    older = json.loads(manifest.read_text())
    del older["weights"]
    manifest.write_text(json.dumps(older))
    assert not capsys.readouterr().err
    for said in (1, 0):
        with Ledger(asked, target, asks) as ledger:
            assert ledger.todo() == list(range(1, 12))
        assert capsys.readouterr().err.count("out: has no record of the weights") == said
    file.write_bytes(weights)
    with pytest.raises(ConfigError, match="replaced"), Ledger(asked, target, asks):
        pass


def test_files_name_the_weights_and_types_that_wrote_them_also_where_servers_finish(server, collected, tmp_path):
    """What a server has loaded, nobody knows; a row that was in the log before is of the folder's weights."""
    asked, own = config(server, tmp_path / "asked"), {"endpoints": None, "engine": {"extra": {"dtype": "half"}}}
    wrote = target_fingerprint(TARGET.folder)
    both, ours = (config(server, tmp_path / name, **own, n=n) for name, n in (("both", 11), ("ours", 12)))
    with Ledger(both, TARGET, all_asks(both, TARGET)) as ledger:
        ledger.record(0, collected[0])
    both = both.model_copy(update={"endpoints": asked.endpoints})
    for run, said in ((asked, (None, None)), (both, (wrote, None)), (ours, (wrote, '{"dtype":"float16"}'))):
        with Ledger(run, TARGET, all_asks(run, TARGET)) as ledger:
            for number in ledger.todo():
                ledger.record(number, collected[number])
        assert (said_of(run.out, WEIGHTS), said_of(run.out, TYPES)) == said
    more = both.model_copy(update={"n": 12})  # the last file grows
    with Ledger(more, TARGET, all_asks(more, TARGET)) as ledger:
        assert ledger.todo() == [11]
        ledger.record(11, collected[11])
    files = sorted(more.out.glob("traces-*.parquet"))
    assert [said_of(file, WEIGHTS) for file in files] == [wrote, None, None]  # servers alone wrote the others


@pytest.mark.parametrize(
    ("file", "was", "now", "named"),
    [
        ("tokenizer_config.json", "{% for", "Be brief. {% for", "template is .* its chat template was replaced"),
        ("tokenizer.json", "{", " {", r"tokenizer is .* its tokenizer\.json was replaced"),
    ],
)
def test_a_chat_template_or_a_tokenizer_that_was_replaced_in_place_is_refused(
    collected, server, tmp_path, file, was, now, named
):
    """One folder had both forms of a prompt, and ids of another tokenizer under the hash of the present one."""
    shutil.copytree(TARGET.folder, tmp_path / "model")
    target = TARGET.model_copy(update={"name": "mine", "path": str(tmp_path / "model")})
    asked = config(server, tmp_path / "out")
    with Ledger(asked, target, all_asks(asked, target)) as ledger:
        ledger.record(0, replace(collected[0], target="mine"))
    edited = tmp_path / "model" / file
    text = edited.read_text()
    assert was in text
    edited.write_text(text.replace(was, now, 1))
    with pytest.raises(ConfigError, match=rf"manifest\.json: {named}"), Ledger(asked, target, all_asks(asked, target)):
        pass
    edited.write_text(text)
    with Ledger(asked, target, all_asks(asked, target)) as ledger:
        assert ledger.todo() == list(range(1, 12))


def test_the_files_of_an_older_folder_say_which_tokenizer_wrote_them(collected, tmp_path):
    """Its manifest does not: the hash of the new one went into it, and every later command refused the folder."""
    shutil.copytree(TARGET.folder, tmp_path / "model")
    target = TARGET.model_copy(update={"name": "mine", "path": str(tmp_path / "model")})
    asked = CollectConfig(target="mine", split="test", n=12, chunk=5, out=tmp_path / "out")
    asks = all_asks(asked, target)
    with Ledger(asked, target, asks) as ledger:
        for number in range(5):
            ledger.record(number, replace(collected[number], target="mine"))
    manifest, tokenizer = tmp_path / "out" / "manifest.json", tmp_path / "model" / "tokenizer.json"
    older = json.loads(manifest.read_text())
    del older["tokenizer"]
    manifest.write_text(json.dumps(older))
    text = tokenizer.read_text()
    tokenizer.write_text(f" {text}")
    with (
        pytest.raises(TraceError, match=r"traces-00000\.parquet: written with the tokenizer \w+\.\.\., expected \w+"),
        Ledger(asked, target, asks),
    ):
        pass
    assert json.loads(manifest.read_text()) == older
    tokenizer.write_text(text)
    with Ledger(asked, target, asks) as ledger:
        assert ledger.todo() == list(range(5, 12))


@pytest.mark.parametrize("full", ["write_traces", "put", "save_asked"])
def test_a_disk_that_is_full_for_a_file_the_log_or_a_record_is_one_line(full, collected, tmp_path, monkeypatch):
    """Arrow has words of its own for it, and a run that goes on wrote before its first trace, with a traceback."""
    asked = CollectConfig(target="tiny-reasoner", split="test", n=12, chunk=5, out=tmp_path / "out")
    asks = all_asks(asked, TARGET)

    def refused(*_) -> None:
        raise OSError(errno.ENOSPC, "Error writing bytes to file. Detail: [errno 28] No space left on device")

    with Ledger(asked, TARGET, asks) as first:
        for number in range(4):
            first.record(number, collected[number])
    with monkeypatch.context() as patch:
        patch.setattr(ledger, full, refused)
        with (
            pytest.raises(
                CollectError, match=r"out: cannot be written to: No space left on device; what is finished is"
            ),
            Ledger(asked, TARGET, asks) as second,
        ):
            second.record(4, collected[4])
    with Ledger(asked, TARGET, asks) as third:
        assert third.todo()[0] in (4, 5)


@pytest.mark.parametrize("stopped", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_run_that_is_stopped_at_its_last_file_keeps_the_rows_of_it(stopped, collected, tmp_path, monkeypatch):
    """None of them was missing any more, and so the log was removed, where alone they were."""
    asked = CollectConfig(target="tiny-reasoner", split="test", n=5, chunk=5, out=tmp_path / "out")
    asks = all_asks(asked, TARGET)

    def refused(*_) -> None:
        raise stopped

    with (
        monkeypatch.context() as patch,
        suppress(CollectError, KeyboardInterrupt),
        Ledger(asked, TARGET, asks) as first,
    ):
        patch.setattr(ledger, "write_traces", refused)
        for number in range(5):
            first.record(number, collected[number])
    assert not list((tmp_path / "out").glob("*.parquet"))
    with Ledger(asked, TARGET, asks) as again:
        assert again.todo() == []
    assert read_traces(tmp_path / "out") == collected[:5]


def test_a_kill_between_a_file_that_is_written_anew_and_its_record_is_gone_on_with(collected, tmp_path, monkeypatch):
    """The record was that of the file before, and every start ended in an error: its content is not what it says."""
    asked = CollectConfig(target="tiny-reasoner", split="test", n=7, chunk=5, out=tmp_path / "out")
    with Ledger(asked, TARGET, all_asks(asked, TARGET)) as first:
        for number in first.todo():
            first.record(number, collected[number])
    more = asked.model_copy(update={"n": 10})
    asks, write = all_asks(more, TARGET), ledger.write_traces

    def killed(*arguments) -> None:
        write(*arguments)
        raise KeyboardInterrupt

    with Ledger(more, TARGET, asks) as second, monkeypatch.context() as patch:
        patch.setattr(ledger, "write_traces", killed)
        *before, last = second.todo()
        for number in before:
            second.record(number, collected[number])
        with pytest.raises(KeyboardInterrupt):
            second.record(last, collected[last])
    with Ledger(more, TARGET, asks) as third:
        assert third.todo() == []
        assert third.counts().traces == 10
    check_collected(tmp_path / "out")
    assert read_traces(tmp_path / "out") == collected[:10]


@pytest.mark.parametrize("change", [{"fate": 1}, None])
def test_a_log_that_another_version_wrote_is_one_line(change, collected, tmp_path):
    """Columns come and go; it was a traceback, and nothing said which file."""
    asked = CollectConfig(target="tiny-reasoner", split="test", n=12, chunk=5, out=tmp_path / "out")
    asks = all_asks(asked, TARGET)
    with Ledger(asked, TARGET, asks) as first:
        first.record(0, collected[0])
    (log,) = (tmp_path / "out" / ".collect").glob("*.jsonl")
    text = json.dumps([0, vars(collected[0]) | change] if change else [0, {"id": "p"}]).encode()
    log.write_bytes(b"%08x %s\n" % (zlib.crc32(text), text))
    told = r"jsonl: holds a trace as another version of SpecExit wrote it \(.*\): go on with that one, or remove"
    with pytest.raises(TraceError, match=told), Ledger(asked, TARGET, asks):
        pass
    log.unlink()
    with Ledger(asked, TARGET, asks) as again:
        assert again.todo() == list(range(12))
