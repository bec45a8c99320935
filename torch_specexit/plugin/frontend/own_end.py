"""Whether a request has come to its end by itself: the model has ended its answer, and nothing else has.

What a client, a limit or an operator has cut off shows nothing of what an exit would have changed, and a client that
cuts its requests must not be able to make a server's risk look smaller, or its thinking shorter, than it is.
"""

from __future__ import annotations

from collections.abc import Container

from torch_specexit.plugin.protocols import EngineCoreOutput, ModelConfig

BY_ITSELF = "specexit_by_itself"
"""Attribute of a `RequestState`, true of a request that has ended by itself. vLLM's front end finds stop strings
without the engine core, which says nothing of such an end; so it is absent then."""

FORCED = (
    "structured_outputs",
    "logit_bias",
    "allowed_token_ids",
    "bad_words",
    "thinking_token_budget",
    "trace_decode_token_ids",
)
"""Sampling parameters by which a client decides what the model writes; not all vLLM versions know all of them."""


def end_tokens(model_config: ModelConfig) -> frozenset[int]:
    """Tokens with which the model ends an answer, beside the tokenizer's own, from its generation config.

    vLLM adds them to a request's ``stop_token_ids``, where the client's own are, too.
    """
    found = model_config.try_get_generation_config().get("eos_token_id")
    return frozenset([found] if isinstance(found, int) else found or ())


def is_by_itself(output: EngineCoreOutput, end_tokens: Container[int | str]) -> bool:
    """Whether an `EngineCoreOutput` is the last of a request that has ended by itself.

    Args:
      output: of the engine core; its ``stop_reason`` is None at the tokenizer's own end of a text.
      end_tokens: the model's others.

    Example:
      >>> from vllm.v1.engine import EngineCoreOutput, FinishReason
      >>> is_by_itself(EngineCoreOutput("a", [7], finish_reason=FinishReason.STOP, stop_reason=7), {7})
      True
      >>> is_by_itself(EngineCoreOutput("a", [5], finish_reason=FinishReason.LENGTH), {7})
      False
    """
    return str(output.finish_reason) == "stop" and (output.stop_reason is None or output.stop_reason in end_tokens)


def forced_by(params: object) -> list[str]:
    """Names of vLLM's `SamplingParams` by which a client has a say in the tokens of a request.

    Example:
      >>> from types import SimpleNamespace
      >>> forced_by(SimpleNamespace(logit_bias={5: 100.0}, bad_words=[])), forced_by(SimpleNamespace(bad_words=[]))
      (['logit_bias'], [])
      >>> forced_by(SimpleNamespace(ignore_eos=True, min_tokens=0))
      ['ignore_eos']
    """
    found = [name for name in FORCED if getattr(params, name, None) not in (None, [], {})]
    return found + [name for name in ("min_tokens", "ignore_eos") if getattr(params, name, None)]
