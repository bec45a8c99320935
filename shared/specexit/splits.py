"""Where thinking may end: strings such as a paragraph break, resolved to token ids by the target's own tokenizer.

Ids are never hard-coded: ``".\\n\\n"`` is token 382 for Qwen3 and Llama 3 alike, and something else for the next model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from specexit.errors import InputError


@runtime_checkable
class Tokenizer(Protocol):
    """What is used of a Hugging Face tokenizer."""

    def encode(self, text: str, *, add_special_tokens: bool = ...) -> list[int]:
        """Token ids of a text."""
        ...

    def decode(self, token_ids: list[int]) -> str:
        """Text of token ids."""
        ...

    def __len__(self) -> int: ...


class SplitError(InputError):
    """The tokenizer cannot mark the beginning or end of thinking, or knows none of the split strings."""


@dataclass(frozen=True)
class ThinkTokens:
    """Token ids that the exit rule needs."""

    start: int
    end: int
    split: frozenset[int]


def marker(tokenizer: Tokenizer, text: str) -> int:
    """Id of a think marker.

    Raises:
      SplitError: the marker is not one token, or that token stands for something else (an unknown word).
    """
    ids = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) != 1:
        raise SplitError(
            f"tokenizer {_name(tokenizer)}: think marker {text!r} is {len(ids)} tokens {ids}, expected exactly one"
        )
    if tokenizer.decode(ids).strip() != text.strip():
        raise SplitError(
            f"tokenizer {_name(tokenizer)}: think marker {text!r} becomes token {ids[0]}, which is "
            f"{tokenizer.decode(ids)!r}: the vocabulary has no such marker"
        )
    return ids[0]


def split_tokens(tokenizer: Tokenizer, endings: Sequence[str], connectors: Sequence[str] = ()) -> frozenset[int]:
    """Ids of all tokens at which a step may end.

    Args:
      tokenizer: the target's.
      endings: a token is a split token if its text ends with one of these; ``"\\n\\n"`` covers ``".\\n\\n"``,
        ``"?\\n\\n"`` and the rest of them.
      connectors: words that open a new step at the start of a sentence (``Wait``, ``But``); only the exact token
        *without* a leading space counts, so " But" in mid-sentence does not.

    Raises:
      SplitError: no token of the vocabulary fits.
    """
    ids = {i for i in range(len(tokenizer)) if tokenizer.decode([i]).endswith(tuple(endings))} if endings else set()
    for word in connectors:
        encoded = tokenizer.encode(word, add_special_tokens=False)
        if len(encoded) == 1:
            ids.add(encoded[0])
    if not ids:
        raise SplitError(
            f"tokenizer {_name(tokenizer)}: no token ends with {list(endings)} or equals {list(connectors)}, "
            "so there is no step boundary to exit at"
        )
    return frozenset(ids)


def resolve(
    tokenizer: Tokenizer, start: str, end: str, endings: Sequence[str], connectors: Sequence[str] = ()
) -> ThinkTokens:
    """Resolve both markers and the split set.

    Raises:
      SplitError: see `marker` and `split_tokens`.
    """
    ids = ThinkTokens(marker(tokenizer, start), marker(tokenizer, end), split_tokens(tokenizer, endings, connectors))
    return ThinkTokens(ids.start, ids.end, ids.split - {ids.start, ids.end})


def _name(tokenizer: Any) -> str:
    return repr(getattr(tokenizer, "name_or_path", type(tokenizer).__name__))


class FastTokenizer:
    """A ``tokenizer.json`` without transformers: what the core needs of a tokenizer."""

    def __init__(self, folder: Path):
        from tokenizers import Tokenizer as Backend

        path = folder / "tokenizer.json"
        if not path.exists():
            raise SplitError(f"{path}: file does not exist, expected the target's fast tokenizer")
        self.name_or_path = str(folder)
        self.backend = Backend.from_file(str(path))

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Token ids of a text."""
        return self.backend.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, token_ids: list[int]) -> str:
        """Text of token ids, special tokens included."""
        return self.backend.decode(token_ids, skip_special_tokens=False)

    def __len__(self) -> int:
        return self.backend.get_vocab_size()


def load_tokenizer(folder: Path) -> FastTokenizer:
    """Load the tokenizer of a model folder.

    Raises:
      SplitError: there is no ``tokenizer.json``.
    """
    return FastTokenizer(folder)
