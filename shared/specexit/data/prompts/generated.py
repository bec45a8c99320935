"""Tasks of reasoning-gym (https://github.com/open-thought/reasoning-gym), an optional package, by name."""

from __future__ import annotations

import re

from specexit.data.prompts.formats import REASON
from specexit.data.prompts.prompt import Prompt, PromptError
from specexit.errors import install

PREFIX = "reasoning-gym"
N = 500
"""Problems, unless the config says how many."""


def read_task(task: str, n: int | None, seed: int) -> list[Prompt]:
    """The first ``n`` problems of a task, as the package generates them from the seed.

    Their answer kind is math where all references are numbers, else text. A problem with many right answers, which only
    the package's own scorer could judge, has no reference.

    Raises:
      PromptError: the package is not installed, or has no such task.
    """
    try:
        import reasoning_gym
    except ImportError as error:
        raise PromptError(f"{PREFIX}:{task}: the package is not installed, expected: {install(PREFIX)}") from error
    try:
        entries = list(reasoning_gym.create_dataset(task, size=n or N, seed=seed))
    except (ValueError, AssertionError) as error:  # how the package refuses a name, and a config
        raise PromptError(f"{PREFIX}:{task}: {error}") from error
    references = [None if entry["answer"] is None else str(entry["answer"]) for entry in entries]
    numbers = all(re.fullmatch(r"[+-]?\d+([./]\d+)?", reference or "") for reference in references)
    kind = "math" if numbers else "text"
    return [
        Prompt(f"{task}-{seed}-{i:05d}", f"{entry['question']}\n\n{REASON}", reference, task=task, answer_kind=kind)
        for i, (entry, reference) in enumerate(zip(entries, references, strict=True))
    ]
