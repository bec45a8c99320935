"""What the project needs to know about a target model: ``configs/targets/<name>.yaml``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from specexit.buckets import location
from specexit.config import CONFIG_ROOTS, Config, ConfigError, find, load, write_text
from specexit.drafts.files import read_bytes
from specexit.errors import cut, shown
from specexit.method.splits import FastTokenizer, ThinkTokens, load_tokenizer, resolve
from specexit.schemas.sampling import SamplingConfig
from specexit.tiny import EMBEDDED
from specexit.trainable import long_behind, positions, theta_of
from specexit.yaml_text import dump_yaml

TARGET_FILE = "target.yaml"
"""Copy of the target that every folder of traces, packed data, a training run or a draft carries."""


MAX_BYTES = 1_000_000
"""Of such a copy."""

COUNTS = ("num_hidden_layers", "num_attention_heads", "hidden_size", "vocab_size", "max_position_embeddings")
"""Fields of a ``config.json`` that are reckoned with."""

FOR_DRAFTS = ("hidden_size", "vocab_size", "num_hidden_layers", "rms_norm_eps", "rope_theta", "max_position_embeddings")
"""Fields that a fresh draft has from its target's ``config.json``."""


def _with_line_breaks(text: str) -> str:
    if re.search(r"\\n(?![a-z])", text):  # LaTeX goes on with a letter: \neq, \nabla
        raise ValueError(
            'holds a backslash and an n, expected a line break: YAML reads "\\n" so in double quotes alone'
        )
    return text


Forced = Annotated[str, AfterValidator(_with_line_breaks)]
"""What is written into a text, or looked for in one."""

Text = Annotated[str, Field(min_length=1), AfterValidator(_with_line_breaks)]
"""What is looked for in a text: an empty one would be everywhere."""


class ModelCardSampling(SamplingConfig):
    """How the model card asks for text."""

    temperature: float = Field(ge=0, allow_inf_nan=False, description="0 is greedy")
    max_tokens: int = Field(gt=0, description="longest response, thinking and answer; cut to what max_model_len leaves")


class TrialConfig(Config):
    """How the model is made to state its answer at once, for one answer kind."""

    text: Forced = Field(default="", description="forced behind the end marker; empty: the whole answer is written")
    max_tokens: int = Field(gt=0, description="longest trial; one that is cut off here is undecided")
    stop: tuple[Text, ...] = Field(default=(), description="the trial also ends behind one of these")
    close: Forced = Field(default="", description="put in the place of that stop before the answer is read")


def _rising(layers: tuple[int, ...]) -> tuple[int, ...]:
    if not layers or layers[0] < 0 or list(layers) != sorted(set(layers)):
        raise ValueError(
            f"layers are {list(layers)}, expected ids from 0 (the embedding) on, rising: vLLM hands the layers on in "
            "their own order, each once"
        )
    return layers


Layers = Annotated[tuple[int, ...], AfterValidator(_rising)]
"""Ids of layers whose residual stream a draft reads, in vLLM's counting: ``k`` is the state behind ``k`` layers."""


def _one_line(name: str) -> str:
    if not name.strip() or not name.isprintable():
        raise ValueError("expected a name of one line")
    return name


def _check_numbers(fields: Mapping[str, Any], where: str) -> None:
    epsilon = fields.get("rms_norm_eps")
    if not isinstance(epsilon, int | float | None):
        raise ConfigError(f"{where}: rms_norm_eps is {epsilon!r}, expected a number")
    for key in COUNTS:
        value = fields.get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ConfigError(f"{where}: {key} is {value!r}, expected a whole number above 0")


def _somewhere(path: str) -> str:
    location(path)
    return path


class TargetConfig(Config):
    """One target model."""

    name: Annotated[str, AfterValidator(_one_line)]
    path: Annotated[str, Field(min_length=1), AfterValidator(_somewhere)] = Field(
        description="folder in Hugging Face layout, from the YAML's own folder on; that of a shipped target from the "
        "working directory on; for training alone, it may be in a bucket; 'embedded' and 'embedded:mixed' are the "
        "package's own"
    )
    think_start: str = "<think>"
    think_end: str = "</think>"
    split_endings: tuple[Text, ...] = Field(
        default=("\n\n",), description="a step ends at a token whose text ends like this"
    )
    split_connectors: tuple[Text, ...] = Field(
        default=(),
        description="a step also ends at these words at a sentence start, or anywhere where no spaces are written",
    )
    aux_layers: Layers = Field(description="layers whose residual stream the draft reads, in vLLM's counting")
    max_model_len: int = Field(gt=0, description="longest sequence, prompt included")
    sampling: ModelCardSampling | None = Field(default=None, description="what collect asks with, from the model card")
    chat: dict[str, Any] = Field(default={}, description="arguments of the chat template, such as enable_thinking")
    answer_kind: str = Field(default="math", description="of prompts that do not say theirs")
    trial: dict[str, TrialConfig] = Field(default={}, description="for each answer kind, how an answer is tried")
    dtype: Literal["bfloat16", "float16", "float32"] = Field(
        default="bfloat16", description="of the served weights; float32 makes CPU runs exact"
    )
    config: dict[str, Any] | None = Field(
        default=None, description="fields of the model's config.json, for `specexit plan`, which needs no weights"
    )

    @model_validator(mode="after")
    def _two_markers(self) -> TargetConfig:
        if self.think_start == self.think_end:
            raise ValueError(f"think_end is {self.think_end!r}, as think_start is: expected two markers")
        return self

    @property
    def folder(self) -> Path:
        """Where the model lies."""
        return EMBEDDED.get(self.path) or location(self.path)

    def model_file(self, name: str) -> Path:
        """Where a file of the model lies.

        Raises:
          ConfigError: the model's folder is not there.
        """
        path = self.folder / name
        if not path.exists() and not self.folder.exists():
            raise ConfigError(
                f"{path}: target {self.name} cannot be read: its path is {self.path!r}, which is not there; where the "
                "model lies elsewhere now, say target=FILE.yaml, a copy of the target with that path"
            )
        return path

    def hf_config(self) -> dict[str, Any]:
        """The target's ``config.json``; what the YAML says in ``config`` where the folder is not there.

        Raises:
          ConfigError: neither is there, the two disagree, or a number is none.
        """
        if self.config is not None and not self.folder.exists():
            _check_numbers(self.config, self.config_place)
            return dict(self.config)
        path = self.model_file("config.json")
        try:
            found = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: target {self.name} cannot be read: {error}") from error
        if not isinstance(found, dict):
            raise ConfigError(f"{path}: holds a {type(found).__name__}, expected keys and values")
        for key, value in (self.config or {}).items():
            if key in found and found[key] != value:
                raise ConfigError(f"{path}: {key} is {found[key]!r}, but target {self.name} says {value!r}")
        _check_numbers(found, str(path))
        return found

    def needed(self, *names: str) -> dict[str, Any]:
        """These fields of the target's ``config.json``; ``rope_theta`` from wherever it is said there.

        Raises:
          ConfigError: see `hf_config`; or it lacks some of them.
        """
        found = self.hf_config()
        try:
            found["rope_theta"] = theta_of(found)
        except ValueError as error:
            raise ConfigError(f"{self.config_place}: {error}") from error
        missing = [name for name in names if found.get(name) is None]
        if missing:
            inner = (
                ", not those in text_config" if found.get("text_config") else ""
            )  # of a model that sees or hears, too
            raise ConfigError(
                f"{self.config_place}: no value for {', '.join(missing)}, expected the model's own{inner}"
            )
        return {name: found[name] for name in names}

    @property
    def config_place(self) -> str:
        """Where `hf_config` is read, for errors."""
        if self.config is not None and not self.folder.exists():
            return f"target {self.name}: config"
        return str(self.folder / "config.json")

    def positions(self) -> float:
        """The longest sequence that the model has positions for, by its config; infinity where that does not say.

        Raises:
          ConfigError: see `hf_config`; or the rotary embedding's fields are none.
        """
        fields = self.hf_config()
        try:
            return positions(fields)
        except ValueError as error:
            raise ConfigError(f"{self.config_place}: {error}") from error

    def long_behind(self) -> float | None:
        """See `specexit.trainable.long_behind`.

        Raises:
          ConfigError: see `positions`.
        """
        fields = self.hf_config()
        try:
            return long_behind(fields)
        except ValueError as error:
            raise ConfigError(f"{self.config_place}: {error}") from error

    def layers_read(self, asked: Layers | None = None) -> Layers:
        """The layers that a draft reads: those asked for, else the target's own choice.

        Raises:
          ConfigError: the model cannot be read, or has not so many layers.
        """
        layers, last = asked or self.aux_layers, self.hf_config().get("num_hidden_layers")
        if last is not None and layers[-1] > last:
            raise ConfigError(
                f"aux_layers={list(layers)}: expected ids from 0 (the embedding) to {last}, the last layer of "
                f"{self.name} in {self.folder}"
            )
        return layers

    def tokenizer(self) -> FastTokenizer:
        """The target's tokenizer.

        Raises:
          ConfigError: the model's folder is not there.
          SplitError: it holds no tokenizer that can be used.
        """
        return load_tokenizer(self.model_file("tokenizer.json").parent)

    def think_tokens(self) -> ThinkTokens:
        """Markers and split tokens as ids.

        Raises:
          SplitError: the tokenizer has no single-token think markers.
        """
        return resolve(self.tokenizer(), self.think_start, self.think_end, self.split_endings, self.split_connectors)

    def trial_of(self, kind: str) -> TrialConfig:
        """How answers of a kind are tried.

        Raises:
          ConfigError: the target does not say.
        """
        if kind not in self.trial:
            raise ConfigError(
                f"target {self.name}: trial.{kind} is missing, expected the text to force behind {self.think_end!r}, "
                f"max_tokens and stop; there is {', '.join(self.trial) or 'none'}"
            )
        return self.trial[kind]


def load_target_config(name: str) -> TargetConfig:
    """Read ``configs/targets/<name>.yaml``, or the file itself where ``name`` is a path to a YAML file.

    Raises:
      ConfigError: no such target, the file is wrong, or the model's folder that it names is not there.
    """
    file = find("targets", name)
    target = load(TargetConfig, file)
    shipped = file.resolve().parent in [(root / "targets").resolve() for root in CONFIG_ROOTS]
    if shipped or target.path in EMBEDDED or location(target.path).is_absolute():
        return target
    folder = (file.parent / target.path).absolute()
    if not folder.is_dir() and target.config is None:
        raise ConfigError(
            f"{file}: path is {target.path!r}, but there is no folder {folder}: a relative path counts from the folder "
            "of the YAML file"
        )
    return target.model_copy(update={"path": str(folder)})


def save_target(folder: Path, target: TargetConfig) -> None:
    """Leave a copy of the target in an output folder, so that what reads the folder finds it, from wherever."""
    fields = target.model_dump(mode="json", exclude_defaults=True)
    if target.path not in EMBEDDED:
        fields["path"] = str(target.folder.absolute())
    write_text(folder / TARGET_FILE, dump_yaml(fields, allow_unicode=True))


BOUNDARIES = ("think_start", "think_end", "split_endings", "split_connectors")
"""Fields, of a target and of a draft's block, by which boundaries are found."""


def other_boundaries(one: Any, other: Any) -> str | None:
    """What two targets, or a draft's block and a target, find boundaries by that is not the same; None where all is.

    Example:
      >>> other_boundaries(load_target_config("tiny-reasoner"), load_target_config("tiny-mixed")) is None
      True
    """
    for name in BOUNDARIES:
        was, now = getattr(one, name), getattr(other, name)
        if was != now and (isinstance(was, str) or set(was) != set(now)):  # of strings that are looked for, no order
            return f"{name}={was!r}, not {now!r}"
    return None


def copy_beside(place: Path) -> Path | None:
    """The copy of the target in a folder, or beside a file in it; None where there is none.

    Raises:
      TensorError: it is a link out of its folder, no regular file, or larger than `MAX_BYTES`.
    """
    copy = (place if place.is_dir() else place.parent) / TARGET_FILE
    if not copy.exists():
        return None
    read_bytes(copy, MAX_BYTES)  # a stranger's draft carries one: nothing is made of what is no small file
    return copy


def target_beside(place: Path, target: TargetConfig) -> TargetConfig | None:
    """A target as its copy in a folder, or beside a file in it, says it, wherever its model lies now; None where there
    is no copy, or that of another target.

    Raises:
      ConfigError: the copy cannot be read, so that nothing says where the boundaries are.
      TensorError: see `copy_beside`.
    """
    if (copy := copy_beside(place)) is None:
        return None
    try:
        theirs = load(TargetConfig, copy)  # not as `load_target_config` does: the model may have moved
    except ConfigError as error:
        raise ConfigError(f"{error}; mend or delete that copy, which says what the data's boundaries are") from error
    return theirs if theirs.name == target.name else None


def other_boundaries_beside(place: Path, target: TargetConfig) -> str | None:
    """What `other_boundaries` says of a target and of its copy in a folder, or beside a file in it; None where there is
    no copy, or that of another target.

    Raises:
      ConfigError, TensorError: see `target_beside`.
    """
    theirs = target_beside(place, target)
    return None if theirs is None else other_boundaries(theirs, target)


def target_reference(given: str | None, *places: Path, name: str | None = None) -> str:
    """What `load_target_config` should be asked for: the target given; else the copy in the first of ``places`` that
    has one (a folder, or a file in it); else the name that traces or a draft carry.

    Raises:
      ConfigError: none of them says.
      TensorError: see `copy_beside`.
    """
    if given is not None:
        return given
    for place in places:
        if (copy := copy_beside(place)) is not None:
            return str(copy)
    if name is None:
        listed = " and ".join(str(place) for place in places)
        raise ConfigError(f"{listed}: the target is not named there, expected target=NAME or target=FILE.yaml")
    return name


def find_target(given: str | None, *places: Path, name: str | None = None) -> TargetConfig:
    """The target that a run, traces or a draft belong to; see `target_reference`.

    Args:
      given: the user's ``target=``, which wins.
      places: what is read, each a folder or a file in one.
      name: the target's name according to them.

    Raises:
      ConfigError: it is not said, unknown, or the one given or the copy there is another than ``name``.
    """
    if given is not None:
        target = load_target_config(given)
        if name is not None and target.name != name:
            what = places[0] if places else "the rest"
            raise ConfigError(
                f"target={given} is {target.name!r}, but {what} belongs to {shown(name)}: expected "
                f"target={cut(name)}, or the YAML of that target, wherever its model lies now"
            )
        return target
    reference = target_reference(None, *places, name=name)
    try:
        target = load_target_config(reference)
    except ConfigError as error:
        raise ConfigError(f"{error}; say target=FILE.yaml for {places[0] if places else name}") from error
    if name is not None and target.name != name:
        raise ConfigError(f"{places[0]}: {TARGET_FILE} is of {target.name!r}, but the rest belongs to {shown(name)}")
    return target
