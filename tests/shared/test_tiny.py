"""The tiny reasoner's problems and its installed way of thinking: facts that the rest of the project leans on."""

import itertools
import operator
import random
import re

import pytest

from specexit import tiny
from specexit.data.answers import extract_answer
from specexit.method.splits import load_tokenizer, resolve
from specexit.tiny.tasks import SPLITS, split_of, stream
from specexit.tiny.traces import CHECKS, slip

N = 600


@pytest.fixture(scope="module")
def written():
    """Problems of the test split with one trace each."""
    rng = random.Random(0)
    return [(problem, tiny.write_trace(rng, problem)) for problem in tiny.problems("test", N)]


def replay(problem):
    value = problem.start
    for step in problem.steps + problem.tail:
        value = step.apply(value)
        yield value


def test_splits_are_disjoint_and_cover_every_question():
    buckets = [bucket for split in SPLITS.values() for bucket in split]
    assert sorted(buckets) == list(range(16))
    questions = {split: {problem.question for problem in tiny.problems(split, 100)} for split in SPLITS}
    for split, own in questions.items():
        assert {split_of(question) for question in own} == {split}
    for a, b in itertools.combinations(questions.values(), 2):
        assert not a & b


def test_the_stream_is_reproducible_and_depends_on_the_seed():
    def first(seed):
        return [problem.question for problem in itertools.islice(stream("draft", seed), 50)]

    assert first(0) == first(0)
    assert first(0) != first(1)


def test_an_unknown_split_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match="'train' does not exist, expected one of pretrain, draft, calibration, test"):
        next(stream("train", 0))


def test_every_value_stays_between_1_and_99_and_halves_are_whole(written):
    for problem, _ in written:
        values = [problem.start, *replay(problem)]
        assert all(1 <= value <= 99 for value in values), problem
        for step, before in zip(problem.steps + problem.tail, values, strict=False):
            assert step.op != "/" or before % 2 == 0


def test_the_answer_is_the_asked_value_and_the_tail_does_not_matter(written):
    for problem, _ in written:
        values = list(replay(problem))
        assert problem.answer == values[len(problem.steps) - 1]
    assert any(problem.tail for problem, _ in written)


CHAIN = r"(\w+) has (?:(\d) )?(fewer than|more than|half as many as|twice as many as) (\w+)\."
VARS = r"(\w) = (\w) ([-+*/]) (\d)\."
DONE = {"add": operator.add, "subtract": operator.sub, "double": operator.mul, "halve": operator.truediv}
STEPS = r"Step (\d+): (add|subtract|double|halve) (\d|it)\."


def from_text(problem):
    """The answer, from nothing but the words of the question."""
    question = problem.question
    number, asked = int(re.search(r"\d+", question)[0]), re.search(r"(\w+)(?: have)?\?$", question)[1]
    if problem.family == "steps":
        for name, op, k in re.findall(STEPS, question):
            number = DONE[op](number, 2 if k == "it" else int(k))
            if name == asked:
                return number
    known = {re.match(r"(?:Let )?(\w+)", question)[1]: number}
    for parent, k, relation, name in re.findall(CHAIN, question):
        value = known[parent]  # as many as the relation makes of what is not known yet
        known[name] = {
            "fewer than": value + int(k or 0),
            "more than": value - int(k or 0),
            "half as many as": value * 2,
            "twice as many as": value / 2,
        }[relation]
    for parent, name, op, k in re.findall(VARS, question):
        value, k = known[parent], int(k)
        known[name] = {"+": value - k, "-": value + k, "*": value / k, "/": value * k}[op]
    return known[asked]


def test_the_answer_is_that_of_the_question_s_words(written):
    for problem, _ in written:
        assert problem.answer == from_text(problem), problem.question


def test_a_slip_forgets_the_carry_when_adding_nine_and_nothing_else(written):
    for problem, _ in written:
        value = problem.start
        for step in problem.steps:
            wrong = slip(step, value)
            if step.op == "+" and step.operand == 9 and value % 10:
                assert wrong == step.apply(value) - 10
            else:
                assert wrong is None
            value = step.apply(value)


def test_the_first_answer_is_wrong_exactly_where_the_first_pass_slips(written):
    slipped = 0
    for problem, trace in written:
        values = [problem.start, *replay(problem)]
        slips = any(slip(step, value) is not None for step, value in zip(problem.steps, values, strict=False))
        # Forgetting a carry can cancel out only by a later halving of both, which keeps them apart.
        assert slips or trace.tentative == problem.answer
        slipped += trace.tentative != problem.answer
    assert 0.1 < slipped / N < 0.3  # "right only four times in five"


def test_recalculating_repairs_a_slip_and_nothing_else_changes_the_answer(written):
    for problem, trace in written:
        recalculated = any("let me double-check" in paragraph for paragraph in trace.paragraphs)
        assert trace.final == (problem.answer if recalculated else trace.tentative)


def test_most_final_answers_are_right_and_the_thinking_goes_on_past_the_first_one(written):
    right = sum(trace.final == problem.answer for problem, trace in written) / N
    behind = sum(len(trace.paragraphs) - 1 - trace.first_pass for _, trace in written) / N
    assert 0.95 < right < 1
    assert behind > 2


def test_no_check_is_written_twice(written):
    openings = ("Wait, let me double-check", "Let me go over it", "But let me check it backwards", "Hmm, did I read")
    openings += ("Alternatively, look at", "But what if I missed")
    assert len(openings) == len(CHECKS)
    for _, trace in written:
        for opening in openings:
            assert sum(paragraph.startswith(opening) for paragraph in trace.paragraphs) <= 1


def test_equations_in_a_trace_are_right_but_for_the_slip(written):
    for problem, trace in written:
        text = " ".join(trace.paragraphs)
        wrong = [
            (a, op, b, c)
            for a, op, b, c in re.findall(r"(-?\d+)([-+*/])(\d+)=(-?\d+)", text)  # a slip can lead below zero
            if int(c) != {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b), "/": int(a) // int(b)}[op]
        ]
        assert len(set(wrong)) <= 1  # once per trace
        assert all(op == "+" and b == "9" for _, op, b, _ in wrong)
        assert wrong or trace.tentative == problem.answer


def test_every_paragraph_ends_at_the_one_split_token_and_nothing_else_does(written):
    tokenizer = load_tokenizer(tiny.MODEL_DIR)
    ids = resolve(tokenizer, "<think>", "</think>", ["\n\n"])
    stop = tokenizer.encode(".\n\n")
    assert len(stop) == 1
    for problem, trace in written[:200]:
        thinking, marker, _ = tiny.render_response(problem, trace).partition("</think>")
        assert marker
        tokens = tokenizer.encode(thinking)
        splits = [token for token in tokens if token in ids.split]
        assert splits == stop * len(trace.paragraphs)
        assert tokens[-1] == stop[0]


def test_the_response_states_the_final_answer_in_a_box(written):
    for problem, trace in written:
        assert extract_answer(tiny.render_response(problem, trace)) == str(trace.final)


def test_what_the_model_reads_and_writes_survives_its_tokenizer(written):
    tokenizer = load_tokenizer(tiny.MODEL_DIR)
    for problem, trace in written[:200]:
        text = tiny.prompt_text(problem.question) + tiny.render_response(problem, trace)
        assert tokenizer.decode(tokenizer.encode(text)) == text
