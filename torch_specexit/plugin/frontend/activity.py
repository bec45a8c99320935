"""Whether exits are active in a server, and why they are not. Each change is logged once."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable

from torch_specexit.plugin.compat.fit import misfits
from torch_specexit.plugin.compat.hooks import needed
from torch_specexit.plugin.protocols import VllmConfig, runs_v2

logger = logging.getLogger("vllm.specexit")


class Activity:
    """The state of one server."""

    def __init__(self) -> None:
        self.tell: Callable[[bool, str], None] = lambda active, kind: None
        """Called at each change with whether exits are active, and the kind of reason: ``misfit``, ``failed`` or
        ``weights``."""
        self._failed: str | None = None
        self._awaiting: str | None = None

    @property
    def reason(self) -> str | None:
        """Why exits are not active; None where they are."""
        return self._failed or self._awaiting

    @property
    def ended(self) -> bool:
        """Whether exits stay inactive until a restart."""
        return self._failed is not None

    @property
    def awaiting(self) -> bool:
        """Whether exits are inactive because the draft's weights are not whole, as far as outputs have said."""
        return self._awaiting is not None

    def fail(self, kind: str, reason: str) -> None:
        """Make exits inactive until a restart. Only the first call counts; it logs a line of JSON."""
        if self._failed is None:
            self._failed = f"{kind}: {reason}"
            self._say(False, kind, reason)

    def awaits(self, reason: str | None) -> None:
        """Make exits inactive while the draft's weights are not whole, until called with None. Changes are logged."""
        if self._failed is None and (reason is None) != (self._awaiting is None):
            self._awaiting = None if reason is None else f"weights: {reason}"
            self._say(reason is None, "weights", reason or "the draft's weights are whole again")

    def _say(self, active: bool, kind: str, detail: str) -> None:
        line = {"event": "specexit_active" if active else "specexit_inactive", "reason": kind, "detail": detail}
        logger.log(logging.WARNING if active else logging.ERROR, "%s", json.dumps(line))
        self.tell(active, kind)


def misfit_of(vllm_config: VllmConfig) -> str | None:
    """Why this vLLM would serve without exits; None where every hook that exits need fits."""
    return misfits(needed(v2=runs_v2(vllm_config)))
