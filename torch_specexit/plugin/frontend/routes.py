"""Two read-only routes of the API server, below ``/v1``, where vLLM's ``--api-key`` guards them.

``GET /v1/specexit`` says how the server treats exits and what it has seen; ``GET /v1/specexit/requests/ID`` how a
request stands, running or lately finished, also for a client that does not stream.
"""

from __future__ import annotations

from typing import Any

from torch_specexit.plugin.outcome import KEY

PATH = "/v1/specexit"


class Endpoints:
    """What vLLM calls an endpoint plug-in (`vllm.plugins.endpoint_plugins.interface.EndpointPlugin`)."""

    name = "specexit"
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self.processor: Any = None

    def attach_router(self, app: Any) -> None:
        """Add the routes."""
        from fastapi import HTTPException

        @app.get(PATH)
        async def server() -> dict[str, Any]:
            return getattr(self.processor, KEY).summary()

        @app.get(PATH + "/requests/{request_id}")
        async def request(request_id: str) -> dict[str, Any]:
            found = getattr(self.processor, KEY).find(self.processor, request_id)
            if found is None:
                raise HTTPException(404, f"request {request_id!r} is unknown, or finished long ago")
            return found

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Take the engine's output processor, whose requests the routes tell about."""
        self.processor = engine_client.output_processor
