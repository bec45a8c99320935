"""How a server begins: what vLLM's compile cache sees of a policy, and what keeps a server from starting."""

from __future__ import annotations

import asyncio
import importlib
import json
import shutil
from array import array
from contextlib import nullcontext
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from torch import nn

from specexit.config import ConfigError
from specexit.drafts.directory import DraftError
from specexit.drafts.fingerprints import target_fingerprint
from specexit.drafts.policy import PolicyFile, write_policy
from specexit.method.splits import ThinkTokens, load_tokenizer
from specexit.schemas.target import TargetConfig
from tests.serving.ends import GREEDY, front_end, processor_of
from tests.serving.points import POINTS
from tests.serving.stand_ins import stand_in
from torch_specexit.plugin.certified import served_fingerprints, served_target
from torch_specexit.plugin.compat.request_hooks import REQUEST_HOOKS
from torch_specexit.plugin.frontend import opening
from torch_specexit.plugin.frontend.audit import Case
from torch_specexit.plugin.frontend.protocols import AsyncLLM
from torch_specexit.plugin.protocols import (
    DraftModelConfig,
    LoadConfig,
    ModelConfig,
    ParallelConfig,
    SpeculativeConfig,
    StructuredOutputsConfig,
    VllmConfig,
)
from torch_specexit.plugin.settings import draft_config
from torch_specexit.plugin.worker.model import WithSignals

pytestmark = pytest.mark.vllm

FITS = {"hidden_size": 192, "target_hidden_size": 192, "vocab_size": 640, "target_num_hidden_layers": 4}


MADE = {"fingerprints": {"dtype": "float32"}, "sampling": GREEDY}


@pytest.fixture
def draft(write_random_draft, tmp_path):
    return write_random_draft(tmp_path / "draft", "draft", **FITS, eagle_aux_hidden_state_layer_ids=(1, 3, 4))


def engine_config(target: TargetConfig, draft):
    """vLLM's own configuration of an engine, made as it makes it."""
    from vllm.engine.arg_utils import EngineArgs

    from torch_specexit.plugin import register

    register()
    speculation = {"method": "eagle3", "model": str(draft), "num_speculative_tokens": 3}
    arguments = EngineArgs(model=str(target.folder), dtype="float32", max_model_len=512, speculative_config=speculation)
    return arguments.create_engine_config()


def test_two_policies_have_one_compile_hash_and_the_fingerprints_are_of_what_is_served(target, draft):
    """Recalibrating used to compile target and draft again, as the policy lay in the draft's config.json."""
    hashes = []
    for default in ("bold", "careful"):
        write_policy(draft, PolicyFile.model_validate({"points": POINTS, "default": default}))
        config = engine_config(target, draft)
        hashes.append(config.compute_hash())
    assert hashes[0] == hashes[1]
    found = served_fingerprints(draft, config)
    assert (found["dtype"], found["quantization"], found["kv_cache_dtype"]) == ("float32", "none", "auto")
    made = found | {"dtype": "bfloat16"}
    write_policy(
        draft,
        PolicyFile.model_validate({"points": POINTS, "default": "usual", "fingerprints": made, "sampling": GREEDY}),
    )
    opened = opening.settings_of(config)
    assert opened is not None
    assert opened.doubts == ["dtype is float32, calibrated with bfloat16"]
    assert opened.misfit is None
    said = json.loads((draft / "config.json").read_text())
    (draft / "config.json").write_text(json.dumps(said | {"specexit": said["specexit"] | {"split_endings": ["\n"]}}))
    opened = opening.settings_of(config)
    assert opened is not None
    assert opened.doubts[0] == "config.json of the draft was changed since it was calibrated, and says other boundaries"
    # A checkpoint that asks for a KV cache in fp8: vLLM puts that in the place of "auto".
    config.model_config.hf_config.quantization_config = {"quant_method": "modelopt", "kv_cache_quant_algo": "FP8"}
    for dtype, called in (("fp8_e4m3", "auto"), ("fp8_e5m2", "fp8_e5m2"), ("auto", "auto")):
        config.cache_config.cache_dtype = dtype
        assert served_fingerprints(draft, config)["kv_cache_dtype"] == called


def test_a_draft_of_another_target_of_the_same_sizes_is_called_uncertified_or_not_served(
    target, draft, tmp_path, monkeypatch
):
    """Its config fits, and only the weights tell: a fine-tune, whose every weight is a little different."""
    config = engine_config(target, draft)
    made = served_fingerprints(draft, config)
    write_policy(
        draft,
        PolicyFile.model_validate({"points": POINTS, "default": "usual", "fingerprints": made, "sampling": GREEDY}),
    )
    tuned = shutil.copytree(target.folder, tmp_path / "tuned")
    weights = load_file(tuned / "model.safetensors")
    save_file({name: tensor * np.float32(1.01) for name, tensor in weights.items()}, tuned / "model.safetensors")
    for served, doubted in ((target.folder, False), (tuned, True)):
        config.model_config.model = str(served)
        monkeypatch.setenv("SPECEXIT_SERVING", "{}")
        opened = opening.settings_of(config)
        assert opened is not None
        names = [doubt.split(" is ")[0] for doubt in opened.doubts]
        assert names == (["target"] if doubted else [])
        monkeypatch.setenv("SPECEXIT_SERVING", '{"required": true}')
        message = r"specexit.required is true, .*: target is \w{12}, calibrated with \w{12}"
        with pytest.raises(ConfigError, match=message) if doubted else nullcontext():
            opening.settings_of(config)


def config_with(draft):
    """Of vLLM's configuration of an engine, what is read before its engine starts, but for fingerprints."""
    hf_config = SimpleNamespace(architectures=["SpecExitLlamaForCausalLMEagle3"])
    model = stand_in(DraftModelConfig, model=str(draft), revision=None, hf_config=hf_config)
    return stand_in(
        VllmConfig,
        model_config=stand_in(ModelConfig, model=str(draft), revision=None),
        load_config=stand_in(LoadConfig, download_dir=None),
        parallel_config=stand_in(ParallelConfig, _api_process_count=1),
        structured_outputs_config=stand_in(StructuredOutputsConfig, reasoning_parser=""),
        speculative_config=stand_in(SpeculativeConfig, draft_model_config=model),
        additional_config={},
    )


def starting(draft, monkeypatch):
    """The configuration of a server, and what it has read of its settings before its engine starts."""
    monkeypatch.setattr(opening, "served_fingerprints", lambda folder, config: {})
    monkeypatch.setattr(opening, "misfit_of", lambda config: None)
    config = config_with(draft)
    opened = opening.settings_of(config)
    assert opened is not None
    return config, opened


def engine_with(config):
    """Of an engine's client, what a front end is opened from."""
    return stand_in(
        AsyncLLM,
        vllm_config=config,
        model_config=stand_in(ModelConfig, try_get_generation_config=dict),
        logger_manager=None,
        input_processor=SimpleNamespace(),
        output_processor=processor_of(tokenizer=None),
    )


def test_a_draft_by_its_hub_id_is_fetched_whole(draft, monkeypatch):
    """vLLM fetches its config and weights, and no policy.json: exits came at a default that nobody had calibrated."""
    write_policy(draft, PolicyFile.model_validate({"points": POINTS, "default": "careful"}))

    def fetched(name, revision, cache_dir):
        return f"{draft.parent}/{name[5:]}"

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetched)
    found = draft_config(config_with(f"user/{draft.name}"))
    assert found == draft_config(config_with(draft))
    assert found.specexit.policy.thresholds == {"validity": 0.97}


def test_a_draft_by_its_hub_id_is_fetched_to_where_vllm_keeps_it(draft, monkeypatch):
    """It was fetched a second time, to the Hub's own cache, and the copy that was not served had the fingerprint."""
    caches = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda name, revision, cache_dir=None: caches.append(cache_dir) or str(draft),
    )
    config = config_with("user/draft")
    config.load_config.download_dir = "weights"
    draft_config(config)
    config.speculative_config.draft_load_config = stand_in(LoadConfig, download_dir="of drafts")
    draft_config(config)
    starting("user/draft", monkeypatch)
    assert caches == ["weights", "of drafts", None, None]


def test_a_draft_that_is_neither_a_folder_nor_to_be_had_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for model in ("user/draft", str(tmp_path / "gone")):
        with pytest.raises(DraftError, match=rf"speculative_config\.model is '{model}', expected a folder, or "):
            draft_config(config_with(model))


@pytest.mark.parametrize(("begun", "fetched"), [(False, True), (True, True), (False, False)])
def test_a_target_by_its_hub_id_is_known_once_the_engine_has_fetched_it(
    begun, fetched, target, draft, tmp_path, monkeypatch
):
    """Its weights are not there before the engine starts: all exits were uncertified until a restart, and a server with
    `required` never started; nor did it ever again where a start was killed when some of them had come."""
    made, cache = target_fingerprint(target.folder), tmp_path / "cache"
    assert made is not None
    file = {"points": POINTS, "default": "usual", "fingerprints": {"target": made}, "sampling": GREEDY}
    write_policy(draft, PolicyFile.model_validate(file))
    cache.mkdir()
    shutil.copy(target.folder / "config.json", cache)

    def cached_file(model, name, *, revision, cache_dir):
        assert (model, cache_dir) == ("somebody/target", "weights")  # where vLLM keeps what it fetches
        return str(cache / name)

    monkeypatch.setattr("transformers.utils.hub.cached_file", cached_file)
    monkeypatch.setattr(opening, "served_fingerprints", lambda folder, config: {"target": served_target(config)})
    monkeypatch.setattr(opening, "misfit_of", lambda config: None)
    monkeypatch.setenv("SPECEXIT_SERVING", '{"required": true}')
    config = config_with(draft)
    config.model_config.model, config.load_config.download_dir = "somebody/target", "weights"
    part = cache / "model-00001-of-00002.safetensors"
    if begun:
        shutil.copy(target.folder / "model.safetensors", part)
    opened = opening.settings_of(config)
    assert opened is not None
    part.unlink(missing_ok=True)
    if fetched:
        shutil.copy(target.folder / "model.safetensors", cache)
    front = opening.open_front_end(engine_with(config), opened)
    doubt = None if fetched else f"target is unknown, calibrated with {made[:12]}"
    assert front.problem() == doubt
    assert front.watch is not None
    assert front.watch.served == {"target": made if fetched else None}  # by which another policy.json is judged


class Spaceless:
    """What transformers 5 makes of a byte-level file that names another class: it drops spaces and line breaks."""

    def __init__(self, folder):
        self.file = load_tokenizer(folder)

    def encode(self, text, *, add_special_tokens):
        """Tokens of the letters alone."""
        return self.file.encode("".join(text.split()), add_special_tokens=add_special_tokens)

    def decode(self, token_ids):
        """Text in which no line ends."""
        return "".join(self.file.decode(token_ids).split())

    def __len__(self):
        return len(self.file)


@pytest.mark.parametrize("reads_right", [True, False])
def test_split_tokens_are_of_tokenizer_json_and_an_engine_that_reads_otherwise_is_uncertified(
    reads_right, target, draft, monkeypatch
):
    """Its own tokenizer knew no token that ends a paragraph, so that no server started; and nothing was calibrated on
    prompts as it reads them."""
    write_policy(draft, PolicyFile.model_validate({"points": POINTS, "default": "usual", "sampling": GREEDY}))
    config, opened = starting(draft, monkeypatch)
    config.model_config.tokenizer, config.model_config.tokenizer_revision = str(target.folder), None
    engine = engine_with(config)
    engine.output_processor.tokenizer = target.tokenizer() if reads_right else Spaceless(target.folder)
    front = opening.open_front_end(engine, opened)
    assert front.tokens == target.think_tokens()
    said = [reason for reason in front.operation.uncertified_because() if "tokenizer" in reason]
    assert bool(said) is not reads_right
    assert all("a Spaceless, reads 'What is 3 + 4?" in reason and "as 'Whatis3+4?" in reason for reason in said)


@pytest.mark.parametrize("n", [1, 3])
def test_a_front_end_knows_how_many_api_servers_share_its_engines(n, draft, monkeypatch):
    from vllm.config import ParallelConfig

    monkeypatch.setattr(opening, "served_fingerprints", lambda folder, config: {})
    config = config_with(draft)
    config.parallel_config = ParallelConfig(_api_process_count=n)  # as vLLM's launcher has it in each of them
    opened = opening.settings_of(config)
    assert opened is not None
    front = opening.open_front_end(engine_with(config), opened)
    assert (front.api_servers, front.hold.summary()["api_servers"]) == (n, n)


@pytest.mark.parametrize(
    ("file", "misfit", "message"),
    [
        ({"fingerprints": {"dtype": "float16"}}, None, "dtype is float32, calibrated with float16"),
        ({}, None, "does not say with which dtype it was calibrated: calibrate again"),
        (MADE | {"sampling": None}, None, "does not say at which temperature its traces were sampled"),
        (MADE | {"default": "untested"}, None, "point untested has no certificate"),
        (MADE, "Scheduler.update_from_output takes other parameters", "takes other parameters"),
        (MADE, None, None),
    ],
    ids=["another dtype", "an older file", "sampling unknown", "no certificate", "another vLLM", "as calibrated"],
)
def test_a_server_that_must_have_certified_exits_does_not_start_without(file, misfit, message, draft, monkeypatch):
    write_policy(draft, PolicyFile.model_validate({"points": POINTS, "default": "usual"} | file))
    monkeypatch.setattr(opening, "served_fingerprints", lambda folder, config: {"dtype": "float32"})
    monkeypatch.setattr(opening, "misfit_of", lambda config: misfit)
    monkeypatch.setenv("SPECEXIT_SERVING", '{"required": true}')
    config = config_with(draft)
    if message is None:
        assert opening.settings_of(config) is not None
        return
    with pytest.raises(ConfigError, match=f"specexit.required is true, .*{message}"):
        opening.settings_of(config)
    monkeypatch.setenv("SPECEXIT_SERVING", "{}")
    assert opening.settings_of(config) is not None  # served, and called what it is


@pytest.mark.parametrize("name", ["AsyncLLM.check_health", "OutputProcessor.process_outputs"])
def test_a_server_that_must_have_certified_exits_does_not_start_where_it_would_not_notice_their_end(
    name, draft, monkeypatch
):
    write_policy(draft, PolicyFile.model_validate({"points": POINTS, "default": "usual"} | MADE))
    monkeypatch.setattr(opening, "served_fingerprints", lambda folder, config: {"dtype": "float32"})
    monkeypatch.setattr(opening, "misfit_of", lambda config: None)
    (hook,) = (hook for hook in REQUEST_HOOKS if f"{hook.owner}.{hook.method}" == name)
    for ancestor in getattr(importlib.import_module(hook.module), hook.owner).__mro__:
        if hook.method in vars(ancestor):
            monkeypatch.delattr(ancestor, hook.method)
    assert opening.settings_of(config_with(draft)) is not None
    monkeypatch.setenv("SPECEXIT_SERVING", '{"required": true}')
    with pytest.raises(ConfigError, match=f"specexit.required is true, .*{hook.place}"):
        opening.settings_of(config_with(draft))


@pytest.mark.parametrize("text", ["Time is up.</think>", "<think> again"])
def test_a_transition_that_holds_a_marker_keeps_a_server_from_starting(text, draft, monkeypatch):
    """The answer began within it, with a second end marker; in checking mode the engine died of the first exit."""
    write_policy(draft, PolicyFile.model_validate({"points": POINTS, "default": "usual"} | MADE))
    monkeypatch.setattr(opening, "served_fingerprints", lambda folder, config: {"dtype": "float32"})
    monkeypatch.setenv("SPECEXIT_SERVING", json.dumps({"transition": text}))
    with pytest.raises(ConfigError, match=f"transition is '{text}', expected a text without '</?think>'"):
        opening.settings_of(config_with(draft))


class Stock(nn.Module):
    """Stands for vLLM's draft model."""

    def __init__(self, **_):
        super().__init__()


class Model(WithSignals, Stock):
    """Our draft model, as an engine makes it."""


@pytest.mark.parametrize("said_by", ["config.json", "generation_config.json"])
def test_a_transition_that_ends_the_answer_keeps_an_engine_from_starting(said_by, target, draft, monkeypatch):
    """Every request that exited ended within the text, without an answer, and as if by itself."""
    config = engine_config(target, draft)
    text = "<|im_end|>" if said_by == "config.json" else "<|endoftext|>"
    (end,) = target.tokenizer().encode(text)
    said = {} if said_by == "config.json" else {"eos_token_id": [end]}
    monkeypatch.setattr(type(config.model_config), "try_get_generation_config", lambda self: said)
    monkeypatch.setenv("SPECEXIT_SERVING", json.dumps({"transition": f"Time is up.{text}"}))
    with pytest.raises(ConfigError, match=f"transition is 'Time .*', expected a text without token {end}, with which"):
        Model(vllm_config=config)


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [(("choice",), "same"), ((), "no_answer"), (("choice", "function:shutil:rmtree"), "no_answer")],
)
def test_audits_compare_answers_of_the_kinds_that_a_changed_file_was_calibrated_on(kinds, expected, monkeypatch):
    """The kinds of the start were compared until a restart: behind another calibration audits found no answers."""

    async def generate(*_):
        return "The answer is B"

    monkeypatch.setattr(opening, "generator_of", lambda engine: generate)
    engine, front = engine_with(None), front_end(audit_rate=1.0)
    decoded = {"decode": lambda ids, **_: "The answer is B" if ids else "", "encode": lambda *_, **__: []}
    engine.output_processor.tokenizer = MagicMock(**decoded)
    engine.model_config = stand_in(ModelConfig, is_multimodal_model=False, max_model_len=200)
    front.tokens = ThinkTokens(1, 2, frozenset({3}))
    opened = opening.Opening(None, None, PolicyFile(), front.operation.serving, None, [], None, None, ())
    audit = opening._audit_of(engine, opened, front)
    population = {"prompts": 9, "traces": 9, "answer_kinds": kinds}
    front.operation.load(PolicyFile(population=population), front.operation.serving)
    case = Case("r", array("i", [1]), array("i", [7, 3, 2, 8]), 2, 100)
    assert asyncio.run(audit.judge(case)) == expected
