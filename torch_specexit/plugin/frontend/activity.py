"""Whether exits are active in a server, and why not: said once in the log, and to whoever asks."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

from torch_specexit.plugin.compat.fit import misfits
from torch_specexit.plugin.compat.hooks import needed

logger = logging.getLogger("vllm.specexit")


class Activity:
    """The state of one server.

    Args:
      tell: told of each change: whether exits are active, and the kind of reason, ``ok``, ``misfit``, ``failed`` or
        ``weights``.
    """

    def __init__(self, tell: Callable[[bool, str], None] = lambda active, kind: None):
        self.tell = tell
        self._failed: str | None = None
        self._awaiting: str | None = None

    @property
    def reason(self) -> str | None:
        """Why exits are not active; None where they are."""
        return self._failed or self._awaiting

    @property
    def ended(self) -> bool:
        """Whether exits are not active until a restart."""
        return self._failed is not None

    @property
    def awaiting(self) -> bool:
        """Whether exits are not active until the draft's weights are whole, as far as requests have told."""
        return self._awaiting is not None

    def fail(self, kind: str, reason: str) -> None:
        """Exits are not active until a restart. One line in the log, of JSON, however often it is said."""
        if self._failed is None:
            self._failed = f"{kind}: {reason}"
            self._say(False, kind, reason)

    def awaits(self, reason: str | None) -> None:
        """Exits are not active until the draft's weights are whole again, which None says. One line for each change."""
        if self._failed is None and (reason is None) != (self._awaiting is None):
            self._awaiting = None if reason is None else f"weights: {reason}"
            self._say(reason is None, "weights", reason or "the draft's weights are whole again")

    def _say(self, active: bool, kind: str, detail: str) -> None:
        line = {"event": "specexit_active" if active else "specexit_inactive", "reason": kind, "detail": detail}
        logger.log(logging.WARNING if active else logging.ERROR, "%s", json.dumps(line))
        self.tell(active, kind)


def misfit_of(vllm_config: Any) -> str | None:
    """Why this vLLM would serve without exits; None where all hooks fit that exits need."""
    return misfits(needed(v2=getattr(vllm_config, "use_v2_model_runner", True)))
