"""An exit may not write what a client has forbidden the model to write, nor into a text that vLLM writes itself."""

from __future__ import annotations

from collections.abc import Sequence

from torch_specexit.plugin.protocols import VllmConfig, runs_v2


def forbids(params: object, closing: Sequence[int]) -> bool:
    """Whether a request's parameters forbid one of the tokens that an exit writes, or a text that these may complete.

    Args:
      params: vLLM's `SamplingParams`. It takes no ``logit_bias`` beside a draft.
      closing: the tokens, in their order.

    Example:
      >>> from types import SimpleNamespace
      >>> word, other = SimpleNamespace(bad_words_token_ids=[[7, 9]]), SimpleNamespace(bad_words_token_ids=[[9, 7]])
      >>> forbids(word, [9]), forbids(other, [9])
      (True, False)
      >>> forbids(SimpleNamespace(allowed_token_ids=[7, 8]), [9])
      True
      >>> forbids(SimpleNamespace(min_tokens=200, all_stop_token_ids={2, 9}), [9])
      True
    """
    allowed = getattr(params, "allowed_token_ids", None)
    words = getattr(params, "bad_words_token_ids", None) or ()
    # Before the minimum, vLLM draws no stop token itself, but ends a request at one that an exit has written.
    not_yet = getattr(params, "all_stop_token_ids", ()) if getattr(params, "min_tokens", 0) else ()
    return (
        (allowed is not None and not set(closing).issubset(allowed))
        or any(_completes(closing, w) for w in words)
        or not set(closing).isdisjoint(not_yet)
    )


def _completes(closing: Sequence[int], word: Sequence[int]) -> bool:
    """Whether a word ends in these tokens, having begun in them or in the text before."""
    written = (closing[:n] for n in range(1, len(closing) + 1))
    return any(list(word[-len(w) :]) == list(w[-len(word) :]) for w in written)


def closes_with_text(vllm_config: VllmConfig, marker: Sequence[int]) -> bool:
    """Whether vLLM, where a request's ``thinking_token_budget`` is used up, writes a text in front of the end marker
    (``reasoning_end_str`` of ``--reasoning-config``) that nothing stops.

    V1's runner counts the tokens that it has still to write, so behind an exit within that text the rest of it, and a
    second marker, would be in the answer. V2's looks at what stands there.
    """
    if runs_v2(vllm_config):
        return False
    reasoning = getattr(vllm_config, "reasoning_config", None)
    written = getattr(reasoning, "reasoning_end_token_ids", None) or marker
    return list(written[: len(marker)]) != list(marker)
