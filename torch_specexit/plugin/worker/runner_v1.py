"""What is done around a step of vLLM's V1 runner, which CPUs use."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from torch_specexit.plugin.worker.exits import Exits
from torch_specexit.plugin.worker.logprobs import Closing
from torch_specexit.plugin.worker.openings import opens_in
from torch_specexit.plugin.worker.protocols import RunnerV1, SamplerOutput, SpecDecodeMetadata
from torch_specexit.plugin.worker.rule import Sampled


def rewrite(
    runner: RunnerV1,
    exits: Exits,
    output: SamplerOutput,
    logits: Float[Tensor, "rows vocab"] | Closing | None,
    metadata: SpecDecodeMetadata | None,
) -> None:
    """Apply the rule to a `SamplerOutput`, in place, before bookkeeping and drafting. Its rows are padded with -1."""
    requests = runner.input_batch.req_ids[: runner.input_batch.num_reqs]
    tokens = output.sampled_token_ids[: len(requests)]
    # Rows of unfinished prompts have 0 tokens but keep what was drawn: vLLM discards that by its own mask.
    n = (tokens >= 0).sum(dim=1, dtype=torch.int32) * ~runner.discard_request_mask.gpu[: len(requests)]
    if metadata is not None:
        ends, rows = metadata.cu_num_sampled_tokens, metadata.logits_indices
    else:
        ends = torch.arange(1, len(requests) + 1, dtype=torch.int32, device=runner.device)
        rows = runner.query_start_loc.gpu[1 : len(requests) + 1] - 1
    # vLLM's types differ between steps with drafts and without, and each would be a variant of the kernel.
    described = (requests, tokens, n, ends.int(), rows.long(), runner.positions)
    sampled = Sampled(*described, padded=True, input_ids=runner.input_ids.gpu)
    exits.look_through(requests, lambda name, size: _opens(runner, exits, name, size))
    if exits.step(sampled):
        exits.name_forced(output, sampled, logits, by_request=True)
    if exits.source == "draft":
        exits.draft.first_pass.behind = _behind_chunks(runner, exits)


def _behind_chunks(runner: RunnerV1, exits: Exits) -> tuple[Tensor, Tensor] | None:
    """Which requests have more prompt to come, and the token that comes next of each; None where there are none.

    vLLM has the draft read the *last* token of such a prompt behind each chunk. What the draft keeps of that place is
    never written again, and all signals of the request would be read beside it."""
    unfinished = np.flatnonzero(runner.discard_request_mask.np[: runner.input_batch.num_reqs]).tolist()
    requests = [(i, runner.requests[runner.input_batch.req_ids[i]]) for i in unfinished]
    ends = runner.optimistic_seq_lens_cpu.tolist() if requests else []
    tokens = {i: r.get_token_id(ends[i]) for i, r in requests if r.prompt_token_ids is not None}
    if not tokens:
        return None
    return exits.slots.to_device(list(tokens)).long(), exits.slots.to_device(list(tokens.values()))


def read_closing(runner: RunnerV1, exits: Exits, logits: Float[Tensor, "requests vocab"] | None) -> Closing | None:
    """See `Exits.read_closing`; of a step without drafts, which has one row for each request."""
    return exits.read_closing(runner.input_batch.req_ids[: runner.input_batch.num_reqs], logits)


def _opens(runner: RunnerV1, exits: Exits, name: str, size: int) -> Bool[Tensor, ""]:
    batch = runner.input_batch
    prompt = batch.token_ids_cpu[batch.req_id_to_index[name], :size]
    return exits.slots.to_device([opens_in(prompt, exits.ids.start, exits.ids.end_marker)], torch.bool)[0]


def empty(runner: RunnerV1) -> Sampled:
    """A step without requests, with the types that steps of this runner have."""
    tokens = torch.zeros(1, 1, dtype=torch.int32, device=runner.device)
    column = tokens[:, 0]
    return Sampled([], tokens, column, column, column.long(), runner.positions, padded=True).none()
