"""What a test can ask a server's worker, in its own process: vLLM's ``--worker-extension-cls``."""

from __future__ import annotations

import time
from typing import Any


class Remembered:
    """Mixed into the worker's class."""

    model_runner: Any

    def remembered_requests(self) -> int:
        """Requests that the plug-in has state for."""
        return len(self.model_runner._specexit.slots)

    def linger(self, seconds: float) -> None:
        """Every step takes so much longer from now on: what a test does meanwhile comes before the end of a request."""
        runner, execute = self.model_runner, type(self.model_runner).execute_model

        def execute_late(*args: Any, **kwargs: Any) -> Any:
            time.sleep(seconds)
            return execute(runner, *args, **kwargs)

        runner.execute_model = execute_late

    def forbid_nothing(self) -> None:
        """Exits go over what a client has forbidden: with one token that it may draw, a model thinks for ever."""
        self.model_runner._specexit.requests.closing = ()

    def send_draft_weights(self, part: int) -> None:
        """What the draft hears of an update in two parts. The tensors themselves stay: vLLM's CPU kernels have packed
        them, and cannot take others."""
        weights = self.model_runner.drafter.model.weights
        weights.begin()
        for name in sorted(weights.names)[part::2]:
            weights.arrived(name)
