"""The parts of one command are separate splits: no draft may be judged on prompts that it was trained on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import combinations

from specexit.data.prompts import Prompt, PromptError
from torch_specexit.collecting.work import Ask


def check_apart(parts: Mapping[str, Sequence[Ask]]) -> None:
    """Check that no prompt is in two parts, whatever its id and however it is spaced.

    Args:
      parts: what is asked, by the parts' names.

    Raises:
      PromptError: one is.
    """
    asked = {name: {_question(ask.prompt): ask.prompt for ask in asks} for name, asks in parts.items()}
    for (one, ours), (other, theirs) in combinations(asked.items(), 2):
        shared = [prompt for question, prompt in ours.items() if question in theirs]
        if shared:
            raise PromptError(
                f"parts.{one} and parts.{other} share {len(shared)} of their prompts, such as {shared[0].id!r} "
                f"({shared[0].text!r:.100}); expected none, as what a draft is trained on must not be what it is "
                "calibrated or judged on"
            )


def _question(prompt: Prompt) -> bytes:
    """Hash of what a prompt asks, however it is spaced."""
    messages = prompt.messages or ({"role": "user", "content": prompt.text},)
    words = [(message["role"], message["content"].split()) for message in messages]
    return hashlib.sha256(json.dumps(words).encode()).digest()
