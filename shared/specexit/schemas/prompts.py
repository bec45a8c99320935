"""Which columns of a file of prompts mean what."""

from __future__ import annotations

from pydantic import Field

from specexit.config import Config


class ColumnsConfig(Config):
    """Names of columns; only one of prompt and messages must be there."""

    id: str = Field(default="id", description="column of the id, unique; without it the hash of what is asked")
    prompt: str = Field(default="prompt", description="column of the user's text")
    messages: str = Field(default="messages", description="column of a conversation in the place of a prompt")
    reference: str = Field(default="reference", description="column of the right answer")
    task: str = Field(default="task", description="column of the task's name")
    answer_kind: str = Field(default="answer_kind", description="column of the answer kind; by default the target's")
    group: str = Field(default="group", description="column of the part of the population; by default the task")
    choices: str = Field(default="choices", description="column of a multiple-choice question's options")
    ignore: tuple[str, ...] = Field(default=(), description="columns to leave out, or * for all that are not named")
