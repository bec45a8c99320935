"""What `specexit bench` may be of: problems, drafts and methods, and what is refused before anything starts."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from specexit.bench.inputs import tolerance_of
from specexit.bench.methods import NAMES
from specexit.bench.process import BenchError
from specexit.bench.results import Results
from specexit.config import find, load
from specexit.data.outlines import outlines
from specexit.data.overlap import OverlapError, write_prompts
from specexit.data.scores import ScoreError, Scores, write_scores
from specexit.data.traces import WEIGHTS, Trace, TraceError, data_sha256, write_traces
from specexit.drafts.directory import DraftError, plain_copy, read_config
from specexit.drafts.policy import (
    Certificate,
    OperatingPoint,
    PolicyFile,
    Risk,
    Selection,
    Serving,
    policy_sha256,
    write_policy,
)
from specexit.drafts.tensors import weights_hash
from specexit.errors import InputError
from specexit.method.decision import Policy
from specexit.schemas.bench import BenchConfig
from specexit.schemas.target import ModelCardSampling, TrialConfig
from tests.serving.benching import (
    MAX_NEW_TOKENS,
    TARGET,
    N,
    config,
    generated_traces,
    small,
    write_inputs,
    write_random_draft,
)
from tests.serving.stand_ins import stand_in
from torch_specexit.bench import conditions, run
from torch_specexit.bench.run import as_traced, bench, longest_response, plan_methods, read_problems, trials_of
from torch_specexit.plugin.compat.checks import check_draft
from torch_specexit.plugin.protocols import ModelConfig


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("bench-inputs"))


@pytest.mark.parametrize("key", ["traces", "calibration_traces"])
def test_traces_of_another_target_are_refused(inputs: Path, tmp_path: Path, key: str) -> None:
    """Their exit points are another model's: the oracle was, and what methods chose on them."""
    split = {"traces": "test", "calibration_traces": "calibration"}[key]
    write_traces(tmp_path / "t.parquet", [replace(trace, target="another") for trace in generated_traces(N, split)])
    with pytest.raises(BenchError, match=r"t\.parquet: traces of target 'another', expected those of 'tiny-reasoner'"):
        bench(config(inputs, **{key: tmp_path / "t.parquet"}, out=tmp_path / "new"))


def test_traces_of_another_tokenizer_are_refused(inputs: Path, tmp_path: Path) -> None:
    write_traces(tmp_path / "t.parquet", list(generated_traces(N, "test")), tokenizer_sha256="0" * 64)
    with pytest.raises(TraceError, match=r"t\.parquet: written with the tokenizer 000000000000"):
        bench(config(inputs, traces=tmp_path / "t.parquet", out=tmp_path / "new"))


def test_traces_of_other_weights_are_refused(inputs: Path, tmp_path: Path) -> None:
    write_traces(tmp_path / "t.parquet", list(generated_traces(N, "test")), said={WEIGHTS: "0" * 64})
    with pytest.raises(TraceError, match=r"t\.parquet: written by weights with the fingerprint 000000000000"):
        bench(config(inputs, traces=tmp_path / "t.parquet", out=tmp_path / "new"))


def test_a_method_in_the_home_folder_is_an_input(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was found there, but not read again: what it was before was called measured already."""
    monkeypatch.setenv("HOME", str(tmp_path))
    ours, found = config(inputs, methods=("eagle3", "~/mine.py")), []
    for text in "ab":
        (tmp_path / "mine.py").write_text(text)
        found.append(conditions.inputs_served(ours, TARGET)["~/mine.py"])
    assert found[0] != found[1]


@pytest.mark.parametrize("change", [{"dtype": "bfloat16"}, {"trial": {}}, {"split_endings": ("\n",)}])
def test_the_settings_of_a_target_are_an_input(inputs: Path, change: dict[str, object]) -> None:
    """Its YAML edited, an interrupted benchmark went on: replies in two types were one result."""
    ours = config(inputs)
    before, after = (conditions.inputs_served(ours, one) for one in (TARGET, TARGET.model_copy(update=change)))
    assert {name for name in before if before[name] != after[name]} == {"target.settings"}
    moved = TARGET.model_copy(update={"path": str(TARGET.folder)})
    assert conditions.inputs_served(ours, moved) == before


def test_every_method_of_the_field_has_a_draft_that_can_be_served(inputs: Path, tmp_path: Path) -> None:
    field = load(BenchConfig, find("bench", "field")).methods
    assert field is not None
    assert set(field) == set(NAMES)
    write_random_draft(tmp_path / "fc", source="fc")
    ours = config(inputs, methods=[name for name in field if name != "exits-alone"], draft_fc=tmp_path / "fc")
    (tmp_path / "scratch").mkdir()
    served_as = SimpleNamespace(**TARGET.hf_config())
    target = stand_in(ModelConfig, hf_text_config=served_as, model="", max_model_len=1)
    entries = plan_methods(ours, TARGET, generated_traces(N), tmp_path / "scratch")
    served = {entry.name for entry in entries if entry.draft and read_config(entry.draft).specexit}
    assert served == {"specexit", "specexit-fc", "paper", "budget"}
    for entry in entries:
        if entry.name in served and entry.draft:
            check_draft(read_config(entry.draft), entry.draft, target)


@pytest.mark.parametrize(
    ("risk", "k", "said"),
    [
        ("accuracy_lost", 1, "what the certificate of the draft's policy allows"),
        ("answer_changed", 2, "certified for answer_changed <= 0.06, which is no loss of accuracy"),
        (None, 2, "no certificate"),
    ],
)
def test_methods_may_lose_what_specexit_s_certificate_allows(
    inputs: Path, tmp_path: Path, risk: Risk | None, k: int, said: str
) -> None:
    """Of 20 traces one is wrong at its first boundary: 5 %."""
    first, *others = generated_traces(20, "calibration")
    traces = [replace(t, boundary_answers=[t.answer] * len(t.boundaries), boundary_agrees=[True] * len(t.boundaries),
                      boundary_state=["agrees"] * len(t.boundaries)) for t in others]  # fmt: skip
    write_traces(tmp_path / "calibration.parquet", [first, *traces])
    assert first.correct
    write_random_draft(tmp_path / "draft")
    policy = Policy(thresholds={"validity": 0.5})
    found = {"epsilon": 0.06, "delta": 0.1, "n": 20, "errors": 0, "bound": 0.06, "data_sha256": "a" * 64}
    found |= {"policy_sha256": policy_sha256(policy)}
    certificate = None if risk is None else Certificate(risk=risk, **found)
    points = (OperatingPoint(name="default", policy=policy, certificate=certificate),)
    write_policy(tmp_path / "draft", PolicyFile(points=points))
    given = {"calibration_traces": tmp_path / "calibration.parquet", "scores": None}
    ours = config(inputs, draft=tmp_path / "draft", methods=["eagle3", "kth-boundary"], **given)
    (tmp_path / "scratch").mkdir()
    _, entry = plan_methods(ours, TARGET, generated_traces(N), tmp_path / "scratch")
    assert entry.parameters == {"k": k}
    assert said in tolerance_of(tmp_path / "draft").why


def test_a_method_that_loses_more_than_the_tolerance_says_so(inputs: Path, tmp_path: Path) -> None:
    """Sure of a wrong answer at its first boundary in one trace of four, at any threshold."""
    traces = []
    for i, t in enumerate(generated_traces(4, "calibration")):
        agrees = [i > 0, *[True] * (len(t.boundaries) - 1)]
        said = {"boundary_answers": [t.answer if right else "no" for right in agrees], "boundary_agrees": agrees}
        said |= {"boundary_state": ["agrees" if right else "differs" for right in agrees]}
        traces.append(replace(t, boundary_confidence=[1.0] * len(agrees), **said))
    write_traces(tmp_path / "calibration.parquet", traces)
    given = {"calibration_traces": tmp_path / "calibration.parquet", "scores": None}
    ours = config(inputs, methods=["eagle3", "deer", "stability"], **given)
    (tmp_path / "scratch").mkdir()
    plain, deer, stability = plan_methods(ours, TARGET, generated_traces(N), tmp_path / "scratch")
    assert deer.says.endswith("the most cautious is measured, which loses 25.0 points on them")
    assert [entry.says for entry in (plain, stability)] == [entry.method.says for entry in (plain, stability)]


def test_scores_of_another_draft_are_refused_before_anything_starts(inputs: Path, tmp_path: Path) -> None:
    """Their exits are another draft's, and the table would show them as those of this one."""
    signals = {t.id: np.zeros((len(t.think_ids), 4), np.float32) for t in generated_traces(N)}
    changes = {"methods": ("eagle3", "exits-alone"), "scores": tmp_path / "scores.parquet", "out": tmp_path / "new"}
    write_scores(tmp_path / "scores.parquet", Scores("draft", "0" * 64, signals))
    ours = weights_hash(inputs / "draft")[:12]
    with pytest.raises(ScoreError, match=rf"hash 000000000000, but .*draft has {ours}: expected scores of this draft"):
        bench(config(inputs, **changes))
    assert not (tmp_path / "new").exists()
    (tmp_path / "scratch").mkdir()
    write_scores(tmp_path / "scores.parquet", Scores("draft", weights_hash(inputs / "draft"), signals))
    entries = plan_methods(config(inputs, **changes), TARGET, generated_traces(N), tmp_path / "scratch")
    assert [entry.name for entry in entries] == ["eagle3", "exits-alone"]


def test_problems_that_methods_are_tuned_on_are_refused(inputs: Path, tmp_path: Path) -> None:
    mixed = [*generated_traces(2), *generated_traces(N, "calibration")]
    write_traces(tmp_path / "mixed.parquet", mixed)
    with pytest.raises(OverlapError, match=r"mixed\.parquet: 2 of its 6 prompts are among the 4 of .*traces\.parquet"):
        bench(config(inputs, calibration_traces=tmp_path / "mixed.parquet", out=tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_what_the_config_leaves_open_is_the_target_s(inputs: Path) -> None:
    """Lengths are those of the target's YAML, for a real one thousands of tokens, not the tiny reasoner's."""
    traces = [replace(trace, answer_kind="function:operator:eq") for trace in generated_traces(1)]
    sampling = ModelCardSampling(temperature=0.6, max_tokens=32768)
    trial = TrialConfig(text="So:", max_tokens=2048, stop=("```",))
    target = TARGET.model_copy(update={"sampling": sampling, "trial": {"function": trial}})
    open_ = config(inputs, max_new_tokens=None)
    assert longest_response(open_, target) == 32768
    assert longest_response(config(inputs), target) == MAX_NEW_TOKENS
    ids = target.tokenizer().encode("So:")
    assert trials_of(open_, target, traces) == ({"ids": ids, "max_tokens": 2048, "stop": ("```",), "close": ""},)
    # Without a trial of its own, an answer is written in full.
    assert trials_of(open_, target.model_copy(update={"trial": {}}), traces)[0]["max_tokens"] == 32768
    with pytest.raises(BenchError, match=r"sampling\.max_tokens is missing, expected it there or max_new_tokens="):
        longest_response(open_, target.model_copy(update={"sampling": None}))


def test_responses_are_drawn_as_the_traces_were_where_nothing_else_is_said(inputs: Path) -> None:
    def traces(**sampling: float) -> list[Trace]:
        return [replace(trace, sampling=json.dumps(sampling)) for trace in generated_traces(N)]

    open_, card = config(inputs, sampling=None), {"temperature": 0.6, "top_p": 0.95, "top_k": 20}
    found = as_traced(open_, traces(**card, max_tokens=32768)).sampling
    assert found is not None
    assert found.model_dump() == card
    assert as_traced(open_, traces(temperature=0.0, max_tokens=768)) == config(inputs)
    assert as_traced(config(inputs), traces(**card)) == config(inputs)
    with pytest.raises(
        BenchError, match=r"traces\.parquet: sampling is \{\}, expected one with a temperature, or samp"
    ):
        as_traced(open_, traces())
    with pytest.raises(
        BenchError, match=r"sampling is \{'temperature': 0\.0\} and \{'temperature': 0\.6, .*, expected"
    ):
        as_traced(open_, [*traces(temperature=0.0)[1:], traces(**card)[0]])
    for greedy in ({"temperature": 0.0}, {"temperature": 0.6, "top_k": 1}):
        with pytest.raises(
            BenchError, match=r"samples=2: .*traces\.parquet are greedy, and all responses would be the"
        ):
            as_traced(config(inputs, sampling=None, samples=2), traces(**greedy))
        with pytest.raises(ValueError, match=r"samples=2: without a temperature, or with top_k=1, all would be the"):
            config(inputs, sampling=greedy, samples=2)


def test_a_draft_that_is_held_back_is_refused(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its policy.json or by the environment, which engines inherit; what does change texts is one of the inputs."""
    ours = small(inputs, tmp_path).model_copy(update={"methods": ("eagle3", "specexit")})
    (tmp_path / "scratch").mkdir()

    def plan(**serving: object) -> dict[str, str]:
        write_policy(ours.draft, PolicyFile(serving=Serving.model_validate(serving)))
        shutil.rmtree(tmp_path / "scratch")
        (tmp_path / "scratch").mkdir()
        plan_methods(ours, TARGET, generated_traces(N), tmp_path / "scratch")
        return conditions.inputs_served(ours, TARGET)

    for mode in ("shadow", "off"):
        with pytest.raises(
            BenchError, match=rf"policy\.json: serving\.mode is '{mode}', so that nothing exits: expected"
        ):
            plan(mode=mode)
    usual = plan()
    monkeypatch.setenv("SPECEXIT_SERVING", '{"mode": "shadow"}')
    with pytest.raises(BenchError, match=r"SPECEXIT_SERVING='.*shadow.*', .* in force is 'shadow', .*unset SPECEXIT"):
        plan()
    monkeypatch.setenv("SPECEXIT_SERVING", '{"transition": "So:"}')
    told = {name for name, value in plan().items() if value != usual[name]}
    monkeypatch.delenv("SPECEXIT_SERVING")
    assert told == {"draft.serving"}
    for change in ({"thinking_margin": 3}, {"loop_period": 5}):
        assert plan(**change)["draft.serving"] not in (usual["draft.serving"], plan(transition="So:")["draft.serving"])
    assert plan(audit_rate=0.5, requests="none") == usual


def test_too_few_traces_are_refused_before_anything_starts(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"traces.parquet: traces of 4 different prompts, expected at least n=300"):
        bench(config(inputs, n=300, out=tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_traces_without_references_are_refused(inputs: Path, tmp_path: Path) -> None:
    write_traces(tmp_path / "traces.parquet", [replace(trace, reference=None) for trace in generated_traces(N)])
    with pytest.raises(BenchError, match="test-0 has no reference"):
        bench(config(inputs, traces=tmp_path / "traces.parquet", out=tmp_path / "new"))


def test_traces_without_any_thinking_are_refused(inputs: Path, tmp_path: Path) -> None:
    """Shares of no thinking at all do not exist: it was found out behind hours of measuring, as a division by zero."""
    nothing = {"boundaries": [], "boundary_answers": [], "boundary_agrees": [], "boundary_confidence": []}
    nothing |= {"think_ids": [], "boundary_state": [], "boundary_trial_tokens": []}
    traces = [replace(trace, **nothing) for trace in generated_traces(N)]
    write_traces(tmp_path / "traces.parquet", traces)
    with pytest.raises(BenchError, match=r"traces\.parquet: think_ids are empty in all 4 traces"):
        read_problems(config(inputs, traces=tmp_path / "traces.parquet"))
    write_traces(tmp_path / "traces.parquet", [*traces[1:], generated_traces(1)[0]])
    assert len(read_problems(config(inputs, traces=tmp_path / "traces.parquet"))) == N


def test_samples_of_a_problem_are_one_problem(inputs: Path, tmp_path: Path) -> None:
    """Counted each for itself, they would make intervals narrower than the problems allow."""
    sampled = [replace(trace, sample=i, seed=i) for trace in generated_traces(N) for i in range(3)]
    write_traces(tmp_path / "traces.parquet", sampled)
    changes = {"traces": tmp_path / "traces.parquet", "out": tmp_path / "new"}
    assert [(t.id, t.sample) for t in read_problems(config(inputs, **changes, n=3))] == [
        ("test-0", 0),
        ("test-1", 0),
        ("test-2", 0),
    ]
    assert len(read_problems(config(inputs, **changes, n=None))) == N
    with pytest.raises(BenchError, match=r"traces of 4 different prompts, expected at least n=5"):
        bench(config(inputs, **changes, n=5))


def test_a_prompt_under_many_ids_is_one_problem(inputs: Path, tmp_path: Path) -> None:
    """Its answer would count as many times as it is there, and prove what one problem cannot."""
    copies = [replace(trace, id=f"{trace.id}-{i}") for i in range(3) for trace in generated_traces(2)]
    write_traces(tmp_path / "traces.parquet", copies)
    found = read_problems(config(inputs, traces=tmp_path / "traces.parquet", n=None))
    assert [trace.id for trace in found] == ["test-0-0", "test-1-0"]
    with pytest.raises(BenchError, match=r"traces of 2 different prompts, expected at least n=3"):
        read_problems(config(inputs, traces=tmp_path / "traces.parquet", n=3))


def test_problems_of_some_tasks_alone_can_be_asked(inputs: Path, tmp_path: Path) -> None:
    tasks = (None, "sums", "late", "sums")
    named = [replace(trace, task=task) for trace, task in zip(generated_traces(N), tasks, strict=True)]
    write_traces(tmp_path / "traces.parquet", named)
    changes = {"traces": tmp_path / "traces.parquet", "scores": None}
    found = read_problems(config(inputs, **changes, n=None, tasks=["sums"]))
    assert [trace.id for trace in found] == ["test-1", "test-3"]
    with pytest.raises(BenchError, match=r"2 different prompts of tasks=\['sums'\], expected at least n=3"):
        read_problems(config(inputs, **changes, n=3, tasks=["sums"]))
    with pytest.raises(BenchError, match="tasks has 'chain', expected some of the traces' tasks: late, sums"):
        read_problems(config(inputs, **changes, n=1, tasks=["sums", "chain"]))
    with pytest.raises(ValueError, match="the curves would be of all tasks' traces"):
        config(inputs, tasks=["sums"])


def test_two_prompts_under_one_id_are_refused(inputs: Path, tmp_path: Path) -> None:
    """As files of two runs of `collect` may have, whose prompts are numbered: the second one was left out."""
    write_traces(tmp_path / "traces.parquet", [replace(trace, id="0") for trace in generated_traces(2)])
    with pytest.raises(BenchError, match=r"traces\.parquet: trace '0' is of two prompts, expected an id of its own"):
        read_problems(config(inputs, traces=tmp_path / "traces.parquet", n=None))


@pytest.mark.parametrize("which", ["draft", "draft_fc"])
def test_problems_that_a_draft_was_trained_on_are_refused(inputs: Path, tmp_path: Path, which: str) -> None:
    write_random_draft(tmp_path / "draft")
    write_prompts(tmp_path / "draft", [*outlines([generated_traces(N)[2]]).prompts()])
    with pytest.raises(OverlapError, match=r"1 of 4 prompts were trained on according to .*prompts\.npy"):
        bench(config(inputs, out=tmp_path / "new", **{which: tmp_path / "draft"}))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("which", ["draft", "draft_fc"])
def test_a_draft_that_does_not_list_its_prompts_is_remarked_on(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], which: str
) -> None:
    """Copied without its list, it was measured on the prompts that it was trained on, without a word."""
    monkeypatch.setattr(run, "finished", lambda *_: Results.model_construct())  # as of a benchmark that is there
    monkeypatch.setattr(run, "result_tables", lambda _: ())
    drafts = {name: tmp_path / name for name in ("draft", "draft_fc")}
    for name, draft in drafts.items():
        write_random_draft(draft, source="fc" if name == "draft_fc" else "draft")
        write_prompts(draft, [1])
    remark = "does not list what it was trained on (no prompts.npy): nobody can tell"
    bench(config(inputs, **drafts))
    assert remark not in " ".join(capsys.readouterr().out.split())
    (drafts[which] / "prompts.npy").unlink()
    bench(config(inputs, **drafts))
    assert " ".join(capsys.readouterr().out.split()).count(remark) == 1


@pytest.mark.parametrize("which", ["draft", "draft_fc"])
def test_problems_that_chose_a_checkpoint_are_refused(inputs: Path, tmp_path: Path, which: str) -> None:
    """As `calibrate` refuses them: of several checkpoints the best on some problems looks better there than it is."""
    write_random_draft(tmp_path / "draft")
    selection = Selection(by="auroc", prompts=tuple(trace.prompt_hash[:16] for trace in generated_traces(2)))
    write_policy(tmp_path / "draft", PolicyFile(selection=selection))
    with pytest.raises(OverlapError, match=r"2 of 4 prompts chose the checkpoint of .*draft \(by auroc\)"):
        read_problems(config(inputs, **{which: tmp_path / "draft"}))


@pytest.mark.parametrize("which", ["draft", "draft_fc"])
def test_the_very_traces_that_a_policy_was_certified_on_are_refused(inputs: Path, tmp_path: Path, which: str) -> None:
    """The page said of them that nobody had checked whether they were among those."""
    write_random_draft(tmp_path / "draft")
    policy = Policy(thresholds={"validity": 0.5})
    found = {"epsilon": 0.06, "delta": 0.1, "n": 4, "errors": 0, "bound": 0.06, "policy_sha256": policy_sha256(policy)}
    data = data_sha256(inputs / "traces.parquet")
    certificate = Certificate(risk="answer_changed", data_sha256=data, **found)
    points = (OperatingPoint(name="default", policy=policy, certificate=certificate),)
    write_policy(tmp_path / "draft", PolicyFile(points=points))
    with pytest.raises(OverlapError, match=r"traces\.parquet: point 'default' of .*draft was certified on these very"):
        read_problems(config(inputs, **{which: tmp_path / "draft"}))


def test_a_sampled_recording_is_not_replayed_into_greedy_text(inputs: Path, tmp_path: Path) -> None:
    """Its exits are so many tokens of another text: they came in mid-sentence, and were called the oracle's."""
    traces = [replace(trace, sampling='{"temperature": 0.6}') for trace in generated_traces(N)]
    told = (
        r"traces\.parquet: method oracle replays a recording, and trace test-0 was sampled at temperature 0\.6, so that"
    )
    with pytest.raises(BenchError, match=told):
        plan_methods(config(inputs, methods=("eagle3", "oracle")), TARGET, traces, tmp_path)


def test_where_one_token_alone_may_be_drawn_a_recording_is_replayed(inputs: Path, tmp_path: Path) -> None:
    """Its text comes again, whatever the temperature; the refusal spoke of sampled text."""
    traces = [replace(trace, sampling='{"temperature": 0.6, "top_k": 1}') for trace in generated_traces(N)]
    ours = as_traced(config(inputs, methods=("eagle3", "oracle"), sampling=None), traces)
    assert [entry.name for entry in plan_methods(ours, TARGET, traces, tmp_path)] == ["eagle3", "oracle"]


def test_the_draft_of_another_target_is_refused(inputs: Path, tmp_path: Path) -> None:
    write_random_draft(tmp_path / "draft", hidden=128)
    with pytest.raises(DraftError, match="target_hidden_size is 128, but target tiny-reasoner has hidden_size 192"):
        bench(config(inputs, draft=tmp_path / "draft", out=tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_what_cannot_be_run_is_refused_before_anything_starts(inputs: Path, tmp_path: Path) -> None:
    write_random_draft(tmp_path / "fc", source="fc")
    for changes, message in (
        (
            {"methods": ("eagle3", "oracle"), "sampling": {"temperature": 0.6}},
            "oracle replays a recording, and sampled",
        ),
        ({"methods": ("none", "specexit")}, "methods are none, specexit: expected different ones, with eagle3 among"),
        (
            {"methods": ("eagle3", "paper", "paper"), "draft_fc": tmp_path / "fc"},
            "methods are eagle3, paper, paper: expected different ones",
        ),
        ({"methods": ("eagle3", "specexit-fc")}, "specexit-fc runs on a draft with signals of source fc: draft_fc is"),
        (
            {"methods": ("eagle3", "exits-alone"), "scores": None},
            "exits-alone replays the signals of the traces: scores is missing",
        ),
    ):
        with pytest.raises(InputError, match=message):
            bench(config(inputs, out=tmp_path / "new", **changes))
        assert not (tmp_path / "new").exists()


def test_a_second_draft_without_signals_of_source_fc_is_refused(inputs: Path, tmp_path: Path) -> None:
    """Its results would be called those of the paper's source, or vLLM be said to lack the plug-in."""
    write_random_draft(tmp_path / "other")
    plain_copy(tmp_path / "other", tmp_path / "plain")
    for name, found in (("other", "signals of source draft"), ("plain", "no signals")):
        ours = config(inputs, methods=("eagle3", "specexit-fc"), draft_fc=tmp_path / name)
        scratch = tmp_path / f"scratch of {name}"
        scratch.mkdir()
        with pytest.raises(BenchError, match=rf"specexit-fc: draft_fc=.*{name} has {found}, expected .* of source fc"):
            plan_methods(ours, TARGET, generated_traces(N), scratch)


def test_a_folder_that_holds_something_is_left_alone(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("data")
    with pytest.raises(FileExistsError, match="not empty"):
        bench(config(inputs, out=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
