"""Which boundaries of a long trace are tried, through all of `Tracer`, with an engine that is a function."""

import asyncio
import json
import shutil
import threading
from pathlib import Path

import pytest

from specexit.data.answers import answer_end, sandbox
from specexit.data.answers.code import Checks
from specexit.data.prompts import Prompt
from specexit.schemas.collect import CollectConfig
from specexit.schemas.target import TrialConfig
from tests.torch.pretend import TARGET, THINK, TOKENIZER
from torch_specexit.collecting.summary import count
from torch_specexit.collecting.tracer import Response, Tracer
from torch_specexit.collecting.work import Ask

STEPS, GUESS = 64, 13
"""The target settles at the last step; behind step 13, which no stride comes to, it guesses right."""


class Engine:
    """The answer of the last step is 37, and of all others but one 10."""

    async def generate(self, ids, how):
        """The whole response, or the answer behind the steps that are there."""
        if THINK.end in ids:
            done = TOKENIZER.decode(ids).split("<think>\n")[1].count("\n\n")
            text = rf"So \boxed{{{37 if done in (GUESS + 1, STEPS) else 10}}}.<|im_end|>"
        else:
            steps = ["I take 5 off, which leaves 10.\n\n"] * STEPS
            steps[GUESS], steps[-1] = "It might be 37.\n\n", "Therefore, the answer is 37.\n\n"
            text = "".join(steps) + r"</think>So \boxed{37}.<|im_end|>"
        ids = TOKENIZER.encode(text)
        return Response(ids, [-0.1] * len(ids), "stop")


def test_a_lucky_guess_between_two_strides_is_found_where_a_step_states_it():
    config = CollectConfig(target="tiny-reasoner", out=Path("unused"), split="test", n=1, free_share=0)
    target = TARGET.model_copy(update={"max_model_len": 4096})
    tracer = Tracer(config, target, Engine(), lambda **_: None)
    trace = asyncio.run(tracer.trace(Ask(Prompt("p", "How many?", "37"), 0)))
    assert len(trace.boundaries) == STEPS
    assert trace.boundary_state[GUESS] == "agrees"
    assert trace.boundary_agrees.index(True) == GUESS
    tried = [i for i, state in enumerate(trace.boundary_state) if state != "untried"]
    assert len(tried) < STEPS / 3


class Writer:
    """Writes one answer wherever thinking is ended, and stops behind a stop as vLLM does."""

    def __init__(self, answer: str):
        stated = answer if answer.strip() else "42"  # a response whose box is empty has no boundaries to try
        self.whole = TOKENIZER.encode(f"I think.\n\nSo it is.\n\n</think>\\boxed{{{stated}}}.<|im_end|>")
        self.behind = TOKENIZER.encode(answer + "}.<|im_end|>")

    async def generate(self, ids, how):
        """The whole response, or what is left of the answer behind the forced text."""
        left = self.whole
        if THINK.end in ids:
            written = ids[ids.index(THINK.end) + 1 + len(TOKENIZER.encode(FORCED)) :]
            assert written == self.behind[: len(written)]
            left = self.behind[len(written) :]
        for n in range(1, min(len(left), how.max_tokens) + 1):
            if any(stop in TOKENIZER.decode(left[:n]) for stop in how.stop):
                return Response(left[:n], [-0.1] * n, "stop")
        kept = left[: how.max_tokens]
        return Response(kept, [-0.1] * len(kept), "stop" if kept == left else "length")


FORCED = "\n\nThe answer is \\boxed{"
MATRIX = "\\begin{pmatrix}\n28 \\\\\n1\n\\end{pmatrix}"


@pytest.mark.parametrize(
    ("answer", "most", "state"),
    [
        ("42", 64, "agrees"),
        ("\n42\n", 64, "agrees"),
        (MATRIX, 64, "agrees"),
        (f"\n{MATRIX}\n", 64, "agrees"),
        ("\\left\\{ \\frac{1}{2},\n3 \\right\\}", 64, "agrees"),
        ("(1,\n2)", 64, "differs"),  # a line that could be all of it
        ("\\text{yes,\nand no}", 64, "agrees"),
        (MATRIX, 12, "undecided"),
        ("", 64, "undecided"),
        ("\n", 64, "undecided"),
    ],
)
def test_a_stop_in_the_midst_of_an_answer_does_not_end_it(answer, most, state):
    """As shipped: a line break ends the trial, and the box is closed there."""
    trial = TrialConfig(text=FORCED, max_tokens=most, stop=("\n",), close="}")
    config = CollectConfig(target="tiny-reasoner", out=Path("unused"), split="test", n=1, free_share=0)
    tracer = Tracer(config, TARGET.model_copy(update={"trial": {"math": trial}}), Writer(answer), lambda **_: None)
    trace = asyncio.run(tracer.trace(Ask(Prompt("p", "How many?", None), 0)))
    assert trace.boundary_state == [state, "agrees"]  # the second one is the natural end


@pytest.mark.parametrize(
    ("forced", "stop", "written", "end"),
    [
        (r"\boxed{", "}", r"\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{", "\n", "42}\nSo {", "42}"),
        (r"\boxed{", "\n", "\\{1,\\}\n2", r"\{1,\}"),
        (r"\boxed{", "\n", "\\begin{cases} 1\n2", None),
        ("```python\n", "```", "print('{')\n```\n", "print('{')\n"),
        ("The answer is (", ")", ") B) {", ") B"),
        ("**Final Answer:** ", "\n", "\n\nParis\n", "\n\nParis"),
    ],
)
def test_where_an_answer_ends(forced, stop, written, end):
    found = answer_end(written, [stop], forced)
    assert (None if found is None else written[:found]) == end


def test_a_forced_text_is_read_as_it_stands_behind_the_marker(tmp_path):
    """Phi's markers take the blank space behind them; a SentencePiece text of its own begins with a space."""
    shutil.copytree(TARGET.folder, tmp_path / "model")
    path = tmp_path / "model" / "tokenizer.json"
    fields = json.loads(path.read_text())
    next(token for token in fields["added_tokens"] if token["id"] == THINK.end)["rstrip"] = True
    path.write_text(json.dumps(fields))
    trial = TrialConfig(text="\n\nThe answer is \\boxed{", max_tokens=64, stop=("\n",), close="}")
    changes = {"path": str(tmp_path / "model"), "max_model_len": 4096, "trial": {"math": trial}}
    prefixes = []

    class Listener(Engine):
        async def generate(self, ids, how):
            prefixes.append(ids)
            return await super().generate(ids, how)

    config = CollectConfig(target="tiny-reasoner", out=Path("unused"), split="test", n=1, free_share=0)
    tracer = Tracer(config, TARGET.model_copy(update=changes), Listener(), lambda **_: None)
    asyncio.run(tracer.trace(Ask(Prompt("p", "How many?", "37"), 0)))
    trials = [ids[ids.index(THINK.end) + 1 :] for ids in prefixes[1:]]
    assert trials
    assert all(ids == TOKENIZER.encode("The answer is \\boxed{") for ids in trials)


class LongEngine:
    """300 steps of some 50 tokens; the answer is settled from step 120 on, and guessed at step 40."""

    settled = frozenset({40, *range(120, 300)})

    async def generate(self, ids, how):
        """As `Engine`'s."""
        if THINK.end in ids:
            behind = TOKENIZER.decode(ids).split("<think>\n")[1].count("\n\n") - 1
            text = rf"So \boxed{{{37 if behind in self.settled else 10}}}.<|im_end|>"
        else:
            doubt = " ".join(["I take 5 off, which leaves 10."] * 2)
            steps = [f"{doubt} So it is 37.\n\n" if i in self.settled else f"{doubt}\n\n" for i in range(300)]
            text = "".join(steps) + r"</think>So \boxed{37}.<|im_end|>"
        ids = TOKENIZER.encode(text)
        return Response(ids, [-0.1] * len(ids), "stop")


def test_trials_of_a_trace_of_300_boundaries_are_a_small_part_of_its_tokens():
    config = CollectConfig(target="tiny-reasoner", out=Path("unused"), split="test", n=1, free_share=0)
    target = TARGET.model_copy(update={"max_model_len": 1 << 15})
    tracer = Tracer(config, target, LongEngine(), lambda **_: None)
    trace = asyncio.run(tracer.trace(Ask(Prompt("p", "How many?", "37"), 0)))
    assert len(trace.boundaries) == 300
    assert 12_000 < trace.n_think < 20_000
    assert trace.boundary_agrees == [i in LongEngine.settled for i in range(300)]
    of_trials = count(trace).trial_tokens
    assert of_trials > 8 * 40  # a trial's answer each
    assert of_trials <= 0.15 * (of_trials + trace.n_think)


class Programmer:
    """The response multiplies; its trials do so in other words, and behind the first step wrongly."""

    async def generate(self, ids, how):
        """A program in a fenced block."""
        if THINK.end in ids:
            done = TOKENIZER.decode(ids).split("<think>\n")[1].count("\n\n")
            text = f"```python\ndef square(x):\n    return {'x + 7' if done == 1 else 'x**2'}\n```<|im_end|>"
        else:
            text = "It is a sum.\n\nNo, a power.\n\nSo it is.\n\n"
            text += "</think>```python\ndef square(x):\n    return x*x\n```<|im_end|>"
        ids = TOKENIZER.encode(text)
        return Response(ids, [-0.1] * len(ids), "stop")


@pytest.mark.skipif(sandbox._missing() is not None, reason=f"no sandbox: {sandbox._missing()}")
def test_two_programs_agree_if_both_pass_the_tests():
    config = CollectConfig(
        target="tiny-reasoner", out=Path("unused"), split="test", n=1, free_share=0, boundaries="all"
    )
    target = TARGET.model_copy(update={"trial": TARGET.trial | {"code": TrialConfig(max_tokens=512)}})
    tests = Checks("def check(f):\n    assert f(3) == 9\n", "square").dumps()
    tracer = Tracer(config, target, Programmer(), lambda **_: None)
    trace = asyncio.run(tracer.trace(Ask(Prompt("p", "Square x.", tests, answer_kind="code"), 0)))
    assert trace.correct
    assert trace.boundary_agrees == [False, True, True]


@pytest.mark.skipif(sandbox._missing() is not None, reason=f"no sandbox: {sandbox._missing()}")
def test_nothing_else_waits_for_a_program(monkeypatch):
    """Programs are run beside the event loop: while one runs, the loop comes to what lets it end."""
    others_went_on = threading.Event()
    monkeypatch.setattr("specexit.data.answers.code.run", lambda source: others_went_on.wait(300))
    config = CollectConfig(target="tiny-reasoner", out=Path("unused"), split="test", n=1, free_share=0)
    tracer = Tracer(config, TARGET, Programmer(), lambda **_: None)
    tests = Checks("assert square(3) == 9  # slowly").dumps()
    ask = Ask(Prompt("p", "Square x.", tests, answer_kind="code"), 0)

    async def judge() -> bool:
        asyncio.get_running_loop().call_soon(others_went_on.set)
        return await tracer._agree(ask, "code", "square = lambda x: x * x", tests)

    assert asyncio.run(judge())


def test_a_trials_answer_keeps_the_space_in_front_of_it(monkeypatch):
    """The decoder of a SentencePiece vocabulary drops that of a text's first token."""

    class Chooser:
        async def generate(self, ids, how):
            whole = "I think.\n\nSo it is.\n\n</think>The answer is B.<|im_end|>"
            written = TOKENIZER.encode(" B.<|im_end|>" if THINK.end in ids else whole)
            return Response(written, [-0.1] * len(written), "stop")

    monkeypatch.setattr(Tracer, "_text", lambda self, ids: TOKENIZER.text(ids).removeprefix(" "))
    trial = {"choice": TrialConfig(text="The answer is", max_tokens=8)}
    config = CollectConfig(target="tiny-reasoner", out=Path("unused"), split="test", n=1, free_share=0)
    tracer = Tracer(config, TARGET.model_copy(update={"trial": trial}), Chooser(), lambda **_: None)
    trace = asyncio.run(tracer.trace(Ask(Prompt("p", "Which?", None, answer_kind="choice"), 0)))
    assert trace.boundary_state == ["agrees", "agrees"]
