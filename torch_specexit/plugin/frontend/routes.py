"""Routes of the API server, below ``/v1``, where vLLM's ``--api-key`` guards them.

``GET /v1/specexit`` says how the server treats exits and what it has seen; nothing in it is of a single request. An
operator opens the others by name, in ``serving.routes``:

* ``reports``: ``GET /v1/specexit/requests/ID``, how a request of the same caller stands, running or lately finished;
* ``interrupt``: ``POST /v1/chat/completions/control``, which ends the thinking of a running request of the same caller;
* ``switch``: ``POST /v1/specexit``, which changes what is served, for whoever has the operator's key.
"""

from __future__ import annotations

import os
import secrets
from typing import Annotated, Any, Literal

from pydantic import Field

from specexit.config import Config
from specexit.drafts.directory import Mode
from specexit.errors import InputError
from torch_specexit.plugin.frontend.callers import MOST_ID, MarkCallers
from torch_specexit.plugin.frontend.protocols import AsyncLLM, OutputProcessor
from torch_specexit.plugin.frontend.server import FrontEnd, TooManyError
from torch_specexit.plugin.outcome import KEY

PATH = "/v1/specexit"
CONTROL = "/v1/chat/completions/control"
OPERATOR_KEY = "SPECEXIT_OPERATOR_KEY"
"""Environment variable of the server; the header `OPERATOR_HEADER` must hold its value."""
OPERATOR_HEADER = "X-SpecExit-Operator"


class Switch(Config):
    """What an operator may change while a server runs."""

    mode: Mode | None = Field(default=None, description="of the server")
    point: str | None = Field(default=None, description="operating point of requests that ask for none")
    reload: bool = Field(default=False, description="read policy.json again first")


class Control(Config):
    """What a client may do to its running request; path and body as llama.cpp's server has them."""

    id: Annotated[str, Field(min_length=1, max_length=MOST_ID)]
    action: Literal["reasoning_end"]
    now: bool = Field(default=False, description="at the next token, not at the next boundary")


class Endpoints:
    """What vLLM calls an endpoint plug-in (`vllm.plugins.endpoint_plugins.interface.EndpointPlugin`)."""

    name = "specexit"
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self.engine: AsyncLLM | None = None

    @property
    def serving(self) -> AsyncLLM:
        """The engine: no route is asked before there is one."""
        assert self.engine is not None
        return self.engine

    @property
    def processor(self) -> OutputProcessor:
        """vLLM's output processor, whose requests the routes tell about."""
        return self.serving.output_processor

    @property
    def front(self) -> FrontEnd:
        """The front end."""
        return getattr(self.processor, KEY)

    def _not_found(self) -> str:
        """What an error says of a request that this process does not know."""
        others, mine = self.front.api_servers - 1, "unknown, another's, or finished long ago"
        return f"{mine}; or that of another API server process, of which there are {others} more" if others else mine

    def attach_router(self, app: Any) -> None:
        """Add all routes. Which of them are open is looked up with each request: only the engine knows it."""
        from fastapi import Header, HTTPException

        app.add_middleware(MarkCallers)

        def opened(route: str) -> None:
            if not self.front.opens(route):
                raise HTTPException(404, f"this route is closed; an operator opens it by serving.routes: [{route}]")

        @app.get(PATH)
        async def server() -> dict[str, Any]:
            return self.front.summary()

        @app.get(PATH + "/requests/{request_id:path}")  # which a client may have named by a path of its own
        async def request(request_id: str) -> dict[str, Any]:
            opened("reports")
            found = self.front.find(self.processor, request_id)
            if found is None:
                raise HTTPException(404, f"request {request_id[:100]!r} is {self._not_found()}")
            return found

        @app.post(PATH)
        async def switch(body: Switch, key: str | None = Header(None, alias=OPERATOR_HEADER)) -> dict[str, Any]:
            opened("switch")
            if not is_operator(key):
                raise HTTPException(403, f"the header {OPERATOR_HEADER} does not hold the operator's key")
            try:
                reached = self.front.switch(mode=body.mode, point=body.point, reload=body.reload)
            except InputError as error:
                raise HTTPException(400, str(error)) from error
            return self.front.summary() | {"reached": reached}

        @app.post(CONTROL)
        async def control(body: Control) -> dict[str, Any]:
            opened("interrupt")
            if self.serving.vllm_config.parallel_config.pipeline_parallel_size > 1:
                raise HTTPException(501, "under pipeline parallel no thinking is ended: one stage alone has the draft")
            try:
                found = await self.front.interrupt(self.serving, body.id, now=body.now)
            except TooManyError as error:
                raise HTTPException(429, str(error)) from error
            if not found:
                raise HTTPException(404, f"no running request {body.id[:100]!r} of this caller that thinks")
            return {"id": body.id, "action": body.action, "success": True}

    async def init_state(self, engine_client: AsyncLLM, state: object, args: object) -> None:
        """Take the engine."""
        self.engine = engine_client


def is_operator(given: str | None) -> bool:
    """Whether a header holds the operator's key. Without a key in the environment nobody is."""
    key = os.fsencode(os.environ.get(OPERATOR_KEY, ""))
    # A header's bytes come as so many letters.
    return bool(key) and given is not None and secrets.compare_digest(given.encode("latin-1"), key)
