"""One engine of ``specexit collect``, a process of its own: asks come in, traces go out, one JSON object per line.

The first line of its input holds the config, the last one says that there is nothing more; if the input ends before
that, the parent is gone. Lines of its output that carry no trace count what was done since the line before.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from specexit.errors import InputError
from specexit.processes import look_in_working_folder
from specexit.schemas.collect import CollectConfig
from specexit.schemas.target import load_target_config
from torch_specexit.collecting.local import LocalEngine
from torch_specexit.collecting.tracer import Tracer
from torch_specexit.collecting.work import Ask

Send = Callable[[dict[str, Any]], None]


def _channel() -> Send:
    """Keep stdout for messages alone, and have vLLM print to stderr; returns what sends a message."""
    stream = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def send(message: dict[str, Any]) -> None:
        stream.write(json.dumps(message) + "\n")

    return send


Asks = asyncio.Queue[dict[str, Any] | None]


def _read(loop: asyncio.AbstractEventLoop, asks: Asks) -> None:
    """Pass the input on; end the process at once when the parent's end of the pipe closes, even if it was killed."""
    for line in sys.stdin:
        message = json.loads(line)
        loop.call_soon_threadsafe(asks.put_nowait, None if message.get("done") else message)
    os._exit(1)


async def _work(engine: LocalEngine, tracer: Tracer, asks: Asks, send: Send) -> None:
    """Trace whatever comes in until there is nothing more; the first failure ends it."""
    loop = asyncio.get_running_loop()

    async def one(message: dict[str, Any]) -> None:
        trace = await tracer.trace(Ask.from_json(message["ask"]))
        send({"number": message["number"], "trace": vars(trace)})

    going: set[asyncio.Task[Any]] = {loop.create_task(engine.run())}
    coming = loop.create_task(asks.get())
    while True:
        done, _ = await asyncio.wait({coming, *going}, return_when=asyncio.FIRST_COMPLETED)
        for task in done - {coming}:
            going.discard(task)
            task.result()
        if coming in done:
            message = coming.result()
            if message is None:
                return
            going.add(loop.create_task(one(message)))
            coming = loop.create_task(asks.get())


def main() -> None:
    """Trace what the parent asks for, until it says that there is nothing more."""
    look_in_working_folder()
    send = _channel()
    config = CollectConfig.model_validate(json.loads(sys.stdin.readline())["config"])
    target = load_target_config(config.target)
    with asyncio.Runner() as runner:
        asks: Asks = asyncio.Queue()
        # Before the engine starts, which takes minutes: the parent may be gone meanwhile.
        threading.Thread(target=_read, args=(runner.get_loop(), asks), daemon=True).start()
        try:
            engine = LocalEngine(config, target)
        except InputError as error:  # whose message says all that there is
            sys.exit(str(error))
        tracer = Tracer(config, target, engine, lambda **counts: send(counts))
        runner.run(_work(engine, tracer, asks, send))


if __name__ == "__main__":
    main()
