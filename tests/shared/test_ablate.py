"""``specexit ablate``: every alternative is the replay it says it is, with a table and a figure of its own."""

import dataclasses
import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from specexit.bench import ablate as module
from specexit.bench import trained
from specexit.bench.ablate import Ablations, ablate
from specexit.bench.process import BenchError
from specexit.cli import run
from specexit.config import ConfigError, find, load
from specexit.data.rows import infer_agrees
from specexit.data.scores import Scores, write_scores
from specexit.data.traces import data_sha256, write_traces
from specexit.method.policies.validity import VALIDITY_GRID
from specexit.method.replay import Replay
from specexit.report.ablations import ablated
from specexit.report.verdict import percent
from specexit.schemas.ablate import AblateConfig, TrainedConfig
from specexit.schemas.train import TrainConfig


@pytest.fixture(autouse=True)
def few_thresholds(monkeypatch):
    """Validity has two or three values in these traces, and no threshold between two of them says more than another."""
    monkeypatch.setattr(module, "VALIDITY_GRID", VALIDITY_GRID[::8])


@pytest.fixture
def traces(make_trace):
    """Answers agree behind the second of three boundaries, and in one of four only there and at the end."""
    return [
        make_trace(
            id=str(i),
            prompt_ids=[i],
            think_ids=[20, 21, 22, 9, 24, 25, 8, 27, 28, 9, 30, 31],
            boundaries=[4, 7, 10],
            boundary_answers=["8", "7", "7" if i % 4 else "8"],
            boundary_agrees=[False, True, bool(i % 4)],
        )
        for i in range(12)
    ]


@pytest.fixture
def paths(tmp_path, traces):
    values = np.full((12, 4), 0.01, np.float32)
    values[[6, 9], 3] = 0.9
    write_traces(tmp_path / "traces.parquet", traces)
    write_scores(tmp_path / "draft.parquet", Scores("draft", "0" * 64, {t.id: values for t in traces}))
    blind = np.full((12, 4), 0.5, np.float32)
    write_scores(tmp_path / "fc.parquet", Scores("fc", "0" * 64, {t.id: blind for t in traces}))
    return tmp_path


def config(paths, *names):
    scores = {name: paths / f"{name}.parquet" for name in names}
    return AblateConfig(traces=paths / "traces.parquet", scores=scores, out=paths / "out")


def test_every_question_has_its_variants_and_they_are_what_they_say(paths):
    found = ablate(config(paths, "draft", "fc"))
    questions = ["signals", "early", "smoothing", "patience", "splits", "sources", "exit_point", "threshold"]
    assert list(found) == questions
    cuts = {
        (name, variant.name): variant.best["0"] and variant.best["0"].net_cut
        for name, ablation in found.items()
        for variant in ablation.variants
    }
    assert cuts["signals", "validity"] == pytest.approx(1 - 7 / 12)
    assert cuts["signals", "confidence alone"] == 0  # it says the same everywhere, so any exit is the first boundary's
    assert cuts["sources", "draft"] == pytest.approx(1 - 7 / 12)
    assert cuts["sources", "fc"] == 0
    assert cuts["exit_point", "earliest"] == pytest.approx(1 - 7 / 12)
    assert cuts["exit_point", "stable"] == pytest.approx(1 - (9 * 7 + 3 * 12) / 144)
    assert cuts["threshold", "validity >= 0.9"] == pytest.approx(1 - 7 / 12)
    assert cuts["threshold", "validity >= 0.99"] == 0
    assert cuts["patience", "2"] == 0  # behind the third boundary three of twelve answers have changed again


def test_an_earliest_exit_point_that_was_not_looked_for_is_not_compared(paths, traces):
    trial = json.dumps({"boundaries": "stable"})
    write_traces(paths / "traces.parquet", [*traces[1:], dataclasses.replace(traces[0], trial=trial)])
    assert "exit_point" not in ablate(config(paths, "draft"))


def test_one_split_token_at_a_time(paths):
    found = ablate(config(paths, "draft"))
    splits = {variant.name: variant.best["0"] for variant in found["splits"].variants}
    assert len(splits) == 3  # all, and each of two
    assert splits["all"].net_cut == pytest.approx(1 - 7 / 12)
    alone = sorted(point.net_cut for name, point in splits.items() if name != "all")
    assert alone == pytest.approx([0, 1 - 7 / 12])  # token 9 at 4 and 10, token 8 at 7
    assert "sources" not in found  # one source is no comparison


@pytest.mark.parametrize(
    ("answers", "states", "fields", "accuracy"),
    [
        (["8", "7", "7", "7"], ["differs", "agrees", "untried", "agrees"], {}, 1),
        (["8", "9", "9", "8"], ["differs"] * 2 + ["untried", "differs"], {"reference": "8", "correct": False}, 0),
    ],
)
def test_one_split_token_alone_leaves_an_untried_boundary_as_right_as_it_was(
    answers, states, fields, accuracy, make_trace
):
    """The third, behind token 8, is as right as the trials beside it, and the one before it is behind token 9."""
    trace = make_trace(
        think_ids=[20, 8, 22, 9, 24, 8, 26, 8, 30],
        boundaries=[2, 4, 6, 8],
        boundary_answers=answers,
        boundary_agrees=infer_agrees(states),
        boundary_confidence=[0.5] * 4,
        boundary_state=states,
        **fields,
    )
    values = np.zeros((9, 4), np.float32)
    values[5, 3] = 0.9
    variants = dict(module._splits(module.Scored(Replay([trace], [values]), 0.0), lambda ids: str(ids[0])))
    for name in ("all", "only '8'"):
        assert {point.accuracy for point in variants[name] if point.exits} == {accuracy}


def test_tables_figures_and_numbers_are_written_once_and_kept_for_what_they_are_of(paths, capsys, monkeypatch):
    arguments = [f"traces={paths / 'traces.parquet'}", f"scores.draft={paths / 'draft.parquet'}"]
    run("ablate", [*arguments, f"out={paths / 'out'}"])
    written = json.loads((paths / "out" / "ablations.json").read_text())
    assert written["n"] == 12
    for name in written["ablations"]:
        root = ElementTree.parse(paths / "out" / f"{name}.svg").getroot()
        text = "".join(root.itertext())
        assert root.tag.endswith("svg")
        for variant in written["ablations"][name]["variants"]:
            assert variant["name"].replace("'", "") in text.replace("'", ""), name
        assert "prefers-color-scheme" in text
    printed = capsys.readouterr().out
    assert "Which signals decide?" in printed
    assert "41.7 %" in printed
    assert (paths / "out" / "run.yaml").exists()
    monkeypatch.setattr(module, "_replay", lambda *_: pytest.fail("replayed again"))
    run("ablate", [*arguments, f"out={paths / 'out'}"])  # as `make bench-field` does when it goes on
    again = capsys.readouterr().out
    assert "replayed already" in again
    assert "41.7 %" in again
    (paths / "draft.parquet").write_bytes((paths / "fc.parquet").read_bytes())  # scored anew, by another draft
    with pytest.raises(BenchError, match=r"out: holds ablations with inputs\.scores\.draft \w+ \(now \w+\): delete"):
        ablate(config(paths, "draft"))
    for ablation in written["ablations"].values():
        for variant in ablation["variants"]:
            del variant["full_accuracy"]  # as older versions wrote it, of which `report` says to make it anew
    (paths / "out" / "ablations.json").write_text(json.dumps(written))
    said = r"ablations\.json: cannot be read .*full_accuracy .*required; delete the folder to replay anew, or give"
    with pytest.raises(BenchError, match=said) as told:
        ablate(config(paths, "draft"))
    assert "\n" not in str(told.value)


def test_alternatives_are_printed_as_they_are_called(paths, capsys):
    """A split token may be "[/x]\\n\\n"."""
    scores = {"[/x]": paths / "draft.parquet", "[red]": paths / "fc.parquet"}
    ablate(config(paths, "draft").model_copy(update={"scores": scores}))
    printed = capsys.readouterr().out
    assert all(name in printed for name in scores)


@pytest.mark.parametrize(("known", "said"), [(0, "Cut at changed answers of at"), (3, "losses are of the other 3")])
def test_what_a_loss_is_of_is_said(paths, traces, capsys, known, said):
    """Where no right answer is known, changed ones were called a loss; where few are, it is of them alone."""
    unknown = [dataclasses.replace(trace, reference=None, correct=None) for trace in traces[known:]]
    write_traces(paths / "traces.parquet", [*traces[:known], *unknown])
    for _ in range(2):  # the second one reads again what the first has found
        ablate(config(paths, "draft"))
        assert said in " ".join(capsys.readouterr().out.split())


def test_a_folder_that_holds_something_is_left_alone(paths):
    (paths / "out").mkdir()
    (paths / "out" / "mine").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        ablate(config(paths, "draft"))


def test_traces_that_cannot_judge_are_no_evidence(paths, make_trace):
    write_traces(paths / "traces.parquet", [make_trace(finish_reason="length")])
    with pytest.raises(ValueError, match=r"none of 1 traces can judge \(1 unfinished\)"):
        ablate(config(paths, "draft"))


def test_how_many_traces_cannot_judge_is_said(paths, traces, make_trace, capsys):
    """Tables of 20 traces of 800 used to say nothing of the others."""
    others = [make_trace(id="cut", finish_reason="length"), make_trace(id="silent", answer=None)]
    write_traces(paths / "traces.parquet", [*traces, *others])
    ablate(config(paths, "draft"))
    assert "left out, as they cannot judge: 1 unfinished, 1 without an answer" in capsys.readouterr().out
    found = Ablations.model_validate_json((paths / "out" / "ablations.json").read_text())
    assert (found.n, found.left_out) == (len(traces), {"unfinished": 1, "without an answer": 1})


@pytest.fixture
def training(paths, monkeypatch):
    """A config with two questions, and the commands that it runs: drafts are blind where a boundary weighs 1."""
    asked = []

    def command(name, arguments):
        asked.append((name, arguments))
        out = Path(arguments[-1].removeprefix("out="))
        out.parent.mkdir(parents=True, exist_ok=True)
        blind = "weight-1" in str(out)
        if name == "evaluate":
            out.write_text(json.dumps({"acceptance_length": 2.5 if blind else 3.5}))
        elif name == "score":
            out.write_bytes((paths / ("fc.parquet" if blind else "draft.parquet")).read_bytes())
        else:
            out.mkdir(exist_ok=True)
        if name == "train":
            (out / "status.json").write_text(json.dumps({"status": "finished", "step": 7, "steps": 7}))

    monkeypatch.setattr(trained, "_command", command)
    weights = {
        "asks": "How much weighs a boundary?",
        "variants": {"10": {}, "1": {"change": ["signals.boundary_weight=1"]}},
    }
    steps = {"asks": "How many TTT steps?", "variants": {"3": {}, "5": {"change": ["ttt_steps=5"]}}}
    given = {"recipe": "tiny-reasoner", "data": paths / "packed", "out": paths / "drafts", "steps": 7, "evaluate_n": 9}
    questions = {"weight": weights, "steps": steps}
    found = TrainedConfig.model_validate(given | {"questions": questions})
    return config(paths, "draft").model_copy(update={"trained": found}), asked


def test_a_draft_is_trained_for_each_alternative_and_replayed(training, paths, capsys):
    asking, asked = training
    found = ablate(asking)
    assert [variant.name for variant in found["weight"].variants] == ["10", "1"]
    assert [variant.best["0"].net_cut for variant in found["weight"].variants] == pytest.approx([1 - 7 / 12, 0])
    assert [variant.acceptance_length for variant in found["weight"].variants] == [3.5, 2.5]
    runs = [arguments for name, arguments in asked if name == "train"]
    assert len(runs) == 3  # the recipe as it is serves both questions
    assert all("steps=7" in run and "eval_traces=null" in run for run in runs)  # what judges it may not choose it
    assert [run[-2:] for run in runs][1] == ["signals.boundary_weight=1", f"out={paths}/drafts/weight-1/run"]
    # By what `serve` drafts, also where five steps were trained.
    assert (
        "evaluate",
        [
            f"run={paths}/drafts/recipe/run",
            f"traces={paths}/traces.parquet",
            "n=9",
            "ttt_steps=3",
            f"out={paths}/drafts/recipe/evaluation-{data_sha256(paths / 'traces.parquet')[:8]}-9.json",
        ],
    ) in asked
    assert "tokens a step" in capsys.readouterr().out
    assert "How many TTT steps?" in (paths / "out" / "ablations.json").read_text()


def test_a_draft_whose_training_was_preempted_is_not_replayed(training, monkeypatch):
    """Training exits with 0 then; the numbers of a draft that is half trained would be kept for good."""
    asking, asked = training
    command = trained._command

    def preempted(name, arguments):
        command(name, arguments)
        run = Path(arguments[-1].removeprefix("out="))
        (run / "status.json").write_text(json.dumps({"status": "preempted", "step": 4, "steps": 7}))

    monkeypatch.setattr(trained, "_command", preempted)
    with pytest.raises(ConfigError, match=r"/run is preempted, at step 4 of 7; start again to go on$"):
        ablate(asking)
    assert [name for name, _ in asked] == ["train"]


def test_what_has_been_trained_is_kept(training, paths):
    asking, asked = training
    ablate(asking)
    asked.clear()
    with pytest.raises(BenchError, match=r"/out: holds ablations already, .*: delete the folder .*/drafts is kept$"):
        ablate(asking)
    assert asked == []
    ablate(asking.model_copy(update={"out": paths / "again"}))
    assert {name for name, _ in asked} == {"train"}  # which finds its run finished


def test_what_was_made_from_a_run_that_is_gone_is_no_answer_of_a_new_one(training, paths):
    """Whoever deleted the run alone, for another recipe, was given the old draft's numbers under the new config."""
    asking, asked = training
    ablate(asking)
    asked.clear()
    shutil.rmtree(paths / "drafts" / "weight-1" / "run")
    with pytest.raises(ConfigError, match=r"weight-1/draft: was made from .*/run, which is gone: delete .*weight-1 as"):
        ablate(asking.model_copy(update={"out": paths / "again"}))
    assert asked == []
    shutil.rmtree(paths / "drafts" / "weight-1")
    ablate(asking.model_copy(update={"out": paths / "again"}))
    assert [name for name, _ in asked if name != "train"] == ["evaluate", "convert", "score"]


def test_what_was_said_of_other_traces_or_fewer_is_asked_again(training, paths, traces):
    """The old acceptance length was reported, with scores that the replay refuses."""
    asking, asked = training
    ablate(asking)
    asked.clear()
    more = asking.model_copy(update={"trained": asking.trained.model_copy(update={"evaluate_n": 10})})
    ablate(more.model_copy(update={"out": paths / "again"}))
    assert {name for name, _ in asked} == {"train", "evaluate"}
    asked.clear()
    write_traces(paths / "traces.parquet", [dataclasses.replace(one, seed=1) for one in traces])
    ablate(more.model_copy(update={"out": paths / "others"}))
    assert {name for name, _ in asked} == {"train", "evaluate", "score"}


def test_an_alternative_that_is_no_recipe_is_refused_before_anything_is_trained(training):
    asking, asked = training
    questions = {"odd": {"asks": "?", "variants": {"a": {}, "b": {"change": ["ttt_stpes=1"]}}}}
    wrong = TrainedConfig.model_validate(asking.trained.model_dump() | {"questions": questions})
    with pytest.raises(ConfigError, match="ttt_stpes"):
        ablate(asking.model_copy(update={"trained": wrong}))
    assert not asked


def test_an_alternative_may_be_replayed_on_traces_of_its_own(training, paths, traces, monkeypatch, capsys):
    """Of which a quarter are wrong when thought to the end: that is no loss of the alternative's exits."""
    asking, _ = training
    drawn = []
    monkeypatch.setattr(module, "curves_chart", lambda curves, *_: drawn.append(curves) or "<svg></svg>")
    names = [name for name in vars(traces[0]) if name == "boundaries" or name.startswith("boundary_")]
    early = [dataclasses.replace(one, **{name: getattr(one, name)[:1] for name in names}) for one in traces]
    early = [dataclasses.replace(one, answer="8", correct=False) if i < 3 else one for i, one in enumerate(early)]
    cut = dataclasses.replace(early[0], id="cut", finish_reason="length")
    write_traces(paths / "early.parquet", [*early, cut])
    questions = {"own": {"asks": "?", "variants": {"a": {}, "b": {"traces": str(paths / "early.parquet")}}}}
    own = TrainedConfig.model_validate(asking.trained.model_dump() | {"questions": questions})
    found = ablate(asking.model_copy(update={"trained": own}))
    # Of those that cannot judge nothing used to be said.
    assert "own, b: left out, as they cannot judge: 1 unfinished" in capsys.readouterr().out
    cuts = [variant.best["0"].net_cut for variant in found["own"].variants]
    assert cuts == pytest.approx([1 - 7 / 12, 0])  # the first boundary alone is no place to exit at
    assert [variant.full_accuracy for variant in found["own"].variants] == [1.0, 0.75]
    assert drawn[-1]["b"] == [(0.0, 0.0)]
    (rows,) = [
        one.figure.numbers.rows for one in ablated(Ablations(n=12, full_accuracy=1.0, ablations={"own": found["own"]}))
    ]
    assert {row[2:] for row in rows if row[0] == "b"} == {(percent(0.0), percent(0.0))}


def test_every_alternative_of_the_shipped_ablations_is_a_recipe():
    """They are trained by hand alone, for two hours: a key that has another name by now is to be seen before."""
    asking = load(AblateConfig, find("bench", "ablate")).trained
    assert asking is not None
    recipe = find("recipes", asking.recipe)
    changed = {
        alternative: load(TrainConfig, recipe, [*trained._overrides(asking, alternative), "out=run"])
        for question in asking.questions.values()
        for alternative in question.variants.values()
    }
    assert len({config.model_dump_json() for config in changed.values()}) == len(changed) == 13
