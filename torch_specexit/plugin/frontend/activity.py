"""Whether exits are active in a server, and why not: said once in the log, and to whoever asks."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

from torch_specexit.plugin.compat.fit import misfits
from torch_specexit.plugin.compat.hooks import ENGINE_HOOKS, V1_HOOKS, V2_HOOKS

logger = logging.getLogger("vllm.specexit")


class Activity:
    """The state of one server.

    Args:
      tell: told of each change: whether exits are active, and the kind of reason, ``ok``, ``misfit`` or ``failed``.
    """

    def __init__(self, tell: Callable[[bool, str], None] = lambda active, kind: None):
        self.tell = tell
        self.reason: str | None = None
        """Why exits are not active; None where they are."""

    def fail(self, kind: str, reason: str) -> None:
        """Exits are not active. One line in the log, of JSON, however often it is said."""
        if self.reason is None:
            self.reason = f"{kind}: {reason}"
            line = {"event": "specexit_inactive", "reason": kind, "detail": reason}
            logger.error("%s", json.dumps(line))
            self.tell(False, kind)


def misfit_of(vllm_config: Any) -> str | None:
    """Why this vLLM would serve without exits; None where all hooks fit that exits need."""
    runner = V2_HOOKS if getattr(vllm_config, "use_v2_model_runner", True) else V1_HOOKS
    return misfits((*ENGINE_HOOKS, *runner))
