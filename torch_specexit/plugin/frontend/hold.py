"""Whether the risk that a server takes is the one that its certificate allows, judged after every audit.

The claim "at most epsilon of the requests change their answer" is betted against with each audit's result
(`specexit.method.statistics.Capital`); as long as it is true, it is ever rejected with probability at most delta,
however often one looks. Once it is rejected the server moves to the next stricter point, and from the strictest to
shadow mode. From there, audits of that point bet on the opposite, "the risk is at least epsilon": when that is rejected
at the same level, the point serves again. To a bolder one than that, only an operator goes back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from specexit.drafts.policy import OperatingPoint
from specexit.method.statistics import Capital
from torch_specexit.plugin.frontend.operation import Operation

logger = logging.getLogger("vllm.specexit")


class Hold:
    """Watches the audits of one server's operating point.

    Args:
      operation: of the server; its ceiling and its mode are moved.
      moved: told of each move: ``stricter``, ``shadow`` or ``back``.
    """

    def __init__(self, operation: Operation, moved: Callable[[str], None] = lambda move: None):
        self.operation, self.moved = operation, moved
        self._watched: tuple[str, bool] | None = None
        self._capital: Capital | None = None
        self.audits = self.changed = 0
        """Of the point that is watched, since it is."""
        self.in_shadow = False
        """Audits, not an operator, have put the server into shadow mode."""

    def point(self) -> OperatingPoint | None:
        """The point that audits can judge; None where no certificate says how often answers may change.

        A certificate of lost accuracy speaks of right answers, and an audit does not know them.
        """
        point = self.operation.served()
        certificate = point.certificate
        return point if certificate is not None and certificate.risk == "answer_changed" else None

    def add(self, point: str, *, changed: bool) -> None:
        """Take in the result of one audit.

        Args:
          point: operating point that the request was served under.
          changed: whether an exit would have changed the answer; False where there would have been no exit.
        """
        watched = self.point()
        if watched is None or not self.operation.serving.hold or point != watched.name:
            return
        assert watched.certificate is not None
        if self.in_shadow and self.operation.mode != "shadow":
            self.in_shadow = False  # an operator has spoken
        if self._capital is None or self._watched != (watched.name, self.in_shadow):
            self._capital = Capital(watched.certificate.epsilon, "below" if self.in_shadow else "above")
            self._watched, self.audits, self.changed = (watched.name, self.in_shadow), 0, 0
        self._capital.add(float(changed))
        self.audits, self.changed = self.audits + 1, self.changed + changed
        if self._capital.rejects(watched.certificate.delta):
            self._move(watched)

    def _move(self, point: OperatingPoint) -> None:
        """Go one step, and bet anew."""
        seen = f"{self.changed} of {self.audits} audits changed their answer"
        self._capital = None
        stricter = self.operation.stricter()
        if self.in_shadow:
            self.operation.mode, self.in_shadow, move = "exit", False, "back"
            logger.warning("specexit: point %s serves again: %s", point.name, seen)
        elif stricter is not None:
            self.operation.ceiling, move = stricter.name, "stricter"
            logger.error("specexit: risk above epsilon at point %s (%s); now %s", point.name, seen, stricter.name)
        else:
            self.operation.mode, self.in_shadow, move = "shadow", True, "shadow"
            logger.error("specexit: risk above epsilon at point %s (%s); now in shadow mode", point.name, seen)
        self.moved(move)

    def restart(self) -> None:
        """Forget what was seen, as an operator has changed what is served."""
        self._capital, self._watched, self.in_shadow, self.audits, self.changed = None, None, False, 0, 0

    def summary(self) -> dict[str, Any]:
        """What ``GET /v1/specexit`` says."""
        watched = self.point()
        return {
            "watching": watched.name if watched is not None and self.operation.serving.hold else None,
            "audits": self.audits,
            "changed": self.changed,
            "capital": self._capital.value if self._capital else 1.0,
            "in_shadow": self.in_shadow,
            "ceiling": self.operation.ceiling,
        }
