"""Requests to the engine that no client has sent: those of audits, the steps of a beam search, and what vLLM makes of
each item of a call that scores.

They run without exits and are counted nowhere. The first two kinds are marked where they are made: an id does not tell
them from others, as clients choose theirs.
"""

from __future__ import annotations

from contextvars import ContextVar

from torch_specexit.plugin.protocols import SamplingParams

inner: ContextVar[bool] = ContextVar("specexit_inner", default=False)
"""Whether requests that are admitted in this context are of the first two kinds."""


def is_read(params: SamplingParams) -> bool:
    """Whether a request with these `SamplingParams` only reads how likely certain tokens are, as each item of
    ``/generative_scoring`` does.

    Example:
      >>> from vllm import SamplingParams
      >>> is_read(SamplingParams(max_tokens=1, logprob_token_ids=[5, 6])), is_read(SamplingParams(max_tokens=1))
      (True, False)
    """
    return bool(getattr(params, "logprob_token_ids", None)) and params.max_tokens == 1
