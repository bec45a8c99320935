"""Prompts that no server answers: each is a row without an answer, and the run goes on."""

from __future__ import annotations

from rich.console import Console

from torch_specexit.collecting.work import Ask, CollectError, NoAnswer

NAMED = 5
"""Most prompts that a line names."""


class FailedPrompts:
    """The prompts that have failed since a trace was last finished. They are held back until the next one is: servers
    that fail everything would look the same.

    Args:
      most: how many prompts may fail in a row.
    """

    def __init__(self, most: int):
        self.most = most
        self.held: list[tuple[int, Ask]] = []
        self.reason = ""

    def add(self, number: int, ask: Ask, error: NoAnswer) -> None:
        """Hold back a prompt that has failed.

        Raises:
          CollectError: more than ``most`` have failed in a row.
        """
        self.held.append((number, ask))
        self.reason = str(error)
        if len(self._ids()) > self.most:
            raise CollectError(
                f"{error} (the request was for prompt {ask.prompt.id!r}); {len(self._ids())} prompts have failed so, "
                "and no trace was finished meanwhile; what was finished before is kept"
            ) from error

    def release(self) -> list[tuple[int, Ask]]:
        """Let go of what was held back: returns it, and names the prompts in one line."""
        found, ids, self.held = self.held, self._ids(), []
        if ids:
            more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
            Console(stderr=True).print(
                f"left without an answer, as no server gives one: prompt {', '.join(map(repr, ids[:NAMED]))}{more} "
                f"({self.reason}); the same command asks again",
                soft_wrap=True,
                markup=False,
            )
        return found

    def _ids(self) -> list[str]:
        return list(dict.fromkeys(ask.prompt.id for _, ask in self.held))
