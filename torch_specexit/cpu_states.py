"""vLLM's connector that writes hidden states, for an engine on a CPU: the stock one pins memory and waits for CUDA.

vLLM imports this file by its name (``kv_connector_module_path``); see `torch_specexit.hidden_states`.
"""

from __future__ import annotations

from functools import partial

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.example_hidden_states_connector import (
    ExampleHiddenStatesConnector,
    PendingSave,
    extract_from_kv_cache,
)


class Done:
    """Stands for a CUDA event that has happened: on a CPU, a copy is complete when the call returns."""

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def query(self) -> bool:
        """Whether it has happened."""
        return True


class CpuStates(ExampleHiddenStatesConnector):
    """Copies the states of a finished request out of the KV cache; all else, the writing too, is vLLM's."""

    def _submit_async_write(self, pending: PendingSave) -> None:
        if not self._is_tp_rank_zero:
            return
        assert self._kv_cache is not None
        inside = torch.arange(self._block_size)
        slots = (torch.tensor(pending.block_ids)[:, None] * self._block_size + inside).flatten()
        tensors = {
            "hidden_states": extract_from_kv_cache(self._kv_cache, slots, len(pending.token_ids)).clone(),
            "token_ids": pending.token_ids.clone(),
        }
        self._req_copy_events[pending.req_id] = Done()  # pyright: ignore[reportArgumentType]
        lock = self._lock_fds.pop(pending.req_id, None)
        future = self._executor.submit(self._write_tensors, tensors, Done(), pending.filename, lock)  # pyright: ignore[reportArgumentType]
        self._req_futures[pending.req_id] = future
        future.add_done_callback(partial(self._on_write_done, pending.req_id))
