"""Exit methods on recorded traces: each against what its words say, probes paid, and one of a stranger's own."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specexit.bench.methods import NAMES
from specexit.cli import run
from specexit.data.rows import infer_agrees
from specexit.data.scores import Scores, key_of, write_scores
from specexit.data.traces import read_traces, write_traces
from specexit.method.decision import EARLY_TOKENS
from specexit.method.policies import METHODS, MethodError, load_methods
from specexit.method.policies.certaindex import certainty
from specexit.method.replay import Replay
from specexit.method.simulate import Simulation, best_within, remarks, simulate
from specexit.schemas.simulate import SimulateConfig

CONFIG = SimulateConfig.model_construct(smoothing="none", alpha=0.1, round_tokens=3)


@st.composite
def trials(draw):
    """(answers, confidences, states) behind up to eight boundaries."""
    n = draw(st.integers(0, 8))
    answers = draw(st.lists(st.sampled_from(["7", "8", None]), min_size=n, max_size=n))
    sure = draw(st.lists(st.sampled_from([0.3, 0.85, 0.96, 1.0]), min_size=n, max_size=n))
    tried = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    return answers, sure, tried


@pytest.fixture(scope="module")
def trace_of(make_trace):
    def make(answers, sure, tried, **changes):
        n = len(answers)
        states = [
            "untried" if not t else "agrees" if a == "7" else "differs" for a, t in zip(answers, tried, strict=True)
        ]
        fields = {
            "think_ids": list(range(10 * n + 3)),
            "boundaries": [10 * (i + 1) for i in range(n)],
            "boundary_answers": answers,
            "boundary_agrees": [a == "7" for a in answers],
            "boundary_confidence": sure,
            "boundary_state": states,
            "boundary_trial_tokens": [5 if t else 0 for t in tried],
        }
        return make_trace(**fields | changes)

    return make


def played(method, traces):
    return {one.setting: one for one in METHODS[method].play(Replay(traces), CONFIG)}


def check(found, trace, index, asked):
    """The exit is at this boundary (None: the end), and so many trials were paid."""
    kept = len(trace.think_ids) if index is None else trace.boundaries[index]
    assert found.outcome.kept.tolist() == [kept]
    assert found.probe_tokens.tolist() == [6 * asked]  # five tokens and the end marker
    assert found.outcome.changed.tolist() == [index is not None and not trace.boundary_agrees[index]]


@settings(deadline=None, max_examples=60)
@given(trials(), st.integers(1, 4))
def test_stability_exits_once_the_last_m_trials_say_the_same(trace_of, given_trials, m):
    answers, sure, tried = given_trials
    trace, heard, exit_at = trace_of(answers, sure, tried), [], None
    for i, answer in enumerate(answers):
        if tried[i] and exit_at is None:
            heard.append(answer)
            if len(heard) >= m and None not in heard[-m:] and len(set(heard[-m:])) == 1:
                exit_at = i
    check(played("stability", [trace])[f"{m} the same"], trace, exit_at, len(heard))


@settings(deadline=None, max_examples=60)
@given(trials())
def test_deer_exits_at_the_first_confident_trial(trace_of, given_trials):
    answers, sure, tried = given_trials
    trace = trace_of(answers, sure, tried)
    hits = [i for i in range(len(answers)) if tried[i] and answers[i] is not None and sure[i] >= 0.95]
    asked = sum(tried[: hits[0] + 1] if hits else tried)
    check(played("deer", [trace])["trial confidence >= 0.95"], trace, hits[0] if hits else None, asked)


def test_certaindex_asks_at_its_distance_and_exits_where_answers_are_settled(trace_of):
    answers = ["8", "7", "8", "8", "7", "7", "7", "7"]
    trace = trace_of(answers, [1.0] * 8, [True] * 8)
    found = played("certaindex", [trace])
    check(found["last 3 answers, every 0 tokens, certainty >= 1"], trace, 6, 7)
    # Every 32 tokens is behind 40 and 80: the fourth and the eighth boundary, which say different things.
    check(found["last 2 answers, every 32 tokens, certainty >= 1"], trace, None, 2)
    check(found["last 3 answers, every 0 tokens, certainty >= 0.5"], trace, 6, 7)


@given(st.lists(st.sampled_from(["7", "8", "9"]), min_size=3, max_size=3))
def test_certainty_is_one_less_the_normalised_entropy(answers):
    shares = np.array([answers.count(a) / 3 for a in set(answers)])
    assert certainty(answers, 3) == pytest.approx(1 + (shares * np.log(shares)).sum() / np.log(3))


def test_a_trial_that_was_cut_off_is_paid_and_says_nothing(trace_of):
    states = {"boundary_state": ["undecided", "agrees", "agrees"], "boundary_agrees": [False, True, True]}
    trace = trace_of(["7", "7", "7"], [1.0] * 3, [True] * 3, **states)
    check(played("deer", [trace])["trial confidence >= 0.95"], trace, 1, 2)
    check(played("stability", [trace])["2 the same"], trace, 2, 3)


def test_a_trial_of_unknown_length_costs_as_much_as_the_answer(trace_of):
    trace = trace_of(["7"], [1.0], [True], boundary_trial_tokens=[0], answer_ids=[1, 2, 3, 4])
    assert played("stability", [trace])["1 the same"].probe_tokens.tolist() == [5]


def test_budget_boundary_and_validity_are_plain_policies(trace_of):
    trace = trace_of(["8", "7", "7"], [1.0] * 3, [True] * 3)
    assert played("budget", [trace])["11 tokens"].outcome.kept.tolist() == [20]
    assert played("boundary", [trace])["k = 2"].outcome.kept.tolist() == [20]
    assert played("boundary", [trace])["k = 2"].probe_tokens is None
    for name in ("validity", "trio", "paper", "budget", "boundary"):
        for one in METHODS[name].play(Replay([trace]), CONFIG):
            assert one.policy is not None
            np.testing.assert_array_equal(one.outcome.kept, Replay([trace]).play(one.policy).kept)


@pytest.fixture
def files(tmp_path, trace_of):
    """Twelve prompts of two tasks with two samples each, and one trace that never finished."""
    traces, signals = [], {}
    for i in range(12):
        for sample in range(2):
            right_from = 1 if i % 2 else 2
            answers = ["8"] * right_from + ["7"] * (4 - right_from)
            fields = {"id": f"p{i}", "sample": sample, "prompt_ids": [i], "task": "sums" if i % 2 else "chains"}
            if i == 11 and sample:
                fields |= {"finish_reason": "length", "answer": None}
            traces.append(trace_of(answers, [0.5] * right_from + [1.0] * (4 - right_from), [True] * 4, **fields))
            values = np.full((43, 4), 0.01, np.float32)
            values[10 * (right_from + 1) - 1 - EARLY_TOKENS :, 3] = 0.99
            signals[key_of(traces[-1])] = values
    write_traces(tmp_path / "traces.parquet", traces)
    write_scores(tmp_path / "scores.parquet", Scores("draft", "0" * 64, signals))
    worse = {key: np.full_like(values, 0.01) for key, values in signals.items()}
    write_scores(tmp_path / "probe.parquet", Scores("fc", "0" * 64, worse))
    return tmp_path


def config_of(files, **more):
    paths = {"traces": files / "traces.parquet", "scores": files / "scores.parquet", "out": files / "out.json"}
    return SimulateConfig(**paths | more)


def test_curves_are_drawn_by_task_probes_are_paid_and_the_unfinished_is_left_out(files, capsys):
    found = simulate(config_of(files, probe_scores=files / "probe.parquet"))
    assert (found.n, found.prompts, found.left_out) == (23, 12, {"unfinished": 1})
    assert {name: (part.n, part.prompts) for name, part in found.tasks.items()} == {"chains": (12, 6), "sums": (11, 6)}
    best = best_within(found.curves["validity"], 1.0, 0)
    assert best.thinking_cut == found.oracle.thinking_cut == pytest.approx(1 - (12 * 30 + 11 * 20) / (23 * 43))
    stable = best_within(found.curves["deer"], 1.0, 0)
    assert stable.thinking_cut == pytest.approx(best.thinking_cut)
    assert stable.probe_share == pytest.approx(6 * (12 * 3 + 11 * 2) / (23 * 43))
    assert stable.net_cut == pytest.approx(best.thinking_cut - stable.probe_share)
    assert best_within(found.curves["probe"], 1.0, 0).thinking_cut == 0
    assert best_within(found.tasks["sums"].curves["validity"], 1.0, 0).thinking_cut == pytest.approx(1 - 20 / 43)
    assert set(found.named) == {"paper, round", "paper, ewma", "paper, none"}
    assert Simulation.model_validate(json.loads((files / "out.json").read_text())) == found
    printed = capsys.readouterr().out
    assert "sums: 11 traces of 6 prompts" in printed
    assert "left out, as they cannot judge: 1 unfinished" in printed


def test_how_many_right_answers_are_known_is_said(files, capsys):
    """The losses of 23 traces were those of three, without a word of it."""
    traces = [
        trace if i < 3 else dataclasses.replace(trace, reference=None, correct=None)
        for i, trace in enumerate(read_traces(files / "traces.parquet"))
    ]
    write_traces(files / "traces.parquet", traces)
    found = simulate(config_of(files))
    assert (found.unreferenced, found.tasks["sums"].unreferenced) == (20, 10)
    assert (found.full_accuracy, found.oracle.accuracy) == (1, 1)  # of the three
    said = "20 of 23 traces have no reference: accuracy and losses are of the other 3"
    assert said in remarks(found)
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(("source", "finds_the_oracle"), [("draft", True), ("fc", False)])
def test_the_other_scores_are_played_with_the_early_threshold_of_their_own_source(files, source, finds_the_oracle):
    """At the last boundary that is wrong validity is high, and was not eight tokens before."""
    signals = {}
    for trace in read_traces(files / "traces.parquet"):
        right = trace.boundaries[trace.boundary_agrees.index(True)]
        signals[key_of(trace)] = np.full((trace.n_think, 4), 0.01, np.float32)
        signals[key_of(trace)][[right - 11, *range(right - 1 - EARLY_TOKENS, trace.n_think)], 3] = 0.99
    write_scores(files / "probe.parquet", Scores(source, "0" * 64, signals))
    found = simulate(config_of(files, probe_scores=files / "probe.parquet"))
    right = {point.thinking_cut for point in found.curves["probe"] if point.agreement == 1}
    assert right == ({found.oracle.thinking_cut} if finds_the_oracle else set())


def test_the_other_scores_are_played_with_rounds_of_the_same_size(files):
    """With rounds of three tokens the average is there sooner than with five."""
    found = simulate(config_of(files, probe_scores=files / "scores.parquet", smoothing="round", round_tokens=5))
    assert found.curves["probe"] == found.curves["validity"]


def test_what_one_point_was_looked_for_in_makes_no_method_look_good(files, capsys):
    """``boundaries=stable`` goes back from the end to the exit: what asks at those trials alone is asked just there."""
    traces = read_traces(files / "traces.parquet")
    for i, trace in enumerate(traces):
        if trace.task == "sums":
            states = ["untried", *trace.boundary_state[1:]]
            fields = {"boundary_state": states, "boundary_agrees": infer_agrees(states)}
            traces[i] = dataclasses.replace(trace, **fields, trial=json.dumps({"boundaries": "stable"}))
    write_traces(files / "traces.parquet", traces)
    found, throughout = simulate(config_of(files)), {"validity", "trio", "budget", "boundary"}
    assert (found.one_point, found.unknown) == (11, ("stability", "deer", "certaindex"))
    assert found.curves.keys() == found.tasks["sums"].curves.keys() == throughout
    assert found.tasks["chains"].one_point == 0
    assert found.tasks["chains"].curves.keys() == throughout | set(found.unknown)
    assert Simulation.model_validate(json.loads((files / "out.json").read_text())) == found
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count("oracle, at least") == printed.count("at most") == 2
    assert "11 of 23 traces were not tried throughout (boundaries=stable or bisect)" in printed
    assert "stability, deer, certaindex not known: they ask all over the thinking" in printed


def test_where_boundaries_were_not_tried_it_says_that_methods_that_ask_pay_for_less(files, capsys):
    """Stability paid for half of its trials, and nothing said so."""
    traces = read_traces(files / "traces.parquet")
    states = [[*trace.boundary_state[:2], "untried", trace.boundary_state[3]] for trace in traces]
    fields = [{"boundary_state": each, "boundary_agrees": infer_agrees(each)} for each in states]
    few = [dataclasses.replace(trace, **fields[i]) if i < 5 else trace for i, trace in enumerate(traces)]
    write_traces(files / "traces.parquet", few)
    assert simulate(config_of(files)).untried == 5
    printed = " ".join(capsys.readouterr().out.split())
    assert "5 of 23 traces have boundaries that were not tried" in printed
    assert "ask and pay at the tried ones alone, so less than they would; collect with boundaries=all" in printed


STRANGER = """
import numpy as np
from specexit.method.policies import Method, Played

def play(replay, config):
    last = np.array([len(trace.boundaries) - 1 for trace in replay.traces])
    yield Played("the last boundary", replay.outcome_at(last), np.full(len(last), 3))

METHOD = Method("last", "exits at the last boundary, and thinks three tokens about it", play)
"""


def test_a_method_in_one_file_is_played_beside_the_others(files, capsys):
    (files / "last.py").write_text(STRANGER)
    paths = [f"{name}={files / name}.parquet" for name in ("traces", "scores")]
    run("simulate", [*paths, f"out={files / 'out.json'}", f"methods=[{files / 'last.py'}]"])
    written = json.loads((files / "out.json").read_text())
    assert written["methods"]["last"] == "exits at the last boundary, and thinks three tokens about it"
    (point,) = written["curves"]["last"]
    assert point["thinking_cut"] == pytest.approx(3 / 43)
    assert point["probe_share"] == pytest.approx(3 / 43)
    assert "\n  last " in capsys.readouterr().out


AT_LAST = 'yield Played("the last boundary", replay.outcome_at(last), np.full(len(last), 3))'
UNCHECKED = """
import sys

def made(setting="a", outcome=None, probe_tokens=None, policy=None):
    played = object.__new__(Played)  # as outside of the tests, which check types
    vars(played).update(setting=setting, outcome=outcome, probe_tokens=probe_tokens, policy=policy)
    return played
"""


@pytest.mark.parametrize(
    ("play", "message"),
    [
        ('raise ValueError("boom")', r"play fails in .*wrong\.py:7: ValueError\('boom'\)"),
        ("sys.exit(0)", r"play fails in .*wrong\.py:7: SystemExit\(0\)"),
        ("yield 3", "play gives 3, expected"),
        ("yield made(setting=None)", "setting is None, expected a line of text"),
        ("yield made()", "setting a: outcome is None, expected what a Replay gives"),
        ("yield made(outcome=replay.outcome_at(last + 1))", r"play fails in .*wrong\.py:7: .*boundary is 4 for trace"),
        ("yield made(outcome=replay.outcome_at(last[:3]))", r"play fails in .*: .*has shape \(3,\)"),
        ("yield made(outcome=replay.oracle(), probe_tokens=last - 9)", "setting a: probe_tokens has -6, expected no"),
        ("yield made(outcome=replay.oracle(), probe_tokens=last[:2])", "setting a: probe_tokens is array"),
        ('yield made(outcome=replay.oracle(), policy="off")', "setting a: policy is 'off', expected a Policy"),
    ],
)
def test_a_method_that_plays_wrongly_is_named_with_its_mistake(files, play, message):
    """These were tracebacks, rows that counted a part of the traces, probes that were a gain, and, where the file ended
    the process, a success without a result."""
    text = STRANGER.replace(AT_LAST, play)
    assert text != STRANGER
    (files / "wrong.py").write_text(text + UNCHECKED)
    with pytest.raises(MethodError, match=f"^method last[:,] {message}"):
        simulate(config_of(files, methods=(files / "wrong.py",)))
    assert not (files / "out.json").exists()


def test_a_result_does_not_replace_what_it_is_made_of(files, capsys):
    scores, keys = (files / "scores.parquet").read_bytes(), {"traces": "traces", "scores": "scores", "out": "scores"}
    with pytest.raises(SystemExit):
        run("simulate", [f"{key}={files / name}.parquet" for key, name in keys.items()])
    said = " ".join(capsys.readouterr().err.split())
    assert f"out is {files / 'scores.parquet'}, the file that scores names, expected another" in said
    assert (files / "scores.parquet").read_bytes() == scores


def test_two_methods_may_call_their_settings_the_same(files):
    """Of two that are quoted as they are, the table and the file had the later one alone."""
    for name, where in (("last", "len(trace.boundaries) - 1"), ("first", "0")):
        text = STRANGER.replace("len(trace.boundaries) - 1", where).replace('"last"', f'"{name}"')
        (files / f"{name}.py").write_text(text.replace(", play)", ", play, tuned=False)"))
    found = simulate(config_of(files, methods=(files / "last.py", files / "first.py"))).named
    cuts = [found[f"{name}: the last boundary"].thinking_cut for name in ("last", "first")]
    assert cuts[0] < cuts[1]
    assert "paper, none" in found


def test_the_file_of_a_method_may_hold_a_dataclass_whose_annotations_are_text(tmp_path):
    head = "from __future__ import annotations\nfrom dataclasses import dataclass\n"
    setting = "@dataclass(frozen=True)\nclass Setting:\n    m: int\n"
    (tmp_path / "mine.py").write_text(head + STRANGER + setting)
    assert load_methods([tmp_path / "mine.py"]).keys() == {*METHODS, "last"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "METHOD is None, expected"),
        ("METHOD = 3", "METHOD is 3, expected"),
        ("1 / 0", "cannot be imported: ZeroDivisionError"),
        ("import sys; sys.exit(0)", r"cannot be imported: SystemExit\(0\)"),
        (STRANGER.replace('"last"', '"a\\nb"'), r"name of METHOD is 'a\\nb', expected a line of text"),
        (STRANGER.replace('"last"', '"validity"'), "there is a method 'validity' already"),
        (STRANGER.replace('"last"', '"probe"'), "name of METHOD is 'probe', which is what `simulate` calls something"),
        (
            STRANGER.replace('"last"', '"no exit"'),
            "name of METHOD is 'no exit', .* expected another than probe, no exit",
        ),
        (None, "not there, or no Python file"),
    ],
)
def test_a_file_that_holds_no_method_is_refused(tmp_path, text, message):
    if text is not None:
        (tmp_path / "mine.py").write_text(text)
    with pytest.raises(MethodError, match=rf"mine\.py: {message}"):
        load_methods([tmp_path / "mine.py"])


def test_traces_of_which_none_can_judge_are_refused(files, trace_of):
    write_traces(files / "traces.parquet", [trace_of(["7"], [1.0], [True], finish_reason="length")])
    with pytest.raises(ValueError, match=r"none of 1 traces can judge \(1 unfinished\)"):
        simulate(config_of(files))


def test_what_bench_measures_is_replayed_or_said_not_to_be_and_why(files, capsys):
    found = simulate(config_of(files))
    replayed_as = {
        "specexit": "validity",
        "specexit-fc": "probe",
        "exits-alone": "validity",
        "kth-boundary": "boundary",
    }
    no_exits, hindsight = {"none", "eagle3"}, {"oracle"}
    for name in set(NAMES) - no_exits - hindsight:
        assert (replayed_as.get(name, name) in {*METHODS, "probe"}) != (name in found.not_replayed), name
    written = json.loads((files / "out.json").read_text())["not_replayed"]
    printed = " ".join(capsys.readouterr().out.split())
    assert set(written) == {"no-thinking", "budget-hard"}
    for name, why in written.items():
        assert f"{name} cannot be replayed: {why}" in printed
