"""Reports in streamed responses: the chunk that ends a choice carries its outcome, in the same place as a response that
is not streamed, and after each new verdict a chunk carries how the thinking goes.

vLLM's servers write their chunks as text, from outputs that they take one by one. So the reports are read off the
outputs on their way in, and added on the way out to those chunks alone that have something new to say.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from torch_specexit.plugin.frontend.protocols import RequestOutput
from torch_specexit.plugin.outcome import KEY

DATA, ENDS = "data: ", '"finish_reason":"'


Result = RequestOutput | tuple[int, RequestOutput]
"""An output, or the number of its prompt and the output."""


class Reports:
    """The reports of one streamed response.

    Args:
      n: choices of each prompt.
    """

    def __init__(self, n: int):
        self.n = n
        self._latest: dict[int, dict[str, Any]] = {}
        self._sent: dict[int, dict[str, Any]] = {}

    async def watch(self, results: AsyncIterator[Result]) -> AsyncIterator[Result]:
        """Pass results on, and keep what they say."""
        async for result in results:
            prompt, output = result if isinstance(result, tuple) else (0, result)
            report = (output.kv_transfer_params or {}).get(KEY) or {}
            for i, choice in enumerate(report.get("choices", [report])):
                if choice:
                    self._latest[prompt * self.n + i] = dict(choice)
            yield result

    def annotate(self, chunk: str) -> str:
        """Add the report of its choice to a chunk, where that has not been sent yet or the chunk is the choice's last.

        vLLM streams one choice a chunk. Since 0.33 it fills the same field itself, in last chunks alone.
        """
        news = self._latest != self._sent or ENDS in chunk
        if not news or not chunk.startswith(DATA + "{"):
            return chunk
        body = json.loads(chunk.removeprefix(DATA))
        for choice in body.get("choices", ()):
            report = self._latest.get(choice["index"])
            if report is not None and (choice.get("finish_reason") or report != self._sent.get(choice["index"])):
                self._sent[choice["index"]] = report
                body["kv_transfer_params"] = {**(body.get("kv_transfer_params") or {}), KEY: report}
                return f"{DATA}{json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"
        return chunk

    async def through(self, original: AsyncGenerator[str, None]) -> AsyncIterator[str]:
        """The chunks of one of vLLM's generators, annotated."""
        async with aclosing(original) as chunks:
            async for chunk in chunks:
                yield self.annotate(chunk)
