"""Audits without an engine: which requests, what is asked, what comes of it, and what they may cost."""

from __future__ import annotations

import asyncio
import sys
from array import array
from types import SimpleNamespace

import numpy as np
import pytest

from specexit.data.answers import extract_answer, sandbox
from specexit.drafts.directory import SpecExitBlock
from specexit.drafts.policy import PolicyFile, Population, Serving
from specexit.method.splits import ThinkTokens
from specexit.method.statistics import binomial_interval
from specexit.schemas.target import load_target_config
from tests.serving.ends import admitted_state, front_end, incoming, processor_of
from tests.serving.points import operation
from tests.serving.stand_ins import filled, stand_in
from torch_specexit.chat import load_chat_tokenizer
from torch_specexit.plugin.frontend import audit as audits
from torch_specexit.plugin.frontend import opening
from torch_specexit.plugin.frontend.activity import Activity
from torch_specexit.plugin.frontend.audit import Audit, Case, generator_of, same_answer_apart, stated_apart
from torch_specexit.plugin.frontend.inner import inner
from torch_specexit.plugin.frontend.operation import Operation, in_share
from torch_specexit.plugin.frontend.own_end import BY_ITSELF
from torch_specexit.plugin.frontend.protocols import AsyncLLM, Detokenizer, EngineCoreClient, RequestState
from torch_specexit.plugin.frontend.server import FrontEnd
from torch_specexit.plugin.protocols import LoRARequest, ModelConfig, SchedulerConfig, VllmConfig

START, END, SPLIT = 1, 2, 12
TOKENS = ThinkTokens(START, END, frozenset({SPLIT}))
MIXED = ("choice", "math")


def test_the_audited_share_is_the_rate():
    picked = np.array([in_share(f"chatcmpl-{i}", 0.1) for i in range(20_000)])
    # The ids are hashed, so this is one fixed draw; it lies within three standard errors of the rate.
    assert abs(picked.mean() - 0.1) < 3 * np.sqrt(0.1 * 0.9 / len(picked))
    assert all(in_share(f"chatcmpl-{i}", 0.2) for i in np.flatnonzero(picked))
    # Another draw is independent of it: of those picked, the same share is picked again.
    again = np.array([in_share(f"chatcmpl-{i}", 0.5, draw="share:") for i in np.flatnonzero(picked)])
    assert abs(again.mean() - 0.5) < 3 * np.sqrt(0.5 * 0.5 / len(again))


THOUGHT = [10, 11, 12, 13, 14, 15]


def audit_of(early, full, *, max_tokens=100, output=None, prompt=(START,), transition=()):
    """The result of an audit whose exit would have come behind two thoughts; tokens decode to themselves."""
    asked = []

    async def generate(prompt_ids, room, case):
        asked.append((list(prompt_ids), room, case.request))
        return early

    def decode(ids):
        return full if ids else ""

    audit = Audit(generate, decode, TOKENS, 200, transition=transition)
    output = [*THOUGHT, END, 20, 21] if output is None else output
    case = Case("r", array("i", prompt), array("i", output), 2 if prompt else 3, max_tokens)
    return asyncio.run(audit.judge(case)), asked


def test_an_audit_asks_what_an_exit_would_have_asked():
    result, asked = audit_of(r"\boxed{7}", r"\boxed{7}")
    assert result == "same"
    assert asked == [([START, 10, 11, END], 97, "r")]
    _, asked = audit_of(r"\boxed{7}", r"\boxed{7}", transition=(7,))
    assert asked == [([START, 10, 11, 7, END], 96, "r")]


@pytest.mark.parametrize(
    ("early", "full", "expected"),
    [
        (r"\boxed{8}", r"\boxed{7}", "changed"),
        ("no box", r"\boxed{7}", "changed"),
        (r"\boxed{0.5}", r"\boxed{\frac{1}{2}}", "same"),
        (r"\boxed{7}", "no box", "no_answer"),
    ],
)
def test_results_of_audits(early, full, expected):
    assert audit_of(early, full)[0] == expected


@pytest.mark.parametrize(
    ("question", "early", "full", "expected"),
    [
        ("listed", "The answer is (B).", r"\boxed{the sun}", "same"),
        ("listed", r"\boxed{The Sun}", "The answer is B.", "same"),
        ("listed", r"\boxed{ice}", "The answer is B.", "changed"),
        ("listed", r"\boxed{the moon}", "The answer is B.", "changed"),
        # Without a list only letters are answers.
        ("plain", "The answer is (B).", "B", "same"),
        ("plain", "The answer is (B).", r"\boxed{the sun}", "no_answer"),
    ],
)
def test_an_options_text_counts_as_its_letter(question, early, full, expected):
    """As where the data is made; the options are read from the prompt."""
    prompts = {"listed": "Which is hot?\n\nA. ice\nB. the sun\n\nName the letter.", "plain": "Which is hot?"}

    async def generate(*_):
        return early

    def decode(ids):
        return prompts[question] if START in ids else full

    audit = Audit(generate, decode, TOKENS, 200, kinds=lambda: ("choice",))
    case = Case("r", array("i", [START]), array("i", [*THOUGHT, END, 20]), 2, 100)
    assert asyncio.run(audit.judge(case)) == expected


@pytest.mark.parametrize(
    ("question", "early", "full", "expected"),
    [
        ("listed", "The answer is (B).", "The answer is B.", "same"),
        ("listed", "The answer is (A).", r"\boxed{the sun}", "changed"),
        ("plain", "The answer is (B).", "The answer is B.", "same"),
        ("plain", r"\boxed{0.5}", r"\boxed{\frac{1}{2}}", "same"),
        ("plain", "The answer is (B).", r"\boxed{\frac{1}{2}}", "changed"),
        ("plain", "The answer is (B).", "No idea.", "no_answer"),
    ],
)
def test_where_a_calibration_had_several_kinds_of_answers_each_audit_finds_its_own(question, early, full, expected):
    """All of them used to be audited as mathematics, which a letter is not, so that nothing watched multiple choice."""
    prompts = {"listed": "Which is hot?\n\nA. ice\nB. the sun\n\nName the letter.", "plain": "Which is it?"}

    async def generate(*_):
        return early

    audit = Audit(generate, lambda ids: prompts[question] if START in ids else full, TOKENS, 200, kinds=lambda: MIXED)
    case = Case("r", array("i", [START]), array("i", [*THOUGHT, END, 20]), 2, 100)
    assert asyncio.run(audit.judge(case)) == expected


def test_a_marker_in_the_midst_of_thinking_that_the_prompt_has_opened_begins_none():
    """Boundaries in front of it were not seen: nothing was said of the risk of such a request."""
    audit = Audit(pytest.fail, lambda ids: r"\boxed{7}" if ids else "", TOKENS, 200)
    case = Case("r", array("i", [START]), array("i", [10, SPLIT, START, 11, END, 20]), None, 100)
    assert asyncio.run(audit.judge(case)) == "no_exit"


ONE = "```python\ndef f(x):\n    return x + 1\n```"
OTHER = "```python\ndef f(x):\n    return 1 + x\n```"


@pytest.mark.parametrize(
    ("kinds", "early", "full", "expected"),
    [
        (("code",), OTHER, ONE, "no_answer"),
        # Were these alone counted, what is left would be no fair sample.
        (("code",), ONE, ONE, "no_answer"),
        (("code", "math"), "Hm.", ONE, "no_answer"),
        (("code", "math"), r"\boxed{7}", r"\boxed{7}", "same"),
        (("code", "math"), ONE, r"\boxed{7}", "changed"),
    ],
)
@pytest.mark.skipif(sandbox._missing() is not None, reason=f"no sandbox: {sandbox._missing()}")
def test_of_programs_an_audit_says_nothing_as_no_request_brings_tests(kinds, early, full, expected):
    """A calibration runs both on the tests of their prompt. All that were written otherwise counted as changed, and put
    a sound point into shadow mode."""

    async def generate(*_):
        return early

    audit = Audit(generate, lambda ids: full if ids else "", TOKENS, 200, kinds=lambda: kinds)
    case = Case("r", array("i", [START]), array("i", [*THOUGHT, END, 20]), 2, 100)
    assert asyncio.run(audit.judge(case)) == expected


@pytest.mark.parametrize(("kind", "said"), [("text", "Answer: Paris"), ("choice", "The answer is B")])
def test_the_token_that_ends_a_turn_is_no_part_of_an_answer(kind, said, monkeypatch):
    """The early answer comes without it: audits of short texts were all changed, and of letters there were none."""

    async def generate(*_):
        return said

    monkeypatch.setattr(opening, "generator_of", lambda engine: generate)
    target = load_target_config("tiny-reasoner")
    tokenizer = load_chat_tokenizer(target)
    engine = stand_in(
        AsyncLLM,
        output_processor=processor_of(tokenizer=tokenizer),
        model_config=stand_in(ModelConfig, is_multimodal_model=False, max_model_len=200),
    )
    file = PolicyFile(population=Population(prompts=1, traces=1, answer_kinds=(kind,)))
    opened, front = opening.Opening(None, None, file, Serving(audit_rate=1.0), None, [], None, None, ()), front_end()
    front.operation.load(file, opened.serving)
    front.tokens = target.think_tokens()
    output = tokenizer.encode(f"So.\n\n</think>\n\n{said}<|im_end|>", add_special_tokens=False)
    case = Case("r", array("i", [front.tokens.start]), array("i", output), 1, 100)
    assert asyncio.run(opening._audit_of(engine, opened, front).judge(case)) == "same"


def opening_with(kinds, monkeypatch):
    """What `_audit_of` is given by a server whose calibration had answers of these kinds."""
    monkeypatch.setattr(opening, "generator_of", lambda engine: pytest.fail)
    monkeypatch.setattr(sys, "path", [*sys.path])
    engine = stand_in(
        AsyncLLM,
        output_processor=processor_of(tokenizer=load_target_config("tiny-reasoner").tokenizer()),
        model_config=stand_in(ModelConfig, is_multimodal_model=False, max_model_len=200),
    )
    file = PolicyFile(population=Population(prompts=1, traces=1, answer_kinds=kinds))
    opened, front = opening.Opening(None, None, file, Serving(audit_rate=1.0), None, [], None, None, ()), front_end()
    front.operation.load(file, opened.serving)
    front.tokens = TOKENS
    return engine, opened, front


def test_a_policy_file_alone_makes_a_server_call_no_function(monkeypatch, caplog):
    """It may be a stranger's, who named `shutil.rmtree`, and a client's the text that is given to it."""
    kind = "function:shutil:rmtree"
    engine, opened, front = opening_with((kind, "math"), monkeypatch)
    for named in ("", "function:shutil:copy"):
        monkeypatch.setenv(opening.FUNCTIONS, named)
        caplog.clear()
        assert opening._audit_of(engine, opened, front) is None
        assert not front.operation.audits  # so no request thinks on for one
        (line,) = [record.getMessage() for record in caplog.records]
        assert "audits are off" in line
        assert kind in line
    monkeypatch.setenv(opening.FUNCTIONS, f"function:shutil:copy {kind}")
    assert opening._audit_of(engine, opened, front).kinds() == (kind, "math")


def test_a_server_finds_a_users_own_function_in_the_working_folder(tmp_path, monkeypatch):
    """As the calibration does, and the process that compares: a server had stopped looking there, and all audits
    failed."""
    kind = "function:mine_own:same"
    (tmp_path / "mine_own.py").write_text("def same(a, b):\n    return a == b\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(opening.FUNCTIONS, kind)
    assert opening._audit_of(*opening_with((kind,), monkeypatch)) is not None
    assert extract_answer("5", kind) == "5"


@pytest.mark.parametrize("missing", ["text alone", "a tokenizer"])
def test_where_no_audit_can_be_made_none_is_expected(missing, monkeypatch, caplog):
    engine, opened, front = opening_with(("math",), monkeypatch)
    assert opening._audit_of(engine, opened, front) is not None
    assert front.operation.audits
    if missing == "a tokenizer":
        front.tokens = None
    else:
        engine.model_config.is_multimodal_model = True
    assert opening._audit_of(engine, opened, front) is None
    assert not front.operation.audits  # so no request thinks on for one
    assert "audits are off, they need a tokenizer and a model that reads nothing but text" in caplog.text


def test_each_audit_is_told_to_the_metrics_that_there_are_by_then(monkeypatch):
    engine, opened, front = opening_with(("math",), monkeypatch)
    audit, told = opening._audit_of(engine, opened, front), []
    front.counted = lambda *said: told.append(said)
    audit.settled("usual", "changed", front.operation.served().policy)
    assert told == [("usual", "changed")]


def test_a_long_answer_is_looked_through_apart(monkeypatch):
    """What is done in the process of a server holds up all of its requests."""
    monkeypatch.setattr(audits, "extract_answer", lambda *_: pytest.fail("looked through here"))
    text = "It is hot. " * 400 + "The answer is (B)."
    assert asyncio.run(stated_apart(text, "choice", ["ice", "the sun"])) == "B"


def test_without_an_end_of_thinking_there_is_no_answer_and_without_room_no_early_one():
    assert audit_of(r"\boxed{7}", r"\boxed{7}", output=THOUGHT)[0] == "no_answer"
    result, asked = audit_of(r"\boxed{7}", r"\boxed{7}", max_tokens=3)
    assert (result, asked) == ("changed", [])


def test_answers_are_compared_apart_where_that_takes_a_parser():
    assert asyncio.run(same_answer_apart(r"\frac{3}{4}", "0.75"))
    assert not asyncio.run(same_answer_apart(r"\frac{3}{4}", "0.8"))


def test_answers_that_cannot_be_compared_in_time_differ_as_in_a_calibration(monkeypatch):
    """Such audits had failed after half a minute and counted nowhere, so a client could keep its own changed answers
    out of the risk."""
    monkeypatch.setattr(audits, "python", lambda module: [sys.executable, "-c", IMPATIENT.format(module)])
    assert audit_of(r"\boxed{9^{9^{9^{9}}}}", r"\boxed{9^{9^{9^{8}}}}")[0] == "changed"


IMPATIENT = (
    "from specexit.data.answers import apart; apart.TIME_LIMIT = 0.5; import runpy; "
    "runpy.run_module({!r}, run_name='__main__')"
)


@pytest.mark.parametrize(
    ("code", "error"),
    [("raise SystemExit(1)", RuntimeError), ("import time; time.sleep(60)", TimeoutError)],
    ids=["does not start", "takes too long"],
)
def test_an_audit_fails_where_nothing_can_be_compared(code, error, monkeypatch):
    monkeypatch.setattr(audits, "python", lambda module: [sys.executable, "-c", code])
    monkeypatch.setattr(audits, "SECONDS_COMPARING", 1)
    with pytest.raises(error):
        audit_of(r"\boxed{x+1}", r"\boxed{1+x}")


def admitted(arguments=None, **serving):
    """What a server decides that audits everything."""
    settings = Serving(**{"audit_rate": 1.0, "requests": "any"} | serving)
    return Operation(SpecExitBlock(target="t"), PolicyFile(), settings).resolve(arguments, "r")


def finished(name, *, output=(9, START, *THOUGHT, END, 20), by_itself=True):
    """vLLM's state of a finished request."""
    return stand_in(
        RequestState,
        request_id=name,
        prompt_token_ids=[3],
        detokenizer=stand_in(Detokenizer, output_token_ids=list(output)),
        max_tokens_param=None,
        lora_request=stand_in(LoRARequest, lora_name="poet", lora_int_id=7, load_inplace=True),
        **{audits.CACHE_SALT: "of " + name, audits.PRIORITY: 3, BY_ITSELF: by_itself},
    )


def test_a_server_audits_in_the_background_and_reports_an_interval():
    answers = {"r1": r"\boxed{7}", "r2": r"\boxed{8}", "r3": None}
    settled = []

    async def generate(prompt_ids, room, case):
        if answers[case.request] is None:
            raise RuntimeError("the engine has failed")
        return answers[case.request]

    async def run():
        audit = Audit(generate, lambda ids: r"\boxed{7}", TOKENS, 200, lambda *told: settled.append(told[:2]))
        for name in ("r1", "r2", "r3"):
            state = finished(name)
            assert Case.of(state, 2, TOKENS).kept == 4  # behind the marker that the model has written
            audit.consider(state, admitted(), {"outcome": "natural_end", "would_exit": 2})
        audit.consider(finished("r4"), admitted(), {"outcome": "natural_end"})  # would not have exited
        audit.consider(finished("r5"), admitted(), {"outcome": "length"})  # nor can it judge
        assert audit.summary()["waiting"] == 4  # nobody has waited for them
        while audit.summary()["waiting"]:
            await asyncio.sleep(0.01)
        return audit.summary()

    summary = asyncio.run(run())
    assert (summary["audited"], summary["changed"], summary["failed"]) == (2, 1, 1)
    assert summary["interval"] == list(binomial_interval(1, 2))
    assert (summary["requests"], summary["risk"]) == (3, 1 / 3)
    assert settled == [("default", result) for result in ("unfinished", "same", "changed", "failed", "no_exit")]
    assert summary["unfinished"] == 1


@pytest.mark.parametrize(
    ("output", "report", "by_itself", "expected"),
    [
        ([START, *THOUGHT, END, 20], {"outcome": "natural_end"}, True, "no_exit"),
        ([START, *THOUGHT, END, 20], {"outcome": "natural_end", "would_exit": 2}, True, "same"),
        # A client's stop string or stop token, in the thinking or behind it; its abort, or a limit.
        ([START, *THOUGHT], {"outcome": "natural_end"}, False, "unfinished"),
        ([START, *THOUGHT, END, 20], {"outcome": "natural_end"}, False, "unfinished"),
        ([START, *THOUGHT, END, 20], {"outcome": "natural_end", "would_exit": 2}, False, "unfinished"),
        ([START, *THOUGHT], {"outcome": "length"}, False, "unfinished"),
        ([START, *THOUGHT], {"outcome": "length", "would_exit": 2}, False, "unfinished"),
        # Its word, by the route, that the thinking is to end.
        ([START, *THOUGHT, END, 20], {"outcome": "interrupt", "would_exit": 2}, True, "unfinished"),
        # The model has given up its thinking; it had nowhere to exit; it never thought.
        ([START, *THOUGHT], {"outcome": "natural_end"}, True, "no_answer"),
        ([START, *THOUGHT, END], {"outcome": "natural_end"}, True, "no_answer"),
        ([START, 10, 11, END, 20], {"outcome": "natural_end"}, True, "no_boundary"),
        ([SPLIT, START, 10, END, 20, SPLIT], {"outcome": "natural_end"}, True, "no_boundary"),
        ([20], {"outcome": "off"}, True, None),
        ([START, *THOUGHT], {"outcome": "handed_over"}, False, None),
    ],
)
def test_only_what_a_calibration_would_count_says_something_about_the_risk(output, report, by_itself, expected):
    """Clients that cut their requests used to make the risk look smaller, and brought a server back from shadow."""
    settled = []

    async def generate(*_):
        return r"\boxed{7}"

    async def run():
        decode, told = (lambda ids: r"\boxed{7}" if ids else ""), lambda *result: settled.append(result[:2])
        audit = Audit(generate, decode, TOKENS, 200, told)
        audit.consider(finished("r", output=output, by_itself=by_itself), admitted(), report)
        while audit.summary()["waiting"]:
            await asyncio.sleep(0)

    asyncio.run(run())
    assert settled == ([] if expected is None else [("default", expected)])


@pytest.mark.parametrize(
    ("name", "value", "picked"),
    [
        ("logit_bias", {END: 100.0}, False),
        ("allowed_token_ids", [END], False),
        ("bad_words", ["wait"], False),
        ("thinking_token_budget", 0, False),
        ("trace_decode_token_ids", [10, END], False),
        ("structured_outputs", SimpleNamespace(choice=[r"\boxed{123456}"]), False),
        ("min_tokens", 1, False),
        ("min_tokens", 0, True),
        ("ignore_eos", True, False),
        ("ignore_eos", False, True),
        ("bad_words", [], True),
        ("stop", ["a"], True),  # whether it has stopped anything is seen at the end
    ],
)
def test_a_request_whose_client_decides_what_is_written_is_not_audited(name, value, picked):
    front, request = front_end(audit_rate=1.0), incoming("chatcmpl-1")
    setattr(request.sampling_params, name, value)
    decided = front.admit(request)
    # The early answer of an audit is made without any of that, so it would be another one.
    assert (decided.audited, decided.mode) == ((True, "shadow") if picked else (False, "exit"))


@pytest.mark.parametrize(
    ("arguments", "looked_at"),
    [
        (None, True),
        ({"specexit": True}, True),
        ({"specexit_validity": 0.5}, False),
        ({"specexit_min_thinking_tokens": 40}, False),
        ({"specexit_splits": ["\n\n"]}, False),
        ({"specexit_mode": "shadow"}, False),
        ({"specexit": False}, False),
    ],
)
def test_only_requests_under_the_servers_own_policy_are_audited(arguments, looked_at):
    """Else a client could steer what the server believes its risk to be."""
    decided = admitted(arguments)
    assert decided.audited is looked_at
    assert (decided.point is not None) is looked_at
    assert decided.mode == ("off" if arguments == {"specexit": False} else "shadow" if looked_at else decided.mode)

    async def run():
        audit = Audit(lambda *args: pytest.fail("audited"), lambda ids: "", TOKENS, 200)
        audit.consider(finished("r"), decided, {"outcome": "natural_end", "would_exit": 2})
        waiting = audit.summary()["waiting"]
        for task in audit._tasks:
            task.cancel()
        return waiting

    assert asyncio.run(run()) == looked_at


def test_audits_with_an_adapter_are_counted_by_adapter_and_move_nothing():
    """One tenant's fine-tune made a server step down for all, and stood in the risk of the calibrated target."""
    front = FrontEnd(operation(audit_rate=1.0), Activity())
    told = []

    def settled(point, result, policy):
        told.append(result)
        front.audited(point, result, policy)

    async def run(lora, times):
        audit = Audit(lambda *_: asyncio.sleep(0, r"\boxed{8}"), lambda ids: r"\boxed{7}", TOKENS, 200, settled)
        for i in range(times):
            request = incoming(f"chatcmpl-{i}")
            request.lora_request = None if lora is None else stand_in(LoRARequest, lora_name=lora)
            decided = front.admit(request)
            assert decided.audited
            front.keep(admitted_state(), request, decided)
            audit.consider(finished(f"r{i}"), decided, {"outcome": "natural_end", "would_exit": 2})
        while audit.summary()["waiting"]:
            await asyncio.sleep(0)
        return audit.summary()

    summary = asyncio.run(run("poet", 10))
    assert (summary["audited"], summary["risk"], told) == (0, None, [])
    assert (summary["loras"]["poet"]["changed"], summary["loras"]["poet"]["risk"]) == (10, 1.0)
    assert front.hold.summary()["points"] == {}
    assert front.summary()["traffic"]["prompt_tokens"]["requests"] == 0
    summary = asyncio.run(run(None, 10))
    assert (summary["audited"], summary["loras"], told) == (10, {}, ["changed"] * 10)
    assert front.operation.served().name != "usual"


def test_waiting_audits_are_bounded_in_number_and_in_bytes(monkeypatch):
    async def run():
        audit = Audit(lambda *args: asyncio.sleep(0), lambda ids: "", TOKENS, 200)
        for i in range(4):
            audit.consider(finished(f"r{i}"), admitted(), {"outcome": "natural_end", "would_exit": 2})
        waiting, skipped = audit.summary()["waiting"], audit.summary()["skipped"]
        while audit.summary()["waiting"]:
            await asyncio.sleep(0)
        audit.consider(finished("r9"), admitted(), {"outcome": "natural_end", "would_exit": 2})
        return waiting, skipped, audit.summary()["waiting"]

    size = Case.of(finished("r0"), 2, TOKENS).size
    assert size == 4 * (1 + 10) + len("r0") + len("of r0")  # four bytes a token; a client's id may have megabytes
    monkeypatch.setattr(audits, "MOST_BYTES", 2 * size)
    assert asyncio.run(run()) == (2, 2, 1)  # bytes are given back
    monkeypatch.setattr(audits, "MOST_BYTES", 100 * size)
    monkeypatch.setattr(audits, "MOST_WAITING", 3)
    assert asyncio.run(run()) == (3, 1, 1)


def engines_with(*loaded):
    """vLLM's client of so many engines, which have these adapters."""

    async def asked(method, *given, engine):
        assert (method, given) == ("list_loras", ())
        return engine

    return stand_in(EngineCoreClient, core_engines=loaded, _call_utility_async=asked)


def scheduled_by(policy):
    """The configuration of an engine with such a scheduler."""
    return stand_in(VllmConfig, scheduler_config=stand_in(SchedulerConfig, policy=policy))


@pytest.mark.parametrize("loaded", [[{8}], [{7, 8}, {8}], [set()]])
def test_an_audit_whose_adapter_is_no_longer_loaded_is_skipped(loaded):
    """To load what had been unloaded, and deleted, ended the engine; and clients of other adapters waited for it."""

    class Engine:
        vllm_config = scheduled_by("fcfs")
        engine_core = engines_with(*loaded)

    async def run():
        engine, report = filled(AsyncLLM, Engine()), {"outcome": "natural_end", "would_exit": 2}
        audit = Audit(generator_of(engine), lambda ids: r"\boxed{7}", TOKENS, 200)
        request = incoming("chatcmpl-1")
        request.lora_request = stand_in(LoRARequest, lora_name="poet")
        audit.consider(finished("r"), FrontEnd(operation(audit_rate=1.0), Activity()).admit(request), report)
        while audit.summary()["waiting"]:
            await asyncio.sleep(0)
        return audit.summary()["loras"]["poet"]

    assert asyncio.run(run())["skipped"] == 1


@pytest.mark.parametrize("name", ["QueueOverflowError", "MaxQueuedTokensError"])
def test_an_audit_waits_for_an_engine_that_takes_no_more_requests(name, monkeypatch):
    """All that waited failed at once, so that busy hours were left out of the risk."""
    monkeypatch.setattr(audits, "SECONDS_BUSY", 0.0)
    busy = [type(name, (Exception,), {})() for _ in range(3)]

    class Engine:
        vllm_config = scheduled_by("fcfs")
        engine_core = engines_with({7}, {6, 7})

        async def generate(self, *asked, **how):
            if busy:
                raise busy.pop()
            yield SimpleNamespace(outputs=[SimpleNamespace(text="done", finish_reason="stop")])

    engine = filled(AsyncLLM, Engine())
    assert asyncio.run(generator_of(engine)([1, 2], 5, Case.of(finished("r"), 2, TOKENS))) == "done"


def test_an_audit_keeps_the_salt_the_adapter_and_the_rank_of_its_request():
    """Without its salt, a prompt that was to share no cache would enter everybody's."""
    asked = {}

    class Engine:
        vllm_config = scheduled_by("priority")
        engine_core = engines_with({7}, {6, 7})

        async def generate(self, prompt, params, request, *, lora_request, priority):
            asked.update(
                inner=inner.get(), prompt=prompt, request=request, lora=lora_request, priority=priority, params=params
            )
            yield SimpleNamespace(outputs=[SimpleNamespace(text="done", finish_reason="stop")])

    engine = filled(AsyncLLM, Engine())
    case = Case.of(finished("r"), 2, TOKENS)
    assert asyncio.run(generator_of(engine)([1, 2], 5, case)) == "done"
    assert asked["prompt"] == {"prompt_token_ids": [1, 2], "cache_salt": "of r"}
    assert (asked["lora"].lora_int_id, asked["priority"]) == (7, audits.LOWEST_PRIORITY + 3)
    assert case.lora.load_inplace
    assert not asked["lora"].load_inplace, "no weights of then for clients of today"
    assert asked["request"] == "specexit-audit-r"
    assert asked["inner"]
    assert (asked["params"].temperature, asked["params"].max_tokens) == (0, 5)
    assert asked["params"].extra_args is None  # it asks for nothing, so no server can refuse it
