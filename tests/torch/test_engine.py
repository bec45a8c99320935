"""Settings of an engine for the machine that it runs on."""

import os

import pytest

from specexit.errors import InputError
from specexit.schemas.engine import EngineConfig
from specexit.schemas.target import load_target_config
from torch_specexit.engine import (
    one_of_several,
    platform_arguments,
    set_environment,
    vllm_platform,
    whole_prompts,
)

DEFAULTS = {
    "OMP_NUM_THREADS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "3",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


@pytest.mark.parametrize(
    ("said", "heard"), [({}, {}), (dict.fromkeys(DEFAULTS, ""), {}), ({"HF_HUB_OFFLINE": "0"},) * 2]
)
def test_a_variable_that_is_empty_says_nothing(said, heard, monkeypatch):
    """With an empty size of the KV cache vLLM takes nearly all memory of a CPU machine."""
    for name in DEFAULTS:
        monkeypatch.setenv(name, "")  # which notes what is there now
        monkeypatch.delenv(name)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    set_environment(EngineConfig(kv_cache_gib=3))
    assert {name: os.environ[name] for name in DEFAULTS} == DEFAULTS | heard


def test_an_engine_that_has_a_gpu_for_itself_is_vllms_own():
    assert platform_arguments(EngineConfig(), on_cpu=False) == {}


@pytest.mark.parametrize(
    ("given", "extra", "tokens"),
    [
        (4096, {}, 4096),
        (128, {}, 1024),
        (128, {"max_model_len": 2048}, 2048),
        (128, {"max_model_len": -1}, None),
        (128, {"max_model_len": "auto"}, None),
    ],
)
def test_prompts_that_are_never_cut_fit_one_forward_pass(given, extra, tokens):
    """On a CPU a chunk of a prompt with a seed of its own ends the engine."""
    config = EngineConfig(max_num_batched_tokens=given, extra=extra)
    expected = {"enable_chunked_prefill": False, "max_num_batched_tokens": tokens}
    assert whole_prompts(config, load_target_config("tiny-reasoner")) == expected


@pytest.mark.vllm
@pytest.mark.parametrize(
    ("target", "given", "extra", "gib"),
    # Qwen3-4B at 40,960 tokens: 37 layers x 8 heads x 128 x 2 x 2 bytes are 5.8 GiB, which two do not hold.
    [
        ("tiny-reasoner", None, {}, 2),
        ("tiny-reasoner", 6, {}, 6),
        ("qwen3-4b-thinking-2507", None, {}, 8),
        ("qwen3-4b-thinking-2507", None, {"max_model_len": "auto"}, 8),
        # What these say was not heard: 8 all the same.
        ("qwen3-4b-thinking-2507", None, {"max_model_len": 4096}, 2),
        ("qwen3-4b-thinking-2507", None, {"max_model_len": 131072}, 24),
        ("qwen3-4b-thinking-2507", None, {"dtype": "float32"}, 15),
        # Words of vLLM's for types counted as float32.
        ("qwen3-4b-thinking-2507", None, {"dtype": "auto"}, 8),
        ("qwen3-4b-thinking-2507", None, {"dtype": "half"}, 8),
    ],
)
def test_engines_that_share_a_gpu_take_a_cache_of_a_fixed_size_each(target, given, extra, gib):
    from vllm import EngineArgs

    several = one_of_several(
        EngineConfig(max_num_seqs=4, kv_cache_gib=given, extra=extra), load_target_config(target), max_num_seqs=8
    )
    assert several.max_num_seqs == 8
    arguments = EngineArgs(model="target", **platform_arguments(several, on_cpu=False))
    assert arguments.kv_cache_memory_bytes == gib * 2**30
    assert arguments.gpu_memory_utilization < 0.1  # else the second one of them would not start
    assert not arguments.enforce_eager


@pytest.mark.vllm
def test_a_vllm_for_other_machines_is_one_line_with_what_to_install(monkeypatch):
    """As `pip install '.[train,serve]'` on a laptop: it was "Failed to infer device type", behind a traceback."""
    from vllm.platforms.interface import UnspecifiedPlatform

    monkeypatch.setattr("vllm.platforms._current_platform", UnspecifiedPlatform())
    with pytest.raises(InputError, match=r"vLLM finds no device .* NVIDIA GPU; .*`make install`"):
        vllm_platform()
