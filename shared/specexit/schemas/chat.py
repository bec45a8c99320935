"""Schema of ``specexit chat``."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from specexit.config import Config


class ChatConfig(Config):
    """Ask a server with the plug-in, and watch it think."""

    url: str = Field(default="http://localhost:8000", description="of the server, without /v1")
    prompt: str | None = Field(default=None, description="one question; without it, a conversation at the terminal")
    model: str | None = Field(default=None, description="as the server calls it; by default the first that it serves")
    api_key: str | None = Field(default=None, description="where the server asks for one")
    max_tokens: int | None = Field(default=None, gt=0, description="of one response, thinking included")
    temperature: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="0 is greedy; by default the sampling that the server's certificates are of, or else its own",
    )
    arguments: dict[str, Any] = Field(default={}, description="what to ask of the plug-in: '{specexit_validity: 0.99}'")
    show_thinking: bool = Field(default=False, description="print the thinking, too")
    timeout: float = Field(default=600.0, gt=0, le=1e6, description="seconds without a word from the server")
