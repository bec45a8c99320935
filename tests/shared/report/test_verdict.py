"""What the report claims: what was tested, of the draft that it was measured on."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specexit.bench.ablate import Ablations
from specexit.bench.inputs import draft_inputs
from specexit.bench.replay import ReplayCheck
from specexit.bench.results import Exits, read_results, write_results
from specexit.data.scores import Scores, write_scores
from specexit.data.traces import Trace, data_sha256
from specexit.differences import file_sha256
from specexit.drafts.fingerprints import target_fingerprint
from specexit.drafts.policy import (
    Certificate,
    Fingerprints,
    GroupRisk,
    OperatingPoint,
    PolicyFile,
    Serving,
    policy_sha256,
    write_policy,
)
from specexit.drafts.tensors import weights_hash
from specexit.method.decision import Policy
from specexit.method.simulate import Simulation
from specexit.report.page import report
from specexit.report.shown import ReportError
from specexit.report.verdict import verdict
from specexit.schemas.report import ReportConfig
from specexit.schemas.target import load_target_config
from tests.shared.report.pages import config, everything, write_run

OURS = target_fingerprint(load_target_config("tiny-reasoner").folder)


def test_the_verdict_claims_what_was_tested(bench: Path) -> None:
    results = read_results(bench / "results.json")
    versus = results.against_eagle3["specexit"]

    def says(p_loss: float, faster: dict[str, float]) -> str:
        against = {"specexit": versus.model_copy(update={"p_loss": p_loss})}
        changed = {"against_eagle3": against, "specexit_faster": {"1": faster}}
        return " ".join(verdict(results.model_copy(update=changed), None))

    proven = says(0.0004, {"eagle3": 0.001, "deer": 0.01})
    assert proven.startswith("Ruled out: a loss of accuracy of a point or more (p < 0.001 on 1 problems).")
    assert "At batch 1 it answers sooner than eagle3, deer: every other method measured." in proven
    open_ = says(0.2, {"eagle3": 0.001, "deer": 0.06})
    assert "Not ruled out: a loss of accuracy of a point or more (p = 0.200 on 1 problems; more problems would" in open_
    assert "it answers sooner than eagle3; not shown of deer." in open_


def test_of_a_loss_that_was_seen_it_is_not_said_that_more_problems_would_tell(bench: Path) -> None:
    """All of 40 answers were lost, and it was "not ruled out"."""
    results = read_results(bench / "results.json")
    versus = results.against_eagle3["specexit"]
    for delta, p, told in (
        (-0.004, 0.2, "(p = 0.200 on 1 problems; more problems would tell)."),
        (-0.25, 1.0, "(p = 1.000 on 1 problems; 25.0 points were lost)."),
    ):
        lost = versus.model_copy(update={"accuracy_delta": (delta, -0.3, 0.0), "p_loss": p})
        said = verdict(results.model_copy(update={"against_eagle3": {"specexit": lost}}), None)
        assert said[0] == f"Not ruled out: a loss of accuracy of a point or more {told}"


def test_a_draft_that_never_exits_is_not_praised_for_losing_nothing(bench: Path) -> None:
    """Where `calibrate` has switched exits off, a loss was "ruled out" and nothing said why."""
    results = read_results(bench / "results.json")
    held = results.methods["specexit"].model_copy(update={"exits": Exits(natural_end=300)})
    said = verdict(results.model_copy(update={"methods": results.methods | {"specexit": held}}), None)
    assert said[0].startswith("None of its responses exits")
    assert not any("None of its responses" in sentence for sentence in verdict(results, None))


def test_a_speed_up_over_eagle3_alone_is_said_with_its_test(bench: Path) -> None:
    """As the demo without other methods has it: a number above 1 is not yet faster."""
    results = read_results(bench / "results.json")
    tested = {"specexit_faster": {"1": {"eagle3": 0.0004}, "16": {"eagle3": 0.2}}}
    (said,) = verdict(results.model_copy(update=tested), None)
    assert said == (
        "Against EAGLE-3 with the same draft, end to end: 2.04× as fast at batch 1 (it answers sooner, p < 0.001); "
        "1.70× as fast at batch 16 (that it answers sooner is not shown, p = 0.200)."
    )
    (said,) = verdict(results, None)
    assert said.endswith("2.04× as fast at batch 1 (not tested); 1.70× as fast at batch 16 (not tested).")


def said_of(bench: Path, draft: Path, point: OperatingPoint, **more: Any) -> str:
    """What the report says with this point in ``policy.json``, which by default certifies what lies there."""
    made = {"fingerprints": Fingerprints(draft=weights_hash(draft), target=OURS), "sampling": {"temperature": 0.0}}
    write_policy(draft, PolicyFile(default=point.name, points=(point,), **(made | more)))
    report(config(bench, draft=draft))
    return " ".join((bench / "report.html").read_text().split())


def certified(**fields: Any) -> OperatingPoint:
    made = {"risk": "answer_changed", "epsilon": 0.05, "delta": 0.1, "n": 390, "errors": 8, "bound": 0.03} | fields
    certificate = Certificate(data_sha256="0", policy_sha256=policy_sha256(Policy()), **made)
    return OperatingPoint(name="risk-0.05", policy=Policy(), certificate=certificate)


def test_the_guarantee_is_said_of_problems_with_what_it_is_for(
    bench: Path, write_random_draft: Callable[..., Path]
) -> None:
    draft, point = write_random_draft(bench / "draft", "draft"), certified(n_unjudged=10)
    text = said_of(bench, draft, point)
    assert "calibrated on 390 problems (8 of them wrong): with probability at least 90 %" in text
    assert "the answer changes in at most 5 % of problems like these, decoded like these" in text
    assert (
        "counted on trial answers; 10 traces could not judge and were left out; whether the measured problems" in text
    )
    sampled = {"inputs": {"calibration_traces": "0"}, "sampling": {"temperature": 0.0}}
    results = read_results(bench / "results.json").model_copy(update=sampled)
    write_results(bench / "results.json", results)  # a benchmark that was given those traces has compared the prompts
    text = said_of(bench, draft, point)
    assert "calibrated on 390 other problems (8 of them wrong)" in text
    assert "was not checked" not in text
    assert "judged by greedy" not in text
    text = said_of(bench, draft, point, sampling={"temperature": 0.6})
    assert "; exits were judged by greedy answers, and one that is sampled there may be another; what was" in text
    assert "; what was measured here was decoded otherwise, so that this is not said of it." in text
    groups = {name: GroupRisk(n=195, errors=4, bound=0.03) for name in "ab"}
    assert "decoded like these; of the worst of 2 groups; counted" in said_of(bench, draft, certified(groups=groups))
    bare = OperatingPoint(name="default", policy=Policy())
    assert "Its policy is not certified, so nothing is guaranteed of it." in said_of(bench, draft, bare)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"serving": Serving(transition="\n\nSo")}, r"serving\.transition is .*, calibrated without"),
        ({"fingerprints": Fingerprints(draft="0" * 64, target=OURS)}, "draft is .*, calibrated with 000000000000"),
        ({"fingerprints": Fingerprints()}, "policy.json does not say with which draft, target it was calibrated"),
        ({"sampling": None}, "policy.json does not say at which temperature"),
        ({"point": {"policy": Policy(thresholds={"validity": 0.5})}}, "policy of point risk-0.05 is .* was .*"),
    ],
)
def test_a_certificate_that_no_server_would_stand_by_promises_nothing(
    bench: Path, write_random_draft: Callable[..., Path], changed: dict[str, Any], why: str
) -> None:
    """The report said "with probability at least" where `inspect`, the model card and every server said no."""
    draft = write_random_draft(bench / "draft", "draft")
    point = certified().model_copy(update=changed.get("point", {}))
    text = said_of(bench, draft, point, **{name: value for name, value in changed.items() if name != "point"})
    assert re.search(rf"The certificate of its policy does not hold here \({why}.*\), so nothing is guaranteed", text)
    assert "with probability at least" not in text


def test_what_is_promised_is_not_rounded(bench: Path, write_random_draft: Callable[..., Path]) -> None:
    """It was "at least 100 %" and "at most 1.2 %", which is more than is known."""
    draft = write_random_draft(bench / "draft", "draft")
    point = certified(epsilon=0.0125, delta=0.001, n=800, errors=1, bound=0.0115, answers="whole")
    text = said_of(bench, draft, point)
    assert "with probability at least 99.9 %, the answer changes in at most 1.25 % of problems like these" in text


@pytest.mark.parametrize("changed", ["weights", "policy", "computation", "boundaries"])
def test_a_certificate_of_today_is_not_ascribed_to_what_another_draft_measured(
    bench: Path, write_random_draft: Callable[..., Path], changed: str
) -> None:
    draft = write_random_draft(bench / "draft", "draft")
    results = read_results(bench / "results.json").model_copy(update={"inputs": draft_inputs(draft)})
    write_results(bench / "results.json", results)
    report(config(bench, draft=draft))
    page = (bench / "report.html").read_text()
    if changed == "policy":
        bolder = OperatingPoint(name="default", policy=Policy(thresholds={"validity": 0.5}))
        write_policy(draft, PolicyFile(points=(bolder,)))
    else:
        results = results.model_copy(update={"inputs": results.inputs | {f"draft.{changed}": "0" * 64}})
        write_results(bench / "results.json", results)
    told = rf"results\.json: measured with inputs\.draft\.{changed} \w+ \(now \w+\), expected .*draft as it was"
    with pytest.raises(ReportError, match=told):
        report(config(bench, draft=draft))
    assert (bench / "report.html").read_text() == page


def test_a_check_of_the_second_draft_has_a_policy_of_its_own(
    bench: Path, write_random_draft: Callable[..., Path]
) -> None:
    draft = write_random_draft(bench / "draft", "draft")
    theirs = {"draft_fc.weights": "c" * 64}
    results = read_results(bench / "results.json").model_copy(update={"inputs": draft_inputs(draft) | theirs})
    write_results(bench / "results.json", results)
    policy = Policy(thresholds={"validity": 0.3})
    check = ReplayCheck(n=1, same=1, share=1, method="specexit-fc", policy=policy, differences=(), inputs=theirs)
    given = config(bench, draft=draft, replay=bench / "replay.json")
    (bench / "replay.json").write_text(check.model_dump_json())
    report(given)
    assert "1 of 1 requests of specexit-fc exit where the replay does" in (bench / "report.html").read_text()
    (bench / "replay.json").write_text(check.model_copy(update={"method": "specexit"}).model_dump_json())
    with pytest.raises(ReportError, match=r"replay\.json: policy is not that of .*draft, expected a check of this"):
        report(given)


def test_what_was_replayed_for_another_draft_or_benchmark_is_no_part_of_the_page(bench: Path, trace: Trace) -> None:
    """And what is of other traces says so."""
    inputs = {"draft.weights": "a" * 64, "traces": data_sha256(bench / "traces.parquet")}
    results = read_results(bench / "results.json").model_copy(update={"inputs": inputs})
    write_results(bench / "results.json", results)
    found = everything(bench, trace)
    assert found.simulation
    simulation = Simulation.model_validate_json(found.simulation.read_text())
    check = ReplayCheck(n=1, same=1, share=1, method="specexit", policy=Policy(), differences=())
    parts = {
        "simulation": simulation,
        "ablations": Ablations(n=9, full_accuracy=1.0, ablations={}),
        "replay": check,
    }

    def write(name: str, **changes: str) -> ReportConfig:
        hashes = inputs | ({"requests": file_sha256(bench / "requests.jsonl")} if name == "replay" else {})
        part = parts[name].model_copy(update={"inputs": hashes | changes})
        (bench / f"{name}.json").write_text(part.model_dump_json())
        return config(bench, **{name: bench / f"{name}.json"})

    for name in parts:
        report(write(name))
        with pytest.raises(
            ReportError, match=rf"{name}\.json: made from inputs\.draft\.weights b+ \(now a+\), expected"
        ):
            report(write(name, **{"draft.weights": "b" * 64}))
    with pytest.raises(ReportError, match=r"ablations\.json: .*: make it anew, with scores of its draft first$"):
        report(write("ablations", **{"draft.weights": "b" * 64, "scores.fc": "c" * 64, "scores.draft": "d" * 64}))
    with pytest.raises(ReportError, match=r"replay\.json: made from inputs\.requests b+ \(now \w+\), expected"):
        report(write("replay", requests="b" * 64))
    of = {"shape": {"of": inputs | {"draft.weights": "b" * 64}}}
    write_results(bench / "full-size.json", results.model_copy(update=of))
    with pytest.raises(ReportError, match=r"full-size\.json: made from inputs\.draft\.weights b+ \(now a+\), expected"):
        report(config(bench, full_size=bench / "full-size.json"))
    with pytest.raises(ReportError, match=r"results\.json: has no shape, expected what bench-full-size writes"):
        report(config(bench, full_size=bench / "results.json"))  # whose numbers were nowhere on the page
    said = "are of another file of traces than the benchmark."
    assert said not in (bench / "report.html").read_text()
    report(write("simulation", traces="b" * 64))
    assert f"The curves {said}" in (bench / "report.html").read_text()


def test_curves_of_other_traces_than_the_responses_are_said_to_be(bench: Path, trace: Trace) -> None:
    found = everything(bench, trace)
    report(found)
    assert "They are of" not in (bench / "report.html").read_text()
    results = read_results(bench / "results.json")
    oracle = results.oracle.model_copy(update={"sampling": {"temperature": 0.0}})
    write_results(
        bench / "results.json", results.model_copy(update={"sampling": {"temperature": 0.6}, "oracle": oracle})
    )
    report(found)
    html = (bench / "report.html").read_text()
    assert "They are of 1 greedy traces of 1 prompts." in html
    assert "no-thinking cannot be replayed: a trace records answers behind step boundaries alone" in html


def test_scores_of_another_draft_are_no_part_of_the_page(bench: Path, trace: Trace) -> None:
    """Without draft= nothing was compared, and another draft's signals were drawn along the served exits."""
    inputs = {"draft.weights": "a" * 64, "draft.computation": "a" * 64}
    write_results(bench / "results.json", read_results(bench / "results.json").model_copy(update={"inputs": inputs}))
    signals = {"a": np.full((len(trace.think_ids), 4), 0.5, np.float32)}
    ours = Scores("draft", "a" * 64, signals, computation_sha256="a" * 64)
    for good in (ours, replace(ours, computation_sha256=None)):  # the second of an older version
        write_scores(bench / "scores.parquet", good)
        report(config(bench, scores=bench / "scores.parquet"))
    changed = {"weights": "draft_blake3", "computation": "computation_sha256"}
    for told, field in changed.items():
        write_scores(bench / "scores.parquet", replace(ours, **{field: "b" * 64}))
        with pytest.raises(
            ReportError, match=rf"scores\.parquet: made from inputs\.draft\.{told} b+ \(now a+\), expected what this"
        ):
            report(config(bench, scores=bench / "scores.parquet"))


def test_a_run_of_another_target_is_no_part_of_the_page(bench: Path) -> None:
    run = write_run(bench / "train", [{"step": 10, "token_loss": [3.0], "top1": [0.1], "signal_loss": {}}])
    report(config(bench, run=run))
    (run / "target.yaml").write_text("name: tiny-mixed\n")
    with pytest.raises(
        ReportError, match=r"train: trained a draft for 'tiny-mixed', but .*json is of 'tiny-reasoner': expected"
    ):
        report(config(bench, run=run))


@pytest.mark.parametrize(
    ("named", "said"),
    [
        (None, False),
        ("bench/train", False),
        ("../bench/train", False),
        ("./other/../train/", False),
        ("bench/other", True),
        ("../other", True),
        ("gs://pods/train", True),
    ],
)
def test_a_run_that_the_draft_does_not_name_is_remarked_on(
    bench: Path, write_random_draft: Callable[..., Path], named: str | None, said: bool
) -> None:
    """Its curves were the draft's, whatever run it was; a copy, or one that was moved, is no error."""
    draft = write_random_draft(bench / "draft", "draft")
    run = write_run(bench / "train", [{"step": 10, "token_loss": [3.0], "top1": [0.1], "signal_loss": {}}])
    (draft / "convert.json").write_text(json.dumps({"run": named}))
    report(config(bench, draft=draft, run=run))
    remark = f"The draft was made from the run {named}: nobody has checked that {run} is a copy of it."
    assert (remark in (bench / "report.html").read_text()) == said
