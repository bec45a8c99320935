"""What the project needs to know about a target model: ``configs/targets/<name>.yaml``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import Field

from specexit.config import Config, ConfigError, find, load
from specexit.method.splits import FastTokenizer, ThinkTokens, load_tokenizer, resolve

EMBEDDED = "embedded"


class TargetConfig(Config):
    """One target model."""

    name: str
    path: str = Field(description="folder in Hugging Face layout; 'embedded' is the tiny reasoner in the package")
    think_start: str = "<think>"
    think_end: str = "</think>"
    split_endings: tuple[str, ...] = Field(
        default=("\n\n",), description="a step ends at a token whose text ends like this"
    )
    split_connectors: tuple[str, ...] = Field(
        default=(), description="a step also ends at these words at a sentence start"
    )
    aux_layers: tuple[int, ...] = Field(description="layers whose residual stream the draft reads, in vLLM's counting")
    max_model_len: int = Field(gt=0, description="longest sequence, prompt included")
    dtype: str = Field(default="bfloat16", description="of the served weights; float32 makes CPU runs exact")
    config: dict[str, Any] | None = Field(
        default=None, description="fields of the model's config.json, for `specexit plan`, which needs no weights"
    )

    @property
    def folder(self) -> Path:
        """Where the model lies."""
        if self.path == EMBEDDED:
            from specexit.tiny import MODEL_DIR

            return MODEL_DIR
        return Path(self.path)

    def hf_config(self) -> dict[str, Any]:
        """The target's ``config.json``; what the YAML says in ``config`` where the folder is not there.

        Raises:
          ConfigError: neither is there, or the two disagree.
        """
        path = self.folder / "config.json"
        if self.config is not None and not self.folder.exists():
            return dict(self.config)
        try:
            found = json.loads(path.read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise ConfigError(f"{path}: target {self.name} cannot be read: {error}") from error
        for key, value in (self.config or {}).items():
            if key in found and found[key] != value:
                raise ConfigError(f"{path}: {key} is {found[key]}, but target {self.name} says {value}")
        return found

    def tokenizer(self) -> FastTokenizer:
        """The target's tokenizer."""
        return load_tokenizer(self.folder)

    def think_tokens(self) -> ThinkTokens:
        """Markers and split tokens as ids.

        Raises:
          SplitError: the tokenizer has no single-token think markers.
        """
        return resolve(self.tokenizer(), self.think_start, self.think_end, self.split_endings, self.split_connectors)


def load_target_config(name: str) -> TargetConfig:
    """Read ``configs/targets/<name>.yaml``, or the file itself where ``name`` is a path to a YAML file.

    Raises:
      ConfigError: no such target, or the file is wrong.
    """
    return load(TargetConfig, find("targets", name))
