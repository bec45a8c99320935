"""Where thinking may end: strings such as a paragraph break, resolved to token ids by the target's own tokenizer.

Ids are never hard-coded: ``".\\n\\n"`` is token 382 for Qwen3 and Llama 3 alike, and something else for the next model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from specexit.errors import InputError, shown

MAX_STRINGS = 30
"""Of the 32 bits that say what a token is, two are for the markers."""

ALL_STRINGS = (1 << MAX_STRINGS) - 1
"""The mask of a request that wants every split string."""


@runtime_checkable
class Tokenizer(Protocol):
    """What is used of a Hugging Face tokenizer."""

    def encode(self, text: str, *, add_special_tokens: bool = ...) -> list[int]:
        """Token ids of a text."""
        ...

    def decode(self, token_ids: list[int]) -> str:
        """Text of token ids."""
        ...

    def __len__(self) -> int:
        """One more than the largest token id."""
        ...


class SplitError(InputError):
    """The tokenizer cannot mark the beginning or end of thinking, or knows none of the split strings."""


@dataclass(frozen=True)
class ThinkTokens:
    """Token ids that the exit rule needs."""

    start: int
    end: int
    split: frozenset[int]
    by_string: Mapping[str, frozenset[int]] = field(default_factory=dict, compare=False)
    """Which of the split tokens each split string stands for; a token may belong to several."""
    marker: tuple[int, ...] = ()
    """The end marker where it is several tokens, of which ``end`` is the last; empty where it is the one token."""

    @property
    def end_marker(self) -> tuple[int, ...]:
        """All tokens of the end marker."""
        return self.marker or (self.end,)

    def only(self, strings: Sequence[str]) -> ThinkTokens:
        """The same with the split tokens of some of the strings alone.

        Raises:
          SplitError: a string is not one of those that were resolved.
        """
        for string in strings:
            if string not in self.by_string:
                known = ", ".join(map(repr, self.by_string))
                raise SplitError(f"split string {string!r} is unknown, expected one of {known}")
        kept = {string: self.by_string[string] for string in strings}
        return ThinkTokens(self.start, self.end, frozenset().union(*kept.values()), kept, self.marker)

    def within(self, vocab_size: int) -> ThinkTokens:
        """The same without split tokens that a model of so many tokens cannot write: a tokenizer may have more."""

        def kept(tokens: frozenset[int]) -> frozenset[int]:
            return frozenset(token for token in tokens if token < vocab_size)

        by_string = {string: kept(tokens) for string, tokens in self.by_string.items()}
        return replace(self, split=kept(self.split), by_string=by_string)

    def mask(self, strings: Sequence[str]) -> int:
        """The strings as bits, in the order of ``by_string``; unknown ones are passed over."""
        return sum(1 << bit for bit, string in enumerate(self.by_string) if string in strings)

    def masks(self) -> dict[int, int]:
        """For each split token, the `mask` of the strings it belongs to. One that belongs to none (`split` may be given
        without strings) counts as belonging to all."""
        return {
            token: self.mask([string for string, tokens in self.by_string.items() if token in tokens]) or ALL_STRINGS
            for token in self.split
        }


def marker(tokenizer: Tokenizer, text: str) -> int:
    """Id of a think marker.

    Raises:
      SplitError: the marker is not one token, or that token stands for something else (an unknown word).
    """
    ids = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) != 1:
        raise SplitError(
            f"tokenizer {_name(tokenizer)}: think marker {text!r} is {len(ids)} tokens {ids}, expected exactly one "
            "(an end marker of several is known to the serving plug-in alone)"
        )
    if tokenizer.decode(ids).strip() != text.strip():
        raise SplitError(
            f"tokenizer {_name(tokenizer)}: think marker {text!r} becomes token {ids[0]}, which is "
            f"{tokenizer.decode(ids)!r}: the vocabulary has no such marker"
        )
    return ids[0]


def end_marker(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """Ids of an end marker, which may be several tokens.

    Raises:
      SplitError: these tokens stand for something else, or the first comes again among the others, so that where the
        marker begins cannot be told from one token to the next.
    """
    ids = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) == 1:
        return (marker(tokenizer, text),)
    if not ids or tokenizer.decode(ids) != text:
        raise SplitError(
            f"tokenizer {_name(tokenizer)}: end marker {text!r} becomes tokens {ids}, which are "
            f"{tokenizer.decode(ids)!r}: the vocabulary has no such marker"
        )
    if ids[0] in ids[1:]:
        raise SplitError(
            f"tokenizer {_name(tokenizer)}: end marker {text!r} is tokens {ids}, expected the first to come once"
        )
    return tuple(ids)


def behind(tokenizer: Tokenizer, marker: str, text: str) -> list[int]:
    """Ids of a text behind a marker, which may differ from those of the text alone: many SentencePiece vocabularies put
    a space in front of the beginning of a text, and some markers take the blank space that follows them.

    Args:
      tokenizer: the target's.
      marker: a think marker.
      text: what is written behind it; may be empty.
    """
    before, ids = (tokenizer.encode(part, add_special_tokens=False) for part in (marker, marker + text))
    whole = ids[: len(before)] == before  # of a marker that is no added token, text may change the end
    return ids[len(before) :] if whole else tokenizer.encode(text, add_special_tokens=False)


def written(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text that is written into the midst of another, exact to the byte: without the space that many
    SentencePiece vocabularies put in front of the beginning of a text.

    Args:
      tokenizer: the target's.
      text: may be empty.
    """
    return behind(tokenizer, "." if text.startswith("\n") else "\n", text)  # line breaks in a row may be one token


def text_behind(decode: Callable[[list[int]], str], before: list[int], ids: list[int]) -> str:
    """What token ids write behind others: of a text of its own, many SentencePiece decoders drop the first space.

    Args:
      decode: of the target's tokenizer.
      before: what stands in front, and ends with a whole character.
      ids: what is written.
    """
    front, whole = decode(before), decode([*before, *ids])
    return whole[len(front) :] if whole.startswith(front) else decode(ids)


def split_tokens(
    tokenizer: Tokenizer, endings: Sequence[str], connectors: Sequence[str] = ()
) -> dict[str, frozenset[int]]:
    """Ids of all tokens at which a step may end, by the string that makes them so.

    Args:
      tokenizer: the target's.
      endings: a token is a split token if its text ends with one of these; ``"\\n\\n"`` covers ``".\\n\\n"``,
        ``"?\\n\\n"`` and the rest of them.
      connectors: words that open a new step at the start of a sentence (``Wait``, ``But``); only the token that stands
        for one at the beginning of a line counts, so " But" in mid-sentence does not.

    Raises:
      SplitError: no token of the vocabulary fits.
    """
    found: dict[str, set[int]] = {string: set() for string in (*endings, *connectors)}
    for token in range(len(tokenizer)) if endings else ():
        text = tokenizer.decode([token])
        for ending in endings:
            if text.endswith(ending):
                found[ending].add(token)
    line = tokenizer.encode("\n", add_special_tokens=False) if connectors else []
    for word in connectors:
        ids = behind(tokenizer, "\n", word)  # alone, SentencePiece has " But"
        if len(ids) == 1 and tokenizer.decode([*line, *ids]) == tokenizer.decode(line) + word:
            found[word].add(ids[0])
    if not any(found.values()):
        raise SplitError(
            f"tokenizer {_name(tokenizer)}: no token ends with {list(endings)} or equals {list(connectors)}, "
            'so there is no step boundary to exit at; where a blank line is several tokens, "\\n" is one'
        )
    return {string: frozenset(tokens) for string, tokens in found.items()}


def unmet(tokenizer: Tokenizer, tokens: ThinkTokens) -> list[str]:
    """The split strings at which no step of a usual text ends: no token stands for them, or between two sentences they
    are read as others. A tokenizer in GPT-2's manner has a token of a blank line, and reads one as two line breaks.

    Args:
      tokenizer: the target's.
      tokens: what was resolved with it.
    """
    fronts, backs = ("So x is 4", "So x is 4.", "So x is 4.\n\n"), ("Wait, is it?", " Wait, is it?", "\n\nWait, is it?")

    def is_met(string: str, ids: frozenset[int]) -> bool:
        ends_line = string[-1:].isspace()
        around = product(fronts[:2], backs[:1]) if ends_line else product(fronts, backs)
        texts = (f"{front}{string}{back}" for front, back in around)
        return any(not ids.isdisjoint(tokenizer.encode(text, add_special_tokens=False)) for text in texts)

    return [string for string, ids in tokens.by_string.items() if not is_met(string, ids)]


def resolve(
    tokenizer: Tokenizer,
    start: str,
    end: str,
    endings: Sequence[str],
    connectors: Sequence[str] = (),
    *,
    several: bool = False,
) -> ThinkTokens:
    """Resolve both markers and the split set.

    Args:
      tokenizer: the target's.
      start: opens the thinking.
      end: closes it.
      endings: see `split_tokens`.
      connectors: see `split_tokens`.
      several: the caller knows what to do with an end marker of several tokens.

    Raises:
      SplitError: see `marker`, `end_marker` and `split_tokens`; also for more than `MAX_STRINGS` strings, and where an
        end marker of several tokens begins with a split token, which could then be none.
    """
    if len(endings) + len(connectors) > MAX_STRINGS:
        raise SplitError(f"{len(endings) + len(connectors)} split strings were given, expected at most {MAX_STRINGS}")
    opening = marker(tokenizer, start)
    closing = end_marker(tokenizer, end) if several else (marker(tokenizer, end),)
    first, last, long = closing[0], closing[-1], len(closing) > 1
    found = split_tokens(tokenizer, endings, connectors)
    by_string = {string: tokens - ({opening} if long else {opening, last}) for string, tokens in found.items()}
    split = frozenset().union(*by_string.values())
    if first in split:
        raise SplitError(
            f"tokenizer {_name(tokenizer)}: end marker {end!r} begins with {tokenizer.decode([first])!r}, at which "
            "a step ends, expected another token"
        )
    return ThinkTokens(opening, last, split, by_string, closing if long else ())


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
        try:
            self.backend = Backend.from_str(path.read_text(encoding="utf-8"))
        except Exception as error:  # the library has no type of its own
            raise SplitError(f"{path}: cannot be read as a tokenizer: {error}") from error
        self.backend.no_truncation()  # which a file may bring along from a training
        self.backend.no_padding()

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Token ids of a text."""
        return self.backend.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, token_ids: list[int]) -> str:
        """Text of token ids, special tokens included."""
        return self.backend.decode(token_ids, skip_special_tokens=False)

    def text(self, token_ids: list[int]) -> str:
        """What is written in token ids: their text without special tokens, such as the one that ends a turn."""
        return self.backend.decode(token_ids, skip_special_tokens=True)

    def __len__(self) -> int:
        return max(self.backend.get_vocab().values(), default=-1) + 1  # ids may leave some out


def load_tokenizer(folder: Path) -> FastTokenizer:
    """Load the tokenizer of a model folder.

    Raises:
      SplitError: there is no ``tokenizer.json``, or it cannot be read.
    """
    return FastTokenizer(folder)


PROBE = (
    "What is 3 + 4?\n\nWait, let me check.\n\n\\boxed{7} — naïve 多\t  "
    'don\'t "HTTPServer" 1234567 e\u0301 🙂👍🏽 。\n\n（２）'
)
"""Text whose token ids tell tokenizers apart."""


def misread(tokenizer: Tokenizer, files: FastTokenizer, *markers: str) -> str | None:
    """How a tokenizer that was built from a ``tokenizer.json`` reads text differently from the file.

    Args:
      tokenizer: transformers', or an engine's.
      files: the file itself.
      markers: text is tried behind each of these as well.

    Returns:
      The first difference, in words that continue a sentence about the tokenizer; None where there is none.
    """
    for text in (PROBE, *(f"{marker}\n{PROBE}" for marker in markers)):
        theirs, ours = list(tokenizer.encode(text, add_special_tokens=False)), files.encode(text)
        if theirs != ours:
            return f"reads {shown(text, 24)} as {first_difference(files, theirs, ours)}"
    return None


def first_difference(files: FastTokenizer, theirs: list[int], ours: list[int]) -> str:
    """The first token by which two readings of one text differ, in words; the whole ids can be alike for long.

    Args:
      files: writes the ids out, but for those that it does not have.
      theirs: of what reads the text differently.
      ours: what is expected.
    """
    at = next((i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), min(len(theirs), len(ours)))
    known = range(len(files))

    def text(ids: list[int]) -> str:
        return shown(files.decode([token for token in ids if token in known]), 24)

    read, expected = (f"{text(ids)} {ids}" for ids in (theirs[at:][:1], ours[at:][:1]))
    return f"{text(theirs)}, whose token {at + 1} is {read}, expected {expected}"
