"""What the plug-in uses of vLLM's own objects, with vLLM's names and types: nothing else of them may be touched.

`torch_specexit.plugin.compat.hooks` holds the same as facts that are checked against the installed vLLM before
anything is wrapped; this is for the reader and the type checker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor, device

from specexit.drafts.directory import Serving, SpecExitBlock
from specexit.method.splits import ThinkTokens
from torch_specexit.plugin.protocols import SamplingParams, VllmConfig
from torch_specexit.plugin.worker.rule import Sampled
from torch_specexit.plugin.worker.weights import Weights


@runtime_checkable
class NewRequest(Protocol):
    """`vllm.v1.core.sched.output.NewRequestData`."""

    req_id: str
    prompt_token_ids: list[int] | None
    prompt_embeds: Tensor | None
    sampling_params: SamplingParams | None
    prefill_token_ids: list[int] | None
    """V2: all tokens that the scheduler has of it: of a request that comes back after a preemption, its output too."""


@runtime_checkable
class SchedulerOutput(Protocol):
    """`vllm.v1.core.sched.output.SchedulerOutput`."""

    scheduled_new_reqs: Sequence[NewRequest]
    scheduled_cached_reqs: object
    """Requests that go on; V1's say which of them come back, see `requests.resumed`."""
    num_scheduled_tokens: Mapping[str, int]
    finished_req_ids: set[str]


@runtime_checkable
class LogprobsTensors(Protocol):
    """`vllm.v1.outputs.LogprobsTensors`. First column: the sampled token; the others: the most likely ones."""

    logprob_token_ids: Int[Tensor, "rows columns"]
    logprobs: Float[Tensor, "rows columns"]
    selected_token_ranks: Int[Tensor, " rows"]


@runtime_checkable
class SamplerOutput(Protocol):
    """`vllm.v1.outputs.SamplerOutput`, and that of V2."""

    sampled_token_ids: Int[Tensor, "requests width"]
    logprobs_tensors: LogprobsTensors | None


@runtime_checkable
class Buffer(Protocol):
    """`vllm.v1.utils.CpuGpuBuffer`."""

    gpu: Tensor


@runtime_checkable
class BufferV1(Buffer, Protocol):
    """The same with its values on the host."""

    np: Any
    """An array of numpy's."""


@runtime_checkable
class InputBatchV1(Protocol):
    """`vllm.v1.worker.gpu_input_batch.InputBatch`."""

    num_reqs: int
    req_ids: list[str]
    req_id_to_index: dict[str, int]
    token_ids_cpu: Int[np.ndarray, "requests tokens"]
    """On the host: of each request, its prompt and behind that its output."""


@runtime_checkable
class RequestV1(Protocol):
    """`vllm.v1.worker.gpu_input_batch.CachedRequestState`."""

    prompt_token_ids: list[int] | None
    """None of a prompt in embeddings, of which no token is known."""

    def get_token_id(self, idx: int) -> int:
        """A token of prompt and output."""
        ...


@runtime_checkable
class SpecDecodeMetadata(Protocol):
    """`vllm.v1.spec_decode.metadata.SpecDecodeMetadata`."""

    logits_indices: Int[Tensor, " rows"]
    cu_num_sampled_tokens: Int[Tensor, " requests"]


@runtime_checkable
class StepState(Protocol):
    """``ExecuteModelState`` of either runner, between the target's pass and sampling."""

    aux_hidden_states: list[Float[Tensor, "time hidden"]] | None


@runtime_checkable
class Runner(Protocol):
    """What V1's and V2's ``GPUModelRunner`` have in common."""

    device: device
    vllm_config: VllmConfig
    execute_model_state: StepState | None


@runtime_checkable
class RunnerV1(Runner, Protocol):
    """`vllm.v1.worker.gpu_model_runner.GPUModelRunner`."""

    input_batch: InputBatchV1
    requests: Mapping[str, RequestV1]
    discard_request_mask: BufferV1
    """Requests whose prompts are not yet through."""
    optimistic_seq_lens_cpu: Int[Tensor, " requests"]
    """Tokens of each request behind the step, were all drafts accepted."""
    query_start_loc: Buffer
    positions: Int[Tensor, " time"]
    input_ids: Buffer


@runtime_checkable
class InputBatchV2(Protocol):
    """`vllm.v1.worker.gpu.input_batch.InputBatch`."""

    num_reqs: int
    req_ids: list[str]
    positions: Int[Tensor, " time"]
    input_ids: Int[Tensor, " time"]
    logits_indices: Int[Tensor, " rows"]
    cu_num_logits: Int[Tensor, " requests_and_one"]


@runtime_checkable
class ContextParallel(Protocol):
    """`vllm.v1.worker.gpu.pcp_manager.PCPManager`."""

    def restore_for_sampling(
        self, hidden_states: Float[Tensor, "own hidden"], aux_hidden_states: list[Float[Tensor, "own hidden"]] | None
    ) -> tuple[Float[Tensor, "time hidden"], list[Float[Tensor, "time hidden"]] | None, object]:
        """Hidden states of the whole batch, in its order."""
        ...

    def restore_draft_prefill(
        self, last_hidden_states: Float[Tensor, "own hidden"], hidden_states: Float[Tensor, "own hidden"]
    ) -> tuple[Float[Tensor, "time hidden"], Float[Tensor, "time hidden"]]:
        """The draft's, of its first pass."""
        ...


@runtime_checkable
class RequestStateV2(Protocol):
    """`vllm.v1.worker.gpu.states.RequestState`."""

    req_id_to_index: dict[str, int]
    all_token_ids: Buffer
    """On the device, or in memory of the host that it reads: of each request, its prompt and behind that its output."""


@runtime_checkable
class TargetV2(Protocol):
    """The target's model."""

    def compute_logits(self, hidden_states: Float[Tensor, "rows hidden"]) -> Float[Tensor, "rows vocab"] | None:
        """Raw logits of some rows."""
        ...


@runtime_checkable
class RunnerV2(Runner, Protocol):
    """`vllm.v1.worker.gpu.model_runner.GPUModelRunner`."""

    model: TargetV2
    pcp_manager: ContextParallel | None
    batch_sharder: object | None
    """Where there is one, each rank samples for a part of the batch."""
    req_states: RequestStateV2


Empty = Callable[[Any], Sampled]
"""Takes a runner and gives a step without requests, as that runner makes its steps."""


@runtime_checkable
class Worker(Protocol):
    """`vllm.v1.worker.gpu_worker.Worker`."""

    model_runner: Runner


@runtime_checkable
class AttentionMetadata(Protocol):
    """`vllm.v1.attention.backend.CommonAttentionMetadata`."""

    query_start_loc: Int[Tensor, " requests_and_one"]


@runtime_checkable
class ProposerV1(Protocol):
    """`vllm.v1.spec_decode.llm_base_proposer.SpecDecodeBaseProposer`: V1's draft, and what runs it."""

    model: object
    num_speculative_tokens: int
    _last_draft_probs: Tensor | None
    """Of the drafts that it has proposed last, where a request samples."""

    def _determine_batch_execution_and_padding(self, num_tokens: int) -> object:
        """Waits for data-parallel peers, to agree on a size."""
        ...


@runtime_checkable
class SpeculatorV2(Protocol):
    """`vllm.v1.worker.gpu.spec_decode.eagle.speculator.EagleSpeculator`: V2's."""

    model: object
    last_token_indices: Int[Tensor, " requests"]


@runtime_checkable
class Draft(Protocol):
    """Our own draft model, `torch_specexit.plugin.worker.model`, as the rule's side sees it."""

    block: SpecExitBlock
    serving: Serving
    think_tokens: ThinkTokens
    transition: Sequence[int]
    vocab_size: int
    signals: Float[Tensor, "batch last signals"]
    first_pass: Any
    weights: Weights

    def remember_weights(self) -> None:
        """Remember the weights as they are."""
        ...

    def fall_asleep(self) -> None:
        """Remember the weights, and keep the buffers, before a sleep."""
        ...

    def awake(self) -> None:
        """Put the buffers back, and check whether the sleep has left the weights as they were."""
        ...

    def record(self, passes: int, last_rows: Int[Tensor, " batch"] | None = None) -> None:
        """Have the next passes leave their signals, at these rows and the rows before them."""
        ...

    def leave_signals(self, hidden_states: Float[Tensor, "rows hidden"]) -> None:
        """Read the signals off a pass."""
        ...

    def signals_of_target(
        self, aux: Sequence[Float[Tensor, "time hidden"]], rows: Int[Tensor, " rows"]
    ) -> Float[Tensor, "rows signals"]:
        """Raw signals at some rows of the target's aux hidden states (source ``fc``)."""
        ...
