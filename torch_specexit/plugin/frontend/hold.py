"""Whether the risk that a server takes is the one that its certificate allows, judged after every audit.

Each audit's result bets against the claim "at most epsilon of the requests change their answer"
(`specexit.method.statistics.Capital`). While the claim is true, the probability that it is ever rejected is at most
delta, however often one looks; where it ceases to be true after a long good time, that is seen, too. Each operating
point that requests are served under is judged by its own audits; what is claimed is of its policy and certificate,
whatever its name. Once its claim is rejected, the next stricter point serves in its place, and for the strictest one
shadow mode begins. In shadow mode the point's audits bet against the opposite claim, "the risk is at least epsilon":
once that is rejected at the same level, the point serves again. Only an operator goes back to a bolder point than that:
a restart does not, nor an edit that is about something else (`torch_specexit.plugin.frontend.imposed`). What an
operator has put into shadow mode, or switched off, stays so, whatever audits show.

Audits of the default point concern the whole server: nothing bolder is served any more, or nothing is cut. Those of
another point (of an effort, a tenant, a risk) concern the requests for that point.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from specexit.drafts.policy import OperatingPoint
from specexit.method.statistics import Capital
from torch_specexit.plugin.frontend.operation import Operation, risk_of

logger = logging.getLogger("vllm.specexit")


@dataclass
class Seen:
    """What the audits of one claim have shown."""

    capital: Capital
    below: bool
    """Whether they bet that the risk is below epsilon, which lets the point serve again; else that it is above."""
    audits: int = 0
    changed: int = 0


class Hold:
    """Watches the audits of one server's operating points.

    Args:
      operation: of the server; audits move which of its points serve, and its mode.
      moved: told of each move: ``stricter``, ``shadow`` or ``back``.
      api_servers: processes that watch the same traffic, each by audits of its own: delta is shared out among them,
        so that with probability at least ``1 - delta`` none of them moves without need.
    """

    def __init__(self, operation: Operation, moved: Callable[[str], None] = lambda move: None, *, api_servers: int = 1):
        self.operation, self.moved, self.api_servers = operation, moved, api_servers
        self._seen: dict[str, Seen] = {}
        self._lifted = operation.lifted

    def watches(self, point: OperatingPoint) -> bool:
        """Whether audits can judge a point.

        A certificate of lost accuracy speaks of right answers, and an audit does not know them.
        """
        return self.operation.serving.hold and risk_of(point) == "answer_changed"

    def add(self, name: str, *, changed: bool) -> None:
        """Take in the result of one audit.

        Args:
          name: of the operating point that the request was served under.
          changed: whether an exit would have changed the answer; False where there would have been no exit.
        """
        point = next((p for p in self.operation.file.points if p.name == name), None)
        if point is None or not self.watches(point) or not self.operation.serves(point):
            return  # what serves no more may still have audits under way
        assert point.certificate is not None
        claim = self.operation.claim(point)
        by_default = claim == self.operation.claim(self.operation.served())
        below = name in self.operation.shadowed or (self.operation.in_shadow and by_default)
        seen = self.seen.get(claim)
        if seen is None or seen.below != below:
            capital = Capital(point.certificate.epsilon, "below" if below else "above")
            seen = self.seen[claim] = Seen(capital, below)
        seen.capital.add(float(changed))
        seen.audits, seen.changed = seen.audits + 1, seen.changed + changed
        if seen.capital.rejects(point.certificate.delta / self.api_servers):
            del self.seen[claim]  # to bet anew
            self._move(point, seen)

    @property
    def seen(self) -> dict[str, Seen]:
        """What the audits of each claim have shown since an operator last lifted what they had imposed."""
        if self._lifted != self.operation.lifted:
            self._lifted, self._seen = self.operation.lifted, {}
        return self._seen

    def _move(self, point: OperatingPoint, seen: Seen) -> None:
        """Go one step, now that a claim is rejected: hold the point back, or let it serve again."""
        shown = f"{seen.changed} of {seen.audits} audits changed their answer"
        if seen.below:
            self.operation.accept(point)
            mode = self.operation.mode
            logger.warning("specexit: risk below epsilon at point %s (%s); now in mode %s", point.name, shown, mode)
            self.moved("back")
            return
        self.operation.reject(point)
        instead = self.operation.in_place_of(point).name
        if self.operation.in_shadow:
            move, now = "shadow", "now in shadow mode"
        elif instead in self.operation.shadowed:
            move, now = "shadow", "requests for it are now in shadow mode"
        else:
            move, now = "stricter", f"now {instead}"
        logger.error("specexit: risk above epsilon at point %s (%s); %s", point.name, shown, now)
        self.moved(move)

    def summary(self) -> dict[str, Any]:
        """What ``GET /v1/specexit`` says: of the point that serves by default, and of each that audits have seen."""
        served = self.operation.served()
        found = {point.name: self.seen.get(self.operation.claim(point)) for point in self.operation.file.points}
        points = {
            name: {"audits": seen.audits, "changed": seen.changed, "capital": seen.capital.value}
            for name, seen in found.items()
            if seen is not None
        }
        return {
            "watching": served.name if self.watches(served) else None,
            **points.get(served.name, {"audits": 0, "changed": 0, "capital": 1.0}),
            "api_servers": self.api_servers,
            "in_shadow": self.operation.in_shadow,
            "ceiling": self.operation.ceiling,
            "points": points,
            "stepped": self.operation.stepped,
            "shadowed": sorted(self.operation.shadowed),
            "kept": self.operation.kept is not None and self.operation.kept.writable,
        }
