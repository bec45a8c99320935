"""How the tiny reasoner is taught to think: right, slowly, and past the point where it knows.

Everything about its thinking is INSTALLED by this file, not emergent, and every number measured on it says so:

* **Overthinking.** After the first pass has stated an answer, up to six checks follow, each kind at most once
  (without replacement, so that the model can learn when to stop).
* **Slips.** The first pass *always* forgets the carry when it adds 9 (once per trace). Only the ``recalculate`` check
  repairs it. A deterministic slip survives greedy decoding, so "the first stated answer" is right only four times in
  five, and an exit has to read whether this one is.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from specexit.tiny.tasks import Problem, Step, describe

PARAGRAPH = "\n\n"
"""Every paragraph ends in a full stop, so `.` and this make the one token at which an exit may happen."""

CHECKS = {"recalculate": 3, "go over": 2, "backwards": 2, "reread": 1, "last step": 1, "all steps": 1}
"""Kind of check to sampling weight."""

NEEDS_RIGHT_ANSWER = {"go over", "backwards", "last step"}
"""Checks that would contradict a slipped answer, so they are only written behind a right one."""

CHECK_COUNT_WEIGHTS = {"short": [3, 6, 14, 26, 27, 16, 8], "long": [2, 3, 8, 20, 29, 23, 15]}
"""Weights of 0..6 checks, for problems of up to three steps and of four or more. These set the oracle cut."""


@dataclass(frozen=True)
class Trace:
    """A reasoning trace. ``tentative`` is the first answer it states, ``final`` the one it gives."""

    paragraphs: tuple[str, ...]
    tentative: int
    final: int
    first_pass: int
    """Number of paragraphs before the tentative answer."""


@dataclass(frozen=True)
class _Pass:
    """The first pass over the steps: what it wrote and what would have been right."""

    paragraphs: list[str]
    stated: int
    right: list[tuple[Step, int, int]]
    """Each step with its true input and output."""


def slip(step: Step, value: int) -> int | None:
    """The wrong result of adding 9 without the carry, or None where the first pass gets it right."""
    if step.op == "+" and step.operand == 9 and value % 10 + 9 >= 10:
        return value + 9 - 10
    return None


def _subject(problem: Problem, name: str, value: int) -> str:
    return {"chain": f"{name} has {value}", "vars": f"{name} is {value}", "steps": f"Step {name} gives {value}"}[
        problem.family
    ]


def _opening(problem: Problem) -> tuple[str, str]:
    """(what is asked, what is given)."""
    if problem.family == "chain":
        given = f"{problem.root} has {problem.start} {problem.noun}"
        return f"how many {problem.noun} {problem.asked} has", given
    if problem.family == "vars":
        return f"the value of {problem.asked}", f"{problem.root} is {problem.start}"
    return f"the result after step {problem.asked}", f"Start with {problem.start}"


def statement(problem: Problem, value: int) -> str:
    """The asked value as a clause: "Sam has 88 shells"."""
    if problem.family == "chain":
        return f"{problem.asked} has {value} {problem.noun}"
    return f"{problem.asked} is {value}" if problem.family == "vars" else f"the result is {value}"


def _first_pass(problem: Problem) -> _Pass:
    paragraphs: list[str] = []
    right: list[tuple[Step, int, int]] = []
    stated = true = problem.start
    slipped = False
    for step in problem.steps:
        wrong = None if slipped else slip(step, stated)
        result = step.apply(stated) if wrong is None else wrong
        slipped = slipped or wrong is not None
        fact, equation = describe(problem.family, step), step.equation(stated, result)
        paragraphs.append(
            {
                "chain": f"{fact}, so {step.name} has {equation}.",
                "vars": f"{fact}, so {step.name} is {equation}.",
                "steps": f"{fact}, so {equation}.",
            }[problem.family]
        )
        right.append((step, true, step.apply(true)))
        stated, true = result, step.apply(true)
    return _Pass(paragraphs, stated, right)


def _check(kind: str, problem: Problem, first: _Pass, current: int) -> str:
    asked, given = _opening(problem)
    if kind == "recalculate":
        sums = ", ".join(step.equation(a, b) for step, a, b in first.right)
        verdict = f"That gives {current} again, so the answer is {current}."
        if current != problem.answer:
            answer = problem.answer
            verdict = f"That gives {answer}, not {current}. I made a mistake, so the answer is {answer}."
        return f"Wait, let me double-check. {given}. {sums}. {verdict}"
    if kind == "go over":
        values = ", ".join(_subject(problem, step.name, b) for step, _, b in first.right)
        return f"Let me go over it one more time. {values}. So {statement(problem, current)}."
    if kind == "backwards":
        back = ", ".join(f"{b} back to {a}" for _, a, b in reversed(first.right))
        return (
            f"But let me check it backwards. {back}. This matches {problem.start} at the start, so {current} is right."
        )
    if kind == "reread":
        need = f"I need to find {asked}, and {statement(problem, current)}"
        return f"Hmm, did I read the question correctly? {need}. Yes, that is right."
    if kind == "last step":
        step, a, b = first.right[-1]
        return f"Alternatively, look at the last step. {step.equation(a, b)}. That is consistent, so {current} it is."
    return f"But what if I missed something? No, all {len(problem.steps)} steps are done, so the answer is {current}."


def write_trace(rng: random.Random, problem: Problem) -> Trace:
    """Draw a reasoning trace for a problem."""
    first = _first_pass(problem)
    asked, given = _opening(problem)
    paragraphs = [f"Okay, I need to find {asked}. {given}.", *first.paragraphs]
    current = tentative = first.stated
    n_first = len(paragraphs)
    paragraphs.append(
        rng.choice(
            [
                f"So {statement(problem, current)}. The answer should be {current}.",
                f"So the answer should be {current}.",
            ]
        )
    )
    length = "long" if len(problem.steps) >= 4 else "short"
    n_checks = rng.choices(range(7), weights=CHECK_COUNT_WEIGHTS[length])[0]
    left = dict(CHECKS)
    for _ in range(n_checks):
        fit = {k: w for k, w in left.items() if current == problem.answer or k not in NEEDS_RIGHT_ANSWER}
        if not fit:
            break
        kind = rng.choices(list(fit), weights=list(fit.values()))[0]
        del left[kind]
        paragraphs.append(_check(kind, problem, first, current))
        if kind == "recalculate":
            current = problem.answer
    if n_checks:
        paragraphs.append(f"Therefore, the answer is {current}.")
    return Trace(tuple(paragraphs), tentative, current, n_first)


def render_response(problem: Problem, trace: Trace) -> str:
    """What the model is trained to write behind `specexit.tiny.tokenizer.prompt_text`, which opens the thinking."""
    claim = statement(problem, trace.final)
    claim = claim[0].upper() + claim[1:] if problem.family == "steps" else claim
    thinking = PARAGRAPH.join(trace.paragraphs) + PARAGRAPH
    return f"{thinking}</think>\n\n{claim}. The answer is \\boxed{{{trace.final}}}.<|im_end|>"
