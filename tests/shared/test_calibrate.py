"""``specexit calibrate``: the sample must support the claim, the files belong together, and what is stored says so."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as property_settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats as scipy_stats

from specexit import tiny
from specexit.bench.methods.budget import calibrate_budget
from specexit.cli import run
from specexit.data.outlines import outlines
from specexit.data.overlap import OverlapError, write_prompts
from specexit.data.scores import ScoreError, Scores, check_scores_of, open_scores, read_scores, write_scores
from specexit.data.traces import WEIGHTS, TraceError, data_sha256, read_traces, write_traces
from specexit.drafts.certified import doubts_of
from specexit.drafts.computation import config_hashes
from specexit.drafts.directory import read_config
from specexit.drafts.fingerprints import target_fingerprint
from specexit.drafts.policy import Selection, read_policy, write_policy
from specexit.drafts.tensors import weights_hash
from specexit.errors import InputError
from specexit.method.calibrate import calibrate
from specexit.method.certify import CertificateError
from specexit.method.decision import MOST_TOKENS, OFF
from specexit.schemas.calibrate import CalibrateConfig
from specexit.schemas.target import load_target_config, save_target
from tests.shared.calibration import refused

N = 400


def test_the_boldest_certified_threshold_is_written_with_its_guarantee(setting, capsys):
    """All agree down to 0.6; below that none does. Few errors are allowed, so the choice is just under 0.6."""
    validity = np.linspace(0.999, 0.2, N)
    paths = setting(validity, validity > 0.6)
    point = calibrate(CalibrateConfig(**paths)).point()

    tau, certificate = point.policy.thresholds["validity"], point.certificate
    errors = int(((validity >= tau) & (validity <= 0.6)).sum())
    assert certificate.errors == errors
    assert scipy_stats.binom.cdf(errors, N, 0.02) <= 0.1
    bolder = int(((validity >= tau - 0.005) & (validity <= 0.6)).sum())
    assert scipy_stats.binom.cdf(bolder, N, 0.02) > 0.1
    assert errors / N < certificate.bound <= 0.02

    # Half of it, eight tokens before; these boundaries are too near to the beginning for that.
    assert point.policy.early == {"validity": round(tau / 2, 6)}
    assert read_policy(paths["draft"]).point() == point
    assert certificate.data_sha256 == data_sha256(paths["traces"])
    assert (certificate.n, certificate.samples, certificate.n_unjudged) == (N, N, 0)
    assert certificate.thinking_cut == pytest.approx((validity >= tau).mean() * 0.6)
    assert certificate.exits == pytest.approx((validity >= tau).mean())
    said = " ".join(capsys.readouterr().out.split())
    assert f"validity >= {tau:g}" in said
    assert "with confidence 90% the risk of trial answers is at most 2%. Thinking cut" in said  # and not the bound


def test_where_nothing_can_be_certified_exits_are_switched_off_and_it_says_so(setting, capsys):
    paths = setting(np.full(N, 0.995), np.arange(N) % 2 == 0)
    point = calibrate(CalibrateConfig(**paths)).point()
    assert (point.policy, point.certificate) == (OFF, None)
    assert read_config(paths["draft"]).specexit.policy == OFF
    text = " ".join(capsys.readouterr().out.split())
    assert "exits are switched off. The first 60.0% of cut would break the risk that was observed" in text


def test_a_policy_that_never_exits_is_not_certified(setting, capsys):
    """Nothing reaches the boldest threshold of the grid: no error, and nothing to certify."""
    paths = setting(np.full(N, 0.01), [True] * N)
    point = calibrate(CalibrateConfig(**paths)).point()
    assert (point.policy, point.certificate) == (OFF, None)
    assert "no threshold that shortens a trace" in capsys.readouterr().out


def test_an_exit_at_the_very_end_shortens_nothing_and_is_not_certified(setting):
    paths = setting(np.full(N, 0.01), [False] * N, boundaries=[4, 7, 10])
    scores = {str(i): np.full((10, 4), 0.01, np.float32) for i in range(N)}
    for values in scores.values():
        values[9, 3] = 0.99  # behind the last token
    write_scores(paths["scores"], Scores("draft", weights_hash(paths["draft"]), scores))
    assert calibrate(CalibrateConfig(**paths)).point().certificate is None


@pytest.mark.parametrize(
    ("field", "able", "unable", "reason"),
    [
        ("finish_reason", "stop", "length", "128 unfinished"),
        ("answer", "7", None, "128 without an answer"),
    ],
)
def test_traces_that_cannot_judge_are_no_successes(setting, field, able, unable, reason):
    """128 of 130: on the code before, a risk of at most 1.76 % was certified from the two others."""
    paths = setting(np.full(130, 0.995), [True] * 130, **{field: lambda i: able if i < 2 else unable})
    refused(paths, rf"2 calibration prompts that can judge \({reason}\) cannot support risk 0\.02 .* at least 114")
    point = calibrate(CalibrateConfig(**paths, unjudged="error")).point()
    assert (point.policy, point.certificate) == (OFF, None)


@pytest.mark.parametrize("risk", ["answer_changed", "accuracy_lost"])
@pytest.mark.parametrize("cut_off", [None, "7"])
def test_an_exit_at_an_undecided_trial_is_an_error_and_its_trace_counts(setting, risk, cut_off):
    """Left out, such traces would hide the prompts on which an early end goes wrong. A trial that was cut off says
    nothing, though it had written the right answer: "7 and", perhaps."""
    undecided = {
        "boundary_state": lambda i: ["undecided" if i < 20 else "agrees", "agrees", "agrees"],
        "boundary_answers": lambda i: [cut_off if i < 20 else "7", "7", "7"],
    }
    validity = np.where(np.arange(N) < 20, 0.6, 0.995)
    paths = setting(validity, np.arange(N) >= 20, **undecided)
    point = calibrate(CalibrateConfig(**paths, risk=risk)).point()
    assert point.policy.thresholds["validity"] > 0.6
    assert (point.certificate.n, point.certificate.errors, point.certificate.n_unjudged) == (N, 0, 0)


def test_a_few_traces_that_cannot_judge_are_left_out_or_counted_as_errors(setting, capsys):
    lost = {"finish_reason": lambda i: "length" if i < 3 else "stop"}
    paths = setting(np.full(N, 0.995), [True] * N, **lost)
    left_out = calibrate(CalibrateConfig(**paths)).point().certificate
    assert (left_out.n, left_out.errors, left_out.n_unjudged, left_out.unjudged) == (N - 3, 0, 3, "refuse")
    assert "3 traces cannot judge, left out: 3 unfinished" in capsys.readouterr().out
    counted = calibrate(CalibrateConfig(**paths, unjudged="error")).point().certificate
    assert (counted.n, counted.errors, counted.n_unjudged, counted.unjudged) == (N, 3, 3, "error")


def test_one_prompt_many_times_is_one_prompt(setting):
    paths = setting(np.full(N, 0.995), [True] * N, prompt_ids=[1, 2, 3])
    refused(paths, "1 calibration prompts that can judge cannot support")


def test_samples_of_a_prompt_count_as_shares_of_it(setting):
    """Each prompt four times, a quarter of whose traces err: four such prompts are one error."""
    paths = setting(
        np.full(4 * N, 0.995),
        [i % 4 != 0 or i >= 16 for i in range(4 * N)],
        id=lambda i: f"p{i // 4}",
        sample=lambda i: i % 4,
        prompt_ids=lambda i: [1, i // 4],
        sampling='{"temperature": 0.6, "max_tokens": 100}',
    )
    stored = calibrate(CalibrateConfig(**paths))
    certificate = stored.point().certificate
    assert (certificate.n, certificate.samples, certificate.errors) == (N, 4 * N, 1)
    assert certificate.bound > 1 - 0.1 ** (1 / N)  # more than of no error at all
    assert stored.sampling == {"temperature": 0.6, "max_tokens": 100}
    assert (stored.population.prompts, stored.population.traces) == (N, 4 * N)


def test_a_longest_response_of_null_is_no_limit(setting):
    """Traces of other programs say so; the longest of null and 100 was a TypeError."""
    said = {"sampling": lambda i: json.dumps({"max_tokens": None if i % 2 else 100})}
    paths = setting(np.full(N, 0.995), [True] * N, **said)
    assert calibrate(CalibrateConfig(**paths)).sampling == {"max_tokens": None}


def test_a_longest_response_that_is_no_number_is_refused(setting):
    paths = setting(np.full(N, 0.995), [True] * N, sampling='{"max_tokens": "100"}')
    refused(paths, r"sampling: max_tokens is '100', expected a number, or null for no limit")


@pytest.mark.parametrize("key", ["patience", "min_thinking_tokens"])
def test_what_no_policy_may_say_is_refused_before_anything_is_read(key, tmp_path):
    given = {"draft": tmp_path, "traces": tmp_path, "scores": tmp_path, key: 2 * MOST_TOKENS}
    with pytest.raises(ValidationError, match=f"{key}\n  Input should be less than or equal to {MOST_TOKENS}"):
        CalibrateConfig(**given)


def test_a_trace_that_stands_there_twice_is_refused(setting):
    paths = setting(np.full(N, 0.9), [True] * N, id=lambda i: str(i % 399))
    with pytest.raises(TraceError, match=r"traces\.parquet: trace '0', sample 0, is there twice"):
        calibrate(CalibrateConfig(**paths))
    assert not (paths["draft"] / "policy.json").exists()


def test_the_worst_group_is_controlled(setting):
    """All errors are in one group of four, 3 % of it: fine on average, not fine there."""
    errs = {i for i in range(0, 4 * N, 4) if i < 48}
    agrees = [i not in errs for i in range(4 * N)]
    paths = setting(np.full(4 * N, 0.995), agrees, task=lambda i: f"task {i % 4}")
    together = calibrate(CalibrateConfig(**paths)).point().certificate
    assert (together.errors, together.groups) == (12, {})
    assert calibrate(CalibrateConfig(**paths, groups=True)).point().certificate is None
    wider = calibrate(CalibrateConfig(**paths, groups=True, epsilon=0.05)).point().certificate
    assert {name: (group.n, group.errors) for name, group in wider.groups.items()} == {
        "task 0": (N, 12),
        "task 1": (N, 0),
        "task 2": (N, 0),
        "task 3": (N, 0),
    }
    assert wider.bound == pytest.approx(scipy_stats.beta.ppf(0.9, 13, N - 12))
    assert read_policy(paths["draft"]).population.groups == {f"task {i}": N for i in range(4)}


def test_a_small_group_is_refused_by_name_and_so_is_a_trace_of_no_group(setting):
    paths = setting(np.full(N, 0.9), [True] * N, group=lambda i: "rare" if i < 30 else "common")
    refused(paths, "group 'rare': 30 calibration prompts that can judge cannot support .* at least 114", groups=True)
    assert calibrate(CalibrateConfig(**paths)).point().certificate is not None


def test_a_group_none_of_whose_traces_can_judge_is_refused_by_name(setting):
    """Left out with its traces it would pass for certified with the others; counted as errors they bar every policy,
    and nothing said that it was this group."""
    able = {
        "group": lambda i: "rare" if i < 30 else "common",
        "finish_reason": lambda i: "length" if i < 30 else "stop",
    }
    paths = setting(np.full(N, 0.995), [True] * N, **able)
    said = r"group 'rare': none of its 30 traces can judge \(30 unfinished\), expected some"
    refused(paths, said, groups=True)
    refused(paths, said, groups=True, unjudged="error")
    assert calibrate(CalibrateConfig(**paths)).point().certificate is not None


def test_a_prompt_of_two_groups_cannot_be_grouped(setting):
    """It would count in whichever of the two."""
    two = {"prompt_ids": lambda i: [1, i // 2], "sample": lambda i: i % 2, "group": lambda i: "ab"[i % 2]}
    paths = setting(np.full(N, 0.995), [True] * N, **two)
    refused(paths, r"trace '\d+' is of group '[ab]', but its prompt was of '[ab]'", groups=True)
    assert calibrate(CalibrateConfig(**paths)).point().certificate is not None


def test_traces_without_groups_cannot_be_grouped(setting):
    refused(setting(np.full(N, 0.9), [True] * N), "trace '0' is of no group and of no task", groups=True)


def test_several_risks_make_several_operating_points(setting, capsys):
    validity = np.linspace(0.999, 0.2, N)
    paths = setting(validity, validity > 0.6)
    run("calibrate", [f"{name}={path}" for name, path in paths.items()] + ["epsilon=[0.02, 0.01, 0.05]"])
    stored = read_policy(paths["draft"])
    assert [point.name for point in stored.points] == ["risk-0.02", "risk-0.01", "risk-0.05"]
    assert stored.default == "risk-0.02"
    by_risk = sorted(stored.points, key=lambda point: point.certificate.epsilon)
    cuts = [point.certificate.thinking_cut for point in by_risk]
    assert cuts == sorted(cuts)
    assert all(point.certificate.bound <= point.certificate.epsilon for point in stored.points)
    assert " ".join(capsys.readouterr().out.split()).count("Thinking cut") == 3


def test_too_few_prompts_are_refused_with_the_number_needed_before_anything_is_replayed(setting, monkeypatch):
    paths = setting(np.full(113, 0.9), [True] * 113)
    monkeypatch.setattr("specexit.method.calibrate.replays", lambda *_: pytest.fail("hours are spent"))
    refused(paths, r"113 calibration prompts that can judge cannot support risk 0\.02 .* at least 114")
    refused(paths, r"cannot support risk 0\.01 .* at least 230", epsilon=[0.05, 0.01])


def test_the_next_point_of_cut_has_its_price(setting, capsys):
    """Half of the traces wait just below the threshold at which 1 % of all err: too many for 400 prompts at 2 %."""
    validity = np.where(np.arange(N) % 2, 0.9, 0.5)
    agrees = [not (i % 2 == 0 and i < 16) for i in range(N)]  # 8 of 400 at 0.5
    calibrate(CalibrateConfig(**setting(validity, agrees), epsilon=0.03))
    text = " ".join(capsys.readouterr().out.split())
    assert "30.0% more would take about" in text
    n = int(text.split("would take about ")[1].split()[0])
    assert scipy_stats.binom.cdf(round(0.02 * n), n, 0.03) <= 0.1
    assert scipy_stats.binom.cdf(round(0.02 * n * 0.7), round(n * 0.7), 0.03) > 0.1


def test_where_nothing_is_certified_the_first_cut_has_its_price(setting, capsys):
    """As many prompts as it takes without an error, and one of them errs."""
    assert calibrate(CalibrateConfig(**setting(np.full(114, 0.995), np.arange(114) > 0))).point().certificate is None
    text = " ".join(capsys.readouterr().out.split())
    assert "exits are switched off. The first 60.0% of cut would take about" in text
    n = int(text.split("would take about ")[1].split()[0])
    assert scipy_stats.binom.cdf(round(n / 114), n, 0.02) <= 0.1
    assert scipy_stats.binom.cdf(round(0.7 * n / 114), round(0.7 * n), 0.02) > 0.1


def test_a_policy_beyond_the_risk_has_no_price(setting, capsys):
    validity = np.where(np.arange(N) % 2, 0.9, 0.5)
    calibrate(CalibrateConfig(**setting(validity, np.arange(N) % 2 == 1)))
    assert "would break the risk" in " ".join(capsys.readouterr().out.split())


def test_accuracy_lost_counts_only_right_answers_that_turn_wrong(setting):
    paths = setting(np.full(N, 0.995), [False] * N, reference="8", correct=False)
    assert calibrate(CalibrateConfig(**paths)).point().certificate is None
    point = calibrate(CalibrateConfig(**paths, risk="accuracy_lost")).point()
    assert point.certificate.errors == 0  # every answer changes, from wrong to right
    assert point.policy.thresholds == {"validity": 0.05}


def test_accuracy_lost_without_references_is_refused(setting):
    paths = setting(np.full(N, 0.9), [True] * N, reference=None, correct=None)
    refused(paths, "400 traces have no reference answer, use risk answer_changed", risk="accuracy_lost")


def test_scores_of_another_draft_are_refused(setting, tmp_path, write_random_draft):
    paths = setting(np.full(N, 0.9), [True] * N)
    other = write_random_draft(tmp_path / "other", "draft", seed=1)
    refused(paths | {"draft": other}, r"scores\.parquet: scores come from a draft with hash .* score the", ScoreError)


def test_scores_of_another_source_are_refused(setting):
    refused(
        setting(np.full(N, 0.9), [True] * N, source="fc"),
        r"scores of source 'fc', but .* has source 'draft'",
        ScoreError,
    )


def test_scores_made_with_other_weights_of_the_target_are_refused(setting):
    paths = setting(np.full(N, 0.9), [True] * N)
    good = read_scores(paths["scores"])
    write_scores(paths["scores"], replace(good, target_sha256="0" * 64))
    refused(
        paths, r"scores\.parquet: target_sha256 is 0{12}\.\.\., but the weights of target 'tiny-reasoner' in .* have"
    )
    write_scores(paths["scores"], replace(good, target_sha256=target_fingerprint(tiny.MODEL_DIR)))
    assert calibrate(CalibrateConfig(**paths)).point().certificate is not None


def test_traces_that_other_weights_wrote_are_refused(setting, tmp_path):
    """Weights were replaced where they lie, and the traces scored anew, as was asked for: the text and the answers of
    those before were certified for these."""
    paths, now = setting(np.full(N, 0.9), [True] * N), target_fingerprint(tiny.MODEL_DIR)
    write_scores(paths["scores"], replace(read_scores(paths["scores"]), target_sha256=now))
    traces = read_traces(paths["traces"])
    write_traces(paths["traces"], traces, said={WEIGHTS: "0" * 64})
    refused(
        paths, r"by weights with the fingerprint 0{12}\.\.\., but those of .*: collect again with these", TraceError
    )
    save_target(tmp_path, load_target_config("tiny-reasoner").model_copy(update={"path": str(tmp_path / "gone")}))
    moved = {"target": str(tmp_path / "target.yaml")}
    refused(paths, r"target_sha256 is .* 'tiny-reasoner' that wrote the traces have 0{12}\.", CertificateError, **moved)
    write_traces(paths["traces"], traces, said={WEIGHTS: now})
    for known in (moved, {"target": "tiny-reasoner"}):
        stored = calibrate(CalibrateConfig(**paths, **known))
        assert (stored.fingerprints.target, stored.point().certificate is None) == (now, False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling": lambda i: f'{{"temperature": {0.6 * (i == 9)}}}'}, "traces of sampling .* are mixed"),
        ({"sampling": lambda i: '{"temperature": "0.6"}'}, "sampling: temperature is '0.6', expected a finite number"),
        ({"trial": lambda i: f'{{"text": "{i % 2}"}}'}, "answers of kind math were tried as .* expected one way"),
        ({"target": lambda i: "a" if i else "tiny-reasoner"}, r"traces\.parquet: traces of several targets"),
        ({"target": "qwen3-4b-thinking-2507"}, "traces of target 'qwen3-4b-thinking-2507', but .* 'tiny-reasoner'"),
    ],
)
def test_what_does_not_belong_together_is_refused(setting, changes, message):
    paths = setting(np.full(N, 0.9), [True] * N, **changes)
    with pytest.raises(ValueError, match=message):
        calibrate(CalibrateConfig(**paths))
    assert not (paths["draft"] / "policy.json").exists()


NOWHERE = {
    "boundaries": [],
    "boundary_answers": [],
    "boundary_agrees": [],
    "boundary_state": [],
    "boundary_confidence": [],
}
FLAWS = {
    "unfinished": lambda traces: [replace(trace, finish_reason="length") for trace in traces[20:]] + traces[:20],
    "no answers": lambda traces: [replace(trace, answer=None, correct=False) for trace in traces],
    "no boundaries": lambda traces: [replace(trace, **NOWHERE) for trace in traces[9:]] + traces[:9],
    "a copy": lambda traces: [*traces, traces[0]],
    "one prompt": lambda traces: [replace(trace, prompt_ids=[1, 2]) for trace in traces],
    "few prompts": lambda traces: [replace(trace, prompt_ids=[1, i % 50]) for i, trace in enumerate(traces)],
    "two groups": lambda traces: [
        traces[0],
        replace(traces[1], prompt_ids=traces[0].prompt_ids, group="b"),
        *traces[2:],
    ],
    "two samplings": lambda traces: [replace(traces[0], sampling='{"temperature": 1}'), *traces[1:]],
}
FALSE_SCORES = {
    "of another draft": lambda scores: replace(scores, draft_blake3="0" * 64),
    "of another source": lambda scores: replace(scores, source="fc"),
    "of other traces": lambda scores: replace(scores, signals={f"x{key}": row for key, row in scores.signals.items()}),
}


def test_whatever_is_wrong_with_the_files_nothing_is_certified(setting):
    """Traces and scores that would carry a certificate, spoilt in any number of ways at once."""
    paths = setting(np.full(150, 0.995), [True] * 150, group="all")
    good_traces, good_scores = read_traces(paths["traces"]), read_scores(paths["scores"])
    written, config = (paths["draft"] / name for name in ("policy.json", "config.json"))
    before = config.read_bytes()

    @property_settings(max_examples=15)
    @given(st.sets(st.sampled_from(sorted(FLAWS))), st.sets(st.sampled_from(sorted(FALSE_SCORES)), max_size=1))
    def check(flaws, false):
        traces, scores = good_traces, good_scores
        for flaw in flaws:
            traces = FLAWS[flaw](traces)
        for flaw in false:
            scores = FALSE_SCORES[flaw](scores)
        write_traces(paths["traces"], traces)
        write_scores(paths["scores"], scores)
        written.unlink(missing_ok=True)
        config.write_bytes(before)  # with a policy, which goes into the other file with the first certificate
        if flaws or false:
            with pytest.raises(InputError):
                calibrate(CalibrateConfig(**paths, groups=True))
        else:
            assert calibrate(CalibrateConfig(**paths, groups=True)).point().certificate is not None
        assert written.exists() == (not flaws and not false)

    check()


def test_prompts_that_the_draft_was_trained_on_are_refused(setting):
    paths = setting(np.full(N, 0.9), [True] * N)
    write_prompts(paths["draft"], [*outlines(read_traces(paths["traces"])[:3]).prompts()])
    refused(paths, r"3 of 400 prompts were trained on .*draft/prompts\.npy", OverlapError)


def test_a_draft_that_does_not_list_its_prompts_is_remarked_on(setting, capsys):
    """Copied without its list, it was certified on the prompts that it was trained on, without a word."""
    paths = setting(np.full(N, 0.9), [True] * N)
    remark = "does not list what it was trained on (no prompts.npy): nobody can tell"
    write_prompts(paths["draft"], [1])
    calibrate(CalibrateConfig(**paths))
    assert remark not in " ".join(capsys.readouterr().out.split())
    (paths["draft"] / "prompts.npy").unlink()
    calibrate(CalibrateConfig(**paths))
    assert remark in " ".join(capsys.readouterr().out.split())


def test_prompts_that_chose_the_checkpoint_are_refused(setting, make_trace):
    paths = setting(np.full(N, 0.9), [True] * N)
    chosen = tuple(make_trace(prompt_ids=[1, i]).prompt_hash[:16] for i in (7, 8, 5000))
    selection = Selection(by="auroc", prompts=chosen)
    write_policy(paths["draft"], read_policy(paths["draft"]).model_copy(update={"selection": selection}))
    refused(paths, r"2 of 400 prompts chose the checkpoint .* \(by auroc\)", OverlapError)


def test_what_the_certificate_is_for_is_stored(setting):
    paths = setting(np.full(N, 0.9), [True] * N, sampling='{"temperature": 0.0, "max_new_tokens": 768}')
    stored = calibrate(CalibrateConfig(**paths, target="tiny-reasoner"))
    assert read_policy(paths["draft"]).point().uncertified_because() is None
    prints = stored.fingerprints
    assert prints.draft == weights_hash(paths["draft"])
    assert (prints.dtype, prints.quantization, prints.kv_cache_dtype) == ("float32", "none", "auto")
    assert len(prints.target) == len(prints.tokenizer) == 64
    assert stored.sampling == {"temperature": 0.0, "max_new_tokens": 768}
    assert stored.population.model_dump() == {
        "prompts": N,
        "traces": N,
        "groups": {},
        "answer_kinds": ("math",),
        "references": N,
    }
    assert stored.traffic.thinking_tokens == (10,) * 7
    assert stored.traffic.split_shares == pytest.approx({"23": 1 / 3, "26": 1 / 3, "29": 1 / 3}, abs=1e-5)
    assert [event.data_sha256 for event in stored.history] == [data_sha256(paths["traces"])]
    assert len(calibrate(CalibrateConfig(**paths)).history) == 2


def test_a_config_that_was_edited_since_voids_scores_and_certificates(setting):
    """`verify` says which theta or layers look right: scores of before, of another computation, stayed in force."""
    paths = setting(np.full(N, 0.9), [True] * N, sampling='{"temperature": 0.0}')
    computation = config_hashes(read_config(paths["draft"]))["computation"]
    write_scores(paths["scores"], replace(read_scores(paths["scores"]), computation_sha256=computation))
    policy, file = calibrate(CalibrateConfig(**paths)), paths["draft"] / "config.json"
    assert read_scores(paths["scores"]).computation_sha256 == computation
    said, older = json.loads(file.read_text()), dict.fromkeys(config_hashes(read_config(paths["draft"])))
    older = policy.model_copy(update={"fingerprints": policy.fingerprints.model_copy(update=older)})
    block = said["specexit"] | {"split_endings": ["\n"]}
    for changes, what in (
        ({}, None),
        ({"max_position_embeddings": 65_536}, None),
        ({"specexit": block}, "other boundaries"),
        ({"rope_theta": 1e6}, "another computation"),
    ):
        file.write_text(json.dumps(said | changes))
        doubt = f"config.json of the draft was changed since it was calibrated, and says {what}"
        assert doubts_of(paths["draft"], policy) == ([] if what is None else [doubt])
        assert doubts_of(paths["draft"], older) == []  # which does not say what it was calibrated with
        if what != "another computation":
            check_scores_of(paths["draft"], open_scores(paths["scores"]), paths["scores"])
    refused(paths, r"parquet: .*draft/config\.json was changed since they .*: score the traces again", ScoreError)


def test_where_the_target_is_not_there_it_is_said_what_the_certificate_does_not_name(setting, tmp_path, capsys):
    paths = setting(np.full(N, 0.9), [True] * N)
    calibrate(CalibrateConfig(**paths, target="tiny-reasoner"))
    assert "not known" not in capsys.readouterr().out
    write_scores(paths["scores"], replace(read_scores(paths["scores"]), target_sha256="e" * 64))
    gone = load_target_config("tiny-reasoner").model_copy(update={"path": str(tmp_path / "gone")})
    save_target(tmp_path, gone)
    prints = calibrate(CalibrateConfig(**paths, target=str(tmp_path / "target.yaml"))).fingerprints
    assert (prints.target, prints.tokenizer, prints.quantization) == (
        "e" * 64,
        None,
        None,
    )
    assert "tokenizer, quantization: not known" in capsys.readouterr().out


def test_the_policys_other_settings_are_kept(setting, tmp_path, write_random_draft):
    paths = setting(np.full(N, 0.9), [True] * N) | {"draft": write_random_draft(tmp_path / "fc", "fc")}
    changes = {"patience": 2, "min_thinking_tokens": 3, "smoothing": "ewma", "alpha": 0.5}
    scores = {str(i): np.full((10, 4), 0.9, np.float32) for i in range(N)}
    write_scores(paths["scores"], Scores("fc", weights_hash(paths["draft"]), scores))
    policy = calibrate(CalibrateConfig(**paths, **changes)).point().policy
    assert policy.model_dump(include=set(changes)) == changes


def test_a_smoothing_that_no_server_runs_is_refused_before_anything_is_read(setting):
    """It was certified, and then no server started with the draft."""
    paths = setting(np.full(N, 0.9), [True] * N)
    paths["traces"].write_bytes(b"")
    said = r"smoothing is 'ewma', expected none: .*/draft has source 'draft', and no server starts"
    refused(paths, said, CertificateError, smoothing="ewma")


def test_everything_but_the_policy_stays_as_it_was(setting):
    paths = setting(np.full(N, 0.9), [True] * N)
    before = json.loads((paths["draft"] / "config.json").read_text())
    weights = (paths["draft"] / "model.safetensors").read_bytes()
    calibrate(CalibrateConfig(**paths))
    after = json.loads((paths["draft"] / "config.json").read_text())
    for name in ("policy", "calibration", "serving"):  # in policy.json now
        before["specexit"].pop(name, None)
    assert after == before
    assert (paths["draft"] / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize("epsilon", [0, 1, [0.02, 0.02], [0.02, 0.02000001], [], -0.5])
def test_a_risk_that_is_none_is_refused_by_its_key(capsys, epsilon):
    with pytest.raises(SystemExit):
        run("calibrate", ["draft=a", "traces=b", "scores=c", f"epsilon={json.dumps(epsilon)}"])
    assert "epsilon is" in capsys.readouterr().err


def test_the_smallest_budget_within_the_tolerance(make_trace):
    """Boundaries behind 4, 7 and 10 of ten tokens; one trace in ten is not right before 7."""
    traces = [
        make_trace(id=str(i), boundary_answers=["7" if i else "8", "7", "7"], boundary_agrees=[bool(i), True, True])
        for i in range(10)
    ]
    assert calibrate_budget(traces, 0.1) == 0
    assert calibrate_budget(traces, 0.05) == 5  # more than 4, so that the exit is at the boundary behind 7
    told = [traces[i > 10] if i >= 10 else make_trace(id=str(i), reference="8", correct=False) for i in range(100)]
    assert calibrate_budget(told, 0.01) == 0  # 0.9 - 0.89 is more than 0.01, in floating-point numbers
