"""From a conversation to the token ids a reasoning target starts thinking from."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from specexit.config import CONFIG_ROOTS, ConfigError, read_yaml
from specexit.errors import InputError
from specexit.method.splits import FastTokenizer, misread, unmet
from specexit.schemas.target import TargetConfig

OURS = ("conversation", "add_generation_prompt", "tokenize")
"""Arguments of the chat template that are set here, and that a target may not give."""


def load_chat_tokenizer(target: TargetConfig) -> Any:
    """The target's tokenizer through transformers, for its chat template alone: tokens are those of ``tokenizer.json``.
    Code that its folder brings is not run.

    Raises:
      InputError: its files are damaged, or name a class of the folder's own code; or a ``tekken.json`` beside them
        keeps them from being read.
    """
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(target.folder, trust_remote_code=False)
    except Exception as error:  # whatever a damaged file makes of transformers
        said = " ".join(f"{type(error).__name__}: {error}".split())
        if "trust_remote_code" in said:
            said = "its class is code that lies there, which is not run: take auto_map out of tokenizer_config.json"
        raise InputError(f"{target.folder}: the tokenizer of target {target.name} cannot be loaded: {said}") from error
    if type(found).__name__ == "MistralCommonBackend":  # which passes over the chat template and reads no marker
        raise InputError(
            f"{target.folder / 'tekken.json'}: where it lies, transformers, and vLLM with it, reads neither "
            f"tokenizer.json nor the chat template of target {target.name}, expected a folder without it: move it "
            "elsewhere"
        )
    return found


def template_sha256(target: TargetConfig) -> str:
    """Hash of the target's chat template, of which `prompt_ids` has been found to make prompts.

    Raises:
      InputError: the tokenizer cannot be loaded.
    """
    return hashlib.sha256(load_chat_tokenizer(target).get_chat_template().encode()).hexdigest()


def misread_by_transformers(target: TargetConfig) -> str | None:
    """How transformers, and so vLLM, reads text otherwise than a target's ``tokenizer.json``; None where it does not.

    transformers 5 makes some classes anew, of the vocabulary and the merges alone: a ``LlamaTokenizer`` of a byte-level
    file has no tokens for spaces and line breaks, and drops them.

    Raises:
      InputError: the tokenizer cannot be loaded.
    """
    theirs = load_chat_tokenizer(target)
    how = misread(theirs, target.tokenizer(), target.think_start, target.think_end)
    if how is None:
        return None
    made = type(theirs).__name__
    return (
        f"{target.folder / 'tokenizer_config.json'}: transformers, and vLLM with it, makes a {made} that {how}; "
        f"{_read_as_it_is(target, made)}"
    )


def _read_as_it_is(target: TargetConfig, made: str) -> str:
    """What has transformers read a ``tokenizer.json`` as it is, where it has made another class of it.

    For some types of models, Qwen2's among them, it takes a class of its own whatever ``tokenizer_class`` says.
    """
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    named = get_tokenizer_config(target.folder).get("tokenizer_class")
    if str(named).removesuffix("Fast") == made.removesuffix("Fast"):
        return 'what tokenizer.json says is read with "tokenizer_class": "PreTrainedTokenizerFast" there'
    return (
        f"that comes of the model's type, though tokenizer_class says {named}: what tokenizer.json says is read where "
        "no config.json lies beside it: copy the tokenizer's files into a folder without one, with tokenizer_class "
        "PreTrainedTokenizerFast, and name it as the engine's tokenizer (serve: --tokenizer, elsewhere: engine.extra)"
    )


_OWN_TOKENIZER = ("tokenizer", "tokenizer_mode", "trust_remote_code")


def check_read(target: TargetConfig, extra: Mapping[str, Any]) -> None:
    """Refuse a target whose text an engine would read, and write, otherwise than its ``tokenizer.json``.

    Args:
      target: the target.
      extra: further arguments of the engine; where they name a tokenizer, nothing is checked.

    Raises:
      ConfigError: the engine would read the text otherwise.
      InputError: the tokenizer cannot be loaded.
    """
    if extra.keys().isdisjoint(_OWN_TOKENIZER) and (why := misread_by_transformers(target)) is not None:
        raise ConfigError(why)


def prompt_ids(
    chat: Any, tokenizer: FastTokenizer, target: TargetConfig, messages: Sequence[Mapping[str, str]]
) -> list[int]:
    """Apply the chat template, with the target's own arguments for it, and open the thinking.

    Some templates open it themselves (Qwen3-Thinking); where one does not, the start marker and a newline are
    appended, so that a trace always begins inside the thinking.

    Args:
      chat: what `load_chat_tokenizer` returns.
      tokenizer: the target's own.
      target: gives the arguments of the template, and the markers.
      messages: the conversation, each with ``role`` and ``content``.

    Raises:
      InputError: the tokenizer has no template; the template refuses the conversation or the arguments, does not use
        one of these, or closes the thinking; or the target gives one of `OURS`.
    """
    if ours := [key for key in target.chat if key in OURS]:
        raise InputError(
            f"the chat template of target {target.name} gets {', '.join(ours)} from specexit itself, expected its chat "
            f"{target.chat} without"
        )
    text = _rendered(chat, target, messages, **target.chat)
    _check_options(target, chat)
    if text.rstrip().endswith(target.think_end):
        raise InputError(
            f"the chat template of target {target.name} closes the thinking with its chat {target.chat}: the prompt "
            f"ends in {text[-40:]!r}, expected one behind which the model begins to think"
        )
    if not text.rstrip().endswith(target.think_start):
        text += f"{target.think_start}\n"
    return tokenizer.encode(text)


def _rendered(chat: Any, target: TargetConfig, messages: Sequence[Mapping[str, str]], **arguments: Any) -> str:
    turns = [dict(message) for message in messages]
    try:
        return chat.apply_chat_template(turns, add_generation_prompt=True, tokenize=False, **arguments)
    except Exception as error:  # whatever a stranger's template does
        given = f" with its chat {target.chat}" if target.chat else ""
        raise InputError(f"the chat template of target {target.name} cannot be applied{given}: {error}") from error


def doubts(target: TargetConfig) -> list[str]:
    """What hardly anybody wants of a target, though traces can be collected with it, in a sentence each.

    Raises:
      InputError: its tokenizer or markers cannot be used.
    """
    found, tokenizer = [], target.tokenizer()
    if idle := unmet(tokenizer, target.think_tokens()):
        found.append(
            f"target {target.name}: hardly a step will end at {', '.join(map(repr, idle))}, as {target.folder} has no "
            "token for it between two sentences: a word has to be one token, and where a blank line is two, "
            '"\\n" is one'
        )
    chat, question = load_chat_tokenizer(target), [{"role": "user", "content": "What is 3 + 4?"}]
    with contextlib.suppress(InputError):  # a template may want more than a question
        today = _rendered(chat, target, question, **target.chat)
        if today != _rendered(chat, target, question, **{"strftime_now": lambda form: "", **target.chat}):
            found.append(
                f"target {target.name}: its chat template writes today's date, so that the same question is another "
                "prompt on another day, and nothing tells that a draft was trained on it; write a date into the "
                "template, or give it one in chat where it takes one"
            )
    return found


def _check_options(target: TargetConfig, chat: Any) -> None:
    """Refuse arguments that the template does not use: jinja ignores them, so a slip of the pen would go unnoticed.

    Those of shipped targets stay allowed, as a YAML that began as a copy of one may still have them.
    """
    if strange := target.chat.keys() - _shipped_options():
        words = set(re.findall(r"\w+", chat.get_chat_template()))
        for key in sorted(strange - words):
            near = difflib.get_close_matches(key, sorted(words | _shipped_options()), n=1, cutoff=0.8)
            raise InputError(
                f"target {target.name}: chat.{key} is {target.chat[key]!r}, but its chat template in {target.folder} "
                f"does not use {key!r}" + (f", did you mean {near[0]!r}?" if near else "")
            )


@cache
def _shipped_options() -> frozenset[str]:
    files = [file for root in CONFIG_ROOTS for file in (root / "targets").glob("*.yaml")]
    return frozenset(key for file in files for key in read_yaml(file).get("chat", {}))
