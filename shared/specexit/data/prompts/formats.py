"""Benchmarks whose files are known by name: the usual prompt, the answer kind, and where the reference stands.

``gsm8k:FILE`` reads FILE, in any format of `sources`, as GSM8K. Columns are those of the data sets' public
releases; further ones are left out. A row that lacks one, or has another form, is a `PromptError` that names the place.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from specexit.data.answers.code import Checks
from specexit.data.answers.math_numbers import number as number_in
from specexit.data.answers.math_text import normal
from specexit.data.answers.math_units import split
from specexit.data.prompts.prompt import Prompt, PromptError, Row, optional_text, text_of

REASON = "Please reason step by step, and put your final answer within \\boxed{}."
CHOOSE = "Please reason step by step, and put the letter of the right option within \\boxed{}."
PROGRAM = "Complete this Python function. Answer with the whole function in one Python code block."


def _field(row: Row, where: str, *names: str) -> Any:
    """The value of the first of several columns that is there."""
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise PromptError(f"{where}: column {' or '.join(map(repr, names))} is missing")


def _math(id: str, task: str, question: str, reference: str, group: str | None = None) -> Prompt:
    return Prompt(id, f"{question}\n\n{REASON}", reference, task=task, answer_kind="math", group=group)


def gsm8k(row: Row, where: str, number: int, seed: int) -> Prompt:
    """GSM8K (Cobbe et al. 2021): ``question``, ``answer`` with the result behind ``####``."""
    del seed
    solution = text_of(_field(row, where, "answer"), where, "answer")
    _, hashes, reference = solution.rpartition("####")
    if not hashes or not reference.strip():
        raise PromptError(f"{where}: answer has no result behind '####', expected GSM8K's form")
    question = text_of(_field(row, where, "question"), where, "question")
    return _math(f"gsm8k-{number:05d}", "gsm8k", question, reference.strip())


def math_500(row: Row, where: str, number: int, seed: int) -> Prompt:
    """MATH-500 (Lightman et al. 2023): ``problem``, ``answer``, ``unique_id``, ``subject``, ``level``."""
    del seed
    question = text_of(_field(row, where, "problem"), where, "problem")
    reference = text_of(_field(row, where, "answer"), where, "answer")
    subject = optional_text(row.get("subject"), where, "subject")
    return _math(str(row.get("unique_id") or f"math-500-{number:05d}"), "math-500", question, reference, subject)


def aime(row: Row, where: str, number: int, seed: int) -> Prompt:
    """AIME in the forms that are in use: ``problem`` or ``question``, ``answer`` an integer from 0 to 999."""
    del seed
    question = text_of(_field(row, where, "problem", "Problem", "question", "Question"), where, "problem")
    answer = str(_field(row, where, "answer", "Answer")).strip()
    quantity, unit = split(normal(answer))
    value = number_in(quantity)
    if value is None or value not in range(1000) or unit not in (None, "degree"):  # a published answer is 336^\circ
        raise PromptError(f"{where}: answer is {answer!r}, expected an integer from 0 to 999")
    own = next((row[name] for name in ("id", "ID", "problem_idx") if row.get(name) is not None), f"{number:05d}")
    return _math(f"aime-{own}", "aime", question, str(value))


def gpqa_diamond(row: Row, where: str, number: int, seed: int) -> Prompt:
    """GPQA (Rein et al. 2023): ``Question``, ``Correct Answer``, ``Incorrect Answer 1`` to 3.

    The options are shuffled by the seed and the question's number.
    """
    names = ("Correct Answer", *(f"Incorrect Answer {i}" for i in (1, 2, 3)))
    options = [text_of(_field(row, where, name), where, name).strip() for name in names]
    order = random.Random(f"{seed}:{number}").sample(range(4), 4)
    question = text_of(_field(row, where, "Question"), where, "Question").strip()
    own = str(row.get("Record ID") or f"gpqa-diamond-{number:05d}")
    domain = optional_text(row.get("High-level domain"), where, "High-level domain")
    return _choice(own, "gpqa-diamond", question, [options[i] for i in order], order.index(0), domain)


def arc_challenge(row: Row, where: str, number: int, seed: int) -> Prompt:
    """ARC-Challenge (Clark et al. 2018): ``question`` and ``choices`` side by side or nested, ``answerKey``."""
    del seed
    question, choices = _field(row, where, "question"), row.get("choices")
    if isinstance(question, Mapping):
        question, choices = question.get("stem"), question.get("choices")
    if isinstance(choices, Mapping):
        labels, options = choices.get("label"), choices.get("text")
    elif isinstance(choices, Sequence) and all(isinstance(choice, Mapping) for choice in choices):
        labels, options = ([choice.get(name) for choice in choices] for name in ("label", "text"))
    else:
        raise PromptError(f"{where}: choices are {choices!r}, expected label and text of each option")
    key = str(_field(row, where, "answerKey")).strip()
    if not labels or not options or len(labels) != len(options) or key not in labels:
        raise PromptError(f"{where}: answerKey is {key!r}, expected one of the labels {labels!r}")
    own = str(row.get("id") or f"arc-challenge-{number:05d}")
    texts = [text_of(option, where, "choices") for option in options]
    return _choice(own, "arc-challenge", text_of(question, where, "question"), texts, labels.index(key), None)


def _choice(id: str, task: str, question: str, options: list[str], right: int, group: str | None) -> Prompt:
    letters = [chr(ord("A") + i) for i in range(len(options))]
    listed = "\n".join(f"{letter}. {option}" for letter, option in zip(letters, options, strict=True))
    return Prompt(
        id,
        f"{question}\n\n{listed}\n\n{CHOOSE}",
        letters[right],
        task=task,
        answer_kind="choice",
        group=group,
        choices=tuple(options),
    )


def humaneval_plus(row: Row, where: str, number: int, seed: int) -> Prompt:
    """HumanEval+ (Liu et al. 2023), the form with ``test``: ``task_id``, ``prompt``, ``entry_point``, ``test``."""
    del number, seed
    if row.get("test") is None and "plus_input" in row:
        raise PromptError(f"{where}: has plus_input but no test, expected the release of HumanEval+ with a test column")
    prompt, entry_point, test, own = (
        text_of(_field(row, where, name), where, name) for name in ("prompt", "entry_point", "test", "task_id")
    )
    reference = Checks(test, entry_point, prompt).dumps()
    text = f"{PROGRAM}\n\n```python\n{prompt.rstrip()}\n```"
    return Prompt(own, text, reference, task="humaneval+", answer_kind="code")


FORMATS: dict[str, Callable[[Row, str, int, int], Prompt]] = {
    "gsm8k": gsm8k,
    "math-500": math_500,
    "aime": aime,
    "gpqa-diamond": gpqa_diamond,
    "arc-challenge": arc_challenge,
    "humaneval+": humaneval_plus,
}
"""By name: (row, where it stands, its number from 0, seed) to a prompt."""
