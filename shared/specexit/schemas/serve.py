"""Schema of ``specexit serve``."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator, model_validator

from specexit.config import Config


class ServeConfig(Config):
    """Serve a target with exits, or show whether the installed vLLM fits."""

    check: bool = Field(default=False, description="print the table of hooks for the installed vLLM, and end")
    sources: Path | None = Field(
        default=None, description="with check: folder of an unpacked vLLM wheel to check instead; nothing is imported"
    )
    target: str | None = Field(
        default=None, description="name or YAML file of the target; by default the one that the draft names"
    )
    draft: Path | None = Field(default=None, description="draft directory; its calibrated policy is the default of all")
    num_speculative_tokens: int = Field(default=3, gt=0, description="draft tokens per step")
    arguments: tuple[str, ...] = Field(default=(), description="further arguments of `vllm serve`, as a list")

    @field_validator("arguments")
    @classmethod
    def _hold_no_nul(cls, arguments: tuple[str, ...]) -> tuple[str, ...]:
        for number, argument in enumerate(arguments):
            if "\0" in argument:  # which ends an argument
                raise ValueError(f"number {number} is {argument!r}, expected a text without a NUL character")
        return arguments

    @model_validator(mode="after")
    def _what_to_serve(self) -> ServeConfig:
        if not self.check and self.draft is None:
            raise ValueError("draft is not set: it is needed to serve")
        if self.sources is not None and not self.check:
            raise ValueError(f"sources={self.sources}: only goes with --check")
        return self
