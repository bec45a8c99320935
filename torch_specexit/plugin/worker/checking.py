"""The checking mode: what the tables know is worked out again in every step, from the tokens alone.

``SPECEXIT_CHECK=1`` switches it on, for tests: it waits for the device in each step, and the engine dies where a row is
not what the tokens say.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

from torch_specexit.plugin.worker.reading import READ, Reader
from torch_specexit.plugin.worker.rule import EARLY_TOKENS, KNOBS, OVER, STATE, THOUGHT, Markers, Sampled
from torch_specexit.plugin.worker.slots import Slots

SWITCH = "SPECEXIT_CHECK"


class CheckError(AssertionError):
    """A row of the tables is not what its request's tokens say."""


def is_checking() -> bool:
    """Whether the checking mode is on."""
    return os.environ.get(SWITCH, "0") not in ("", "0")


def _kind(step: Sampled) -> dict[str, Any]:
    """What decides which variant of the kernel a step needs."""
    tensors = ("tokens", "n", "ends", "logits_rows", "positions", "rejected")
    return {name: getattr(getattr(step, name), "dtype", None) for name in tensors} | {"padded": step.padded}


class Checker:
    """Follows the requests of one runner by their tokens.

    Args:
      slots: of the runner.
      markers: what tokens mean.
    """

    def __init__(self, slots: Slots, markers: Markers):
        self.slots, self.reader = slots, Reader(markers)
        self._closing: list[int] = markers.closing.tolist()
        self._outputs: dict[str, list[int]] = {}
        self.steps = 0
        """Number of checks so far: one for each request of each step."""
        self._unfollowed: set[str] = set()

    def forget(self, requests: Iterable[str]) -> None:
        """Drop finished requests."""
        for request in requests:
            self._outputs.pop(request, None)
            self._unfollowed.discard(request)

    def lose(self, requests: Iterable[str]) -> None:
        """Stop following the requests of a step that was left alone: their rows are lost from there on."""
        self._unfollowed.update(requests)

    def compare(self, request: str, outputs: Sequence[int]) -> None:
        """Check the output that vLLM gives for a request that comes back after a preemption.

        Raises:
          CheckError: the steps of this request did not begin with that output.
        """
        known = self._outputs.get(request, [])
        if request not in self._unfollowed and list(outputs) != known[: len(outputs)]:
            raise CheckError(f"request {request}: vLLM goes on from {list(outputs)}, its steps have given {known}")

    def compare_kinds(self, made_ready: Sampled, sampled: Sampled) -> None:
        """Compare a step with the one that the rule was made ready with.

        Raises:
          CheckError: the step needs another variant of the kernel, which would be compiled while requests wait.
        """
        expected, found = (_kind(step) for step in (made_ready, sampled))
        if found != expected:
            raise CheckError(f"a step is {found}, the rule was made ready for {expected}")

    def before(self, sampled: Sampled) -> None:
        """Find from which token vLLM goes on with each request, and forget what it has dropped behind that.

        Raises:
          CheckError: vLLM has fed tokens that no step has given.
        """
        first = [0, *sampled.ends.tolist()]
        rows, n = sampled.logits_rows.tolist(), sampled.n.tolist()
        positions = sampled.positions.tolist()
        fed = None if sampled.input_ids is None else sampled.input_ids.tolist()
        for i, request in enumerate(sampled.requests):
            if not n[i] or request in self._unfollowed:
                continue
            known = self._outputs.setdefault(request, [])
            count = positions[rows[first[i]]] + 1 - self.slots.admissions[request].prompt
            if not 0 <= count <= len(known):
                raise CheckError(f"request {request}: vLLM goes on behind {count} tokens of output, known are {known}")
            del known[count:]
            if count and fed is not None and fed[rows[first[i]]] != known[-1]:
                raise CheckError(f"request {request}: vLLM goes on from token {fed[rows[first[i]]]}, not {known[-1]}")

    def after(self, sampled: Sampled) -> None:
        """Compare the rows of a step's requests with their tokens.

        Raises:
          CheckError: a row is not what the tokens say.
        """
        table, tokens, n = self.slots.tables.state.tolist(), sampled.tokens.tolist(), sampled.n.tolist()
        for i, request in enumerate(sampled.requests):
            if request in self._unfollowed:
                continue
            outputs = self._outputs.setdefault(request, [])
            outputs += tokens[i][: int(n[i])]
            row = dict(zip(STATE, table[self.slots.row_of[request]], strict=True))
            admission = self.slots.admissions[request]
            expected = self.reader.read(admission, outputs)
            if self._passes_over(request, row):
                expected["last"] = min(expected["last"], THOUGHT)
            if self._is_decided(request, row) or not n[i]:
                expected["last"], row["last"] = (min(last, THOUGHT) for last in (expected["last"], row["last"]))
            found = {name: int(row[name]) for name in READ}
            if found != expected:
                raise CheckError(f"request {request}: its row says {found}, its tokens {outputs} say {expected}")
            self._check_exit(request, row, outputs)
            self.steps += 1

    def _passes_over(self, request: str, row: dict[str, float]) -> bool:
        """Whether the early thresholds pass over a boundary behind the last token, by what the row knows of signals."""
        admission = self.slots.admissions[request]
        if admission.policy is None or not admission.policy.early:
            return False
        behind, most = EARLY_TOKENS - int(row["unread"]), admission.knobs()[KNOBS.index("most")]
        return behind >= 0 and not int(row["near"]) >> behind & 1 and row["thoughts"] < most

    def _is_decided(self, request: str, row: dict[str, float]) -> bool:
        """Whether the row need not mark a boundary, as nothing is decided any more."""
        return bool(row["would_exit"] or row["closed"] or not row["on"]) or request in self.slots.interrupted

    def _check_exit(self, request: str, row: dict[str, float], outputs: list[int]) -> None:
        if not row["exited"] or row["phase"] != OVER:
            return
        begin = int(row["start"] + row["kept"])
        end = int(row["start"] + row["thoughts"]) + len(self.reader.marker)
        if outputs[begin:end] != self._closing:
            raise CheckError(f"request {request}: it is to have exited, but {outputs[:end]} ends otherwise")
