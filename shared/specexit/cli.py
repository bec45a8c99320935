"""``specexit COMMAND [recipe.yaml] [key=value ...]``: a table of commands, everything else comes from their schemas.

A command's schema is its YAML, its flags and its help at once. ``--out runs/x`` and ``out=runs/x`` mean the same. This
file imports nothing heavy, so ``specexit --help`` is quick and works with the core alone.
"""

from __future__ import annotations

import errno
import importlib
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from specexit.completion import Keyed, complete_values_in_bash
from specexit.processes import look_in_working_folder

if TYPE_CHECKING:
    from pydantic import BaseModel


@dataclass(frozen=True)
class Command:
    """One command: ``schema`` and ``run`` are ``module:name``, imported when it is called."""

    group: str
    """Under which heading ``specexit --help`` lists it."""
    help: str
    schema: str
    run: str
    extra: str | None = None
    """Extra that must be installed: its first missing import is answered with how to get it."""
    configs: str | None = None
    """Folder in ``configs`` whose files may be given by their names."""
    subject: str | None = None
    """Key whose value may be given alone, in place of a YAML file: ``specexit migrate runs/x/draft``."""
    restarted: bool = False
    """Whether job scripts start it again by its exit code: an error that the same command would only run into again
    then has a code of its own, see `specexit.errors.LASTING`."""


COMMANDS = {
    "demo": Command(
        "Start",
        "The whole pipeline on the embedded tiny reasoner, on a CPU.",
        "specexit.schemas.demo:DemoConfig",
        "specexit.demo:demo",
    ),
    "collect": Command(
        "Data",
        "Generate traces, and the answers the target would give at step boundaries.",
        "specexit.schemas.collect:CollectConfig",
        "torch_specexit.collecting:collect",
        "serve",
    ),
    "annotate": Command(
        "Data",
        "Find exit points in traces; print statistics and the oracle cut.",
        "specexit.schemas.annotate:AnnotateConfig",
        "specexit.data.annotate:annotate",
    ),
    "pack": Command(
        "Data",
        "Pack labelled traces into fixed-length training examples.",
        "specexit.schemas.pack:PackConfig",
        "specexit.data.packing:pack",
        "train",
    ),
    "features": Command(
        "Data",
        "Store a target's hidden states on packed examples, for targets that training has no forward pass of.",
        "specexit.schemas.features:FeaturesConfig",
        "torch_specexit.hidden_states:features",
        "serve,train",
    ),
    "plan": Command(
        "Training",
        "What a recipe needs on a TPU slice that is not there yet: memory, time at best, what binds.",
        "specexit.schemas.plan:PlanConfig",
        "jax_specexit.planning.plan:plan",
        "tpu",
        "recipes",
    ),
    "train": Command(
        "Training",
        "Train a draft and its signal heads, sharded and resumable.",
        "specexit.schemas.train:TrainConfig",
        "jax_specexit.training.train:train",
        "train",
        "recipes",
        restarted=True,
    ),
    "status": Command(
        "Training",
        "How far a training run is; its exit code tells a script whether to start it again.",
        "specexit.schemas.status:StatusConfig",
        "specexit.status:status",
        subject="run",
    ),
    "evaluate": Command(
        "Training",
        "Judge a trained draft on held-out traces: tokens, signals, simulated cut.",
        "specexit.schemas.evaluate:EvaluateConfig",
        "jax_specexit.evaluation.evaluate:evaluate",
        "train",
    ),
    "convert": Command(
        "Drafts",
        "Turn a training checkpoint into a draft directory, or the other way round.",
        "specexit.schemas.convert:ConvertConfig",
        "jax_specexit.convert:convert",
        "train",
    ),
    "verify": Command(
        "Drafts",
        "Compare JAX, PyTorch and vLLM on real traces; name the classic mistakes of a conversion.",
        "specexit.schemas.verify:VerifyConfig",
        "specexit.drafts.verify:verify",
    ),
    "score": Command(
        "Exits",
        "Read a draft's signals at every thinking token of collected traces.",
        "specexit.schemas.score:ScoreConfig",
        "torch_specexit.score:score",
        "serve",
    ),
    "simulate": Command(
        "Exits",
        "Replay exit policies on scored traces: accuracy against tokens.",
        "specexit.schemas.simulate:SimulateConfig",
        "specexit.method.simulate:simulate",
    ),
    "calibrate": Command(
        "Exits",
        "Choose the exit threshold with a risk guarantee and store it in the draft.",
        "specexit.schemas.calibrate:CalibrateConfig",
        "specexit.method.calibrate:calibrate",
    ),
    "import": Command(
        "Drafts",
        "Turn an EAGLE-3 draft that somebody published into a draft directory.",
        "specexit.schemas.published:ImportConfig",
        "specexit.drafts.published:import_draft",
        subject="draft",
    ),
    "export": Command(
        "Drafts",
        "Write a draft directory in the form that another program reads, with a model card.",
        "specexit.schemas.export:ExportConfig",
        "specexit.drafts.export:export",
        subject="draft",
    ),
    "inspect": Command(
        "Drafts",
        "Say what is in a draft directory, and what it can be exported to.",
        "specexit.schemas.inspect:InspectConfig",
        "specexit.drafts.inspect:inspect",
        subject="draft",
    ),
    "migrate": Command(
        "Drafts",
        "Bring a draft directory of an older version into today's form.",
        "specexit.schemas.migrate:MigrateConfig",
        "specexit.drafts.migrate:migrate",
        subject="draft",
    ),
    "bench": Command(
        "Evidence",
        "Measure plain, EAGLE-3, SpecExit and a fixed budget on the same problems in vLLM.",
        "specexit.schemas.bench:BenchConfig",
        "torch_specexit.bench.run:bench",
        "serve",
    ),
    "bench-serving": Command(
        "Evidence",
        "Measure what exits cost where they never fire, against plain EAGLE-3.",
        "specexit.schemas.bench_serving:BenchServingConfig",
        "torch_specexit.bench.serving:bench_serving",
        "serve",
    ),
    "bench-data": Command(
        "Evidence",
        "Measure annotate and pack on a generated corpus: speed, memory, tokens that rows lose.",
        "specexit.schemas.bench_data:BenchDataConfig",
        "specexit.bench.data:bench_data",
        "train",
    ),
    "bench-labels": Command(
        "Evidence",
        "Measure trials at boundaries as `collect` makes them, against one prefix at a time.",
        "specexit.schemas.bench_labels:BenchLabelsConfig",
        "torch_specexit.bench.labels:bench_labels",
        "serve",
    ),
    "bench-training": Command(
        "Evidence",
        "Measure a training step against speculators', the independent peer, on the same cores.",
        "specexit.schemas.bench_training:BenchTrainingConfig",
        "specexit.bench.training:bench_training",
        "dev",
    ),
    "bench-recipe": Command(
        "Evidence",
        "Measure what a change of a recipe does to its drafts: variants of it, trained over seeds.",
        "specexit.schemas.bench_recipe:BenchRecipeConfig",
        "specexit.bench.recipe:bench_recipe",
        "train",
    ),
    "ablate": Command(
        "Evidence",
        "What each choice of the method is worth on scored traces: tables and figures.",
        "specexit.schemas.ablate:AblateConfig",
        "specexit.bench.ablate:ablate",
    ),
    "bench-replay": Command(
        "Evidence",
        "Hold served exits against replayed ones, request by request, and list what differs.",
        "specexit.schemas.bench_replay:BenchReplayConfig",
        "specexit.bench.replay:bench_replay",
    ),
    "bench-certificate": Command(
        "Evidence",
        "Measure how often a certificate is broken, on samples of a population whose risk is known.",
        "specexit.schemas.bench_certificate:BenchCertificateConfig",
        "specexit.bench.certificate:bench_certificate",
    ),
    "bench-full-size": Command(
        "Evidence",
        "Measure EAGLE-3 and SpecExit at a real target's size, on a stand-in.",
        "specexit.schemas.bench_full_size:BenchFullSizeConfig",
        "torch_specexit.bench.full_size:bench_full_size",
        "serve",
    ),
    "stand-in": Command(
        "Evidence",
        "Write a model of a real target's size that behaves as a small one, to measure times on.",
        "specexit.schemas.stand_in:StandInConfig",
        "specexit.stand_in:stand_in",
    ),
    "serve": Command(
        "Serving",
        "Serve a target with exits in vLLM; --check shows whether the installed one fits.",
        "specexit.schemas.serve:ServeConfig",
        "torch_specexit.serve:serve",
        "serve",
    ),
    "chat": Command(
        "Serving",
        "Ask a server with exits, and watch it think.",
        "specexit.schemas.chat:ChatConfig",
        "specexit.chat:chat",
    ),
    "report": Command(
        "Evidence",
        "Write one self-contained HTML page about a run.",
        "specexit.schemas.report:ReportConfig",
        "specexit.report.page:report",
    ),
}

app = typer.Typer(
    help="Reasoning models that answer sooner: from prompts to a draft that notices when an answer is settled.\n\n"
    "Each command takes a YAML file and key=value; COMMAND --help lists its keys.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _load(reference: str) -> Any:
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


def parse(arguments: list[str], schema: type[BaseModel]) -> tuple[Path | None, list[str]]:
    """Split a command's arguments into its YAML file and its overrides.

    A flag that is true or false needs no value: ``--check`` is ``check=true``. Any other takes the next argument.

    Raises:
      ConfigError: an empty argument, a second file, one that is neither on disk nor in gs://, or a flag without its
        value.

    Example:
      >>> from specexit.schemas.demo import DemoConfig
      >>> parse(["runs/a=b/recipe.yaml", "--out", "runs/a=b", "--seed=1", "--quick", "data=runs/x"], DemoConfig)
      (PosixPath('runs/a=b/recipe.yaml'), ['out=runs/a=b', 'seed=1', 'quick=true', 'data=runs/x'])
    """
    from specexit.config import ConfigError, key_of, located

    path: Path | None = None
    overrides: list[str] = []
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        if argument.startswith("--"):
            key, equals, value = argument[2:].partition("=")
            key = key_of(schema, key)
            overrides.append(f"{key}={value if equals else _value(schema, key, waiting)}")
        elif "=" in argument and "/" not in argument.partition("=")[0]:  # no key has one; folders are called lr=1
            overrides.append(argument)
        elif not argument:  # a shell variable that is not set: the path would be the working directory
            raise ConfigError("argument '' is empty, expected a path or key=value")
        elif path is None:
            path = located(argument)
        else:
            raise ConfigError(f"argument {argument!r} is not key=value, and the config file is already {path}")
    return path, overrides


def _value(schema: type[BaseModel], key: str, waiting: list[str]) -> str:
    """Take a flag's value from the arguments behind it. A key that does not exist is left for `load` to name."""
    from specexit.config import ConfigError, kinds_of

    kinds = kinds_of(schema, key)
    if bool in kinds:
        return waiting.pop(0) if waiting and TRUTH.fullmatch(waiting[0]) else "true"
    if not waiting or re.match("--[a-z]", waiting[0]):
        if not kinds:
            return "true"
        raise ConfigError(f"--{key} has no value, expected --{key} VALUE or {key}=VALUE")
    return "true" if not kinds and re.match(r"[a-z][a-z0-9_.]*=", waiting[0]) else waiting.pop(0)


TRUTH = re.compile("true|false|yes|no|on|off|null", re.IGNORECASE)


def show_help(name: str, command: Command, arguments: list[str]) -> None:
    """Print a command's keys; with a config file, its values in place of the defaults.

    Raises:
      ConfigError: the file does not exist or cannot be read.
    """
    from specexit import help
    from specexit.config import find, read_yaml

    schema = _load(command.schema)
    path, _ = parse([argument for argument in arguments if argument not in HELP], schema)
    if path is not None and command.configs is not None:
        path = find(command.configs, str(path))
    first = f"[{command.subject.upper()}]" if command.subject else "[config.yaml]"
    values = read_yaml(path) if path is not None and command.subject is None else None
    help.show(name, command.help, schema, values, first)


HELP = ("--help", "-h")


def run(name: str, arguments: list[str]) -> None:
    """Run one command; every expected failure is one clear line and exit code 1, or see `Command.restarted`."""
    command = COMMANDS[name]
    from specexit.config import find, load
    from specexit.errors import LASTING, InputError, install, lasts
    from specexit.interrupted import interrupted

    try:
        if any(argument in HELP for argument in arguments):
            show_help(name, command, arguments)
            return
        schema = _load(command.schema)
        path, overrides = parse(arguments, schema)
        if path is not None and command.subject is not None:
            path, overrides = None, _with_subject(command.subject, path, overrides)
        if path is not None and command.configs is not None:
            path = find(command.configs, str(path))
        config = load(schema, path, overrides)
        _load(command.run)(config)
    except ModuleNotFoundError as error:
        if command.extra is None or "specexit" in (error.name or ""):
            raise
        needed = f"specexit {name} needs {error.name}: {install(command.extra)}"
        _fail(needed, code=LASTING if command.restarted else 1)
    except KeyboardInterrupt:
        _fail(interrupted(name), code=130)
    except InputError as error:
        _fail(str(error), code=LASTING if command.restarted and lasts(error) else 1)
    except OSError as error:
        if isinstance(error, FileExistsError | FileNotFoundError) and not error.filename:  # ours, in words
            _fail(str(error))
        if error.errno not in DISK and not (error.filename and error.strerror):
            raise
        _fail(f"{error.filename or 'a file'}: cannot be written or read: {error.strerror}")


def _with_subject(key: str, path: Path, overrides: list[str]) -> list[str]:
    """Overrides with what was given alone as the value of its key.

    Raises:
      ConfigError: the key is given as well.
    """
    from specexit.config import ConfigError

    if again := next((override for override in overrides if override.startswith(f"{key}=")), None):
        raise ConfigError(f"{key} is given twice, as {path} and as {again}, expected it once")
    return [f"{key}={path}", *overrides]


DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
"""Errors that are the machine's, and not ours, also where they name no file: a full disk, a folder of somebody else."""


def _fail(message: str, *, code: int = 1) -> None:
    from specexit.errors import printable

    # A message may say what a stranger's file does.
    print("error: " + "\n".join(map(printable, message.split("\n"))), file=sys.stderr)
    raise SystemExit(code)


def _register(name: str, command: Command) -> None:
    settings = {"ignore_unknown_options": True, "help_option_names": []}

    def complete(incomplete: str) -> list[str]:
        from specexit.help import rows

        return [f"{row.key}=" for row in rows(_load(command.schema)) if row.key.startswith(incomplete)]

    given = typer.Argument(None, autocompletion=complete)

    @app.command(name, cls=Keyed, help=command.help, rich_help_panel=command.group, context_settings=settings)
    def _(arguments: list[str] | None = given) -> None:
        run(name, arguments or [])


for _name, _command in COMMANDS.items():
    _register(_name, _command)


complete_values_in_bash()


def main() -> None:
    """Entry point of the ``specexit`` script.

    The working directory is put on the module path, so that a user's own function there is found, as with ``python -m
    specexit``. It comes last, so that no file there stands in for a library.
    """
    look_in_working_folder()
    app()
