"""What each method of the benchmark asks for, and where it ends the thinking, on an engine that replays a recording."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specexit.bench.methods import (
    NAMES,
    Ask,
    Chain,
    Known,
    Marks,
    MethodError,
    Problem,
    Said,
    Trial,
    Tuning,
    check_parameters,
    find_method,
    from_job,
    to_job,
)
from specexit.bench.methods.deer import sure_at
from specexit.bench.methods.kth_boundary import KthBoundary
from specexit.bench.methods.running import Running
from specexit.bench.methods.stability import stable_at
from specexit.data.rows import infer_agrees
from specexit.data.traces import Trace
from specexit.method.decision import Policy
from specexit.schemas.target import load_target_config

TARGET = load_target_config("tiny-reasoner")
TOKENIZER, IDS = TARGET.tokenizer(), TARGET.think_tokens()
STEPS = ("First I add.\n\n", "So it is 8.\n\n", "Wait, it is 7.\n\n", "Yes, 7 again.\n\n", "So, 7.\n\n")
TRIALS = (None, "8", "7", "7", "7")
CONFIDENCE = (0.5, 0.97, 0.9, 0.99, 1.0)
MARKS = Marks(
    start=IDS.start,
    end=IDS.end,
    split=IDS.split,
    max_new_tokens=200,
    max_model_len=TARGET.max_model_len,
    decode=TOKENIZER.text,
)
TRIAL = Trial((), 24)


@pytest.fixture(scope="module")
def trace(make_trace: Callable[..., Trace]) -> Trace:
    """Five steps; a confident wrong answer behind the second, the right one from the third on."""
    steps = [TOKENIZER.encode(step) for step in STEPS]
    return make_trace(
        think_ids=[token for step in steps for token in step],
        boundaries=np.cumsum([len(step) for step in steps]).tolist(),
        boundary_answers=list(TRIALS),
        boundary_agrees=[answer == "7" for answer in TRIALS],
        boundary_confidence=list(CONFIDENCE),
        boundary_state=["agrees" if answer == "7" else "differs" for answer in TRIALS],
        boundary_trial_tokens=[4] * len(TRIALS),
        answer_ids=TOKENIZER.encode("\n\n\\boxed{7}"),
        answer="7",
        reference="7",
        correct=True,
    )


(TURN_END,) = TOKENIZER.encode("<|im_end|>")


def replayed(trace: Trace, ask: Ask) -> tuple[list[int], str, list[float]]:
    """What an engine would say that writes this trace: tokens, finish reason, log-probabilities."""
    said = ask.prompt_ids[len(trace.prompt_ids) :]
    if ask.budget is not None and ask.budget < len(trace.think_ids):
        cut = [*trace.think_ids[: ask.budget], IDS.end]
        return cut + replayed(trace, Ask("answer", trace.prompt_ids + cut, ask.max_tokens))[0], "stop", []
    if IDS.end in said:
        n = said.index(IDS.end)
        at = max((i for i, b in enumerate(trace.boundaries) if b <= n), default=None)
        answer = None if at is None else trace.boundary_answers[at]
        ids = TOKENIZER.encode("I do not know." if answer is None else f"\\boxed{{{answer}}}")
        sure = 0.1 if at is None else trace.boundary_confidence[at]
        return (
            ids[: ask.max_tokens],
            "stop" if len(ids) <= ask.max_tokens else "length",
            [float(np.log(sure))] * len(ids),
        )
    whole = [*trace.think_ids, IDS.end, *trace.answer_ids]
    rest, written = whole[len(said) :], []
    for token in rest:
        written.append(token)
        if token in (*ask.stop, TURN_END):
            return written, "stop", []
        if len(written) == ask.max_tokens:
            return written, "length", []
    return written, "stop", []


def run(
    trace: Trace,
    reference: str,
    marks: Marks = MARKS,
    hint: int | None = None,
    trial: Trial = TRIAL,
    **parameters: Any,
) -> dict:
    """A method's result on the trace; the clock goes by one with every request."""
    method = from_job({"method": reference, "parameters": parameters})
    running, now = Running(method, Problem(trace.id, trace.prompt_ids, trial, hint=hint), marks, 0.0), 0.0
    ask = running.ask
    while ask is not None:
        now += 1
        room = marks.max_model_len - len(ask.prompt_ids)
        assert room > 0, "vLLM has an error for such a prompt"
        ids, finish_reason, logprobs = replayed(trace, ask)
        if len(ids) > room:
            ids, finish_reason, logprobs = ids[:room], "length", logprobs[:room]
        running.hear(ids, logprobs if ask.logprobs else [], now)
        ask = running.finish(finish_reason, None)
    return running.result(now)


def kept(result: dict) -> int:
    return result["token_ids"].index(IDS.end)


@pytest.mark.parametrize("name", [name for name in NAMES if find_method(name).engine != "specexit"])
def test_whatever_a_method_keeps_is_what_the_model_wrote(name: str, trace: Trace) -> None:
    tuned = find_method(name).tuned(Tuning([trace] * 3, 0.01))
    result = run(trace, name, **to_job(name, tuned)["parameters"])
    n = kept(result)
    assert result["token_ids"][:n] == trace.think_ids[:n]
    assert len(result["token_ids"]) > n + 1
    assert result["forced"] == (n < len(trace.think_ids))


@pytest.mark.parametrize(
    ("name", "parameters", "exit_behind", "probes"),
    [
        ("kth-boundary", {"k": 2}, 2, 0),
        ("kth-boundary", {"k": 9}, None, 0),
        ("stability", {"m": 2}, 4, 4),
        ("stability", {"m": 3}, 5, 5),
        ("deer", {"confidence": 0.95}, 2, 2),  # sure, and wrong
        ("deer", {"confidence": 0.985}, 4, 4),
        ("no-thinking", {}, 0, 0),
    ],
)
def test_where_each_method_exits(
    name: str, parameters: dict, exit_behind: int | None, probes: int, trace: Trace
) -> None:
    result = run(trace, name, **parameters)
    expected = {None: len(trace.think_ids), 0: 0}.get(exit_behind)
    assert kept(result) == (trace.boundaries[exit_behind - 1] if expected is None and exit_behind else expected)
    assert (result["probe_tokens"] > 0) == (probes > 0)


def test_the_engines_own_budget_is_one_request_and_counts_as_an_exit(trace: Trace) -> None:
    result = run(trace, "budget-hard", tokens=5)
    assert (kept(result), result["asked"], result["forced"]) == (5, 1, True)
    beyond = run(trace, "budget-hard", tokens=len(trace.think_ids) + 1)
    assert (kept(beyond), beyond["forced"]) == (len(trace.think_ids), False)


def test_trial_answers_are_counted_and_are_no_part_of_the_response(trace: Trace) -> None:
    result = run(trace, "stability", m=2)
    # "I do not know.", 8, 7 and 7.
    trials = [TOKENIZER.encode(text) for text in ("I do not know.", "\\boxed{8}", "\\boxed{7}", "\\boxed{7}")]
    assert result["probe_tokens"] == sum(map(len, trials))
    assert len(result["token_ids"]) == trace.boundaries[3] + 1 + len(TOKENIZER.encode("\\boxed{7}"))
    # Four steps, four trials and the answer, one after the other: the answer begins with the last.
    assert (result["asked"], result["first_answer_seconds"]) == (9, 9.0)


class Unsearched(list):
    """Tokens that nobody looks through."""

    def __contains__(self, token: object) -> bool:
        raise AssertionError("searched from the start")


def test_what_an_output_costs_does_not_grow_with_the_thinking(trace: Trace) -> None:
    """Else a method that thinks long would pay for the measuring, at every step of its engine."""
    running = Running(find_method("eagle3")(), Problem(trace.id, trace.prompt_ids, TRIAL), MARKS, 0.0)
    running.token_ids = Unsearched()
    for now, ids in enumerate(([1, 2], [3], [4, IDS.end], [], [5], [6]), start=1):
        running.hear(ids, [], float(now))
    assert running.result(7.0)["token_ids"] == [1, 2, 3, 4, IDS.end, 5, 6]
    assert running.first_answer == 5.0  # the first token behind </think>


def test_dynasors_probes_come_at_their_interval_wherever_that_falls(trace: Trace) -> None:
    result = run(trace, "certaindex", interval=5, agreeing=2)
    n = kept(result)
    assert n % 5 == 0
    # The first multiple of five behind which two probes in a row have said the same.
    answers = [TRIALS[sum(b <= at for b in trace.boundaries) - 1] if at >= trace.boundaries[0] else None
               for at in range(5, n + 1, 5)]  # fmt: skip
    assert answers[-1] == answers[-2] is not None
    assert all(a != b or a is None for a, b in pairwise(answers[:-1]))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("kth-boundary", {"k": 9}),
        ("stability", {"m": 9}),
        ("deer", {"confidence": 1.1}),
        ("certaindex", {"interval": 5, "agreeing": 9}),
        ("oracle", {}),
    ],
)
def test_a_response_that_fills_the_model_is_out_of_tokens(name: str, parameters: dict, trace: Trace) -> None:
    """As it is for EAGLE-3. Asking on was an error of vLLM's, which ended the benchmark, and each one that went on."""
    n = trace.boundaries[3] + 1
    short = replace(MARKS, max_model_len=len(trace.prompt_ids) + n + 1)
    forced = Trial(tuple(TOKENIZER.encode("The answer is ")), 24)
    result = run(trace, name, short, hint=len(trace.think_ids), trial=forced, **parameters)
    assert result["finish_reason"] == "length"
    assert result["token_ids"] == trace.think_ids[:n]


def test_a_trial_that_is_cut_off_is_no_answer(trace: Trace) -> None:
    result = run(trace, "stability", trial=Trial((), 2), m=2)
    assert kept(result) == len(trace.think_ids)
    assert not result["forced"]


def test_a_trial_is_made_as_the_target_says(trace: Trace) -> None:
    forced = tuple(TOKENIZER.encode("The answer is "))
    chain = Chain(Problem("a", trace.prompt_ids, Trial(forced, 8, ("}",))), MARKS)
    ask = next(chain.trial())
    assert ask == Ask("probe", [*trace.prompt_ids, IDS.end, *forced], 8, stop_text=("}",), logprobs=True)
    assert chain.answer(Said(TOKENIZER.encode("\\boxed{7}"), finished=True)) == "7"


def test_a_trial_is_closed_as_the_target_says(trace: Trace) -> None:
    forced = tuple(TOKENIZER.encode("\\boxed{"))
    chain = Chain(Problem("a", trace.prompt_ids, Trial(forced, 8, (".",), "}")), MARKS)
    assert chain.answer(Said(TOKENIZER.encode("7."), finished=True)) == "7"


def test_a_trials_answer_keeps_the_space_in_front_of_it(trace: Trace) -> None:
    """The decoder of a SentencePiece vocabulary drops that of a text's first token."""
    marks = replace(MARKS, decode=lambda ids: TOKENIZER.text(ids).removeprefix(" "))
    problem = Problem("a", trace.prompt_ids, Trial(tuple(TOKENIZER.encode("The answer is")), 8), answer_kind="choice")
    assert Chain(problem, marks).answer(Said(TOKENIZER.encode(" B."), finished=True)) == "B"


def test_a_trial_that_stops_in_the_midst_of_its_answer_goes_on(trace: Trace) -> None:
    """At the comma of a list in braces, which the target's stop is meant to come behind."""
    forced = tuple(TOKENIZER.encode("\\boxed{"))
    chain = Chain(Problem("a", trace.prompt_ids, Trial(forced, 40, (",",), "}")), MARKS)
    trial, pieces = chain.trial(), [TOKENIZER.encode(text) for text in ("\\frac{7,", "1}, so")]
    first = next(trial)
    second = trial.send(Said(pieces[0], finished=True))
    assert second.prompt_ids == first.prompt_ids + pieces[0]
    assert second.max_tokens == first.max_tokens - len(pieces[0])
    with pytest.raises(StopIteration) as ended:
        trial.send(Said(pieces[1], finished=True))
    assert ended.value.value.token_ids == pieces[0] + pieces[1]
    assert chain.answer(ended.value.value) == "\\frac{7,1}"


def test_out_of_tokens_is_out_of_tokens(trace: Trace) -> None:
    short = replace(MARKS, max_new_tokens=trace.boundaries[2])
    result = run(trace, "kth-boundary", short, k=9)
    assert result["finish_reason"] == "length"
    assert IDS.end not in result["token_ids"]
    assert len(result["token_ids"]) <= trace.boundaries[2]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("kth-boundary", {"k": 9}), ("stability", {"m": 9}), ("certaindex", {"interval": 5, "agreeing": 9})],
)
def test_a_turn_that_ends_within_the_thinking_has_no_answer(name: str, parameters: dict, trace: Trace) -> None:
    """As it has none with EAGLE-3: one that the method makes it give would be a gain by a device."""
    given_up = [*trace.think_ids[: trace.boundaries[2]], *TOKENIZER.encode("So"), TURN_END]
    result = run(replace(trace, think_ids=given_up), name, **parameters)
    assert result["token_ids"] == given_up
    assert (result["finish_reason"], result["forced"]) == ("stop", False)


def test_oracle_and_replay_know_their_exits_beforehand(trace: Trace) -> None:
    signals = np.zeros((len(trace.think_ids), 4), np.float32)
    signals[[b - 1 for b in trace.boundaries], 3] = (0.1, 0.95, 0.2, 0.9, 0.9)
    known = Known([trace], [signals], Policy(thresholds={"validity": 0.92}))
    hints = {name: find_method(name)().hints(known) for name in ("oracle", "exits-alone", "eagle3")}
    assert hints == {"oracle": [trace.boundaries[2]], "exits-alone": [trace.boundaries[1]], "eagle3": [None]}
    tried = ("answers", "agrees", "confidence", "state", "trial_tokens")
    nothing = {"boundaries": []} | {f"boundary_{name}": [] for name in tried}
    unfinished = replace(trace, id="unfinished", finish_reason="length", answer=None, **nothing)
    known = Known([trace, unfinished], [signals, signals], known.policy)
    assert find_method("exits-alone")().hints(known) == [trace.boundaries[1]] * 2
    assert kept(run(trace, "oracle", hint=trace.boundaries[2])) == trace.boundaries[2]
    with pytest.raises(MethodError, match="exits-alone replays the signals of the traces: scores is missing"):
        find_method("exits-alone")().hints(Known([trace], None, None))


def test_parameters_are_the_boldest_within_the_tolerance(trace: Trace) -> None:
    chosen = {name: to_job(name, find_method(name).tuned(Tuning([trace], 0.0)))["parameters"]
              for name in ("kth-boundary", "stability", "deer")}  # fmt: skip
    # The second step's answer is sure and wrong. Of two thresholds that save the same, it is the cautious one.
    assert chosen == {"kth-boundary": {"k": 3}, "stability": {"m": 2}, "deer": {"confidence": 0.99}}
    with pytest.raises(MethodError, match="stability chooses its parameters on traces: calibration_traces is missing"):
        find_method("stability").tuned(Tuning([], 0.0))
    one_point = replace(trace, trial=json.dumps({"boundaries": "stable"}))
    said = r"deer chooses its parameters on trial answers, but 1 of 2 of calibration_traces .*: expected refine"
    with pytest.raises(MethodError, match=said):
        find_method("deer").tuned(Tuning([trace, one_point], 0.0))


def test_a_method_that_cannot_be_tuned_to_the_tolerance_tells_what_it_loses(trace: Trace) -> None:
    """It was measured as if it lost no more than the tolerance there."""
    wrong = replace(trace, boundary_confidence=[0.5, 1.0, 0.9, 0.99, 1.0])  # sure of what is wrong, whatever is asked
    tuning = Tuning([wrong, trace], 0.0)
    assert to_job("deer", find_method("deer").tuned(tuning))["parameters"] == {"confidence": 0.999}
    find_method("stability").tuned(tuning)
    assert tuning.beyond == {"deer": 0.5}


def test_traces_without_a_boundary_tell_of_no_k(make_trace: Callable[..., Trace]) -> None:
    """As those are that all ran out of tokens; it was an IndexError."""
    nothing = {"boundaries": [], "boundary_answers": [], "boundary_agrees": [], "boundary_confidence": []}
    bare = make_trace(finish_reason="length", answer=None, boundary_state=[], boundary_trial_tokens=[], **nothing)
    said = "kth-boundary chooses its k on boundaries, but none of the 2 of calibration_traces has one: expected traces"
    with pytest.raises(MethodError, match=said):
        find_method("kth-boundary").tuned(Tuning([bare, bare], 0.0))


def test_methods_are_tuned_on_what_they_would_hear(trace: Trace) -> None:
    """The third trial had written the right answer when it was cut off: it states none, and an exit there is a loss."""
    states = ["differs", "differs", "undecided", "agrees", "agrees"]
    cut = replace(trace, boundary_state=states, boundary_agrees=[state == "agrees" for state in states])
    assert (stable_at(trace, 2), stable_at(cut, 2)) == (3, None)
    sure = replace(cut, boundary_confidence=[0.5, 0.5, 1.0, 0.9, 0.9])
    assert sure_at(sure, 0.95) is None
    assert find_method("kth-boundary").tuned(Tuning([trace], 0.0)) == KthBoundary(3)
    assert find_method("kth-boundary").tuned(Tuning([cut], 0.0)) == KthBoundary(4)


def test_what_nobody_heard_is_no_further_answer_that_agrees(trace: Trace) -> None:
    """One trial in eight was heard eight times: `stability` was tuned on answers that were one answer."""
    states = ["differs", "untried", "untried", "untried", "agrees"]
    gaps = replace(trace, boundary_state=states, boundary_agrees=infer_agrees(states))
    for name in ("stability", "deer"):
        said = f"{name} asks at every boundary, but 1 of 2 of calibration_traces have .* boundaries=all"
        with pytest.raises(MethodError, match=said):
            find_method(name).tuned(Tuning([trace, gaps], 0.0))
    assert find_method("kth-boundary").tuned(Tuning([gaps], 0.0)) == KthBoundary(5)  # asks nowhere


def test_a_strangers_method_is_one_file(tmp_path: Path, trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(trace, str(Path(__file__).parents[1] / "serving" / "own_method.py"))
    assert kept(result) == trace.boundaries[1]
    (tmp_path / "none.py").write_text("x = 1\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (str(tmp_path / "none.py"), "~/none.py"):
        with pytest.raises(MethodError, match=r"none\.py': the file defines 0 methods, expected one"):
            find_method(name)
    with pytest.raises(
        MethodError, match=r"method 'deeer' does not exist, expected a \.py file or one of none, eagle3"
    ):
        find_method("deeer")


OWN = (Path(__file__).parents[1] / "serving" / "own_method.py").read_text()


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            'engine = "eagle3"',
            'engine = "eagle"',
            "Twice: engine is 'eagle', expected one of none, eagle3, specexit, spec",
        ),
        ('    name = "twice"\n', "", "Twice has no attribute name, expected a line of text"),
        ('name = "twice"', 'name = "once/twice"', "Twice: name is 'once/twice', expected a line of text without /"),
        ('name = "twice"', 'name = "budget"', "Twice: name is 'budget', which is a method already, expected another"),
        ('name = "twice"', 'name = ".."', "Twice: name is '..', expected a line of text without / that begins with"),
        ('name = "twice"', 'name = "_twice"', "Twice: name is '_twice', expected a line of text without / that begins"),
        ('name = "twice"', 'name = "probe"', "Twice: name is 'probe', which is a curve of `simulate` that a report"),
        ('name = "twice"', 'name = "validity"', "Twice: name is 'validity', which is a curve of `simulate` that a"),
        ('says = "exit at the second step boundary"', "pass", "Twice has no attribute says, expected a text"),
        ('    engine = "eagle3"\n', "", "Twice has no attribute engine, expected one of none, eagle3, specexit, spec"),
        ("pauses = True", "pauses = 1", "Twice: pauses is 1, expected true or false"),
        ("@dataclass(frozen=True)\n", "", "Twice is no dataclass, expected @dataclass(frozen=True) above it"),
        ("def respond", "def answer", "Twice has no method respond, expected one that asks for the response"),
        ("steps: int = 2", "steps: int", "Twice: field steps has no value, expected one, or a tuned() that chooses it"),
        ("from dataclasses", "import nowhere\nfrom dataclasses", 'cannot be imported: ModuleNotFoundError("No module'),
        ("steps: int = 2", "steps: tuple = (1, 2)", "field steps is (1, 2), expected a number, text or none: results"),
        ("steps: int = 2", "steps: float = float('inf')", "field steps is inf, expected a finite number: results"),
    ],
)
def test_what_is_wrong_in_a_strangers_file_is_one_line_before_anything_is_measured(
    tmp_path: Path, old: str, new: str, told: str
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(OWN.replace(old, new))
    assert path.read_text() != OWN
    with pytest.raises(MethodError, match=rf"^method '.*mine\.py': (class )?{re.escape(told)}"):
        check_parameters(str(path), find_method(str(path)).tuned(Tuning([], 0.0)))


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("return\n        yield", "respond asks for nothing, expected it to yield an Ask"),
        ("pass", "respond fails: TypeError("),
        ("yield Ask('think', problem.prompt_ids, 5); raise RuntimeError('no')", "respond fails: RuntimeError('no')"),
        ("yield 5", "respond yields 5, expected an Ask"),
        ("yield Ask('think', problem.prompt_ids, 0)", "respond asks for 0 tokens behind "),
        ("yield Ask('think', [], 5)", "respond asks for 5 tokens behind 0, expected at least one behind"),
        ("while 1: yield Ask('probe', problem.prompt_ids, 1)", "respond has asked 1000 times without a token for the"),
        (
            "yield Ask('think', problem.prompt_ids, 1)\n        while 1: yield Ask('think', [1] * 9999, 1)",
            "respond has asked 1000 times without a token for the response",
        ),
        ("while 1: yield Ask('think', problem.prompt_ids, 99)", "respond asks for more behind "),
        (
            "yield Ask('think', [1] * 400, 5)",
            "respond begins behind 400 tokens, expected fewer than max_model_len",
        ),
        ("yield Ask('think', problem.prompt_ids, 5, budget=4)", "respond asks for a budget of 4, expected none, or"),
        ("import sys; sys.exit(0); yield", "respond fails: SystemExit(0)"),
    ],
)
def test_a_strangers_method_that_asks_for_what_cannot_be_is_told_so(
    tmp_path: Path, trace: Trace, body: str, told: str
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(OWN[: OWN.index("chain =")].replace("Asks,", "Ask, Asks,") + body + "\n")
    long = replace(trace, prompt_ids=trace.prompt_ids[-1:])  # whatever is said: the replay comes to no error
    with pytest.raises(MethodError, match=rf"^method twice, problem {long.id}: {re.escape(told)}"):
        run(long, str(path), replace(MARKS, max_model_len=400))
