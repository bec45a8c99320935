"""How `specexit bench` reads a response: what ended its thinking, what its answer is, and what is no measurement."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from specexit.bench.methods import Marks, MethodError, Problem, Trial, Tuning, find_method
from specexit.bench.process import BenchError
from specexit.bench.requests import Request
from specexit.method.decision import ENDED
from tests.serving.benching import TARGET, generated_traces
from torch_specexit.bench import worker
from torch_specexit.bench.driver import drive
from torch_specexit.bench.turns import Entry, check_served, read_request
from torch_specexit.bench.worker import run_method


def test_an_option_s_own_text_is_its_letter_here_too() -> None:
    """As it was when the traces were collected: else the whole benchmark would find no answer right."""
    tokenizer, end = TARGET.tokenizer(), TARGET.think_tokens().end
    (trace,) = generated_traces(1)
    trace = replace(trace, answer_kind="choice", choices=["a tree", "a metal"], reference="B")
    raw = {"token_ids": [end, *tokenizer.encode("It is \\boxed{a metal}.")], "outcome": None, "finish_reason": "stop"}
    raw |= {"forced": False, "probe_tokens": 0, "seconds": 1.0, "first_answer_seconds": None}
    entry = Entry("none", "none", find_method("none").tuned(Tuning([], 0.0)), None, (None,), ({},))
    request = read_request(entry, trace, raw, tokenizer, end)
    assert (request.answer, request.correct) == ("B", True)


@pytest.mark.parametrize(
    ("kind", "written", "answer"),
    [("choice", "The answer is B", "B"), ("text", "Answer: Paris", "Paris"), ("math", "#### 42", "42")],
)
def test_the_token_that_ends_a_turn_is_no_part_of_an_answer(kind: str, written: str, answer: str) -> None:
    """An engine's tokens hold it, and the answers of traces are read without: so short ones were never right."""
    tokenizer, end = TARGET.tokenizer(), TARGET.think_tokens().end
    (trace,) = generated_traces(1)
    trace = replace(trace, answer_kind=kind, reference=answer)
    raw = {"token_ids": [end, *tokenizer.encode(f"{written}<|im_end|>")], "outcome": None, "finish_reason": "stop"}
    raw |= {"forced": False, "probe_tokens": 0, "seconds": 1.0, "first_answer_seconds": None}
    entry = Entry("none", "none", find_method("none").tuned(Tuning([], 0.0)), None, (None,), ({},))
    request = read_request(entry, trace, raw, tokenizer, end)
    assert (request.answer, request.correct) == (answer, True)
    assert request.answer_tokens == len(raw["token_ids"]) - 1


@pytest.mark.parametrize("closed", [True, False])
def test_a_transition_text_is_no_thinking_of_the_method(closed: bool) -> None:
    """It would make a cut smaller than it is, and no exit that of its replay."""
    tokenizer, end = TARGET.tokenizer(), TARGET.think_tokens().end
    (trace,) = generated_traces(1)
    transition = tokenizer.encode("I should answer now.")
    ids = [*trace.think_ids[:5], *transition, *([end, *trace.answer_ids] if closed else [])]
    outcome = {"outcome": "exit" if closed else "length", "thinking_tokens": 5, "transition_tokens": len(transition)}
    raw = {"token_ids": ids, "outcome": outcome, "finish_reason": "stop" if closed else "length"}
    raw |= {"forced": False, "probe_tokens": 0, "seconds": 1.0, "first_answer_seconds": None}
    entry = Entry("specexit", "specexit", find_method("specexit").tuned(Tuning([], 0.0)), None, (None,), ({},))
    request = read_request(entry, trace, raw, tokenizer, end)
    assert (request.thinking_tokens, request.reason) == (5, outcome["outcome"])
    assert request.answer_tokens == (len(trace.answer_ids) if closed else 0)
    assert request.answer == (trace.answer if closed else None)


def written(outcome: dict | None, **more: object) -> Request:
    """A response of specexit that thinks for five tokens, checked and read."""
    tokenizer, end = TARGET.tokenizer(), TARGET.think_tokens().end
    (trace,) = generated_traces(1)
    raw = {"token_ids": [*trace.think_ids[:5], end, *trace.answer_ids], "outcome": outcome, "finish_reason": "stop"}
    raw |= {"forced": False, "probe_tokens": 0, "seconds": 1.0, "first_answer_seconds": None} | more
    entry = Entry("specexit", "specexit", find_method("specexit").tuned(Tuning([], 0.0)), None, (None,), ({},))
    check_served(entry.name, trace.id, raw)
    return read_request(entry, trace, raw, tokenizer, end)


@pytest.mark.parametrize(
    ("outcome", "inactive", "said"),
    [
        (None, None, "vLLM reported no outcome for test-0"),
        (None, "ValueError: bad", "the specexit plug-in has given up by the response to test-0: ValueError: bad"),
        ({"outcome": "natural_end", "thinking_tokens": 5}, "gone", "has given up by the response to test-0: gone"),
        ({"outcome": "off", "thinking_tokens": 5}, None, "exits were off in the response to test-0, expected serving"),
        ({"outcome": "natural_end", "thinking_tokens": 5, "would_exit": 4}, None, "exits were in shadow mode"),
    ],
)
def test_a_response_that_could_not_exit_is_no_measurement(
    outcome: dict | None, inactive: str | None, said: str
) -> None:
    """It would be a method that cuts nothing and loses nothing."""
    with pytest.raises(BenchError, match=f"method specexit: .*{said}"):
        written(outcome, inactive=inactive)


def test_thinking_that_never_began_is_a_response_like_others() -> None:
    assert written({"outcome": "off", "thinking_tokens": 0}, inactive=None).reason == "natural_end"


def test_why_the_plug_in_gave_up_comes_from_the_engine() -> None:
    from vllm import RequestOutput
    from vllm.outputs import CompletionOutput

    class Engine:
        """Answers the one request that it gets, and says that exits have failed."""

        def add_request(self, name: str, *_: object) -> None:
            self.name = name

        def step(self) -> list[RequestOutput]:
            answer = CompletionOutput(0, "", [5, 6], None, None, finish_reason="stop")
            told = {"specexit_inactive": "could not read the signals"}
            return [RequestOutput(self.name, None, [1], None, [answer], True, kv_transfer_params=told)]

    marks = Marks(start=1, end=2, split=frozenset({3}), max_new_tokens=9, max_model_len=99, decode=str)
    done = drive(
        SimpleNamespace(llm_engine=Engine()),
        find_method("specexit")(),
        [Problem("a", [1], Trial((), 9))],
        marks,
        batch=1,
        sampling={"temperature": 0.0},
    )
    assert [(one["token_ids"], one["inactive"]) for one in done["requests"]] == [([5, 6], "could not read the signals")]


def test_what_an_engine_does_not_take_of_a_method_is_told_by_its_name() -> None:
    """It was twenty lines of traceback that named the engine's configuration, and no method."""

    class Engine:
        """Takes nothing."""

        def add_request(self, *_: object) -> None:
            raise ValueError("token 7000 is out of vocabulary")

    marks = Marks(start=1, end=2, split=frozenset({3}), max_new_tokens=9, max_model_len=99, decode=str)
    asked: Any = ([Problem("a", [7000], Trial((), 9))], marks)
    with pytest.raises(MethodError, match=r"^method eagle3, problem a: the engine does not take .*: token 7000 is out"):
        drive(SimpleNamespace(llm_engine=Engine()), find_method("eagle3")(), *asked, batch=1, sampling={})


def test_trials_say_the_same_whether_the_turn_or_a_stop_ends_them() -> None:
    """The token that ends a turn made "Paris" another answer than "Paris", so that no two trials agreed."""
    from vllm import RequestOutput
    from vllm.outputs import CompletionOutput

    tokenizer = TARGET.tokenizer()
    texts = iter(["So.\n\n", "Answer: Paris<|im_end|>", "So.\n\n", "Answer: Paris\n", "Answer: Paris<|im_end|>"])

    class Engine:
        """Writes one text after the other."""

        model_config = SimpleNamespace(max_model_len=TARGET.max_model_len)

        def add_request(self, name: str, *_: object) -> None:
            self.name = name

        def step(self) -> list[RequestOutput]:
            answer = CompletionOutput(0, "", tokenizer.encode(next(texts)), None, None, finish_reason="stop")
            return [RequestOutput(self.name, None, [1], None, [answer], True)]

    llm = SimpleNamespace(llm_engine=Engine(), reset_prefix_cache=lambda: True, get_metrics=list)
    trial = {"ids": (), "max_tokens": 24, "stop": ("\n",), "close": ""}
    problem = {"id": "a", "prompt_ids": [1], "answer_kind": "text", "choices": None, "trial": trial, "hint": None}
    job = {"method": "stability", "parameters": {"m": 2}, "problems": [problem], "marks": {"max_new_tokens": 200}}
    job |= {"batch": 1, "sampling": {"temperature": 0.0}, "arrivals": None, "seed": 0}
    (done,) = run_method(llm, TARGET, job)["requests"]
    assert (done["asked"], done["forced"]) == (5, True)


def test_a_method_begins_with_nothing_cached_and_the_seed_of_its_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else what it is measured at is what the one before it has left."""
    done: list[object] = []
    monkeypatch.setattr(worker, "seed_everything", lambda seed: done.append(seed))
    monkeypatch.setattr(worker, "drive", lambda *_, **__: done.append("driven") or {"requests": []})
    engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=TARGET.max_model_len))
    llm = SimpleNamespace(llm_engine=engine, get_metrics=list)
    llm.reset_prefix_cache = lambda: done.append("emptied")
    job = {"method": "none", "parameters": {}, "problems": [], "marks": {"max_new_tokens": 200}}
    run_method(llm, TARGET, job | {"batch": 1, "sampling": {"temperature": 0.0}, "arrivals": None, "seed": 7})
    assert done == ["emptied", 7, "driven"]


@pytest.mark.parametrize("ended", ENDED)
def test_whatever_ends_the_thinking_in_the_engine_is_no_natural_end(ended: str) -> None:
    """Counted as the model's own, a policy's maximum would be a baseline without exits."""
    request = written({"outcome": ended, "thinking_tokens": 5, "signals": {}})
    assert (request.reason, request.ended_by, request.thinking_tokens) == ("exit", ended, 5)
