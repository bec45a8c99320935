"""Whether the draft drafts: an alarm where acceptance stays near 1, which is all that a wrongly wired draft ever shows.

With random embeddings, another target's draft or shifted aux layers an engine serves the right text, and no error: it
is merely slow, and the signals are read off a draft that understands nothing.
"""

from __future__ import annotations

import json
import logging

logger = logging.getLogger("vllm.specexit")

WINDOW = 2000
"""Engine steps of single requests over which acceptance is taken."""
NEAR_ONE = 1.1
"""Acceptance length, the target's own token included, at which nine of ten first drafts are refused. What a fair draft
has on hard text is above: 1.45 after a few minutes of training."""


class Drafting:
    """Acceptance of one server, window by window."""

    def __init__(self) -> None:
        self.length: float | None = None
        """Acceptance length in the last whole window; None before the first has ended."""
        self._steps = self._accepted = 0

    @property
    def low(self) -> bool:
        """Whether the last window's acceptance was near 1."""
        return self.length is not None and self.length < NEAR_ONE

    def add(self, steps: int, accepted: int) -> bool:
        """Take in what an engine step has verified.

        Args:
          steps: requests that had drafts.
          accepted: drafted tokens accepted, of all of them.

        Returns:
          Whether a window has ended. Where acceptance has come near 1 with it, or has left 1 again, a line of JSON is
          logged.
        """
        self._steps, self._accepted = self._steps + steps, self._accepted + accepted
        if self._steps < WINDOW:
            return False
        was_low = self.low
        self.length = 1 + self._accepted / self._steps
        self._steps = self._accepted = 0
        if self.low != was_low:
            event = {"event": "specexit_acceptance", "near_one": self.low, "length": round(self.length, 3)}
            detail = "the draft guesses nothing right: run `specexit verify` on it, with traces of this traffic"
            logger.log(
                logging.ERROR if self.low else logging.WARNING,
                "%s",
                json.dumps(event | ({"detail": detail} if self.low else {})),
            )
        return True
