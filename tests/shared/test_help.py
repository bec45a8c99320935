"""What a person reads when asking for help: nothing cut, no Python, and the defaults that are in force."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from specexit import cli
from specexit.config import _parse, load
from specexit.help import REQUIRED, rows, written
from specexit.schemas.bench import BenchConfig
from specexit.schemas.collect import CollectConfig
from specexit.schemas.train import TrainConfig

RECIPE = Path(__file__).resolve().parents[2] / "configs" / "recipes" / "tiny-reasoner.yaml"


def specexit(*arguments: str, columns: int = 80, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "specexit", *arguments],
        env=os.environ | {"COLUMNS": str(columns), "TERM": "dumb"} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def words(text: str) -> str:
    """Text without line breaks and the frame around it."""
    return " ".join(text.translate(str.maketrans("│╭╮╰╯─", "      ")).split())


def test_every_command_is_listed_whole_under_its_heading() -> None:
    page = words(specexit("--help"))
    for name, command in cli.COMMANDS.items():
        assert f"{name} {command.help}" in page
        assert command.group in page


def test_whatever_reads_traces_a_run_or_a_draft_takes_a_target():
    """Benchmarks of our own apart: their data say it."""
    keys = {name: set(cli._load(command.schema).model_fields) for name, command in cli.COMMANDS.items()}
    reading = {name for name in keys if keys[name] & {"traces", "run", "draft", "data"}}
    assert {"annotate", "calibrate", "convert", "evaluate", "inspect", "migrate", "serve", "simulate"} <= reading
    reading.remove("status")  # of a run it reads one small file
    assert [name for name in reading if "target" not in keys[name] and not name.startswith("bench-")] == []


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_types_are_words(name: str) -> None:
    schema = cli._load(cli.COMMANDS[name].schema)
    for row in rows(schema):
        assert not any(word in row.kind for word in ("typing", "Literal", "NoneType", "class", "pathlib", "str", "int"))
        assert "e+" not in row.kind, "a limit that is rounded, and another number than the one in force"
        assert "PydanticUndefined" not in row.default
        assert row.meaning, row.key


def test_defaults_are_those_in_force() -> None:
    """A command may set another default than the schema that it nests."""
    default = {row.key: row.default for row in rows(CollectConfig)}
    assert default["engine.max_num_seqs"] == str(CollectConfig.model_fields["engine"].default.max_num_seqs)


def test_a_default_in_the_help_is_what_one_would_type() -> None:
    """For no value it said `none`, which ``load`` takes for a text: ``eval_traces=none`` was a folder of that name."""
    for command in cli.COMMANDS.values():
        schema = cli._load(command.schema)
        for row in rows(schema):
            if row.default != REQUIRED:
                assert written(_parse(schema, row.key, row.default)) == row.default, row.key
    found = {row.key: row for row in rows(TrainConfig)}
    assert found["eval_traces"].kind == "path, or null"
    assert (
        load(BenchConfig, None, ["draft=d", "traces=t", "out=o", "scores=null", "n=null", "tasks=null"]).tasks is None
    )
    assert {found[key].default for key in ("eval_traces", "evaluate_n", "wandb")} == {"null"}


def test_what_is_said_of_a_section_stands_beside_its_first_key() -> None:
    """It was shown nowhere, and `bench` seemed to hear an ``engine.max_num_seqs``."""
    meaning = {name: [row.meaning for row in rows(cli._load(command.schema))] for name, command in cli.COMMANDS.items()}
    said = [
        (name, field.description)
        for name, command in cli.COMMANDS.items()
        for field in cli._load(command.schema).model_fields.values()
        if field.description and isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    ]
    assert [(name, told) for name, told in said if not any(f"({told})" in one for one in meaning[name])] == []
    assert {name for name, _ in said} >= {"bench", "bench-serving", "bench-full-size", "convert"}
    told = {row.key: row.meaning for row in rows(BenchConfig)}["engine.max_num_seqs"]
    assert told == "largest batch (here always the largest of batches)"


@pytest.mark.parametrize("name", ["annotate", "pack", "ablate", "report"])
def test_help_says_that_the_copy_beside_traces_is_their_target(name: str) -> None:
    """It said that a name was looked up, and an edited file in configs/targets seemed to be read."""
    (told,) = [row.meaning for row in rows(cli._load(cli.COMMANDS[name].schema)) if row.key == "target"]
    assert "by default the copy that lies with the traces (target.yaml), else" in told


def test_help_says_how_much_accuracy_methods_of_a_benchmark_may_be_tuned_to_lose() -> None:
    """As `specexit.bench.inputs.tolerance_of` has it."""
    meaning = {row.key: row.meaning for row in rows(BenchConfig)}["calibration_traces"]
    assert "at most what the draft's certificate allows, where its risk is accuracy_lost, else 1 pt" in meaning


def test_a_config_file_shows_its_values() -> None:
    recipe = yaml.safe_load(RECIPE.read_text())
    shown = {row.key: row.default for row in rows(TrainConfig, recipe)}
    assert shown["steps"] == str(recipe["steps"])
    assert shown["draft.hidden_size"] == str(recipe["draft"]["hidden_size"])
    page = specexit("train", str(RECIPE), "--help")
    assert "required" not in page
    assert "target" in page


def test_a_draft_directory_may_be_named_alone_and_help_says_so() -> None:
    assert "specexit inspect [DRAFT] [key=value ...]" in specexit("inspect", "--help")
    assert "specexit inspect [DRAFT] [key=value ...]" in specexit("inspect", str(RECIPE.parent), "--help")


def test_keys_are_never_folded_and_nested_ones_stand_apart() -> None:
    page = specexit("train", "--help")
    first = next(i for i, line in enumerate(page.splitlines()) if line.startswith("optimizer."))
    assert not page.splitlines()[first - 1].strip()
    for row in rows(TrainConfig):
        assert any(line.startswith(row.key) for line in page.splitlines()), row.key


@pytest.mark.parametrize("name", ["bench", "bench-certificate", "bench-recipe", "chat", "collect", "train"])
def test_every_word_is_there_and_none_is_broken(name: str) -> None:
    """Lists in brackets, too, which are no markup; and the URL on a narrow terminal, if not a long path."""
    page = specexit(name, "--help").split()
    for row in rows(cli._load(cli.COMMANDS[name].schema)):
        words = f"{row.kind} {row.default} {row.meaning}".split()
        assert [word for word in words if len(word) < 25 and word not in page] == [], row.key


def test_the_shell_completes_commands_keys_and_flags() -> None:
    asked = {"_SPECEXIT_COMPLETE": "complete_bash", "COMP_CWORD": "2"}
    program = "from specexit.cli import app; app(prog_name='specexit')"

    def completions(line: str, position: int) -> list[str]:
        environment = os.environ | asked | {"COMP_WORDS": line, "COMP_CWORD": str(position)}
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        return done.stdout.split()

    assert "calibrate" in completions("specexit ca", 1)
    assert "optimizer.clip=" in completions("specexit train opt", 2)
    assert completions("specexit train --optimizer.cl", 2) == ["--optimizer.clip"]


def test_bash_adds_no_space_behind_a_completed_key_and_completes_files_there(tmp_path: Path) -> None:
    program, where = tmp_path / "specexit", {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    program.write_text(f"#!{sys.executable}\nfrom specexit.cli import app\napp(prog_name='specexit')\n")
    program.chmod(0o755)

    def run(*command: str, **environment: str) -> list[str]:
        done = subprocess.run(command, env=os.environ | where | environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    script = run("specexit", "--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")

    def completed(*line: str) -> list[str]:
        """What bash is told to do with the last word: options of this completion, and what the word may become."""
        tab = 'compopt() { echo "$@"; }; COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)); _specexit_completion "$1"'
        return run("bash", "-c", "\n".join([*script, tab, 'echo "${COMPREPLY[@]}"']), "bash", *line)

    assert completed("specexit", "calib") == ["calibrate"]
    assert completed("specexit", "train", "optimizer.cl") == ["-o nospace", "optimizer.clip="]
    # Of nothing found bash looks for a file; "ru" would be "run=", and "run=ru" then "run=run=".
    for value in (["run", "="], ["run", "=", "ru"], ["--run", "ru"], ["--run", "=", "ru"]):
        assert completed("specexit", "convert", *value) == [""]
    assert completed("specexit", "convert", "ru") == ["-o nospace", "run="]


def test_a_section_that_is_none_in_a_file_leaves_the_help_as_it_is() -> None:
    assert list(rows(TrainConfig, {"signals": "fc"})) == list(rows(TrainConfig))
