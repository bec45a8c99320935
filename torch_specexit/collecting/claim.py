"""An output folder belongs to one run: the first collector records which, and those that join or resume must match it.

The record is written under the folder's lock, so that shards that start together wait for the first of them. Its
``run.yaml`` comes last: where a kill came before that, or a run failed before its first trace or on every prompt, the
folder is as good as new, whatever else lies there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from specexit.config import ConfigError, read_yaml, save_run
from specexit.data.engine import save_engine_types
from specexit.data.stream import MANIFEST
from specexit.differences import file_sha256, leaves
from specexit.locks import take
from specexit.schemas.collect import CollectConfig
from specexit.schemas.target import TARGET_FILE, TargetConfig, load_target_config, save_target
from torch_specexit.collecting.manifest import read_files
from torch_specexit.collecting.summary import SUMMARY

FREE_TO_CHANGE = {
    *("out", "n", "shard", "workers", "engine", "endpoints", "ray", "model", "requests", "retries", "timeout"),
    *("any_architecture", "min_finished", "min_answered", "max_undecided", "max_unbroken", "min_forced_as_free"),
    *("parts", "target"),
}
"""Keys that a resumed run may change: no finished row depends on them, or what they name is compared itself. In
``engine.extra`` only `ENGINE_FREE` may change: another quantisation is another model."""

ENGINE_FREE = {
    *("tensor_parallel_size", "pipeline_parallel_size", "enable_expert_parallel", "enable_hc_sp", "nnodes"),
    *("data_parallel_size", "data_parallel_size_local", "data_parallel_rank", "data_parallel_start_rank"),
    *("data_parallel_address", "data_parallel_rpc_port", "data_parallel_backend", "data_parallel_hybrid_lb"),
    *("data_parallel_external_lb", "data_parallel_multi_port_external_lb", "dp_sync_interval"),
    *("prefill_context_parallel_size", "decode_context_parallel_size", "dcp_comm_backend", "dcp_q_replicate"),
    *("dcp_kv_cache_interleave_size", "cp_kv_cache_interleave_size", "enable_batch_sharded_sampling"),
    *("distributed_executor_backend", "disable_custom_all_reduce", "disable_nccl_for_dp_synchronization"),
    *("all2all_backend", "expert_placement_strategy", "enable_eplb", "eplb_config", "enable_ep_weight_filter"),
    *("enable_elastic_ep", "elastic_ep_max_dp_size", "enable_fault_tolerance", "fault_tolerance_config"),
    *("enable_dbo", "ubatch_size", "dbo_decode_token_threshold", "dbo_prefill_token_threshold"),
    *("node_rank", "master_addr", "master_port", "distributed_timeout_seconds", "cpu_distributed_timeout_seconds"),
    *("numa_bind", "numa_bind_nodes", "numa_bind_cpus", "enable_shm_tensor_arena", "ray_workers_use_nsight"),
    *("gpu_memory_utilization", "kv_cache_memory_bytes", "num_gpu_blocks_override", "block_size", "swap_space"),
    *("cpu_offload_gb", "cpu_offload_params", "kv_offloading_size", "kv_offloading_backend", "offload_backend"),
    *("offload_group_size", "offload_num_in_group", "offload_prefetch_step", "offload_params"),
    *("enforce_eager", "cudagraph_capture_sizes", "max_cudagraph_capture_size", "compilation_config"),
    *("optimization_level", "performance_mode", "async_scheduling", "disable_log_stats", "scheduling_policy"),
    *("max_num_seqs", "max_num_batched_tokens", "max_num_scheduled_tokens", "max_num_active_seqs"),
    *("max_num_queued_reqs", "max_num_queued_tokens", "enable_chunked_prefill", "enable_prefix_caching"),
    *("long_prefill_token_threshold", "long_prefill_token_threshold_adaptive", "prefill_schedule_interval"),
    *("scheduler_reserve_full_isl", "watermark", "stream_interval", "disable_chunked_mm_input"),
    *("disable_hybrid_kv_cache_manager", "prefix_caching_hash_algo", "prefix_cache_retention_interval"),
    *("download_dir", "max_parallel_loading_workers", "safetensors_load_strategy", "use_tqdm_on_load"),
    *("safetensors_prefetch_num_threads", "safetensors_prefetch_block_size", "pt_load_map_location"),
}
"""Arguments of ``vllm.LLM`` that say where and how fast the model runs, and not which one it is. ``load_format`` is
not among them, as it may be ``dummy``, nor are classes of workers and schedulers, which may do anything."""

PROMPTS = {"prompts", "columns"}
"""Keys that a run without ``shard`` may change as well, as it compares every finished row with what is asked now."""

HIDDEN = ".collect"
"""Folder of locks and logs in the output folder; the first thing that a run makes."""

ASKED = f"{HIDDEN}/asked.json"
"""Record of what the shards ask, see `torch_specexit.collecting.asked`."""


@contextmanager
def claim(config: CollectConfig, target: TargetConfig) -> Iterator[None]:
    """Make ``config.out`` this run's folder, or check that it already is. Inside the block nobody else can claim it:
    there a shard takes its own lock, which says that the record is in use.

    Raises:
      ConfigError: it holds a run with another config, or of a target that is asked in another way.
      FileExistsError: it is a file, or holds something else.
    """
    out, run = config.out, config.out / "run.yaml"
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out}: is a file, expected a folder")
    if not run.exists() and out.exists() and any(out.iterdir()) and not (out / HIDDEN).is_dir():
        raise FileExistsError(f"{out}: output folder is not empty and holds no run.yaml to resume from")
    (out / HIDDEN).mkdir(parents=True, exist_ok=True)
    with exclusive(out):
        kept, in_use = _kept(out), _in_use(out / HIDDEN)
        if run.exists() and (kept or in_use):
            _hold_against(config, target)
        elif kept:
            raise FileExistsError(f"{out}: output folder holds {kept[0]}, but no run.yaml to resume from")
        else:
            for name in () if in_use else (*read_files(out), SUMMARY, MANIFEST, ASKED):
                (out / name).unlink(missing_ok=True)
            save_target(out, target)
            save_engine_types(out, {} if config.endpoints else config.engine.extra)
            save_run(config, out)
        yield


def _in_use(hidden: Path) -> bool:
    """Whether a shard has written into its log, or is at work."""
    return any(map(_is_begun, hidden.glob("shard-*.jsonl"))) or any(map(_held, hidden.glob("shard-*.lock")))


def _is_begun(log: Path) -> bool:
    """Whether there is something in a log; False where its shard has finished meanwhile, and it is gone."""
    try:
        return log.stat().st_size > 0
    except FileNotFoundError:
        return False


def _kept(out: Path) -> list[str]:
    """Names of the trace files that another run must not remove. Only those in which every prompt has failed, unchanged
    since they were written, may go: a run that asks in another way, as the servers want it, loses nothing by that."""
    files = read_files(out)
    failed = {name for name, entry in files.items() if entry.counts.failed == entry.counts.traces}
    there = {path.name for path in out.glob("*.parquet") if not path.name.startswith(".")}
    changed = {name for name in failed & there if file_sha256(out / name) != files[name].sha256}
    return sorted((there | files.keys()) - failed | changed)


def _held(path: Path) -> bool:
    """Whether the shard with this lock is at work; True on a disk without locks, where it may be."""
    with path.open("r+") as lock:
        try:
            return not take(lock, path.parents[1])
        except BlockingIOError:
            return True


def rename_prompts(config: CollectConfig) -> None:
    """Record how a run without ``shard`` names its prompts now; they must have been found to be the same prompts."""
    earlier, now = read_yaml(config.out / "run.yaml")["config"], config.model_dump(mode="json")
    if config.is_whole and any(earlier.get(key) != now[key] for key in PROMPTS):
        save_run(config, config.out)


@contextmanager
def exclusive(out: Path) -> Iterator[None]:
    """Hold the folder's lock, for the moment of a change to what all shards share."""
    with (out / HIDDEN / "lock").open("w") as lock:
        take(lock, out, wait=True)
        yield


def _hold_against(config: CollectConfig, target: TargetConfig) -> None:
    run, copy = config.out / "run.yaml", config.out / TARGET_FILE
    earlier = read_yaml(run).get("config")
    if not isinstance(earlier, dict):
        raise ConfigError(f"{run}: config is {earlier!r}, expected what `collect` writes there; take a new folder")
    free = FREE_TO_CHANGE | (PROMPTS if config.is_whole else set())
    fixed = [
        {key: value for key, value in leaves("", fields) if not _is_free(key, free)}
        for fields in (earlier, config.model_dump(mode="json"))
    ]
    if differing := _differing(*fixed):
        raise ConfigError(
            f"{run}: the folder holds a run with another config ({differing}); take a new folder"
            + ("" if config.is_whole else ", or, if only prompts go by another name, go on without shard")
        )
    was, now = (
        one.model_dump(mode="json", exclude={"path"}) for one in (load_target_config(str(copy)), target)
    )  # a model may have moved
    if differing := _differing(was, now):
        raise ConfigError(
            f"{copy}: the folder's traces are of target {target.name} as it was ({differing}); take a new folder"
        )


def _is_free(key: str, free: set[str]) -> bool:
    """Whether a resumed run may change a dotted key."""
    argument = key.removeprefix("engine.extra.")
    return key.split(".")[0] in free if argument == key else argument.split(".")[0] in ENGINE_FREE


def _differing(was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Every dotted key whose values differ, with both values; empty where none does."""
    before, after = dict(leaves("", was)), dict(leaves("", now))
    return ", ".join(
        f"{key} is {after.get(key)!r}, was {before.get(key)!r}"
        for key in before | after
        if before.get(key) != after.get(key)
    )
