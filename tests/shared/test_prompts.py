"""Prompts from everywhere: files, folders, benchmarks by name, generated tasks, and the tiny reasoner's splits."""

import csv
import json
import sys
import types
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from specexit import tiny
from specexit.data.answers import sandbox
from specexit.data.answers.code import Checks
from specexit.data.prompts import Prompt, PromptError, read_prompts, split_prompts
from specexit.schemas.prompts import ColumnsConfig

ROWS = [{"id": "b", "prompt": "2 + 2?", "reference": "4"}, {"id": "a", "prompt": "Why?", "reference": None}]
PROMPTS = [Prompt("b", "2 + 2?", "4"), Prompt("a", "Why?", None)]


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", encoding="utf-8")
    return path


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def write_json(path, rows):
    path.write_text(json.dumps(rows))
    return path


@pytest.mark.parametrize(
    ("name", "write"),
    [("p.jsonl", write_jsonl), ("p.json", write_json), ("p.csv", write_csv), ("p.parquet", write_parquet)],
)
def test_the_same_prompts_in_every_format(tmp_path, name, write):
    assert read_prompts(write(tmp_path / name, ROWS)) == PROMPTS
    assert read_prompts(str(tmp_path / name), n=1) == PROMPTS[:1]


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    """As of every path in a YAML, though no key of the type of a path holds this one."""
    monkeypatch.setenv("HOME", str(tmp_path))
    write_jsonl(tmp_path / "p.jsonl", ROWS)
    assert read_prompts("~/p.jsonl") == PROMPTS
    write_jsonl(tmp_path / "a:b.jsonl", [{"question": "2 + 2?", "answer": "#### 4"}])
    assert [prompt.reference for prompt in read_prompts("gsm8k:~/a:b.jsonl")] == ["4"]


def test_a_datasets_folder(tmp_path):
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_list(ROWS)
    made.save_to_disk(tmp_path / "one", num_shards=2)
    assert read_prompts(tmp_path / "one") == PROMPTS
    datasets.DatasetDict({"train": made, "test": made}).save_to_disk(tmp_path / "splits")
    assert read_prompts(tmp_path / "splits" / "test") == PROMPTS
    with pytest.raises(PromptError, match=r"splits: holds the splits test, train, expected one: .*splits/test"):
        read_prompts(tmp_path / "splits")
    next((tmp_path / "one").glob("data-00001*")).unlink()
    with pytest.raises(PromptError, match=r"data-00001-of-00002.arrow: is missing, state.json names it"):
        read_prompts(tmp_path / "one")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"_data_files": [{"filename": 5}]}, "filename is 5, expected the name of a file in its folder"),
        (
            {"_data_files": [{"filename": "../p.arrow"}]},
            r"filename is '\.\./p.arrow', expected the name of a file in its",
        ),
        (
            {"_data_files": [{"filename": "/etc/passwd"}]},
            "filename is '/etc/passwd', expected the name of a file in its",
        ),
        ({"_data_files": [{"filename": ".."}]}, "cannot be read as an Arrow stream"),
        ({"_data_files": 5}, "cannot be read, expected the state of a datasets folder"),
        ("[" * 100_000, "cannot be read, expected the state of a datasets folder"),
    ],
)
def test_a_datasets_folder_whose_state_is_broken(tmp_path, state, message):
    (tmp_path / "state.json").write_text(state if isinstance(state, str) else json.dumps(state))
    with pytest.raises(PromptError, match=message):
        read_prompts(tmp_path)


def test_a_folder_of_files_of_rows(tmp_path):
    for i, row in enumerate(ROWS):
        write_parquet(tmp_path / "hub" / "data" / f"test-{i:05d}-of-00002.parquet", [row])
    assert read_prompts(tmp_path / "hub") == PROMPTS
    write_parquet(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet", [ROWS[0]])
    assert read_prompts(tmp_path / "hub" / "test") == PROMPTS
    with pytest.raises(PromptError, match="holds the splits test, train, expected one"):
        read_prompts(tmp_path / "hub")
    write_jsonl(tmp_path / "lines" / "test.jsonl", ROWS)
    (tmp_path / "lines" / "._test.jsonl").write_bytes(b"\x00\x05\x16\x07")  # macOS leaves it beside a copy
    (tmp_path / "lines" / "._test.parquet").write_bytes(b"\x00\x05\x16\x07")
    assert read_prompts(tmp_path / "lines") == read_prompts(tmp_path / "lines" / "test") == PROMPTS


def test_no_split_of_a_folder_is_lost_for_its_format(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", ROWS[:1])
    write_csv(tmp_path / "test.csv", ROWS)
    with pytest.raises(PromptError, match="holds the splits test, train, expected one"):
        read_prompts(tmp_path)
    assert read_prompts(tmp_path / "test") == PROMPTS
    write_parquet(tmp_path / "test.parquet", ROWS)  # the same in another format
    assert read_prompts(tmp_path / "test") == PROMPTS


def test_columns_are_named_by_the_config(tmp_path):
    rows = [{"nr": 7, "question": "2 + 2?", "solution": 4, "field": "sums", "notes": "easy"}]
    path = write_jsonl(tmp_path / "p.jsonl", rows)
    columns = ColumnsConfig(id="nr", prompt="question", reference="solution", group="field", ignore=("notes",))
    assert read_prompts(path, columns) == [Prompt("7", "2 + 2?", "4", group="sums")]
    loose = columns.model_copy(update={"ignore": ("*",)})
    assert read_prompts(path, loose) == read_prompts(path, columns)


def test_a_column_that_is_left_out_by_name_means_nothing(tmp_path):
    """Not only one that would be unknown: whoever leaves out ``reference`` wants prompts without one."""
    path = write_jsonl(tmp_path / "p.jsonl", [{"id": "a", "prompt": "2 + 2?", "reference": "5", "group": "sums"}])
    assert read_prompts(path, ColumnsConfig(ignore=("reference", "group"))) == [Prompt("a", "2 + 2?", None)]
    [prompt] = read_prompts(path, ColumnsConfig(ignore=("id",)))
    assert (len(prompt.id), prompt.reference) == (16, "5")
    [prompt] = read_prompts(path, ColumnsConfig(group="id", ignore=("*", "reference")))
    assert (prompt.group, prompt.reference) == ("a", None)


def test_a_column_that_somebody_names_is_there(tmp_path):
    path = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "2 + 2?"}, {"prompt": "3?", "answer": "3"}])
    assert [p.reference for p in read_prompts(path, ColumnsConfig(reference="answer"))] == [None, "3"]
    for wrong in (ColumnsConfig(reference="gold", ignore=("*",)), ColumnsConfig(group="gold", ignore=("answer",))):
        [field] = wrong.model_fields_set - {"ignore"}
        with pytest.raises(
            PromptError, match=f"p.jsonl: columns.{field} is 'gold', expected a column that some row has"
        ):
            read_prompts(path, wrong)


def test_conversations(tmp_path):
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "And 3 + 3?"},
    ]
    row = {"id": 1, "messages": messages, "task": "sums", "answer_kind": "text", "choices": ["6", "7"]}
    [prompt] = read_prompts(write_jsonl(tmp_path / "p.jsonl", [row]))
    assert prompt.text == "And 3 + 3?"
    assert prompt.messages == tuple(messages)
    assert (prompt.task, prompt.answer_kind, prompt.choices) == ("sums", "text", ("6", "7"))
    [again] = read_prompts(write_parquet(tmp_path / "p.parquet", [row]))
    assert again == prompt


def test_a_conversation_may_be_called_prompt_and_hold_fields_of_nothing(tmp_path):
    """The layout of trainers for reinforcement learning, and what Arrow makes of messages of which one has a name."""
    messages = [{"role": "user", "content": "2 + 2?", "name": None, "tool_calls": None}]
    path = write_parquet(tmp_path / "p.parquet", [{"prompt": messages, "reference": "4"}])
    [prompt] = read_prompts(path, ColumnsConfig(messages="prompt"))
    assert (prompt.text, prompt.messages) == ("2 + 2?", ({"role": "user", "content": "2 + 2?"},))


def test_csv_holds_lists_as_json_and_long_texts(tmp_path):
    row = {"prompt": "x" * 200_000, "reference": "B", "choices": '["ice", "the sun"]', "answer_kind": "choice"}
    [prompt] = read_prompts(write_csv(tmp_path / "p.csv", [row]))
    assert (len(prompt.text), prompt.choices) == (200_000, ("ice", "the sun"))


@pytest.mark.skipif(sandbox._missing() is not None, reason=f"no sandbox: {sandbox._missing()}")
@pytest.mark.parametrize(("name", "write"), [("p.jsonl", write_jsonl), ("p.parquet", write_parquet)])
def test_tests_of_a_program_may_be_an_object(tmp_path, name, write):
    check = "def check(g): assert g(2) == 8"
    rows = [
        {"prompt": "Square.", "answer_kind": "code", "reference": {"test": "assert f(3) == 9", "entry_point": None}},
        {"prompt": "Cube.", "answer_kind": "code", "reference": {"test": check, "entry_point": "f"}},
    ]
    square, cube = (prompt.reference or "" for prompt in read_prompts(write(tmp_path / name, rows)))
    assert (Checks.loads(square), Checks.loads(cube)) == (
        Checks("assert f(3) == 9"),
        Checks(check, "f"),
    )
    rows[1]["reference"]["entry_point"] = None
    with pytest.raises(PromptError, match=r"2: reference .* has a test that .* as entry_point \(answer kind code\)"):
        read_prompts(write(tmp_path / name, rows))


def test_an_object_that_is_no_json_is_no_reference(tmp_path):
    rows = [{"prompt": "Square.", "answer_kind": "code", "reference": {"test": b"assert f(3) == 9"}}]
    with pytest.raises(PromptError, match=r"1: reference is \{'test': b'.*, expected a string"):
        read_prompts(write_parquet(tmp_path / "p.parquet", rows))


def test_without_ids_a_prompt_is_known_by_what_it_asks(tmp_path):
    rows = [
        {"question": "2 + 2?", "answer": "4"},
        {"question": "é?", "answer": "5"},
        {"question": "2 + 2?", "answer": "4"},
    ]
    columns = ColumnsConfig(prompt="question", reference="answer")
    prompts = read_prompts(write_jsonl(tmp_path / "p.jsonl", rows), columns)
    first, other, again = (prompt.id for prompt in prompts)
    assert len({first, other}) == 2
    assert again == f"{first}-2"
    turned = read_prompts(write_parquet(tmp_path / "p.parquet", rows[::-1]), columns)
    assert {p.id: p.text for p in turned} == {p.id: p.text for p in prompts}
    (tmp_path / "p.jsonl").write_text('{"prompt": "x"}\n{"id": 1, "prompt": "y"}')
    with pytest.raises(PromptError, match="line 2: id is there, but the rows before it have none"):
        read_prompts(tmp_path / "p.jsonl")


def test_a_prompt_that_stands_in_its_file_many_times_is_numbered(tmp_path):
    prompts = read_prompts(write_jsonl(tmp_path / "p.jsonl", 4 * [{"prompt": "2 + 2?"}]))
    first = prompts[0].id
    assert [prompt.id for prompt in prompts] == [first, f"{first}-2", f"{first}-3", f"{first}-4"]


def test_behind_the_lines_that_are_wanted_nothing_is_read(tmp_path):
    """A file may be larger than the memory."""
    path = write_jsonl(tmp_path / "p.jsonl", [*ROWS, {"id": "c", "prompt": 100_000 * "x"}])
    path.write_bytes(path.read_bytes() + "é".encode("latin-1"))
    assert read_prompts(path, n=2) == PROMPTS
    with pytest.raises(PromptError, match=r"line 5: byte .* is not UTF-8"):
        read_prompts(path)


def test_a_value_of_any_size_is_named_in_a_line(tmp_path):
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + 100_000 * "A"}}
    path = write_jsonl(tmp_path / "p.jsonl", [{"messages": [{"role": "user", "content": [picture]}]}])
    with pytest.raises(
        PromptError, match=r"line 1: message .*image_url.*, expected a role of .* and a string"
    ) as refused:
        read_prompts(path)
    assert len(str(refused.value)) < 500


SECOND_LINE = [
    ("{", "line 2: not JSON"),
    ("[]", "line 2: holds a list, expected an object"),
    ('{"id": "b"}', "line 2: prompt is None, expected a string"),
    ('{"id": "b", "prompt": " "}', "line 2: prompt is empty"),
    ('{"id": 3.5, "prompt": "x"}', "line 2: id is 3.5, expected a string or an integer"),
    ('{"prompt": "x"}', "line 2: id is missing, but the rows before it have one"),
    ('{"id": null, "prompt": "x"}', "line 2: id is None"),
    ('{"id": "b", "prompt": "x", "reference": [4]}', r"line 2: reference is \[4\], expected a string, a number"),
    ('{"id": "a", "prompt": "x"}', "line 2: id 'a' occurs twice"),
    ('{"id": "b", "prompt": "x", "answer": "4"}', r"line 2: unknown column 'answer' .*columns.reference=answer"),
    ('{"id": "b", "question": "x"}', "line 2: unknown column 'question'.* columns.prompt=question"),
    ('{"id": "b", "prompt": "x", "referense": "4"}', "line 2: unknown column 'referense' .did you mean 'reference'"),
    ('{"id": "b", "prompt": "x", "messages": []}', "line 2: messages are .*expected a list of objects"),
    (
        '{"id": "b", "prompt": "x", "messages": [{"role": "user", "content": "y"}]}',
        "line 2: has prompt and messages, expected one of them",
    ),
    ('{"id": "b", "prompt": "x", "reference": NaN}', r"line 2: reference is nan, expected a string, a number"),
    ('{"id": "b", "messages": [{"role": "user", "content": " "}]}', "line 2: the last message is empty"),
    (
        '{"id": "b", "conversations": [{"from": "human", "value": "x"}]}',
        "line 2: unknown column 'conversations'.* columns.messages=conversations",
    ),
    (
        '{"id": "b", "prompt": [{"role": "user", "content": "x"}]}',
        "line 2: prompt is .*, expected a string; a conversation, .* is named by columns.messages=prompt$",
    ),
    (
        '{"id": "b", "messages": [{"from": "human", "value": "x"}]}',
        "line 2: message .*expected an object with role and content, both strings, and not ShareGPT's from and value$",
    ),
    ('{"id": "b", "prompt": "x", "": 0}', r"line 2: .* one has no name, .* with columns.ignore='\[\"\"\]', or all"),
    ('{"id": "b", "messages": [{"role": "user"}]}', "line 2: message .*expected an object with role and content"),
    (
        '{"id": "b", "messages": [{"role": "boss", "content": "x"}]}',
        "line 2: message .*expected a role of system, user",
    ),
    ('{"id": "b", "messages": [{"role": "system", "content": "x"}]}', "line 2: the last message is from 'system'"),
    ('{"id": "b", "prompt": "x", "answer_kind": "poem"}', "line 2: answer kind 'poem' does not exist, expected math"),
    (
        '{"id": "b", "prompt": "x", "answer_kind": "choice", "reference": "42"}',
        r"line 2: reference '42' names no option, expected a letter \(answer kind choice\)",
    ),
    (
        '{"id": "b", "prompt": "x", "answer_kind": "choice", "reference": "E", "choices": ["1", "2"]}',
        "line 2: reference 'E' names no option",
    ),
    ('{"id": "b", "prompt": "x", "answer_kind": "math", "reference": " "}', "line 2: reference ' ' is empty"),
    (
        '{"id": "b", "prompt": "x", "answer_kind": "math", "reference": "2 + 2 = 4 #### 4"}',
        "line 2: reference '2 . 2 = 4 #### 4' is a whole solution.* prompts=gsm8k:FILE",
    ),
    (r'{"id": "b", "prompt": "half \ud83d"}', "line 2: holds .*ud83d', half of a surrogate pair"),
    ('{"id": "b", "prompt": "x", "choices": "A"}', "line 2: choices are 'A', expected a list of strings"),
    (
        json.dumps({"id": "b", "prompt": "x", "choices": list("0123456789k")}),
        "line 2: choices are 11, expected 10 at most: answers are A to J",
    ),
]


@pytest.mark.parametrize(("line", "message"), SECOND_LINE)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"id": "a", "prompt": "x"}\n' + line)
    with pytest.raises(PromptError, match=rf"prompts\.jsonl, {message}"):
        read_prompts(path)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "latin.jsonl").write_bytes('{"id": "a", "prompt": "x"}\n{"id": "b", "prompt": "é"}'.encode("latin-1"))
    (tmp_path / "ragged.csv").write_text("id,prompt\na,b,c\n")
    (tmp_path / "object.json").write_text("{}")
    (tmp_path / "prompts.txt").write_text("hello")
    (tmp_path / "folder").mkdir()
    (tmp_path / "half" / ".cache").mkdir(parents=True)
    (tmp_path / "half" / "dataset_dict.json").write_text('{"splits": ["test"]}')
    cut = write_parquet(tmp_path / "cut.parquet", ROWS)
    cut.write_bytes(cut.read_bytes()[:-20])
    for name, message in [
        ("empty.jsonl", "holds no prompt"),
        ("absent.jsonl", "cannot be read: there is no such file or folder"),
        ("latin.jsonl", "line 2: byte 50 is not UTF-8"),
        ("ragged.csv", "row 1: expected 2 fields"),
        ("object.json", "holds a dict, expected a list"),
        ("prompts.txt", "expected a name that ends in .jsonl"),
        ("folder", "is no datasets folder"),
        ("half", "half: dataset_dict.json is there, but no folder of a split: take a whole copy"),
        ("cut.parquet", "cannot be read as Parquet"),
    ]:
        with pytest.raises(PromptError, match=message):
            read_prompts(tmp_path / name)
    with pytest.raises(PromptError, match="'gsm9k' is none of the formats gsm8k, math-500, aime"):
        read_prompts("gsm9k:somewhere.jsonl")
    for source in ("gs://bucket/train.jsonl", "gsm8k:gs://bucket/train.jsonl"):  # not a format that is called gs
        with pytest.raises(PromptError, match=f"prompts is '{source}': is an address, expected a path on disk"):
            read_prompts(source)


@pytest.mark.parametrize("source", ["", "gsm8k:"])
def test_a_source_without_a_path_is_not_the_folder_that_one_stands_in(tmp_path, monkeypatch, source):
    """As of ``prompts=gsm8k:$FILE``, where nobody has said what FILE is."""
    write_jsonl(tmp_path / "p.jsonl", [{"prompt": "2 + 2?", "question": "2 + 2?", "answer": "#### 4"}])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PromptError, match=f"prompts is '{source}', expected a file or folder"):
        read_prompts(source)


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64(), pa.decimal128(5, 1)], ids=str)
def test_a_number_of_parquet_is_the_one_that_was_written(tmp_path, kind):
    """Of single precision 0.1 is 0.10000000149011612 in Python, which no answer would be equal to."""
    written = [Decimal("0.1"), Decimal("-2.5"), None]
    table = pa.table({"prompt": ["a", "b", "c"], "reference": pa.array(written, pa.decimal128(5, 1)).cast(kind)})
    pq.write_table(table, tmp_path / "p.parquet")
    assert [prompt.reference for prompt in read_prompts(tmp_path / "p.parquet")] == ["0.1", "-2.5", None]


def test_whole_numbers_with_a_gap_are_no_floats(tmp_path):
    """pandas makes floats of such a column, and as text 42.0 is not the answer 42."""
    written = [42.0, None, -7.0, 0.5, 1e22]
    columns = {"prompt": list("abcde"), "reference": written, "group": written, "answer_kind": 5 * ["text"]}
    pq.write_table(pa.table(columns), tmp_path / "p.parquet")
    prompts = read_prompts(tmp_path / "p.parquet")
    assert [prompt.reference for prompt in prompts] == ["42", None, "-7", "0.5", "1e+22"]
    assert [prompt.group for prompt in prompts] == ["42", None, "-7", "0.5", "1e+22"]


def test_a_colon_in_a_file_s_name_makes_no_address_of_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pq.write_table(pa.table({"prompt": ["a"]}), tmp_path / "qa:v2.parquet")
    assert [prompt.text for prompt in read_prompts("qa:v2.parquet")] == ["a"]


def test_a_csv_column_that_is_there_twice_is_not_lost(tmp_path):
    (tmp_path / "p.csv").write_text("id,prompt,prompt\na,x,y\n")
    with pytest.raises(PromptError, match="line 1: column 'prompt' occurs 2 times, expected different names"):
        read_prompts(tmp_path / "p.csv")


def test_a_row_of_csv_ends_at_a_line_feed_alone(tmp_path):
    (tmp_path / "p.csv").write_text("id,prompt\na,one\u2028paragraph\x0c\n", encoding="utf-8")
    assert read_prompts(tmp_path / "p.csv") == [Prompt("a", "one\u2028paragraph\x0c", None)]


def test_a_byte_order_mark_is_no_part_of_the_first_id(tmp_path):
    (tmp_path / "p.csv").write_bytes(b"\xef\xbb\xbfid,prompt\na,x\n")
    assert read_prompts(tmp_path / "p.csv") == [Prompt("a", "x", None)]


def test_a_split_is_the_same_however_many_are_asked_for():
    few, many = split_prompts("test", 5), split_prompts("test", 20)
    assert many[:5] == few
    assert len({prompt.text for prompt in many}) == 20
    assert all(tiny.split_of(prompt.text) == "test" for prompt in many)


def test_generated_tasks(monkeypatch):
    def create_dataset(name, size, seed):
        if name != "sums":
            raise ValueError(f"Dataset '{name}' not registered")
        return [{"question": f"{i} + {seed}?", "answer": str(i + seed), "metadata": {}} for i in range(size)]

    monkeypatch.setitem(sys.modules, "reasoning_gym", types.SimpleNamespace(create_dataset=create_dataset))
    first, second = read_prompts("reasoning-gym:sums", n=2, seed=5)
    assert first.text.startswith("0 + 5?\n\n")
    assert r"\boxed{}" in first.text
    assert (second.id, second.reference, second.task, second.answer_kind) == ("sums-5-00001", "6", "sums", "math")
    with pytest.raises(PromptError, match="reasoning-gym:poems: Dataset 'poems' not registered"):
        read_prompts("reasoning-gym:poems")
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(PromptError, match=r"not installed, expected: pip install '\.\[reasoning-gym\]' in a checkout"):
        read_prompts("reasoning-gym:sums")


def test_a_task_with_many_right_answers_has_no_reference(monkeypatch):
    entries = [{"question": "Colour the graph.", "answer": None, "metadata": {}}]
    gym = types.SimpleNamespace(create_dataset=lambda name, size, seed: entries)
    monkeypatch.setitem(sys.modules, "reasoning_gym", gym)
    [prompt] = read_prompts("reasoning-gym:graph_color", n=1)
    assert (prompt.reference, prompt.answer_kind) == (None, "text")


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # its own
def test_every_task_of_the_real_reasoning_gym_is_read_or_refused():
    pytest.importorskip("reasoning_gym")
    from reasoning_gym.factory import DATASETS

    many = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}
    for name in DATASETS:
        if name == "composite":
            with pytest.raises(PromptError, match="reasoning-gym:composite: Must specify at least one dataset"):
                read_prompts(f"reasoning-gym:{name}", n=2)
            continue
        prompts = read_prompts(f"reasoning-gym:{name}", n=2)
        assert all((prompt.reference is None) == (name in many) for prompt in prompts), name


def test_the_real_reasoning_gym():
    pytest.importorskip("reasoning_gym")
    prompts = read_prompts("reasoning-gym:chain_sum", n=3, seed=1)
    assert len(prompts) == 3
    assert {prompt.answer_kind for prompt in prompts} == {"math"}
    assert prompts == read_prompts("reasoning-gym:chain_sum", n=3, seed=1)
