"""What a benchmark has measured so far, written down reply by reply, so that an interrupted one goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from specexit.config import Config, versions


class Journal:
    """Replies by what was asked, beside the output folder until that is complete.

    Args:
      out: the output folder.
      config: of the benchmark. What another config, or other versions, measured is thrown away.
    """

    def __init__(self, out: Path, config: Config):
        self.path = out.with_name(f".{out.name}.journal.jsonl")
        header = {"config": config.model_dump(mode="json"), "versions": versions()}
        self._replies: dict[str, dict[str, Any]] = {}
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        whole = [line for line in map(_parsed, lines) if line is not None]  # the last may have been cut off
        if whole[:1] == [header]:
            self._replies = {line["asked"]: line["reply"] for line in whole[1:]}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = [{"asked": asked, "reply": reply} for asked, reply in self._replies.items()]
        self.path.write_text("".join(json.dumps(line) + "\n" for line in [header, *kept]))

    def __len__(self) -> int:
        return len(self._replies)

    def reply(self, asked: str, ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The reply to a question, from the journal or, if it is not there yet, from whoever answers it."""
        if asked not in self._replies:
            self._replies[asked] = ask()
            with self.path.open("a") as file:
                file.write(json.dumps({"asked": asked, "reply": self._replies[asked]}) + "\n")
        return self._replies[asked]

    def remove(self) -> None:
        """The benchmark is complete."""
        self.path.unlink(missing_ok=True)


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except ValueError:
        return None
