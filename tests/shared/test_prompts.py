"""Prompt files, and the tiny reasoner's splits as prompts."""

import json

import pytest

from specexit import tiny
from specexit.data.prompts import Prompt, PromptError, read_prompts, split_prompts


def test_reads_prompts_in_order(tmp_path):
    path = tmp_path / "prompts.jsonl"
    rows = [{"id": "b", "prompt": "2 + 2?", "reference": "4"}, {"id": "a", "prompt": "Why?"}]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    assert read_prompts(path) == [Prompt("b", "2 + 2?", "4"), Prompt("a", "Why?", None)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[]", "line 2: holds a list, expected an object"),
        ('{"id": "b"}', "line 2: prompt is None, expected a string"),
        ('{"id": 3, "prompt": "x"}', "line 2: id is 3, expected a string"),
        ('{"id": "b", "prompt": "x", "reference": 4}', "line 2: reference is 4, expected a string or nothing"),
        ('{"id": "a", "prompt": "x"}', "line 2: id 'a' occurs twice"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"id": "a", "prompt": "x"}\n' + line)
    with pytest.raises(PromptError, match=rf"prompts\.jsonl, {message}"):
        read_prompts(path)


def test_no_prompts(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(PromptError, match="holds no prompt"):
        read_prompts(tmp_path / "empty.jsonl")
    with pytest.raises(PromptError, match="cannot be read"):
        read_prompts(tmp_path / "absent.jsonl")


def test_a_split_is_the_same_however_many_are_asked_for():
    few, many = split_prompts("test", 5), split_prompts("test", 20)
    assert many[:5] == few
    assert len({prompt.text for prompt in many}) == 20
    assert all(tiny.split_of(prompt.text) == "test" for prompt in many)
