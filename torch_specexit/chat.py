"""From a conversation to the token ids a reasoning target starts thinking from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from specexit.errors import InputError
from specexit.schemas.target import TargetConfig


def load_chat_tokenizer(target: TargetConfig) -> Any:
    """The target's tokenizer through transformers, which is what can run its chat template.

    Raises:
      InputError: its files are damaged.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(target.folder)
    except Exception as error:  # whatever a damaged file makes of transformers
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{target.folder}: the tokenizer of target {target.name} cannot be loaded: {said}") from error


def prompt_ids(tokenizer: Any, target: TargetConfig, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Apply the chat template, with the target's own arguments for it, and open the thinking.

    Some templates open it themselves (Qwen3-Thinking); where one does not, the start marker and a newline are
    appended, so that a trace always begins inside the thinking.

    Raises:
      InputError: the tokenizer has no template, or the template refuses the conversation or the arguments.
    """
    from jinja2 import TemplateError

    turns = [dict(message) for message in messages]
    try:
        text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False, **target.chat)
    except (TemplateError, TypeError, ValueError) as error:
        given = f" with its chat {target.chat}" if target.chat else ""
        raise InputError(f"the chat template of target {target.name} cannot be applied{given}: {error}") from error
    if not text.rstrip().endswith(target.think_start):
        text += f"{target.think_start}\n"
    return tokenizer.encode(text, add_special_tokens=False)
