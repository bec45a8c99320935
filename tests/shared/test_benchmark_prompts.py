"""Benchmarks by name: rows in the form of their public files, written here, give the prompt and the reference."""

import csv
import json
import re

import pytest

from specexit.data.answers import same_answer, sandbox
from specexit.data.prompts import FORMATS, PromptError, read_prompts

GSM8K = {"question": "Ann has 3 bags of 6. How many?", "answer": "3 * 6 = <<3*6=18>>18\n#### 1,018"}
MATH = {
    "problem": "Solve $x+1=2$.",
    "solution": r"So \boxed{1}.",
    "answer": r"\frac{2}{2}",
    "subject": "Algebra",
    "level": 1,
    "unique_id": "test/algebra/1.json",
}
GPQA = {
    "Record ID": "rec1",
    "Question": "What is hot?",
    "Correct Answer": "the sun\n",
    "Incorrect Answer 1": "ice",
    "Incorrect Answer 2": "snow",
    "Incorrect Answer 3": "hail",
    "High-level domain": "Physics",
    "Writer's Difficulty Estimate": "easy",
}
ARC = {
    "id": "Mercury_1",
    "question": "What is hot?",
    "choices": {"text": ["ice", "the sun", "snow"], "label": ["1", "2", "3"]},
    "answerKey": "2",
}
ARC_NESTED = {
    "id": "Mercury_1",
    "question": {
        "stem": "What is hot?",
        "choices": [
            {"text": text, "label": label} for text, label in zip(("ice", "the sun", "snow"), "ABC", strict=True)
        ],
    },
    "answerKey": "B",
}
HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": 'import math\n\ndef square(x):\n    """Return x squared."""\n',
    "entry_point": "square",
    "canonical_solution": "    return x * x\n",
    "test": "def check(candidate):\n    assert candidate(3) == 9\n",
}


def read(tmp_path, name, row, **arguments):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row))
    [prompt] = read_prompts(f"{name}:{path}", **arguments)
    return prompt


def test_every_format_has_a_test_here():
    assert set(FORMATS) == {"gsm8k", "math-500", "aime", "gpqa-diamond", "arc-challenge", "humaneval+"}


def test_gsm8k(tmp_path):
    prompt = read(tmp_path, "gsm8k", GSM8K)
    assert prompt.text.startswith(GSM8K["question"])
    assert r"\boxed{}" in prompt.text
    assert (prompt.id, prompt.reference, prompt.answer_kind) == ("gsm8k-00000", "1,018", "math")
    assert same_answer("1018", prompt.reference)
    with pytest.raises(PromptError, match="answer has no result behind '####'"):
        read(tmp_path, "gsm8k", GSM8K | {"answer": "18"})


def test_math_500(tmp_path):
    prompt = read(tmp_path, "math-500", MATH)
    assert (prompt.id, prompt.reference, prompt.group) == ("test/algebra/1.json", r"\frac{2}{2}", "Algebra")
    assert "Solve $x+1=2$." in prompt.text
    with pytest.raises(PromptError, match="line 1: column 'problem' is missing"):
        read(tmp_path, "math-500", {"question": "x"})


@pytest.mark.parametrize(
    "row",
    [
        {"id": 60, "problem": "P", "solution": "S", "answer": "033", "url": "u", "year": "2024"},
        {"ID": "60", "Problem": "P", "Answer": 33},
        {"problem_idx": 60, "problem": "P", "answer": 33, "problem_type": ["Algebra"]},
        {"ID": 60, "Year": 2024, "Question": "P", "Answer": 33.0},
        {"id": 60, "question": "P", "answer": r"33^\circ"},  # as AIME 2025 was published
        {"id": 60, "question": "P", "answer": "$33$"},
        {"id": 60, "question": "P", "answer": "33.0"},
        {"id": 60, "question": "P", "answer": r"\(33\)"},
        {"id": 60, "question": "P", "answer": r"\[33\]"},
    ],
)
def test_aime(tmp_path, row):
    prompt = read(tmp_path, "aime", row)
    assert (prompt.id, prompt.reference) == ("aime-60", "33")


@pytest.mark.parametrize("answer", [1000, "-1", "33.5", "33\\%", "33_8", "33 or 34", "x", "nan", True, ""])
def test_an_answer_that_aime_cannot_have_is_refused(tmp_path, answer):
    message = f"answer is {str(answer)!r}, expected an integer from 0 to 999"
    with pytest.raises(PromptError, match=re.escape(message)):
        read(tmp_path, "aime", {"problem": "P", "answer": answer})


def test_gpqa_diamond_is_shuffled_by_the_seed(tmp_path):
    places = set()
    for seed in range(20):
        prompt = read(tmp_path, "gpqa-diamond", GPQA, seed=seed)
        assert prompt == read(tmp_path, "gpqa-diamond", GPQA, seed=seed)
        assert prompt.choices["ABCD".index(prompt.reference)] == "the sun"
        assert f"{prompt.reference}. the sun\n" in prompt.text
        places.add(prompt.reference)
    assert places == set("ABCD")
    assert (prompt.id, prompt.group, prompt.answer_kind) == ("rec1", "Physics", "choice")
    with (tmp_path / "gpqa.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(GPQA))
        writer.writeheader()
        writer.writerow(GPQA)
    assert read_prompts(f"gpqa-diamond:{tmp_path / 'gpqa.csv'}", seed=19) == [prompt]


@pytest.mark.parametrize("row", [ARC, ARC_NESTED])
def test_arc_challenge(tmp_path, row):
    prompt = read(tmp_path, "arc-challenge", row)
    assert "A. ice\nB. the sun\nC. snow\n" in prompt.text
    assert (prompt.id, prompt.reference, prompt.answer_kind) == ("Mercury_1", "B", "choice")
    with pytest.raises(PromptError, match="answerKey is 'E', expected one of the labels"):
        read(tmp_path, "arc-challenge", row | {"answerKey": "E"})


def test_humaneval_plus(tmp_path):
    prompt = read(tmp_path, "humaneval+", HUMANEVAL)
    assert HUMANEVAL["prompt"].rstrip() in prompt.text
    assert (prompt.id, prompt.answer_kind) == ("HumanEval/0", "code")
    release = {key: value for key, value in HUMANEVAL.items() if key != "test"} | {"plus_input": []}
    with pytest.raises(PromptError, match="has plus_input but no test"):
        read(tmp_path, "humaneval+", release)
    if sandbox._missing() is None:
        assert same_answer("def square(x):\n    return x * x", prompt.reference, "code")
        assert not same_answer("def square(x):\n    return x", prompt.reference, "code")
