"""Speculation with exits, to be read: what a served draft does, in plain PyTorch and transformers.

One prompt, greedy, no KV cache: every step runs target and draft over the whole text again, so a step costs more the
longer the text is. What it writes is what vLLM writes with the plug-in; a test holds the two against each other. Of the
server's settings it knows mode, policy and transition; margins, loops and shares are the server's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from specexit.drafts.directory import check_target, read_config
from specexit.errors import InputError, shown
from specexit.method.decision import ExitRule, Policy
from specexit.method.signals import activate
from specexit.method.splits import ThinkTokens, written
from specexit.schemas.target import TargetConfig, find_target
from torch_specexit.draft import Draft
from torch_specexit.features import TargetFeatures
from torch_specexit.plugin.worker.openings import opens_thinking


@dataclass(frozen=True)
class Generation:
    """A text, and how it came about."""

    ids: list[int]
    """Tokens behind the prompt."""
    thinking_tokens: int
    """How many of these the target thought: those between the marker that opens the thinking, or the prompt where that
    opens it, and the end marker or a transition text; 0 where thinking never began."""
    exited: bool
    """Whether the policy ended the thinking, and the whole end marker is among the tokens."""
    accepted: list[int]
    """Drafted tokens that each pass of the target has accepted."""


class SpecExitDraft:
    """A draft directory together with the target that it was made for.

    Args:
      target: the model.
      draft: reads the target's states, and says markers and split tokens; where it is plain, the target does.
      features: of the target, with its LM head.
      policy: when thinking ends; None for a draft without signals, and for one whose mode is not `exit`.
      transition: text in front of the end marker where thinking is ended.
    """

    def __init__(
        self, target: TargetConfig, draft: Draft, features: TargetFeatures, policy: Policy | None, transition: str = ""
    ):
        self.target, self.draft, self.features, self.policy = target, draft, features, policy
        self.tokenizer = target.tokenizer()
        block = draft.config.specexit  # as served: what it was trained for, whatever the target's YAML says by now
        self.ids: ThinkTokens = target.think_tokens() if block is None else block.think_tokens(self.tokenizer)
        self.closing = [*written(self.tokenizer, transition), *self.ids.end_marker]
        self.stops = stop_tokens(target.folder)

    @classmethod
    def from_pretrained(cls, folder: str | Path, target: str | None = None) -> SpecExitDraft:
        """Load a draft directory and its target, in float32 on the CPU.

        Args:
          folder: the draft directory.
          target: name or YAML file of the target; by default the one that the draft names.

        Raises:
          ConfigError, DraftError: one of the two cannot be used, or they do not belong together.
        """
        folder = Path(folder)
        config = read_config(folder)
        found = find_target(target, folder, name=config.target_name)
        check_target(config, folder, found.hf_config(), found.name)
        features = TargetFeatures(found, config.eagle_aux_hidden_state_layer_ids, head=True)
        draft, block = Draft.load(folder, features.embedding), config.specexit
        if block is None:
            return cls(found, draft, features, None)
        policy = block.policy if block.serving.mode == "exit" else None  # shadow decides, and lets every text go on
        return cls(found, draft, features, policy, block.serving.transition)

    @torch.inference_mode()
    def generate(self, prompt: Sequence[int], *, max_new_tokens: int = 256, draft_tokens: int = 3) -> Generation:
        """Continue a prompt greedily: draft, verify, judge, until the target stops, or there are enough tokens or, with
        the prompt, as many as `specexit serve` gives a request: the target's ``max_model_len`` or, where that is
        less, the draft's ``max_position_embeddings``.

        Args:
          prompt: token ids. Thinking begins behind it where it has opened it, as many chat templates do, else behind
            the marker that the target writes.
          max_new_tokens: most tokens behind it.
          draft_tokens: drafted in each step; 0 decodes without the draft.

        Raises:
          InputError: the prompt is empty, a text, or holds an id that the target does not have; it leaves no room
            within that length; or a number of tokens is not a whole number of at least 0.
        """
        _check_ids(prompt, self.features.embedding.shape[0])
        _check_numbers(max_new_tokens=max_new_tokens, draft_tokens=draft_tokens)
        length, whose = min(
            (self.target.max_model_len, "the target's max_model_len"),
            (self.draft.config.max_position_embeddings, "the draft's max_position_embeddings"),
        )
        if len(prompt) >= length:
            raise InputError(f"prompt is {len(prompt)} tokens long, expected fewer than {whose}, {length}")
        new = min(max_new_tokens, length - len(prompt))
        text, drafts, accepted = list(prompt), list[int](), list[int]()
        opened = opens_thinking(text, self.ids.start, self.ids.end_marker)
        # The last token of a marker of several ends nothing alone.
        rule = None if self.policy is None else ExitRule(self.policy, replace(self.ids, end=-1))
        judged, kept, most = len(prompt), new, len(prompt) + new
        while len(text) < most and not self.stops.intersection(text[len(prompt) :]):
            # Verify: the target's own choice behind the text and behind every draft, up to the first that differs.
            logits, aux = self.features.read(torch.tensor([text + drafts]))
            choices = logits[0, len(text) - 1 :].argmax(-1).tolist()
            n = next((i for i, token in enumerate(drafts) if token != choices[i]), len(drafts))
            aux = aux[:, : len(text) + n]
            text += choices[: n + 1]
            accepted.append(n)
            # Judge: every new token of the thinking whose signals are known by now, and behind which there is room.
            begin, end = (len(prompt) + at for at in self._thinking(text[len(prompt) :], opened))
            judged, end = max(judged, begin), min(end, most - 1)
            if rule is not None and judged < end:
                signals = self._signals(text, aux)[judged:end]
                hit = rule.push(text[judged : judged + len(signals)], signals)
                if hit is not None:
                    text = text[: judged + hit + 1] + self.closing
                    drafts, rule, kept = [], None, judged + hit + 1 - len(prompt)
                    continue  # the target has not read the end marker yet
                judged += len(signals)
            drafts = self._drafts(text, aux, draft_tokens)
        ids = text[len(prompt) :][:new]
        ids = ids[: next((i + 1 for i, token in enumerate(ids) if token in self.stops), len(ids))]
        begin, end = self._thinking(ids, opened)
        exited = ids[kept : kept + len(self.closing)] == self.closing  # one that is cut off has ended nothing
        return Generation(ids, min(end, kept) - begin, exited, accepted)

    def _thinking(self, ids: list[int], opened: bool) -> tuple[int, int]:
        """Where the thinking begins and ends in what was written: at its end where it has not begun, or not ended."""
        marker, n = list(self.ids.end_marker), len(ids)
        begin = 0 if opened else next((i + 1 for i in range(n) if ids[i] == self.ids.start), n)
        return begin, next((i for i in range(begin, n) if ids[i : i + len(marker)] == marker), n)

    def _signals(self, text: list[int], aux: Float[Tensor, "1 time aux"]) -> Float[np.ndarray, "known signals"]:
        """Signals of every token that can have them: with source fc the last one still lacks the target's state."""
        known = len(text) if self.draft.source == "draft" else aux.shape[1]
        raw = self.draft.signals(torch.tensor([text]), self._padded(aux, len(text)))
        assert raw is not None
        return activate(raw[0, :known].numpy())

    def _drafts(self, text: list[int], aux: Float[Tensor, "1 time aux"], n: int) -> list[int]:
        """What the draft expects behind a text, by row ``len(text) - 2``; each step reads the last one's token."""
        row, guesses = torch.tensor([len(text) - 2]), list[int]()
        for step in range(n):
            read = text + guesses
            output = self.draft(torch.tensor([read]), self._padded(aux, len(read)), steps=step + 1, at=row)
            best = int(output.logits[step][0, -1].argmax())
            guesses.append(best + int(self.draft.d2t[best]))
        return guesses

    @staticmethod
    def _padded(aux: Float[Tensor, "1 time aux"], length: int) -> Float[Tensor, "1 length aux"]:
        """Aux hidden states with zeros for tokens that the target has not read; no row that counts looks at these."""
        return torch.cat([aux, aux.new_zeros(1, length - aux.shape[1], aux.shape[2])], dim=1)


def stop_tokens(folder: Path) -> set[int]:
    """Ids at which vLLM ends a text of the model in a folder: its tokenizer's, and those of ``generation_config.json``;
    ``config.json`` is asked where there is no such file."""
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    here = {"local_files_only": True, "trust_remote_code": False}
    try:
        generation = GenerationConfig.from_pretrained(folder, local_files_only=True)
    except OSError:
        generation = GenerationConfig.from_model_config(AutoConfig.from_pretrained(folder, **here))
    own = AutoTokenizer.from_pretrained(folder, **here).eos_token_id
    said = generation.eos_token_id
    return {token for token in (own, *(said if isinstance(said, list) else [said])) if token is not None}


def _check_ids(prompt: Sequence[int], vocab_size: int) -> None:
    wrong = [token for token in prompt if isinstance(token, bool) or not isinstance(token, int | np.integer)]
    wrong = wrong or [token for token in prompt if not 0 <= token < vocab_size]
    if wrong or not len(prompt):
        found = f"holds {shown(wrong[0])}" if wrong else "is empty"
        raise InputError(f"prompt {found}, expected token ids below {vocab_size}, as `tokenizer.encode` gives them")


def _check_numbers(**numbers: int) -> None:
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < 0:
            raise InputError(f"{name} is {shown(number)}, expected a whole number, 0 or more")
