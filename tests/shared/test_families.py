"""tiny-mixed's families: each is as hard as its name says, and its right answers are right."""

import itertools
import random
import re
from collections import defaultdict

import pytest

from specexit import tiny
from specexit.data.answers import extract_answer, kind, same_answer
from specexit.data.prompts import split_prompts
from specexit.method.splits import load_tokenizer, resolve
from specexit.schemas.target import load_target_config
from specexit.tiny import families
from specexit.tiny.families.arithmetic import Arithmetic

N = 800
OPS = {"add": "+", "subtract": "-", "double": "*", "halve": "/"}


def calculate(value, op, operand):
    return {"+": value + operand, "-": value - operand, "*": value * operand, "/": value // operand}[op]


@pytest.fixture(scope="module")
def written():
    """Family -> problems of the test split with one thought each."""
    rng, found = random.Random(0), defaultdict(list)
    for exercise in families.exercises("test", N):
        found[exercise.family].append((exercise, exercise.think(rng)))
    return found


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(tiny.MODEL_DIR)


def test_all_families_are_drawn_and_the_old_ones_stay(written):
    assert set(written) == {"chain", "vars", "steps", "sums", "lookup", "late", "choice", "program"}
    assert min(map(len, written.values())) > 0.05 * N


def test_a_split_is_a_function_of_the_question():
    draft, test = (families.exercises(split, 300) for split in ("draft", "test"))
    assert {tiny.split_of(exercise.question) for exercise in draft} == {"draft"}
    assert not {exercise.question for exercise in draft} & {exercise.question for exercise in test}
    assert families.exercises("test", 40) == test[:40]
    assert len({exercise.question for exercise in test}) == 300
    with pytest.raises(ValueError, match="'train' does not exist, expected one of pretrain, draft, calibration, test"):
        next(families.stream("train", 0))


def test_sums_state_their_answer_in_the_last_step_and_nowhere_before(written):
    for exercise, thought in written["sums"]:
        numbers = [int(number) for number in re.findall(r"\d+", exercise.question)]
        assert int(exercise.answer) == sum(numbers)
        assert thought.paragraphs[-1].endswith(f"={exercise.answer}.")
        assert thought.first_pass == len(thought.paragraphs) - 1
        for before in thought.paragraphs[:-1]:
            assert exercise.answer not in re.findall(r"\d+", before)


def test_a_training_may_draw_families_by_other_shares():
    shares = {name: 1.0 if name in ("lookup", "choice") else 0.0 for name in families.FAMILIES}
    drawn = itertools.islice(families.stream("pretrain", 0, shares=shares), 50)
    assert {exercise.family for exercise in drawn} == {"lookup", "choice"}


def test_lookups_state_the_right_answer_at_once(written):
    for exercise, thought in written["lookup"]:
        asked = re.search(r"does (\w+) have", exercise.question)[1]
        assert re.search(rf"\b{asked} has (\d+)", exercise.question)[1] == exercise.answer
        assert exercise.answer in re.findall(r"\d+", thought.paragraphs[0])
        assert (thought.tentative, thought.final) == (exercise.answer, exercise.answer)
        assert len(thought.paragraphs) >= 3  # and goes on


def from_steps(question):
    value = int(re.match(r"Start with (\d+)", question)[1])
    for op, operand in re.findall(r"Step \d+: (add|subtract|double|halve) (\d|it)", question):
        value = calculate(value, OPS[op], 2 if operand == "it" else int(operand))
    return value


def test_late_corrections_are_common_and_come_behind_checks_that_see_nothing(written):
    wrong = 0
    for exercise, thought in written["late"]:
        assert int(exercise.answer) == from_steps(exercise.question)
        assert thought.final == exercise.answer
        repair = next(i for i, text in enumerate(thought.paragraphs) if "let me double-check" in text)
        assert repair - thought.first_pass >= 2  # the tentative answer and at least one check stand before it
        assert ("I made a mistake" in thought.paragraphs[repair]) == (thought.tentative != exercise.answer)
        wrong += thought.tentative != exercise.answer
    assert 0.6 < wrong / len(written["late"]) < 0.9


def test_choices_have_one_right_option(written):
    letters = set()
    for exercise, thought in written["choice"]:
        options = re.findall(r"(\d+) to (\d+) is ([A-D])", exercise.question)
        value = from_steps(exercise.question)
        assert [letter for low, high, letter in options if int(low) <= value <= int(high)] == [exercise.answer]
        assert exercise.choices == tuple(f"{low} to {high}" for low, high, _ in options)
        assert len(options) == 4
        assert thought.final == exercise.answer
        letters.add(exercise.answer)
    assert letters == set("ABCD")


def test_programs_print_what_an_interpreter_says(written):
    words = 0
    for exercise, thought in written["program"]:
        values = {}
        for line in exercise.question.splitlines()[1:-1]:
            left, name = line.split(" -> ")
            first, *rest = left.split()
            value = int(first) if first.isdigit() else values[first]
            values[name] = calculate(value, rest[0], int(rest[1])) if rest else value
        printed = re.fullmatch(r"cat\((\w)( %% 2 == 0)?\)", exercise.question.splitlines()[-1])
        value = values[printed[1]]
        assert exercise.answer == (str(value % 2 == 0).upper() if printed[2] else str(value))
        assert thought.final == exercise.answer
        words += printed[2] is not None
    assert 0.25 < words / len(written["program"]) < 0.55


def test_the_old_families_are_thought_through_as_the_tiny_reasoner_does():
    for problem in tiny.problems("test", 100):
        exercise = Arithmetic(problem)
        thought = exercise.think(random.Random(7))
        assert exercise.response(thought) == tiny.render_response(problem, tiny.write_trace(random.Random(7), problem))


def test_responses_state_their_answer_in_their_kind(written):
    for exercise, thought in itertools.chain.from_iterable(written.values()):
        response = exercise.response(thought).partition("</think>")[2]
        assert same_answer(extract_answer(response, exercise.kind, exercise.choices), thought.final, exercise.kind)


def test_every_paragraph_ends_at_the_one_split_token_and_nothing_else_does(written, tokenizer):
    split = resolve(tokenizer, "<think>", "</think>", ["\n\n"]).split
    stop = tokenizer.encode(".\n\n")
    for found in written.values():
        for exercise, thought in found[:40]:
            text = exercise.response(thought).partition("</think>")[0]
            tokens = tokenizer.encode(text)
            assert [token for token in tokens if token in split] == stop * len(thought.paragraphs)
            assert tokenizer.decode(tokens) == text


def test_a_split_of_the_mixed_target_names_kind_task_and_options():
    prompts = split_prompts("test", 200, mixed=True)
    target = load_target_config("tiny-mixed")
    for prompt, exercise in zip(prompts, families.exercises("test", 200), strict=True):
        assert (prompt.text, prompt.reference, prompt.task) == (exercise.question, exercise.answer, exercise.family)
        assert prompt.answer_kind in target.trial
        assert kind(prompt.answer_kind).why_no_reference(prompt.reference, prompt.choices) is None
    assert {prompt.answer_kind for prompt in prompts} == {"math", "choice", "text"}
    assert all((prompt.choices is not None) == (prompt.task == "choice") for prompt in prompts)
