"""What a test can ask a server's worker, in its own process: vLLM's ``--worker-extension-cls``."""

from __future__ import annotations

from typing import Any


class Remembered:
    """Mixed into the worker's class."""

    model_runner: Any

    def remembered_requests(self) -> int:
        """Requests that the plug-in has state for."""
        return len(self.model_runner._specexit.slots)
