"""What is to be collected: every sample of every prompt, in pieces, and how the target is asked for it."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from specexit.config import ConfigError
from specexit.data.answers import kind
from specexit.data.prompts import Prompt, PromptError, read_prompts, split_prompts
from specexit.data.teacher import check_fields
from specexit.errors import InputError
from specexit.schemas.collect import CollectConfig
from specexit.schemas.sampling import is_greedy
from specexit.schemas.target import FOR_DRAFTS, ModelCardSampling, TargetConfig, TrialConfig
from specexit.tiny import MIXED
from specexit.trainable import untrainable
from torch_specexit.engine import chosen_length

SPLIT_SIZE = 500
"""Problems of a split, unless the config says how many."""


class CollectError(InputError):
    """Collecting failed, or what was collected is not worth training on; the message says why and what to change."""


class NoAnswer(CollectError):
    """A request that no server answers, though they answer others: its prompt's failure, and not the run's."""


@dataclass(frozen=True)
class Ask:
    """One sample of one prompt."""

    prompt: Prompt
    sample: int

    def seed(self, seed: int) -> int:
        """Seed of this very sample, made of the run's ``seed``, whatever else is collected beside it."""
        text = f"{seed}/{self.prompt.id}/{self.sample}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) >> 1

    def columns(self, target: TargetConfig) -> dict[str, Any]:
        """The trace's columns that say what was asked, and how the answer is judged."""
        prompt = self.prompt
        return {
            "id": prompt.id,
            "prompt": prompt.text,
            "reference": prompt.reference,
            "sample": self.sample,
            "messages": None if prompt.messages is None else json.dumps(prompt.messages, ensure_ascii=False),
            "task": prompt.task,
            "answer_kind": prompt.answer_kind or target.answer_kind,
            "group": prompt.group or prompt.task,
            "choices": None if prompt.choices is None else list(prompt.choices),
        }

    def to_json(self) -> dict[str, Any]:
        """The ask as JSON, for another process."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Ask:
        """The ask that `to_json` gave."""
        prompt = dict(data["prompt"])
        for key in ("messages", "choices"):
            prompt[key] = None if prompt[key] is None else tuple(prompt[key])
        return cls(Prompt(**prompt), data["sample"])


def all_asks(config: CollectConfig, target: TargetConfig) -> list[Ask]:
    """Everything that the config asks for, in the order of the rows: a prompt's samples follow one another.

    Raises:
      PromptError: the prompts cannot be used.
      AnswerError: the target's answer kind does not exist or cannot be used here.
    """
    if config.prompts is not None:
        prompts = read_prompts(config.prompts, config.columns, n=config.n, seed=config.seed)
    else:
        assert config.split is not None
        prompts = split_prompts(config.split, config.n or SPLIT_SIZE, config.seed, mixed=target.path == MIXED)
    prompts = [_with_plain_reference(prompt, target) for prompt in prompts]
    return [Ask(prompt, sample) for prompt in prompts for sample in range(config.samples)]


def _with_plain_reference(prompt: Prompt, target: TargetConfig) -> Prompt:
    """The prompt, its reference comparable without its options: of a choice, the letter and not the text."""
    if prompt.reference is None:
        return prompt
    answers = kind(prompt.answer_kind or target.answer_kind)
    return replace(prompt, reference=answers.as_reference(prompt.reference, prompt.choices))


@dataclass(frozen=True)
class Chunk:
    """The rows of one Parquet file."""

    number: int
    start: int
    asks: Sequence[Ask]

    @property
    def file(self) -> str:
        """Name of the file."""
        return f"traces-{self.number:05d}.parquet"


def chunks(config: CollectConfig, asks: Sequence[Ask]) -> list[Chunk]:
    """This shard's files: every n-th one, so that the files do not depend on the number of shards.

    Raises:
      ConfigError: there are fewer files than shards.
    """
    starts = range(0, len(asks), config.chunk)
    number, of = config.part
    if of > len(asks):
        raise ConfigError(f"shard is {config.shard}, but there are {len(asks)} traces; expected so many shards at most")
    if of > len(starts):
        raise ConfigError(
            f"shard is {config.shard}, but {len(asks)} traces in chunk={config.chunk} are {len(starts)} files; "
            f"expected chunk of at most {(len(asks) - 1) // (of - 1)}"
        )
    found = [Chunk(i, start, asks[start : start + config.chunk]) for i, start in enumerate(starts)]
    return found[number::of]


@dataclass(frozen=True)
class Decoding:
    """How one request is decoded."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    seed: int | None = None


NO_EXITS = {"specexit": False}
"""What every request says. A server or an engine with a SpecExit draft would otherwise end the thinking early, and no
exit could be seen to change an answer. vLLM without the plug-in ignores it."""


def gpus_each(config: CollectConfig) -> int:
    """Number of GPUs that an engine takes, over which vLLM spreads the model."""
    spread = ("tensor_parallel_size", "pipeline_parallel_size", "prefill_context_parallel_size")
    return math.prod(config.engine.extra.get(name, 1) for name in spread)


def engine_room(config: CollectConfig, todo: int, engines: int) -> int:
    """Traces that each of several engines has under way: a quarter more than fit its batch, as trials are short.

    Where there are fewer traces than that, all engines get an equal share: one that is full would leave others idle.
    """
    room = config.engine.max_num_seqs + max(1, config.engine.max_num_seqs // 4)
    return min(room, -(-todo // engines))


def sampling_of(config: CollectConfig, target: TargetConfig) -> ModelCardSampling:
    """How traces are sampled: as the target says, where the config says nothing else.

    Raises:
      ConfigError: neither says.
    """
    given = {
        "temperature": config.temperature,
        "top_p": config.top_p,
        "top_k": config.top_k,
        "max_tokens": config.max_new_tokens,
    }
    merged = target.sampling.model_dump() if target.sampling else {}
    merged |= {key: value for key, value in given.items() if value is not None}
    if not {"temperature", "max_tokens"} <= merged.keys():
        raise ConfigError(
            f"target {target.name}: sampling is missing, expected temperature and max_tokens as the model card has "
            "them, or temperature= and max_new_tokens="
        )
    return ModelCardSampling.model_validate(merged)


def trial_of(config: CollectConfig, target: TargetConfig, kind: str) -> TrialConfig:
    """How answers of a kind are tried.

    Raises:
      ConfigError: the target does not say.
    """
    family = kind.partition(":")[0]
    trial = target.trial_of(kind if kind in target.trial else family)
    return trial.model_copy(update={"max_tokens": config.trial_max_tokens or trial.max_tokens})


def _check_trainable(target: TargetConfig) -> None:
    if (why := untrainable(target.hf_config())) is not None:
        raise ConfigError(
            f"target {target.name}: {why}; any_architecture=true collects all the same, to train from `specexit "
            "features` where vLLM can draft for it with EAGLE-3, or for other uses"
        )


def why_no_features(target: TargetConfig) -> str | None:
    """What `specexit features` refuses by the target's ``config.json``; None where it asks for nothing else there."""
    try:
        target.needed(*FOR_DRAFTS)
        check_fields(target.hf_config(), target.config_place)
    except InputError as error:
        return str(error)
    return None


def check_positions(config: CollectConfig, target: TargetConfig) -> None:
    """Refuse a length beyond the model's positions, as an engine of one's own would unless it is told otherwise.

    Raises:
      ConfigError: the target's ``max_model_len`` is larger.
    """
    if config.endpoints or "max_model_len" in config.engine.extra or "VLLM_ALLOW_LONG_MAX_MODEL_LEN" in os.environ:
        return
    most = target.positions()
    if target.max_model_len > most:
        raise ConfigError(
            f"target {target.name}: max_model_len is {target.max_model_len}, expected at most {most:.0f}, by "
            f"{target.config_place} (max_position_embeddings, and RoPE's scaling)"
        )


def longest(config: CollectConfig, target: TargetConfig) -> int:
    """Tokens that a text may have, prompt and response: the target's, or what the run's own engines read, if less."""
    own = chosen_length(config.engine, target)
    return target.max_model_len if config.endpoints or own is None else min(own, target.max_model_len)


def check_target(config: CollectConfig, target: TargetConfig, asks: Sequence[Ask]) -> None:
    """Check, before anything starts, for what would otherwise go wrong hours later.

    Raises:
      ConfigError: the model cannot be read or trained on or has no row for a marker, the target does not say how it
        is asked, or several samples would be the same.
      SplitError: the tokenizer has no single-token think markers.
      AnswerError: an answer kind does not exist or cannot be used here.
      PromptError: a reference is no answer of its prompt's kind.
    """
    think = target.think_tokens()  # first, as any_architecture is no way round it
    if not config.any_architecture:
        _check_trainable(target)
    check_positions(config, target)
    target.layers_read()
    size = target.needed("vocab_size")["vocab_size"]  # whatever reads the traces asks for it
    for key, marker in (("think_start", (think.start,)), ("think_end", think.end_marker)):
        if max(marker) >= size:
            raise ConfigError(
                f"target {target.name}: {key} {getattr(target, key)!r} is token {max(marker)}, but "
                f"{target.config_place} says vocab_size={size}: expected a model that was resized for the tokens its "
                "tokenizer was given"
            )
    sampling = sampling_of(config, target)
    for name in sorted({ask.prompt.answer_kind or target.answer_kind for ask in asks}):
        kind(name)
        trial_of(config, target, name)
    if config.samples > 1 and is_greedy(sampling.model_dump()):
        raise ConfigError(
            f"samples is {config.samples}, but temperature {sampling.temperature:g} and top_k {sampling.top_k} make "
            "all of a prompt the same; expected samples=1, or a temperature above 0 and a top_k other than 1"
        )
    for ask in asks:
        prompt, name = ask.prompt, ask.prompt.answer_kind or target.answer_kind
        if prompt.reference is None or ask.sample:
            continue
        if why := kind(name).why_no_reference(prompt.reference, prompt.choices):
            raise PromptError(
                f"prompt {prompt.id!r}: reference {prompt.reference!r:.200} {why} (answer kind {name}, which is target "
                f"{target.name}'s unless the prompt names another)"
            )
