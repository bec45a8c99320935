"""Collecting from servers: what is recorded, counted and said, in one folder or in several.

The servers pretend (`pretend`), so that every row is known; with real engines, `test_collect` does the same.
"""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from specexit.config import ConfigError
from specexit.data.answers import extract_answer, same_answer
from specexit.data.prompts import PromptError
from specexit.data.rows import can_judge, free_trials
from specexit.data.traces import read_traces
from specexit.schemas.collect import CollectConfig
from specexit.schemas.target import TrialConfig, load_target_config
from tests.torch.pretend import TARGET, THINK, TOKENIZER, Pretender, config, forced
from torch_specexit.collecting import CollectError, collect
from torch_specexit.collecting.summary import Counts, check_early, count, finish
from torch_specexit.collecting.work import all_asks, chunks


def test_every_row_is_what_the_server_wrote(collected):
    assert [trace.id for trace in collected] == [f"test-0-{i:05d}" for i in range(12)]
    for trace in collected:
        whole = [*trace.think_ids, THINK.end, *trace.answer_ids]
        assert whole == Pretender(12).write(trace.prompt_ids, None)
        assert trace.answer == extract_answer(TOKENIZER.decode(trace.answer_ids))
        assert trace.correct is same_answer(trace.answer, trace.reference)
        assert [b - 1 for b in trace.boundaries] == [i for i, t in enumerate(trace.think_ids) if t in THINK.split]
        assert "untried" not in trace.boundary_state  # so few boundaries are all tried
        for boundary, answer, state in zip(trace.boundaries, trace.boundary_answers, trace.boundary_state, strict=True):
            if boundary < len(trace.think_ids):
                ids = Pretender(12).write([*trace.prompt_ids, *trace.think_ids[:boundary], THINK.end], None)
                assert answer == extract_answer(TOKENIZER.decode(ids))
            assert state == ("agrees" if same_answer(answer, trace.answer) else "differs")
        assert can_judge(trace)


def test_the_folder_names_its_target_and_hashes_its_files(server, tmp_path):
    target = forced(tmp_path, max_tokens=64)
    collect(config(server, tmp_path / "out", target=target, model="tiny-reasoner"))
    assert load_target_config(str(tmp_path / "out" / "target.yaml")) == load_target_config(target)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [entry["counts"]["traces"] for entry in manifest["files"].values()] == [5, 5, 2]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["shares"]["finished"] == summary["shares"]["answered"] == 1


def test_forced_trials_are_compared_with_whole_answers(server, tmp_path):
    target = forced(tmp_path, text="\n\nThe answer is \\boxed{", max_tokens=16, stop=["}"])
    collect(config(server, tmp_path / "out", target=target, model="tiny-reasoner", free_share=0.5))
    traces = read_traces(tmp_path / "out")
    free = [trial for trace in traces for trial in free_trials(trace)]
    assert len(free) > 10
    assert all(trial.same for trial in free)
    tried = sum(tokens > 0 for trace in traces for tokens in trace.boundary_trial_tokens)
    assert 0.25 < len(free) / tried < 0.75
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["shares"]["forced_as_free"] == 1


def test_forced_trials_that_say_something_else_than_whole_answers_are_said(server, tmp_path, capsys):
    """A wrong close: nothing is undecided, and every label is wrong."""
    target = forced(tmp_path, text="\n\nThe answer is \\boxed{", max_tokens=16, stop=["}"], close="9}")
    asked = {"target": target, "model": "tiny-reasoner", "free_share": 0.5}
    collect(config(server, tmp_path / "out", **asked))
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["shares"]["forced_as_free"] < 0.9
    assert "forced trials come to the verdict of the whole answer" in capsys.readouterr().err
    collect(config(server, tmp_path / "out", **asked, min_forced_as_free=0))
    assert "the verdict of the whole answer" not in capsys.readouterr().err


def test_a_trial_that_is_cut_off_is_undecided_and_said(server, tmp_path, capsys):
    collect(config(server, tmp_path / "out", trial_max_tokens=3))
    states = Counter(state for trace in read_traces(tmp_path / "out") for state in trace.boundary_state)
    assert states["undecided"] > states["agrees"] == 12  # the natural ends, which need no trial
    assert states["differs"] == 0
    for trace in read_traces(tmp_path / "out"):  # an exit where nobody knows counts as an error, and the trace counts
        assert can_judge(trace)
        assert trace.boundary_agrees == [state == "agrees" for state in trace.boundary_state]
    said = capsys.readouterr().err
    assert "of the trials were cut off" in said
    assert "collect into a new folder with a larger trial_max_tokens" in said  # the same one refuses it


def test_too_few_finished_traces_are_an_error_and_stay(server, tmp_path):
    with pytest.raises(CollectError, match=r"of 12 traces finished within 150 tokens, expected 80%.*max_new_tokens"):
        collect(config(server, tmp_path / "out", max_new_tokens=150))
    traces = read_traces(tmp_path / "out")
    assert len(traces) == 12
    for trace in traces:
        if trace.finish_reason == "length":
            assert (trace.answer, trace.boundaries) == (None, [])


def test_a_split_string_that_never_occurs_is_an_error_that_names_it(server, tmp_path):
    """The vocabulary has tokens that end so, but no trace does: nothing can be labelled."""
    target = TARGET.model_copy(update={"name": "mine", "split_endings": ("%",)})
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(target.model_dump(mode="json")))
    asked = {"target": str(tmp_path / "mine.yaml"), "model": "tiny-reasoner"}
    with pytest.raises(CollectError, match=r"none of 12 answered traces has a step boundary.* split_endings"):
        collect(config(server, tmp_path / "out", **asked))
    assert len(read_traces(tmp_path / "out")) == 12


def test_many_traces_without_a_boundary_are_said(server, collected, tmp_path, capsys):
    counts = sum(map(count, [replace(collected[0], boundaries=[]), *collected[1:3]]), Counts())
    tmp_path.joinpath("out").mkdir()
    finish(config(server, tmp_path / "out"), counts, 768)
    assert "33.3% of the answered traces have no step boundary" in capsys.readouterr().err
    finish(config(server, tmp_path / "out", max_unbroken=0.4), counts, 768)
    assert "no step boundary" not in capsys.readouterr().err


def test_answers_of_another_kind_than_the_prompts_ask_for(server, tmp_path):
    """Boxed numbers, read as letters: none is an answer, and it says which key is to blame."""
    prompts = tmp_path / "prompts.jsonl"
    rows = [{"id": f"{i}", "prompt": question} for i, question in enumerate(list(server.pretender.problems)[:5])]
    prompts.write_text("\n".join(json.dumps(row | {"answer_kind": "choice"}) for row in rows))
    target = forced(tmp_path, kind="choice", max_tokens=64)
    asked = {"split": None, "n": None, "prompts": str(prompts), "target": target, "model": "tiny-reasoner"}
    with pytest.raises(CollectError, match=r"0\.0% of 5 traces state an answer, expected 80%; .* answer_kind reads"):
        collect(config(server, tmp_path / "out", **asked))
    assert [trace.answer for trace in read_traces(tmp_path / "out")] == [None] * 5  # kept, to look at


def test_a_model_that_never_ends_its_thinking_is_told_from_prompts_that_ask_for_no_answer(server, collected, tmp_path):
    """As one that does not think: it answers where it was to think, and stops."""
    (tmp_path / "out").mkdir()
    plain = [replace(trace, answer=None, answer_ids=[]) for trace in collected[:5]]
    with pytest.raises(CollectError, match=r"0\.0% of 5 traces state .*; 5 came .* end marker: does .* think_end and"):
        finish(config(server, tmp_path / "out"), sum(map(count, plain), Counts()), 768)
    cut = [replace(trace, finish_reason="length") for trace in plain]
    assert sum(map(count, cut), Counts()).unclosed == 0


def test_prompts_that_ask_for_no_answer_are_found_out_behind_the_first_of_them(server, tmp_path, monkeypatch):
    """As those that name no form to answer in: it was said behind the last one, weeks later."""
    monkeypatch.setattr("torch_specexit.collecting.run.FIRST", 10)
    rows = [{"id": f"{i}", "prompt": question} for i, question in enumerate(server.pretender.problems)]
    prompts, target = tmp_path / "prompts.jsonl", forced(tmp_path, kind="choice", max_tokens=64)
    prompts.write_text("\n".join(json.dumps(row | {"answer_kind": "choice"}) for row in rows))
    asked = {"split": None, "n": None, "prompts": str(prompts), "target": target, "model": "tiny-reasoner"}
    message = (
        rf"0\.0% of 10 traces state an answer, .* \(the first 10 of {len(rows)} traces\); the same command goes on"
    )
    with pytest.raises(CollectError, match=message):
        collect(config(server, tmp_path / "out", **asked, requests=4))
    assert len(json.loads((tmp_path / "out" / "manifest.json").read_text())["files"]) < len(rows) / 5


def test_first_traces_that_the_others_may_make_up_for_are_a_warning(server, tmp_path, capsys):
    counts = Counts(traces=100, finished=90, answered=60, boundaries=300)
    check_early(config(server, tmp_path / "out"), counts, 768, 500)
    said = "warning: {}: 60.0% of 100 traces state an answer, expected 80%; "
    assert said.format(tmp_path / "out") in capsys.readouterr().err
    check_early(config(server, tmp_path / "out", min_answered=0.6), counts, 768, 500)
    assert capsys.readouterr().err == ""
    with pytest.raises(CollectError, match=r"none of 60 answered traces has a step boundary"):
        check_early(config(server, tmp_path / "out", min_answered=0.6), replace(counts, boundaries=0), 768, 500)


def test_a_reference_that_is_no_answer_of_the_target_s_kind(server, tmp_path):
    """The prompts name no kind, so it is the target's: that none could ever be right is said before any is asked."""
    row = {"id": "a", "prompt": next(iter(server.pretender.problems)), "reference": "42"}
    (tmp_path / "prompts.jsonl").write_text(json.dumps(row))
    kind = {"answer_kind": "choice", "trial": {"choice": TrialConfig(max_tokens=64)}}
    target = TARGET.model_copy(update={"name": "mine", **kind}).model_dump(mode="json")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(target))
    asked = {
        "split": None,
        "n": None,
        "prompts": str(tmp_path / "prompts.jsonl"),
        "target": str(tmp_path / "mine.yaml"),
    }
    with pytest.raises(PromptError, match=r"'a': reference '42' names no option.*kind choice, which is target mine's"):
        collect(config(server, tmp_path / "out", **asked))
    assert not (tmp_path / "out").exists()


def test_a_reference_of_no_text_is_none_that_an_answer_could_equal(server, tmp_path):
    """As JSON writes what is not known: each trace would count as wrong."""
    row = {"id": "a", "prompt": next(iter(server.pretender.problems)), "reference": ""}
    (tmp_path / "prompts.jsonl").write_text(json.dumps(row))
    asked = config(server, tmp_path / "out", split=None, n=None, prompts=str(tmp_path / "prompts.jsonl"))
    with pytest.raises(PromptError, match=r"'a': reference '' is empty, expected an answer, or null"):
        collect(asked)


@pytest.mark.parametrize("of", ["prompt", "target"])
@pytest.mark.parametrize("reference", ["20 to 39", "B", "(b)", "B. 20 to 39"])
def test_a_reference_that_is_an_options_text_is_its_letter(server, tmp_path, of, reference):
    row = {"id": "a", "prompt": "6 * 6?", "choices": ["1 to 19", "20 to 39"], "reference": reference}
    if of == "prompt":
        row["answer_kind"] = "choice"
    (tmp_path / "prompts.jsonl").write_text(json.dumps(row))
    target = TARGET.model_copy(update={"answer_kind": "choice" if of == "target" else "math"})
    asked = config(server, tmp_path / "out", split=None, n=None, prompts=str(tmp_path / "prompts.jsonl"))
    [ask] = all_asks(asked, target)
    assert ask.prompt.reference == "B"


@pytest.mark.parametrize(
    ("trials", "tokens", "share"),
    [
        (300, 18_900, "70.0%"),
        (30, 1440, "15.1%"),
        (30, 1420, None),  # 14.9 %
        (300, 9600, None),  # 32 a trial, as short as a forced text makes it
        (0, 0, None),
    ],
)
def test_long_trials_that_take_much_of_all_tokens_are_a_warning(trials, tokens, share, tmp_path, capsys):
    """With what makes them fewer."""
    counts = Counts(1, 1, 1, boundaries=300, trials=trials, thinking_tokens=8100, trial_tokens=tokens)
    asked = {"target": "t", "out": tmp_path, "split": "test"}
    finish(CollectConfig.model_validate(asked), counts, 32768)
    said = capsys.readouterr().err
    assert ("written in trials" in said) is (share is not None)
    if share is not None:
        assert (
            f"warning: {share} of all tokens were written in trials, {tokens // trials} in each; collect into" in said
        )


def test_every_prompt_has_its_samples_none_twice(server, tmp_path):
    collect(config(server, tmp_path / "out", samples=3, temperature=0.6))
    traces = read_traces(tmp_path / "out")
    assert [(trace.id, trace.sample) for trace in traces] == [
        (f"test-0-{i:05d}", sample) for i in range(12) for sample in range(3)
    ]
    assert len({trace.seed for trace in traces}) == 36
    for trace in traces:  # the seed that is recorded is the one that it was written with
        whole = [*trace.think_ids, THINK.end, *trace.answer_ids]
        assert whole == Pretender(12).write(trace.prompt_ids, trace.seed)


@pytest.mark.parametrize("greedy", [{}, {"temperature": 0.0}, {"temperature": 0.6, "top_k": 1}])
def test_several_samples_that_would_be_the_same_are_refused(greedy, server, tmp_path):
    """The target itself is asked without a temperature."""
    with pytest.raises(
        ConfigError, match=r"samples is 3, but temperature \S+ and top_k \d make all of a prompt the same"
    ):
        collect(config(server, tmp_path / "out", samples=3, **greedy))
    assert not (tmp_path / "out").exists()


def test_shards_make_the_files_of_one_run(server, collected, tmp_path):
    for i in (2, 0, 1):
        collect(config(server, tmp_path / "out", shard=f"{i}/3"))
    assert read_traces(tmp_path / "out") == collected
    with pytest.raises(ConfigError, match=r"12 traces in chunk=5 are 3 files; expected chunk of at most 3"):
        collect(config(server, tmp_path / "more", shard="0/4"))


@pytest.mark.parametrize(("n", "of", "most"), [(10, 3, 4), (12, 4, 3), (6, 6, 1), (7, 2, 6)])
def test_the_largest_chunk_that_gives_each_shard_a_file(n, of, most):
    asked = CollectConfig(target="tiny-reasoner", out=Path("unused"), split="test", n=n, shard=f"0/{of}")
    asks = all_asks(asked, TARGET)
    with pytest.raises(ConfigError, match=rf"chunk=100 are 1 files; expected chunk of at most {most}$"):
        chunks(asked, asks)
    assert chunks(asked.model_copy(update={"chunk": most}), asks)
    with pytest.raises(ConfigError, match=f"expected chunk of at most {most}$"):
        chunks(asked.model_copy(update={"chunk": most + 1}), asks)


@pytest.mark.parametrize("chunk", [1, 100])
def test_more_shards_than_traces_are_refused_as_such(chunk):
    """It was a smaller chunk that was asked for, and with chunk=1 again."""
    asked = CollectConfig(target="tiny-reasoner", out=Path("unused"), split="test", n=3, shard="0/5", chunk=chunk)
    with pytest.raises(ConfigError, match="shard is 0/5, but there are 3 traces; expected so many shards at most"):
        chunks(asked, all_asks(asked, TARGET))


def test_more_prompts_add_to_a_finished_run(server, collected, tmp_path):
    collect(config(server, tmp_path / "out", n=7))
    before = server.completions
    collect(config(server, tmp_path / "out"))
    assert read_traces(tmp_path / "out") == collected
    again = sum(1 + sum(tokens > 0 for tokens in trace.boundary_trial_tokens) for trace in collected[7:])
    assert server.completions - before == again  # nothing of the first seven


def test_parts_are_what_runs_of_their_own_would_be(server, collected, tmp_path):
    """One start of the engines for all splits, and any of them can be gone on with alone."""
    rows = [{"id": f"{i}", "prompt": question} for i, question in enumerate(list(server.pretender.problems)[12:15])]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    parts = {"train": {"split": "test", "n": 12}, "more": str(tmp_path / "prompts.jsonl")}
    collect(config(server, tmp_path / "out", split=None, n=None, parts=parts))
    assert read_traces(tmp_path / "out" / "train") == collected
    assert [trace.id for trace in read_traces(tmp_path / "out" / "more")] == ["0", "1", "2"]
    before = server.completions
    collect(config(server, tmp_path / "out" / "train"))
    collect(config(server, tmp_path / "out", split=None, n=None, parts=parts))
    assert server.completions == before
    for name, n in (("train", 12), ("more", 3)):
        summary = json.loads((tmp_path / "out" / name / "summary.json").read_text())
        assert summary["counts"]["traces"] == n
    with pytest.raises(FileExistsError, match=r"out/train: output folder is a run of its own"):
        collect(config(server, tmp_path / "out" / "train", split=None, n=None, parts=parts))


@pytest.mark.parametrize("copy", ["{}", "{} ", "\n {}", "messages"])
def test_a_prompt_of_two_parts_is_refused(server, tmp_path, copy):
    """What is trained on would be judged on; it is found before anything is asked, and not when a draft is trained."""
    questions = list(server.pretender.problems)[:6]

    def write(name: str, *prompts: str) -> str:
        rows = [{"id": f"{name}{i}", "prompt": prompt} for i, prompt in enumerate(prompts)]
        if copy == "messages" and name == "test":
            rows = [{"id": row["id"], "messages": [{"role": "user", "content": row["prompt"]}]} for row in rows]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return str(tmp_path / f"{name}.jsonl")

    again = (copy if "{}" in copy else "{}").format(questions[1])
    parts = {"train": write("train", *questions[:3]), "test": write("test", questions[3], again)}
    parts |= {"more": write("more", *questions[4:], questions[4])}
    before = server.completions
    with pytest.raises(PromptError, match=r"parts\.train and parts\.test share 1 of their prompts, such as 'train1'"):
        collect(config(server, tmp_path / "out", split=None, n=None, parts=parts))
    assert server.completions == before
    assert not (tmp_path / "out").exists()


def test_a_part_that_is_not_worth_training_on_leaves_the_others_whole(server, tmp_path):
    rows = [{"id": f"{i}", "prompt": q, "answer_kind": "text"} for i, q in enumerate(server.pretender.problems)][4:6]
    (tmp_path / "wrong.jsonl").write_text("\n".join(map(json.dumps, rows)))
    trials = {kind: TrialConfig(max_tokens=64) for kind in ("math", "text")}
    target = TARGET.model_copy(update={"name": "mine", "trial": trials}).model_dump(mode="json")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(target))
    parts = {"wrong": str(tmp_path / "wrong.jsonl"), "right": {"split": "test", "n": 4}}
    asked = {"split": None, "n": None, "parts": parts, "target": str(tmp_path / "mine.yaml"), "model": "tiny-reasoner"}
    with pytest.raises(CollectError, match=r"out/wrong: .* finished within 100 tokens"):
        collect(config(server, tmp_path / "out", **asked | {"max_new_tokens": 100}))
    assert (tmp_path / "out" / "right" / "summary.json").exists()
