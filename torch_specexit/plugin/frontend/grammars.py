"""Whether the grammar of a request binds from its first token on, so that no end marker may be written."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch_specexit.plugin.compat.harmless import harmless
from torch_specexit.plugin.frontend.protocols import AsyncLLM, EngineCoreRequest
from torch_specexit.plugin.protocols import StructuredOutputsConfig


def binds_at_once(request: EngineCoreRequest, taken_for_over: Callable[[EngineCoreRequest], bool] | None) -> bool:
    """Whether vLLM's engine holds all of a request to a grammar, though its prompt may open the thinking.

    Args:
      request: vLLM's `EngineCoreRequest`.
      taken_for_over: see `parser_of`.
    """
    if getattr(request.sampling_params, "structured_outputs", None) is None:
        return False
    if request.reasoning_ended is not None or taken_for_over is None:
        return bool(request.reasoning_ended)
    return bool(harmless(lambda: taken_for_over(request)))


def parser_of(engine: AsyncLLM) -> Callable[[EngineCoreRequest], bool] | None:
    """A function that says whether the reasoning of a request is over at its start, as vLLM's engine judges where no
    route has said so (`/v1/responses`): by a reasoning parser, which believes the arguments of the chat template.

    Args:
      engine: vLLM's `AsyncLLM`.

    Returns:
      The function, of an `EngineCoreRequest`; None where there is no tokenizer. Without a reasoning parser it says
      False: grammars always bind then, which the workers know.
    """
    tokenizer = engine.output_processor.tokenizer
    if tokenizer is None:
        return None
    return partial(_is_over, engine.vllm_config.structured_outputs_config, tokenizer)


def _is_over(config: StructuredOutputsConfig, tokenizer: Any, request: EngineCoreRequest) -> bool:
    from vllm.reasoning import ReasoningParserManager

    if not config.reasoning_parser:
        return False
    given = request.reasoning_parser_kwargs or {}
    parser = ReasoningParserManager.get_reasoning_parser(config.reasoning_parser)(tokenizer=tokenizer, **given)
    return parser.is_reasoning_end(request.prompt_token_ids or [])
