"""One schema is YAML, flags and error messages at once."""

import errno
import json
import os
import re
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from pydantic import Field

from specexit.buckets import Location
from specexit.cli import COMMANDS, _load, parse
from specexit.config import Config, ConfigError, find, load, read_yaml, revision, save_run, write_text
from specexit.schemas.ablate import AblateConfig
from specexit.schemas.bench import BenchConfig
from specexit.schemas.bench_full_size import BenchFullSizeConfig
from specexit.schemas.bench_recipe import BenchRecipeConfig
from specexit.schemas.bench_serving import BenchServingConfig
from specexit.schemas.calibrate import CalibrateConfig
from specexit.schemas.chat import ChatConfig
from specexit.schemas.collect import CollectConfig, PartConfig
from specexit.schemas.convert import ConvertConfig
from specexit.schemas.export import ExportConfig
from specexit.schemas.train import TrainConfig
from specexit.yaml_text import dump_yaml

RECIPES = sorted((Path(__file__).parents[2] / "configs" / "recipes").glob("*.yaml"))


class Optimizer(Config):
    rate: float = Field(0.1, gt=0)


class Recipe(Config):
    steps: int = 10
    kind: Literal["a", "b"] = "a"
    optimizer: Optimizer = Optimizer()


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("steps: 20\noptimizer:\n  rate: 0.5\n")
    return path


def test_overrides_win_over_the_file_and_the_file_over_defaults(recipe):
    config = load(Recipe, recipe, ["optimizer.rate=0.25", "kind=b"])
    assert config == Recipe(steps=20, kind="b", optimizer=Optimizer(rate=0.25))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("setps=3", "unknown key 'setps', did you mean 'steps'"),
        ("optimizer.rat=3", r"unknown key 'optimizer\.rat', did you mean 'optimizer\.rate'"),
        ("steps=many", "steps is 'many': .*integer"),
        ("optimizer.rate=-1", r"optimizer\.rate is -1: .*greater than 0"),
        ("kind=c", "kind is 'c': .*'a' or 'b'"),
        ("steps", "override 'steps' has no value, expected key=value"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_what_was_expected(recipe, override, message):
    with pytest.raises(ConfigError, match=message):
        load(Recipe, recipe, [override])


@pytest.mark.parametrize(
    ("schema", "override", "said"),
    [
        (CalibrateConfig, "epsilon=0.01,0.02", r"epsilon is '0\.01,0\.02': expected a list in brackets, such as '\[a"),
        (AblateConfig, "scores=here", r"scores is 'here': expected a value for each name, as in scores\.NAME=VALUE"),
    ],
)
def test_what_has_to_be_several_is_asked_for_as_it_is_written(schema, override, said):
    """No "tuple" and no "dictionary"."""
    with pytest.raises(ConfigError, match=said):
        load(schema, overrides=[override])


@pytest.mark.parametrize("written", ["0.01", "1e-2", "[1e-2]", "'0.01'"])
def test_one_risk_needs_no_brackets_however_it_is_written(written):
    """To YAML, 1e-2 is text."""
    assert load(CalibrateConfig, overrides=["draft=a", "traces=b", "scores=c", f"epsilon={written}"]).epsilon == (0.01,)


@pytest.mark.parametrize("size", ["inf", ".inf", "nan", "1e308"])
@pytest.mark.parametrize(("schema", "more"), [(ExportConfig, ["format=plugin"]), (ConvertConfig, [])])
def test_a_largest_file_of_no_size_is_named(schema, more, size):
    """It was a traceback, as no number of bytes is infinite."""
    with pytest.raises(ConfigError, match=r"config: max_file_gib is "):
        load(schema, None, ["draft=D", "out=E", *more, f"max_file_gib={size}"])


def test_an_error_names_the_file(recipe):
    recipe.write_text("setps: 3\n")
    with pytest.raises(ConfigError, match=r"recipe\.yaml: unknown key 'setps', did you mean 'steps'"):
        load(Recipe, recipe)


@pytest.mark.parametrize("given", ["steps=many", "optimizer.rat=3", "optimizer.rate=-1", "optimizer={rate: -1}"])
def test_what_was_given_beside_a_file_is_not_looked_for_in_it(recipe, given):
    with pytest.raises(ConfigError, match=r"\Aconfig: "):
        load(Recipe, recipe, [given])
    recipe.write_text("kind: c\n")
    with pytest.raises(ConfigError, match=r"recipe\.yaml: kind is 'c'"):
        load(Recipe, recipe, [given])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: 1\nkind: a\nsteps: 2\n", r"key 'steps' is there twice\n.*line 3"),
        ("optimizer: {rate: 1, rate: 2}\n", "key 'rate' is there twice"),
        ("optimizer:\n  rate: 1\nsteps: 1\noptimizer:\n  rate: 2\n", r"key 'optimizer' is there twice\n.*line 4"),
        ("'steps': 1\nsteps: 2\n", "key 'steps' is there twice"),
    ],
)
def test_a_key_that_is_there_twice_is_refused(recipe, text, message):
    """The last of them would hide the others, such as all answer kinds of a `trial` that was pasted again."""
    recipe.write_text(text)
    with pytest.raises(ConfigError, match=rf"recipe\.yaml: cannot be read as YAML: {message}"):
        load(Recipe, recipe)
    with pytest.raises(ConfigError, match=r"rate: 2\}: the value cannot be read as YAML: key 'rate'"):
        load(Recipe, None, ["optimizer={rate: 1, rate: 2}"])


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in pairwise("abcdefgh")
)


@pytest.mark.parametrize(
    "text",
    [
        LAUGHS + "steps: *h\n",
        f"a: &a {'x' * 10_000}\nsteps: [{'*a, ' * 1000}]\n",
        "steps: &a [*a]\n",
    ],
)
def test_aliases_that_stand_for_more_than_memory_holds_are_refused(recipe, text):
    """A stranger's draft carries a `target.yaml`, and each command that reads the draft reads it."""
    recipe.write_text(text)
    with pytest.raises(
        ConfigError, match=r"recipe\.yaml: cannot be read as YAML: its aliases stand for more than 1000000"
    ):
        load(Recipe, recipe)


def test_yaml_that_is_nested_without_end_is_refused(recipe):
    recipe.write_text("[" * 100_000)
    with pytest.raises(ConfigError, match=r"recipe\.yaml: cannot be read as YAML: "):
        load(Recipe, recipe)


def test_what_is_merged_may_be_said_anew(recipe):
    recipe.write_text("optimizer: &one {rate: 1}\n")
    recipe.write_text("steps: 3\noptimizer:\n  <<: {rate: 1}\n  rate: 2\n")
    assert load(Recipe, recipe).optimizer.rate == 2


@pytest.mark.parametrize(
    ("text", "number"), [("010", 10), ("08", 8), ("-07", -7), ("0", 0), ("1_000", 1000), ("0x10", 16)]
)
def test_a_number_is_decimal_whatever_it_begins_with(recipe, text, number):
    recipe.write_text(f"steps: {text}\n")
    assert load(Recipe, recipe).steps == load(Recipe, None, [f"steps={text}"]).steps == number


@pytest.mark.parametrize("text", ["1e-6", "1E-06", "1.0e-6", "0.1e-5", "+1e-6", "1_0e-7"])
def test_a_number_may_have_an_exponent_and_no_point(recipe, text):
    """As in JSON, from where it is copied; to YAML 1.1 some of these are text."""
    recipe.write_text(f"rate: {text}\n")
    assert read_yaml(recipe) == {"rate": 1e-6}
    assert load(Recipe, None, [f"optimizer.rate={text}"]).optimizer.rate == 1e-6


def test_a_character_is_whole_where_json_escapes_it_in_halves(recipe):
    """PyYAML leaves them apart, and no file or argument can be written with one."""
    recipe.write_text(json.dumps({"name": "😀", "é": ["a😀"]}))
    assert "\\ud83d" in recipe.read_text()
    assert read_yaml(recipe) == {"name": "😀", "é": ["a😀"]}
    recipe.write_text('name: "\\ud83d"\n')
    with pytest.raises(ConfigError, match=r"cannot be read as YAML: holds half a character, expected text"):
        read_yaml(recipe)


def test_a_time_of_day_is_no_number(recipe):
    """To YAML 1.1, 1:30 is ninety."""
    recipe.write_text("steps: 1:30\n")
    for given in ((recipe,), (None, ["steps=1:30"])):
        with pytest.raises(ConfigError, match=r"steps is '1:30': .*integer"):
            load(Recipe, *given)


@pytest.mark.parametrize("text", ["1e-6", "12e5", "1:30", "010", "yes", "1.5", "-.inf", ".", "1e", "e5"])
def test_a_text_that_looks_like_a_number_stays_a_text(recipe, text):
    """Whoever reads it: a target's name, an argument of an engine."""
    recipe.write_text(dump_yaml({"name": text, "rate": 1e-6}))
    assert read_yaml(recipe) == yaml.safe_load(recipe.read_text()) == {"name": text, "rate": 1e-6}


class Numbers(Config):
    n: int = 1
    some: float | None = None
    each: tuple[Annotated[int, Field(gt=0)], ...] = ()
    two: tuple[int, int] | None = None
    named: dict[str, float] = Field({})
    on: bool = False
    either: bool | float = False


@pytest.mark.parametrize(
    "override", ["n=yes", "n=True", "some=off", "each=[2, on]", "two=[yes, 2]", "named.a=no", "named={a: true}"]
)
def test_yes_and_no_are_no_numbers(override):
    """`temperature=off` was 0, and `samples=yes` 1."""
    with pytest.raises(ConfigError, match=r"is .*(True|False).*: expected a number"):
        load(Numbers, None, [override])
    assert load(Numbers, None, ["on=yes", "either=on"]) == Numbers(on=True, either=True)


class Paths(Config):
    out: Path = Path("runs")
    source: Location = Path("runs")
    either: Location | None = None
    several: tuple[Path, ...] = ()
    named: dict[str, Path] = Field({})
    nested: dict[str, dict[str, Path]] = Field({})
    text: str = ""


@pytest.mark.parametrize("key", ["out", "source", "either"])
def test_an_empty_path_is_not_the_working_directory(recipe, key):
    """A shell variable that is not set leaves ``out=``."""
    assert load(Paths, None, ["text=", "out=.", "either=null"]) == Paths(out=Path())
    with pytest.raises(ConfigError, match=rf"{key} is '': .*expected a path"):
        load(Paths, None, [f"{key}="])
    recipe.write_text(f"{key}: ''\n")
    with pytest.raises(ConfigError, match=rf"recipe\.yaml: {key} is '': .*expected a path"):
        load(Paths, recipe)


@pytest.mark.parametrize(
    ("schema", "key", "expected"),
    [
        (CollectConfig, "n", "n=VALUE or n=null"),
        (CollectConfig, "engine.kv_cache_gib", "engine.kv_cache_gib=VALUE or engine.kv_cache_gib=null"),
        (CollectConfig, "engine.extra.seed", "engine.extra.seed=VALUE or engine.extra.seed=null"),
        (TrainConfig, "evaluate_every", "evaluate_every=VALUE or evaluate_every=null"),
        (ConvertConfig, "dtype", "dtype=VALUE or dtype=null"),
        (Numbers, "named.a", "named.a=VALUE"),
        (Numbers, "on", "on=VALUE"),
    ],
)
def test_nothing_is_no_number_and_not_the_default(schema, key, expected):
    """A shell variable that is not set leaves ``n=``: `collect` took all prompts, and `train` never evaluated."""
    for nothing in ("", " "):
        with pytest.raises(ConfigError, match=rf"^{re.escape(key)}= has no value, expected {re.escape(expected)}$"):
            load(schema, None, [f"{key}={nothing}"])


def test_nothing_for_an_unknown_key_is_an_unknown_key():
    with pytest.raises(ConfigError, match="unknown key 'onn', did you mean 'on'"):
        load(Numbers, None, ["onn="])
    assert load(Numbers, None, ["some=null"]) == Numbers()


@pytest.mark.parametrize("key", ["out", "source", "either"])
def test_a_tilde_is_the_home_folder(recipe, key, tmp_path, monkeypatch):
    """As a path it would be a folder called ``~``, which whoever finds it removes by ``rm -r ~``."""
    monkeypatch.setenv("HOME", str(tmp_path))
    recipe.write_text(f"{key}: ~/runs/x\ntext: ~/x\n")
    for config in (load(Paths, find("recipes", "~/recipe.yaml")), load(Paths, None, [f"{key}=~/runs/x", "text=~/x"])):
        assert config.model_dump()[key] == tmp_path / "runs" / "x"
        assert config.text == "~/x"


def test_a_tilde_is_the_home_folder_in_lists_and_mappings_too(recipe, tmp_path, monkeypatch):
    """No shell expands it in brackets, nor behind a key with a dot."""
    monkeypatch.setenv("HOME", str(tmp_path))
    recipe.write_text("several: [~/x, y]\nnamed: {a: ~/x}\nnested: {a: {b: ~/x}}\n")
    home = tmp_path / "x"
    expected = Paths(several=(home, Path("y")), named={"a": home}, nested={"a": {"b": home}})
    for config in (load(Paths, recipe), load(Paths, None, ["several=[~/x, y]", "named.a=~/x", "nested.a.b=~/x"])):
        assert config == expected
    for empty in ("several=['']", "named.a=", "nested.a.b="):
        with pytest.raises(ConfigError, match="expected a path"):
            load(Paths, None, [empty])


@pytest.mark.parametrize("given", ["out=A", "several=[x, A]", "several=A", "named.a=A", "nested.a.b=A"])
def test_an_address_is_refused_by_its_key_in_lists_and_mappings_too(given):
    """It was the folder `gs:`, and the error behind it named no key."""
    key = re.split(r"[.=]", given)[0]
    with pytest.raises(ConfigError, match=rf"config: {key} is .*gs://bucket/x.*: is an address, expected a path on di"):
        load(Paths, None, [given.replace("A", "gs://bucket/x")])
    with pytest.raises(ConfigError, match=r"config: scores is .*: is an address"):
        load(AblateConfig, None, ["traces=t", "out=o", "scores.draft=gs://bucket/x"])
    assert str(load(Paths, None, ["source=gs://bucket/x", "text=gs://bucket/x"]).source) == "gs://bucket/x"


@pytest.mark.parametrize(
    ("schema", "given", "largest"),
    [
        (BenchConfig, ["draft=d", "traces=t", "out=o", "batches=[8, 32]"], 32),
        (BenchServingConfig, ["draft=d", "traces=t", "out=o", "batches=[32, 8]"], 32),
        (BenchFullSizeConfig, ["draft=d", "traces=t", "models=m", "out=o", "batch=32"], 32),
    ],
)
def test_a_largest_batch_that_would_not_be_heard_is_refused(schema, given, largest):
    """The engines took the largest of `batches`, whatever was asked for."""
    for heard in ([], [f"engine.max_num_seqs={largest}"]):
        config = load(schema, None, [*given, *heard])
        assert schema.model_validate(config.model_dump(mode="json")) == config, "as a run.yaml has it"
    with pytest.raises(
        ConfigError, match=r"engine\.max_num_seqs is 4, expected none: here it is the largest batch, 32"
    ):
        load(schema, None, [*given, "engine.max_num_seqs=4"])


def test_an_override_changes_no_other_place_of_an_alias(tmp_path):
    """An alias is the very object of its anchor, so that `test.n` was 5 as well."""
    path = tmp_path / "c.yaml"
    path.write_text("target: t\nout: o\nparts: {calibration: &p {prompts: q.jsonl, n: 800}, test: *p}\n")
    parts = load(CollectConfig, path, ["parts.calibration.n=5"]).parts
    assert (parts["calibration"].n, parts["test"].n) == (5, 800)


@pytest.mark.parametrize("value", ["2026-02-30", "!!int x", "!!bool maybe", "!!timestamp x"])
def test_a_value_that_is_none_of_its_kind_is_told(recipe, value):
    recipe.write_text(f"text: {value}\n")
    with pytest.raises(ConfigError, match=r"recipe\.yaml: cannot be read as YAML: a value is none of its kind"):
        load(Paths, recipe)


def test_a_key_with_a_dot_in_a_file_is_told_how_it_is_written_there(tmp_path):
    """It was said to be meant for itself."""
    path = tmp_path / "c.yaml"
    path.write_text("signals.boundary_weight: 5\n")
    with pytest.raises(
        ConfigError, match=r"'signals\.boundary_weight': in a file it is 'boundary_weight' below 'signals'"
    ):
        load(TrainConfig, path)


def test_a_folder_in_place_of_a_file_to_write_is_refused_before_any_work(tmp_path):
    """What had been measured for hours was lost when it was to be written."""
    outs = {name: (command.schema, _load(command.schema).model_fields.get("out")) for name, command in COMMANDS.items()}
    files = {name: schema for name, (schema, out) in outs.items() if out and "file" in (out.description or "").lower()}
    assert {"evaluate", "simulate", "report", "bench-serving", "bench-full-size", "bench-certificate"} <= files.keys()
    for schema in files.values():
        with pytest.raises(ConfigError, match=r"out is [^:]*: is a folder, expected a file to write"):
            load(_load(schema), None, [f"out={tmp_path}"])


@pytest.mark.parametrize(("text", "message"), [("a: [", "cannot be read as YAML"), ("- 1", "holds a list")])
def test_a_file_that_is_no_mapping_is_refused(recipe, text, message):
    recipe.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load(Recipe, recipe)


def test_a_file_of_another_encoding_is_named(recipe):
    recipe.write_bytes("name: Größe".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"recipe\.yaml: cannot be read as YAML: 'utf-8' codec can't decode"):
        load(Recipe, recipe)


def test_a_name_that_does_not_exist_gets_the_nearest_one():
    with pytest.raises(ConfigError, match=r"targets 'tiny-reasonr' does not exist, did you mean 'tiny-reasoner'"):
        find("targets", "tiny-reasonr")


def test_a_folder_in_place_of_a_name_says_what_is_wanted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "Qwen3-4B").mkdir(parents=True)
    (tmp_path / "models" / "mine.yaml").write_text("")
    wanted = r"; expected a name or a YAML file .*docs/add-a-target\.md"
    with pytest.raises(ConfigError, match=rf"targets 'models/Qwen3-4B' is a folder{wanted}"):
        find("targets", "models/Qwen3-4B")
    with pytest.raises(ConfigError, match=rf"targets 'models' is a folder{wanted}"):
        find("targets", "models")
    with pytest.raises(
        ConfigError, match=rf"'\./models/mine' does not exist, did you mean '\./models/mine\.yaml'\?{wanted}"
    ):
        find("targets", "./models/mine")
    with pytest.raises(ConfigError, match=rf"'Qwen/Qwen3-4B' does not exist{wanted}"):
        find("targets", "Qwen/Qwen3-4B")
    with pytest.raises(ConfigError, match="targets '' does not exist; there is "):
        find("targets", "")


@pytest.mark.parametrize("read", [lambda address: parse([address], TrainConfig), lambda name: find("targets", name)])
def test_an_address_of_no_bucket_that_is_read_is_named(read):
    """Without a name, and as no `ConfigError`, it was a traceback."""
    with pytest.raises(
        ConfigError, match=r"^s3://bucket/one\.yaml: expected a path on disk, or gs:// for one in a buc"
    ):
        read("s3://bucket/one.yaml")


def test_a_run_file_reproduces_its_config(recipe, tmp_path):
    config = load(Recipe, recipe, ["kind=b"])
    save_run(config, tmp_path / "run")
    record = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())
    assert Recipe.model_validate(record["config"]) == config
    assert record["versions"]["specexit"]
    assert record["revision"]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.yaml"]


def test_a_revision_tells_one_change_from_another_and_a_wheel_has_none(tmp_path, monkeypatch):
    """Whatever is resumed must not go on with other code."""
    file = tmp_path / "shared" / "specexit" / "config.py"
    file.parent.mkdir(parents=True)

    def git(*command):
        who = ["-c", "user.name=n", "-c", "user.email=e"]
        subprocess.run(["git", *who, *command], cwd=tmp_path, check=True, capture_output=True)

    def found(file, repository):
        monkeypatch.setattr("specexit.config.__file__", str(file))
        monkeypatch.setattr("specexit.config.REPOSITORY", repository)
        return revision()

    def with_text(text):
        file.write_text(text)
        return found(file, tmp_path)

    git("init", "--quiet")
    file.write_text("one")
    git("add", ".")
    git("commit", "--quiet", "-m", "one")
    clean, dirty, dirtier = with_text("one"), with_text("two"), with_text("three")
    assert re.fullmatch("[0-9a-f]{12}", clean)
    assert all(re.fullmatch(f"{clean}-dirty-[0-9a-f]{{8}}", one) for one in (dirty, dirtier))
    assert dirty != dirtier
    assert (with_text("two"), with_text("one")) == (dirty, clean)
    # A virtual environment within somebody's checkout: its revision is not ours.
    assert found(tmp_path / "env" / "lib" / "specexit" / "config.py", tmp_path / "env") == "unknown"


class Locked(Config):
    api_key: str = Field(exclude=True)


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (["api_key=sk-1=2", "out=x"], ["api_key=...", "out=x"]),
        (["--api-key=sk-1=2", "--out", "x"], ["--api-key=...", "--out", "x"]),
        (["--api_key", "sk-1=2", "--out", "x"], ["--api_key", "...", "--out", "x"]),
        (["--api-key", "sk-1=2", "my.yaml"], ["--api-key", "...", "my.yaml"]),
        (["api_key.yaml", "steps=api_key"], ["api_key.yaml", "steps=api_key"]),
    ],
)
def test_a_run_file_keeps_no_secret(said, kept, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/bin/specexit", "collect", *said])
    save_run(Locked(api_key="sk-1=2"), tmp_path)
    written = (tmp_path / "run.yaml").read_text()
    assert yaml.safe_load(written)["command"] == ["specexit", "collect", *kept]
    assert "sk-1" not in written


class Asking(Config):
    endpoints: tuple[str, ...]


@pytest.mark.parametrize("password", ["hunter2", "a:b@c", "'", '"', "%2F", "ünï" * 40, "x" * 200])
def test_a_run_file_keeps_no_password_of_an_address(password, tmp_path, monkeypatch):
    endpoints = ["http://one:8000", f"https://me:{password}@two/v1"]
    monkeypatch.setattr("sys.argv", ["specexit", "collect", f"endpoints=[{', '.join(endpoints)}]"])
    save_run(Asking(endpoints=tuple(endpoints)), tmp_path)
    record = yaml.safe_load((tmp_path / "run.yaml").read_text())
    assert record["config"]["endpoints"] == ["http://one:8000", "https://two/v1"]
    assert record["command"][2] == "endpoints=[http://one:8000, https://two/v1]"


class Question(Config):
    prompt: str = ""
    where: Path | None = None
    inner: Optimizer | None = None
    names: dict[str, str] = Field({})


@pytest.mark.parametrize(
    "text", ["Q: what is 2+2?", "one\n\ntwo: [", "1", "true", "- a", "{x}", "'quoted'", "a=b", "# 3", ""]
)
def test_a_string_on_the_command_line_is_that_string(text):
    assert load(Question, overrides=[f"prompt={text}"]).prompt == text


def test_what_is_no_string_is_yaml():
    config = load(Question, overrides=["where=1", "inner.rate=0.5", "names.a=b", "names={c: d}"])
    assert config == Question(where=Path("1"), inner=Optimizer(rate=0.5), names={"c": "d"})
    assert load(Question, overrides=["where=null"]).where is None


@pytest.mark.parametrize(
    ("text", "read"),
    [("*", ("*",)), ("http://a:8000/v1", ("http://a:8000/v1",)), ("7", ("7",)), ("", ()), ("[a, b]", ("a", "b"))],
)
def test_one_of_several_strings_needs_no_brackets(text, read):
    class Endpoints(Config):
        urls: tuple[str, ...] = ()

    assert load(Endpoints, None, [f"urls={text}"]).urls == read


@pytest.mark.parametrize("text", ["my prompts #2.jsonl", "data: x.jsonl", "- a", "1", "true", "'quoted'", "a=b", "[x"])
def test_a_string_deep_inside_is_that_string(text):
    fields = {"target": "tiny-reasoner", "out": "out"}
    for override in (f"parts.train={text}", f"parts.train.prompts={text}"):
        config = load(CollectConfig, None, [*(f"{key}={value}" for key, value in fields.items()), override])
        assert config.parts["train"].prompts == text


def test_keys_and_values_deep_inside_are_yaml():
    given = ["target=t", "out=o", "parts.a={split: test, n: 3}", "parts.b.split=draft", "columns=prompt: question"]
    config = load(CollectConfig, None, given)
    assert config.parts == {"a": PartConfig(split="test", n=3), "b": PartConfig(split="draft")}
    assert config.columns.prompt == "question"
    recipe = load(
        BenchRecipeConfig, None, ["recipe=r", "data=d", "eval_traces=e", "out=o", "variants.a=steps=1", "variants.b=[]"]
    )
    assert recipe.variants == {"a": ("steps=1",), "b": ()}


@pytest.mark.parametrize(
    ("arguments", "overrides"),
    [
        (["--prompt", "x=5. What is 2x?"], ["prompt=x=5. What is 2x?"]),
        (["--prompt", "- 3 = what?", "--max-tokens", "9"], ["prompt=- 3 = what?", "max_tokens=9"]),
        (["--prompt=--x"], ["prompt=--x"]),
        (["--show-thinking", "prompt=a"], ["show_thinking=true", "prompt=a"]),
        (["--show-thinking", "false", "--prompt", "true"], ["show_thinking=false", "prompt=true"]),
        (["--arguments.my-own", "3"], ["arguments.my-own=3"]),  # a name that the user chose
        (["--shaw-thinking", "prompt=a"], ["shaw_thinking=true", "prompt=a"]),  # the error is that there is no such key
    ],
)
def test_a_flag_and_its_value_are_key_and_value(arguments, overrides):
    assert parse(arguments, ChatConfig) == (None, overrides)


@pytest.mark.parametrize("behind", [[], ["--show-thinking"]])
def test_a_flag_without_its_value_is_named(behind):
    with pytest.raises(ConfigError, match="--prompt has no value, expected --prompt VALUE or prompt=VALUE"):
        parse(["--prompt", *behind], ChatConfig)


def test_yaml_that_cannot_be_read_names_its_key():
    with pytest.raises(ConfigError, match=r"names=\{: the value cannot be read as YAML"):
        load(Question, overrides=["names={"])


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_no_recipe_chooses_its_checkpoint_by_calibration_traces(path):
    """What chose a draft speaks well of it, so that `calibrate` has to refuse it."""
    given = load(TrainConfig, path, []).eval_traces
    assert given is None or given.name == "select"


def test_a_file_that_cannot_be_written_is_as_it_was_and_leaves_nothing_beside_it(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_text(tmp_path / "policy.json", "before")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "policy.json", "after")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("policy.json", "before")]
